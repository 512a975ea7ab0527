"""Parses the command line of a command: `--config`, `--config.KEY=VALUE`, own flags, --help."""

import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from inf_jax.config.checks import check_config
from inf_jax.config.config_files import load_config
from inf_jax.config.schema import TYPE_NAMES, Key, keys, keys_of
from inf_jax.config.sections import RunConfig
from inf_jax.core.cli_flags import hyphenated
from inf_jax.core.errors import UserError, main_guard

_EXAMPLE = "medquad_minilm"


def _no_flags(values: flags.FlagValues) -> None:
    """For commands without flags of their own."""


def run(
    main: Callable[..., None],
    doc: str,
    *,
    define: Callable[[flags.FlagValues], None] = _no_flags,
) -> None:
    """Runs a command: parses and checks its command line, and reports errors in one line.

    Args:
      main: called with the checked ConfigDict, and the command's own flags as keywords.
      doc: the command's docstring, shown by --help.
      define: adds the command's own flags.
    """
    with main_guard():
        own = flags.FlagValues()
        define(own)
        config, values = parse_flags(
            sys.argv, doc, sections=RunConfig(), example=_EXAMPLE, define=define
        )
        check_config(config)
        main(config, **{name.replace("-", "_"): values[name].value for name in own})


def parse(argv: Iterable[str], doc: str = "") -> ConfigDict:
    """The checked config of a command line; raises UserError, or SystemExit for --help."""
    config, _ = parse_flags(argv, doc, sections=RunConfig(), example=_EXAMPLE)
    check_config(config)
    return config


def parse_flags(
    argv: Iterable[str],
    doc: str,
    *,
    sections: Any,
    example: str,
    define: Callable[[flags.FlagValues], None] = _no_flags,
) -> tuple[ConfigDict, flags.FlagValues]:
    """Parses `--config=FILE --config.a.b=value` and a command's own flags.

    Args:
      doc: the command's docstring, shown by --help.
      sections: an instance of the section (`config.schema`) whose keys a config must have.
      example: a config's name, for messages.
      define: adds the command's own flags, with hyphens in their names.

    Returns:
      The config, its values not yet checked, and the flags.

    Raises:
      UserError: an unknown flag or key, or a config file that is missing or fails.
      SystemExit: for --help.
    """
    program, *arguments = hyphenated(list(argv))
    values = flags.FlagValues()
    define(values)
    if {"-h", "--help", "--helpshort"} & set(arguments):
        print(help_text(doc, sections, values))
        raise SystemExit(0)
    specs = ["", *(a.partition("=")[2] for a in arguments if a.startswith("--config="))]
    spec = specs[-1]
    if not spec:
        write = "; write --config=NAME, with =" if "--config" in arguments else ""
        raise UserError(f"name a config file, e.g. --config={example}{write}")
    arguments = [a for a in arguments if not a.startswith("--config=")]
    known = {each.name: each for each in keys(sections)}
    config = load_config(spec)
    if other := sorted(set(known) ^ set(keys_of(config))):
        more = f" and {len(other) - 3} more: a config of another command?" if other[3:] else ""
        raise UserError(
            f"--config={spec}: keys that differ from this command's defaults: "
            f"{', '.join(other[:3])}{more}"
        )
    for argument in arguments:
        if argument.startswith("--config."):
            _check_key(argument, known)
    command = [program, *arguments]
    try:
        config_flags.DEFINE_config_dict(
            "config", config, "", flag_values=values, lock_config=True, sys_argv=command
        )
        rest = values(command)
    except flags.UnrecognizedFlagError as error:
        raise UserError(_unknown_flag(error.flagname, values)) from error
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"command line: {_wrong_value(error, arguments, known)}") from error
    if len(rest) > 1:
        raise UserError(f"command line: unexpected {' '.join(rest[1:])}; --help shows the usage")
    return config, values


def _check_key(argument: str, known: dict[str, Key]) -> None:
    name = argument.removeprefix("--config.").partition("=")[0]
    negated = known.get(name.removeprefix("no"))
    if name in known or (negated and isinstance(negated.default, bool)):
        return
    if any(each.startswith(f"{name}.") for each in known):
        raise UserError(f"--config.{name}: is a section; name one of its keys, see --help")
    last = name.rpartition(".")[2]
    close = [each for each in known if each.rpartition(".")[2] == last]
    close = close or get_close_matches(name, known, n=1, cutoff=0.4)
    nearest = f"did you mean {close[0]}? " if close else ""
    raise UserError(f"--config.{name}: no such key; {nearest}(--help lists all)")


def _unknown_flag(name: str, values: flags.FlagValues) -> str:
    if name.startswith("no-") and name.removeprefix("no-") in values:
        return f"command line: write --no{name.removeprefix('no-')}"
    close = get_close_matches(name, ["config", *values], n=1)
    nearest = f"; did you mean --{close[0]}?" if close else ""
    return f"command line: no such flag --{name}{nearest} (--help lists all)"


def _wrong_value(error: Exception, arguments: list[str], known: dict[str, Key]) -> str:
    """A message that names the argument whose value has the wrong type."""
    for argument in arguments:
        name, _, value = argument.removeprefix("--config.").partition("=")
        if name in known and f"config.{name}" in str(error):
            wanted = TYPE_NAMES[type(known[name].default)]
            return f"--config.{name}={value}: must be {wanted}"
    return f"{error}; --help lists flags and keys"


def help_text(doc: str, sections: Any, values: flags.FlagValues) -> str:
    """What --help prints: the command's docstring, its flags, and all keys by section."""
    width = min(shutil.get_terminal_size((100, 20)).columns, 120)
    lines = [doc.strip(), ""]
    if own := list(values):
        lines += ["Flags:", *(f"  --{name}  {values[name].help}" for name in own), ""]
    lines += [
        "Keys: --config.KEY=VALUE changes one. In brackets its default, then its choices.",
        "",
    ]
    section = ""
    for each in keys(sections):
        title = each.name.rpartition(".")[0]
        if title != section:
            section, lines = title, [*lines, "", f"{title}:"]
        choices = " | ".join(map(_shown, each.choices))
        text = f"{each.doc} [{_shown(each.default)}] {choices}"
        name, indent = f"  {each.name:<28} ", " " * 31
        indents = {"initial_indent": name, "subsequent_indent": indent}
        lines += textwrap.wrap(text, width, **indents, break_on_hyphens=False)
    return "\n".join(lines)


def _shown(value: Any) -> str:
    return '""' if value == "" else str(value)


def command_line() -> str:
    """This process's command as one would type it: `python -m inf_jax.train --config=...`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = ["-m", spec.name] if spec else sys.argv[:1]
    return shlex.join(["python", *program, *sys.argv[1:]])
