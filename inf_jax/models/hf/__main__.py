"""Compares the token states of local models with those of transformers (PyTorch).

    python -m inf_jax.models.hf --check DIR [DIR...]

prints a table; exit code 1 if a model's states differ.
"""

import sys

from inf_jax.core.cli_flags import FlagParser
from inf_jax.core.errors import UserError, main_guard
from inf_jax.models.hf import check
from inf_jax.models.hf.resolve import resolve_model


def main() -> None:
    """Checks the models that the command line names."""
    with main_guard():
        parser = FlagParser(__doc__, "python -m inf_jax.models.hf")
        about = "model directories or hub ids"
        parser.add("--check", about, many=True, metavar="DIR", example="models/e5-base")
        names = parser.parse(sys.argv[1:]).check
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
