"""Command-line parsing that the benchmarks and the ablation share."""

import argparse
from collections.abc import Sequence

from inf_jax.core.cli_flags import hyphenated


def make_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """A parser whose help shows a module's docstring as it is written."""
    return argparse.ArgumentParser(
        prog=prog,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def parse_options(
    parser: argparse.ArgumentParser, argv: Sequence[str]
) -> tuple[argparse.Namespace, list[str]]:
    """The parsed options, and the config overrides (`--config.KEY=VALUE`) beside them."""
    args, overrides = parser.parse_known_args(hyphenated(argv))
    unknown = [o for o in overrides if not o.startswith("--config.") or "=" not in o]
    if unknown:
        parser.error(f"unknown arguments: {' '.join(unknown)}; config keys are --config.KEY=VALUE")
    return args, overrides
