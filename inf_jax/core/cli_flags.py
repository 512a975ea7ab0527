"""Parses the flags of every command in one way; what is wrong is said in one line."""

import argparse
import math
import os
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from difflib import get_close_matches
from typing import Any

from inf_jax.core.errors import UsageError

_TRUE, _FALSE = ("true", "t", "1", "yes"), ("false", "f", "0", "no")
_NEGATIVE_NUMBER = re.compile(r"-\.?\d")


class FlagParser:
    """The flags of one command, on argparse.

    Flags have hyphens; underscores, which earlier versions had, are taken for them. They are never
    abbreviated. A boolean is written `--x` or `--no-x`; also taken are `--nox` and `--x=true`.

    Args:
      doc: the command's docstring, shown by --help.
      program: how the command is started, for the usage line of --help; "" for no such line.
      more_help: what --help shows after the flags.
    """

    def __init__(self, doc: str, program: str = "", *, more_help: str = ""):
        self._parser = _OneLineParser(
            prog=program or None,
            usage=None if program else argparse.SUPPRESS,
            description=doc.strip(),
            epilog=more_help or None,
            formatter_class=_Help,
            allow_abbrev=False,
            exit_on_error=False,
        )
        self._booleans: set[str] = set()
        self._examples: dict[str, str] = {}  # flag that must be given -> a value, for messages
        self.names = ["--help", "-h"]

    def add(
        self,
        name: str,
        doc: str | None,
        *,
        default: Any = None,
        of: Callable[[str], Any] = str,
        choices: Collection[str] = (),
        metavar: str = "",
        many: bool = False,
        example: str = "",
    ) -> None:
        """Adds a flag with a value, or an argument if `name` has no hyphens before it.

        Args:
          doc: for --help, which adds the default; None hides the flag.
          of: converts the text; raises `argparse.ArgumentTypeError`, see `number`. Of a FILE or DIR
            (`metavar`), `~` at its start is replaced by the home directory before.
          choices: the allowed values.
          metavar: stands for the value in --help.
          many: several values, separated by spaces, give a list.
          example: a value, for messages; the flag must be given then.
        """
        convert = of
        if metavar in ("FILE", "DIR"):
            convert = lambda text: of(os.path.expanduser(text))  # noqa: E731
        is_flag = name.startswith("-")
        if is_flag:
            self.names.append(name)
            if example:
                self._examples[name] = example
        self._parser.add_argument(
            name,
            help=argparse.SUPPRESS if doc is None else doc,
            default=default,
            type=convert,
            choices=choices or None,
            metavar=metavar or None,
            nargs=("+" if is_flag else "*") if many else None,
            **({"required": True} if example else {}),
        )

    def add_boolean(self, name: str, doc: str, *, default: bool | None = False) -> None:
        """Adds the flag `--x` with its negation `--no-x`."""
        negation, stored = f"--no-{name[2:]}", name[2:].replace("-", "_")
        self.names += [name, negation]
        self._booleans.add(name)
        add = self._parser.add_argument
        add(name, dest=stored, action="store_const", const=True, default=default, help=doc)
        add(negation, dest=stored, action="store_const", const=False, help=argparse.SUPPRESS)

    def parse(self, argv: Sequence[str], more_names: Iterable[str] = ()) -> argparse.Namespace:
        """The values of a command line, without the program's name.

        Raises:
          UsageError: an unknown flag, for which also `more_names` may have been meant; a value that
            is missing, of another type or not among the choices.
          SystemExit: for --help.
        """
        args, rest = self.parse_known(argv, lambda flag: self.refuse_unknown(flag, more_names))
        if rest:
            raise UsageError(f"command line: unexpected {' '.join(rest)}; --help shows the usage")
        return args

    def parse_known(
        self, argv: Sequence[str], check: Callable[[str], None]
    ) -> tuple[argparse.Namespace, list[str]]:
        """As `parse`; also returns the flags that are not known here, as they were written.

        Args:
          check: called with each of them, `--x=3`; raises if it is an error.
        """
        ours, rest = self._split(argv)
        if {"-h", "--help"} & set(ours):
            self._parser.parse_args(["--help"])
        for argument in rest:
            if argument.startswith("-"):
                check(argument)
        given = {argument.partition("=")[0] for argument in ours if not argument.endswith("=")}
        if missing := [name for name in self._examples if name not in given]:
            example = " ".join(f"{name}={self._examples[name]}" for name in missing)
            raise UsageError(f"command line: {' and '.join(missing)} missing, e.g. {example}")
        try:
            args, more = self._parser.parse_known_args(ours)
        except argparse.ArgumentError as error:
            name = f"{error.argument_name}: " if error.argument_name else ""
            raise UsageError(f"{name}{error.message}") from None
        return args, [*rest, *more]

    def knows(self, flag: str) -> bool:
        """Whether `flag`, perhaps with a value (`--x=3`), is one of these flags."""
        return self._standard(flag.partition("=")[0]) in self.names

    def refuse_unknown(self, flag: str, more_names: Iterable[str] = ()) -> None:
        """Raises a UsageError that names the nearest of the known flags, or of `more_names`."""
        known = [*self.names, *more_names]
        written = flag.partition("=")[0]
        nearest = nearest_name(written, known)
        hint = f"; did you mean {nearest}?" if nearest else ""
        raise UsageError(f"command line: unknown flag {written}{hint} (--help lists all)")

    def refuse_idle(self, args: argparse.Namespace, names: Iterable[str], why: str) -> None:
        """Raises UsageError if one of these flags has another value than its default.

        Args:
          args: of `parse`, perhaps with more flags than these.
          names: as the attributes of `args`.
          why: they would have no effect.
        """
        default = self._parser.get_default
        given = [name for name in names if (getattr(args, name) or None) != (default(name) or None)]
        if given:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            them = "them" if len(given) > 1 else "it"
            raise UsageError(f"command line: {flags} would have no effect: {why}; leave {them} out")

    def _split(self, argv: Sequence[str]) -> tuple[list[str], list[str]]:
        """(known flags and arguments, in standard spelling; unknown flags, as they are written)."""
        end = argv.index("--") if "--" in argv else len(argv)
        ours, rest, waiting = [], [], False
        for argument in argv[:end]:
            if not _is_flag(argument):  # the value of a flag before it, or an argument
                (rest if waiting else ours).append(argument)
                waiting = False
                continue
            name, equals, value = argument.partition("=")
            name = self._standard(name)
            if name in self._booleans and equals:
                ours.append(_boolean(name, value))
            elif name in self.names:
                ours.append(name + equals + value)
            else:
                rest.append(argument)
            waiting = name not in self.names and not equals
        return [*ours, *argv[end:]], rest

    def _standard(self, name: str) -> str:
        name = _hyphens(name)
        if name.startswith("--no") and f"--{name[4:]}" in self._booleans:
            return f"--no-{name[4:]}"
        return name


