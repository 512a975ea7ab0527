"""One kind of error for bad input, and the way a main reports it."""

import contextlib
import errno
import signal
import sys
from collections.abc import Iterator

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


class UserError(ValueError):
    """Bad input: the message names the file, record or field, and the remedy."""


def in_one_line(error: BaseException) -> tuple[str, int] | None:
    """(what to print, exit code) of an error that is no bug of ours; None of one that may be."""
    if isinstance(error, UserError):
        return f"error: {error}", 1
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 128 + signal.SIGINT
    if isinstance(error, OSError) and error.errno in _DISK:  # wherever it was met
        where = error.filename or "a file"
        return f"error: {where} cannot be written: {error.strerror}; free some space there", 1
    return None


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type's name where it has none."""
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return (str(text).strip().splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def main_guard() -> Iterator[None]:
    """Turns a UserError or a full disk inside a main into one line on stderr and exit code 1, and
    Ctrl-C into one and 130.

    Anything else is a bug of ours and keeps its traceback.
    """
    try:
        yield
    except BaseException as error:
        found = in_one_line(error)
        if found is None:
            raise
        print(found[0], file=sys.stderr)
        raise SystemExit(found[1]) from None
