"""The error class for bad input, and how a command reports it: one line, no traceback."""

import contextlib
import errno
import sys
from collections.abc import Iterator

from inf_jax.core.interrupts import INTERRUPTED, interruptible
from inf_jax.core.output import outlive_readers

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


class UserError(ValueError):
    """Bad input: the message names the file, record or field, and the remedy."""


class UsageError(UserError):
    """A wrong command line: an unknown flag or key, or a value of another type; exit code 2."""


def in_one_line(error: BaseException) -> tuple[str, int] | None:
    """(line to print, exit code) of a user's error; None for what may be a bug."""
    if isinstance(error, UserError):
        return f"error: {error}", 2 if isinstance(error, UsageError) else 1
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", INTERRUPTED
    if isinstance(error, OSError) and error.errno in _DISK:  # wherever it was raised
        where = error.filename or "a file"
        return f"error: {where} cannot be written: {error.strerror}; free some space there", 1
    return None


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type's name where it has none."""
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return (str(text).strip().splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def main_guard() -> Iterator[None]:
    """Reports errors as one line on stderr: a UserError or a full disk (exit code 1), a UsageError
    (2), Ctrl-C (130).

    Anything else is a bug and keeps its traceback. Around a whole command: output that nobody reads
    any more is dropped (`core.output`), and no Ctrl-C is lost (`core.interrupts`).
    """
    outlive_readers()
    try:
        with interruptible():
            yield
    except BaseException as error:
        report = in_one_line(error)
        if report is None:
            raise
        print(report[0], file=sys.stderr)
        raise SystemExit(report[1]) from None
