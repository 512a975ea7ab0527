"""What a worker of Beam raised, as the error of ours that it was."""

import contextlib
import re
from collections.abc import Iterator

from inf_jax.core.errors import UserError

_WHERE = " [while running"  # what Beam adds


@contextlib.contextmanager
def worker_errors() -> Iterator[None]:
    """Raises UserError where a worker did; all else goes through.

    Runners pass an error on as text, mostly in a RuntimeError with the worker's traceback; the
    messages of ours are one line each.
    """
    try:
        yield
    except Exception as error:
        text = str(error)
        ours = re.findall(r"\b(?:UserError|CorruptRecordError): (.+)", text)
        if not ours and not isinstance(error, UserError):
            raise
        raise UserError((ours or [text])[-1].split(_WHERE)[0]) from error
