"""Spelling of command-line flags: hyphens; earlier versions' underscores are still accepted."""

from collections.abc import Sequence


def hyphenated(argv: Sequence[str]) -> list[str]:
    """`--data_dir=a_b` becomes `--data-dir=a_b`; not config keys (`--config.data.train_split=...`),
    nor anything after `--`."""
    end = argv.index("--") if "--" in argv else len(argv)
    return [*map(_hyphenated, argv[:end]), *argv[end:]]


def _hyphenated(argument: str) -> str:
    name, equals, value = argument.partition("=")
    if not name.startswith("--") or name.startswith("--config."):
        return argument
    return name.replace("_", "-") + equals + value
