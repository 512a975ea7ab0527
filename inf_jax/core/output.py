"""Standard output and error that drop what nobody reads any more, so that a command goes on."""

import contextlib
import errno
import io
import os
import sys

_GONE = (errno.EPIPE, errno.EIO)  # of a pipe (`| head`), of a terminal


class _Descriptor(io.FileIO):
    """An open descriptor; once its reader has gone it leads to /dev/null."""

    def write(self, data) -> int | None:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in _GONE:
                raise
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())  # for what libraries write there as well
            os.close(null)
            return super().write(data)


def outlive_readers() -> None:
    """Makes this process go on where the reader of its output ends, and drop the rest.

    What a command is for is in its files: `train | head` trains to the end. Descriptors that were
    closed at the start lead to /dev/null, so that no file gets their number. Streams that somebody
    has replaced stay as they are. Calling it again changes nothing.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, _text(descriptor, "utf-8", "backslashreplace"))
        elif stream is getattr(sys, f"__{name}__") and _is(stream, descriptor):
            with contextlib.suppress(OSError):
                stream.flush()
            lines, through = stream.line_buffering, stream.write_through
            errors = "backslashreplace" if stream.errors == "strict" else stream.errors
            own = _text(descriptor, stream.encoding, errors, lines=lines, through=through)
            setattr(sys, name, own)


def _is(stream: io.TextIOBase, descriptor: int) -> bool:
    try:
        return stream.fileno() == descriptor
    except (OSError, ValueError):
        return False


def _text(
    descriptor: int, encoding: str, errors: str, *, lines: bool = False, through: bool = False
) -> io.TextIOWrapper:
    raw = _Descriptor(descriptor, "w", closefd=False)
    buffer = io.BufferedWriter(raw)
    options = {"line_buffering": lines, "write_through": through}
    return io.TextIOWrapper(buffer, encoding=encoding, errors=errors, **options)
