"""One kind of error for bad input, and the way a main reports it."""

import contextlib
import signal
import sys
from collections.abc import Iterator


class UserError(ValueError):
    """Bad input: the message names the file, record or field, and the remedy."""


@contextlib.contextmanager
def main_guard() -> Iterator[None]:
    """Turns a UserError inside a main into one line on stderr and exit code 1, and Ctrl-C into one
    and 130.

    Anything else is a bug of ours and keeps its traceback.
    """
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
