"""Compares the token states of local models with those of transformers (PyTorch).

    python -m inf_jax.models.hf --check DIR [DIR...]

prints a table; exit code 1 if a model's states differ.
"""

import argparse

from inf_jax.core.errors import UserError, main_guard
from inf_jax.models.hf import check
from inf_jax.models.hf.resolve import resolve_model


def main() -> None:
    """Checks the models that the command line names."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    about = "model directories or hub ids"
    parser.add_argument("--check", nargs="+", metavar="DIR", required=True, help=about)
    with main_guard():
        names = parser.parse_args().check
        results, errors = [], []
        try:
            for name in names:
                try:
                    results += check.check_all(resolve_model(name), name)
                except UserError as error:
                    errors.append(str(error))
        finally:  # print the results so far even if a later model fails
            if results:
                check.print_results(results)
        wrong = [result.name for result in results if not result.ok]
        if wrong:
            errors.append(f"{', '.join(wrong)}: token states differ from transformers'")
        if errors:
            raise UserError("; ".join(errors))


if __name__ == "__main__":
    main()
