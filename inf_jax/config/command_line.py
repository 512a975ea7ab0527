"""Parses the command line of a command: `--config`, `--config.KEY=VALUE`, own flags, --help."""

import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from inf_jax.config.checks import check_config
from inf_jax.config.config_files import load_config
from inf_jax.config.idle import idle_keys
from inf_jax.config.schema import Key, expand_paths, keys, keys_of, type_problems
from inf_jax.config.sections import RunConfig
from inf_jax.core.cli_flags import FlagParser
from inf_jax.core.errors import UsageError, UserError, first_line, main_guard

EXAMPLE = "medquad_minilm"  # a config, for messages
_OVERRIDES = ("--config.", "--noconfig.")  # absl's: --config.KEY=VALUE, --noconfig.KEY


def _no_flags(parser: FlagParser) -> None:
    """For commands without flags of their own."""


def run(
    main: Callable[..., None], doc: str, *, define: Callable[[FlagParser], None] = _no_flags
) -> None:
    """Runs a command: parses and checks its command line, and reports errors in one line.

    Args:
      main: called with the checked ConfigDict, and the command's own flags as keywords.
      doc: the command's docstring, shown by --help.
      define: adds the command's own flags.
    """
    with main_guard():
        config, own = parse_flags(
            sys.argv, doc, sections=RunConfig(), example=EXAMPLE, define=define
        )
        check_config(config)
        say_idle(idle_keys(config, asks=False))
        main(config, **own)


def say_idle(idle: Sequence[str]) -> None:
    """Prints to stderr which of the keys that are set have no effect, see `idle_keys`."""
    for text in idle:
        print(f"config: {text}; it has no effect", file=sys.stderr)


def parse(argv: Sequence[str], doc: str = "") -> ConfigDict:
    """The checked config of a command line; raises UserError, or SystemExit for --help."""
    config, _ = parse_flags(argv, doc, sections=RunConfig(), example=EXAMPLE)
    check_config(config)
    return config


def parse_flags(
    argv: Sequence[str],
    doc: str,
    *,
    sections: Any,
    example: str,
    define: Callable[[FlagParser], None] = _no_flags,
) -> tuple[ConfigDict, dict[str, Any]]:
    """Parses `--config=FILE --config.a.b=value` and a command's own flags.

    Args:
      argv: the command line, as in `sys.argv`.
      doc: the command's docstring, shown by --help.
      sections: an instance of the section (`config.schema`) whose keys a config must have.
      example: a config's name, for messages.
      define: adds the command's own flags.

    Returns:
      The config, its values not yet checked, and the values of the own flags by name.

    Raises:
      UsageError: an unknown flag or key, or a value of another type.
      UserError: a config file that is missing or fails.
      SystemExit: for --help.
    """
    known = {each.name: each for each in keys(sections)}
    asked_for_help = {"-h", "--help"} & set(argv)
    parser = FlagParser(doc, more_help=_help_on_keys(sections) if asked_for_help else "")
    about = "config file, or the name of a shipped one"
    parser.add("--config", about, metavar="NAME", example=example)
    define(parser)
    args, rest = parser.parse_known(argv[1:], override_check(parser, sections))
    own = vars(args)
    spec = own.pop("config")
    config = load_config(spec)
    if other := sorted(set(known) ^ set(keys_of(config))):
        more = f" and {len(other) - 3} more: a config of another command?" if other[3:] else ""
        raise UserError(
            f"--config={spec}: keys that differ from this command's defaults: "
            f"{', '.join(other[:3])}{more}"
        )
    if problems := type_problems(sections, config):
        raise UserError(f"--config={spec}: {'; '.join(problems)}")
    _override(config, rest, known)
    if problems := type_problems(sections, config):
        raise UserError(f"config: {'; '.join(problems)}")
    expand_paths(sections, config)
    return config, own


def override_check(parser: FlagParser, sections: Any) -> Callable[[str], None]:
    """For `FlagParser.parse_known`: raises UsageError unless a flag overrides a known key."""
    known = {each.name: each for each in keys(sections)}

    def check(flag: str) -> None:
        if not flag.startswith(_OVERRIDES):
            parser.refuse_unknown(flag, [f"--config.{name}" for name in known])
        _check_key(flag, known)

    return check


def _override(config: ConfigDict, arguments: Sequence[str], known: dict[str, Key]) -> None:
    """Changes the keys of a config that the command line gives."""
    values, command = flags.FlagValues(), ["", *arguments]
    try:
        config_flags.DEFINE_config_dict(
            "config", config, "", flag_values=values, lock_config=True, sys_argv=command
        )
        stray = values(command)[1:]
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"command line: {_wrong_value(error, arguments, known)}") from error
    if stray:
        raise UsageError(f"command line: unexpected {' '.join(stray)}; --help shows the usage")


def _check_key(flag: str, known: dict[str, Key]) -> None:
    prefix, _, name = flag.partition("=")[0].partition(".")
    if name in known:
        if prefix == "--noconfig" and not isinstance(known[name].default, bool):
            raise UsageError(f"{prefix}.{name}: only keys that are True or False; see --help")
        return
    if any(each.startswith(f"{name}.") for each in known):
        raise UsageError(f"--config.{name}: is a section; name one of its keys, see --help")
    last = name.rpartition(".")[2]
    close = [each for each in known if each.rpartition(".")[2] == last]
    close = close or get_close_matches(name, known, n=1, cutoff=0.4)
    nearest = f"did you mean {close[0]}? " if close else ""
    raise UsageError(f"{prefix}.{name}: no such key; {nearest}(--help lists all)")


def _wrong_value(error: Exception, arguments: Sequence[str], known: dict[str, Key]) -> str:
    """A message that names the argument whose value has the wrong type."""
    for argument in arguments:
        name, _, value = argument.removeprefix("--config.").partition("=")
        if name in known and f"config.{name}" in str(error):
            wanted = known[name].type_name
            return f"--config.{name}={value}: must be {wanted}"
    return f"{first_line(error)}; --help lists flags and keys"


def _help_on_keys(sections: Any) -> str:
    """All keys by section, with their defaults and choices."""
    width = min(shutil.get_terminal_size((100, 20)).columns, 120)
    lines = [
        "Keys: --config.KEY=VALUE changes one. In brackets its default, then its choices.",
        "",
    ]
    section = ""
    for each in keys(sections):
        title = each.name.rpartition(".")[0]
        if title != section:
            section, lines = title, [*lines, "", f"{title}:"]
        choices = " | ".join(map(_shown, each.choices or each.words))
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
