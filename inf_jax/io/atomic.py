"""Files that are whole or absent: written under a partial name, synced, then renamed.

A partial is `<name>.partial-<pid>-<random>` beside the final file and stays locked (flock) while
its writer lives. The next write of the same file deletes the partials that nobody holds locked, so
a killed run leaves nothing behind for good, and a second writer is never disturbed.
"""

import contextlib
import errno
import fcntl
import glob
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from inf_jax.core.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_BUFFER = 1 << 20


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A binary file open for writing that becomes `path` when the block ends without an error.

    Missing parent directories are made. After any error, the block's own included, `path` is as it
    was before and the partial is gone.

    Raises:
      UserError: the file cannot be written (disk full, no permission); names file and remedy.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _delete_stale_partials(path)
        file = _open_partial(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        try:
            yield file
        except OSError as error:
            # a write to an open file names no file; anything else is the block's own affair
            if error.errno in _FULL and error.filename is None:
                raise _unwritable(path, error) from error
            raise
        try:
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, path)
            _sync_directory(path.parent)
        except OSError as error:
            raise _unwritable(path, error) from error
    finally:
        with contextlib.suppress(FileNotFoundError):  # renamed: the usual case
            os.unlink(file.name)
        with contextlib.suppress(OSError):  # close() flushes once more; reported above
            file.close()


def _unwritable(path: Path, error: OSError) -> UserError:
    if error.errno in _FULL:
        remedy = f"free some space on the disk of {path.parent}, or choose another directory"
    else:
        remedy = f"check that {path.parent} is a directory in which you may write"
    return UserError(f"cannot write {path}: {error.strerror}; {remedy}")


def _open_partial(path: Path) -> BinaryIO:
    while True:
        name = f"{path}.partial-{os.getpid()}-{secrets.token_hex(4)}"
        file = open(name, "xb", _BUFFER)  # noqa: SIM115 (atomic_file closes it)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # another process is about to delete it: it was not locked yet
            file.close()
            continue
        except OSError:  # a file system without locks: nobody can call it stale either
            return file
        if os.path.exists(name):
            return file
        file.close()


def _delete_stale_partials(path: Path) -> None:
    for name in glob.glob(f"{glob.escape(str(path))}.partial-*"):
        with contextlib.suppress(OSError), open(name, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises while its writer lives
            os.unlink(name)


def _sync_directory(directory: Path) -> None:
    with contextlib.suppress(OSError):  # some file systems cannot sync a directory
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