class _OneLineParser(argparse.ArgumentParser):
    """argparse that raises UsageError in place of printing its usage."""

    def error(self, message: str):
        raise UsageError(f"command line: {message}; --help shows the usage")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        raise argparse.ArgumentError(action, _not_among(str(value), [*map(str, action.choices)]))


class _Help(argparse.RawDescriptionHelpFormatter):
    """Shows a docstring as it is written, and defaults."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = (action.help or "").replace("%", "%%"), action.default
        if isinstance(default, list | tuple):
            default = " ".join(map(str, default))
        hidden = default is None or isinstance(default, bool) or default in ("", argparse.SUPPRESS)
        return text if hidden or "default" in text else f"{text} (default: {default})"


def nearest_name(name: str, known: Iterable[str]) -> str:
    """The known name that was probably meant, or "".

    `--config.a.b` may also have been written `--a.b` or `--b`.
    """
    meant: dict[str, str] = {}
    for each in known:
        bare = _hyphens(each.lstrip("-").removeprefix("config."))
        for spelling in (bare, bare.rpartition(".")[2]):
            meant.setdefault(spelling, each)
    bare = _hyphens(name.lstrip("-").removeprefix("config."))
    close = get_close_matches(bare, meant, n=1)
    return meant[close[0]] if close else ""


def number(text: str) -> float:
    """A finite number; for `FlagParser.add`."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return value


def whole_number(text: str) -> int:
    """A whole number; for `FlagParser.add`."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def at_least(least: float, kind: Callable[[str], float] = whole_number) -> Callable[[str], float]:
    """A number from `least` on; for `FlagParser.add`."""

    def convert(text: str) -> float:
        value = kind(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, not {text}")
        return value

    return convert


def above_zero(text: str) -> float:
    """A number above 0; for `FlagParser.add`."""
    value = number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"must be above 0, not {text}")
    return value


def names_among(known: Collection[str]) -> Callable[[str], list[str]]:
    """The parts of `a,b`, each one of the known names, if there are any; for `FlagParser.add`."""

    def convert(text: str) -> list[str]:
        names = [part for part in (part.strip() for part in text.split(",")) if part]
        for name in names:
            if known and name not in known:
                raise argparse.ArgumentTypeError(_not_among(name, known))
        return names

    return convert


def check_choice(what: str, name: str, known: Collection[str]) -> None:
    """Raises a UsageError with the nearest known name if `name` is not one of them.

    Args:
      what: what is named, for the message.
    """
    if name not in known:
        raise UsageError(f"{what}: {_not_among(name, known)}")


def _not_among(name: str, known: Collection[str]) -> str:
    nearest = nearest_name(name, known)
    hint = f"did you mean {nearest}? " if nearest else ""
    return f"{name!r} is not a choice; {hint}(choose from {', '.join(known)})"


def _is_flag(argument: str) -> bool:
    return argument.startswith("-") and len(argument) > 1 and not _NEGATIVE_NUMBER.match(argument)


def _hyphens(name: str) -> str:
    return name.replace("_", "-")


def _boolean(name: str, value: str) -> str:
    no = f"--no-{name[2:]}"
    if value.lower() not in (*_TRUE, *_FALSE):
        raise UsageError(f"{name}: {value!r} is neither true nor false; write {name} or {no}")
    return name if value.lower() in _TRUE else no
