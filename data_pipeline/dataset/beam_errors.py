"""Turns the errors of Beam's workers back into the UserErrors that were raised there."""

import contextlib
import re
from collections.abc import Iterator

from inf_jax.core.errors import UserError

_SUFFIX = " [while running"  # appended by Beam


@contextlib.contextmanager
def worker_errors() -> Iterator[None]:
    """Raises UserError if a worker did; other errors propagate unchanged.

    Runners report errors as text, usually in a RuntimeError with the worker's traceback. Messages
    of UserErrors are one line each.
    """
    try:
        yield
    except Exception as error:
        text = str(error)
        messages = re.findall(r"\b(?:UserError|CorruptRecordError): (.+)", text)
        if not messages and not isinstance(error, UserError):
            raise
        raise UserError((messages or [text])[-1].split(_SUFFIX)[0]) from error
