"""Writes files and directories that are whole or absent: under a partial name, then renamed.

A partial is `<name>.partial-<pid>-<random>` beside the final path and stays locked while its writer
lives. The next write of the same path deletes the partials that nobody holds locked, so a killed
run leaves nothing behind for good, and a second writer is never disturbed.
"""

import contextlib
import errno
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from inf_jax.core.errors import UserError
from inf_jax.io.locks import try_lock

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_BUFFER = 1 << 20
_OLD = "-old"  # a directory that is being replaced, between the two renames


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A binary file open for writing that becomes `path` when the block ends without an error.

    Missing parent directories are made. After any error, the block's own included, `path` is as it
    was before. Raises UserError where the file cannot be written (disk full, no permission).
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _delete_stale_files(path)
        file = _open_partial(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        try:
            yield file
        except OSError as error:
            # a failed write to an open file names no file; any other error is the block's own
            if error.errno in _FULL and error.filename is None:
                raise _unwritable(path, error) from error
            raise
        try:
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, path)
            with contextlib.suppress(OSError):  # the file itself is safe
                _sync(path.parent)
        except OSError as error:
            raise _unwritable(path, error) from error
    finally:
        with contextlib.suppress(FileNotFoundError):  # renamed: the usual case
            os.unlink(file.name)
        with contextlib.suppress(OSError):  # close() flushes once more; reported above
            file.close()


def atomic_write(path: str | os.PathLike, data: bytes | str) -> None:
    """Writes a whole file, text as UTF-8; see `atomic_file`."""
    with atomic_file(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike, *, marker: str) -> Iterator[Path]:
    """A new directory to fill, which becomes `path` when the block ends without an error.

    After any error, the block's own included, `path` is as it was before. A directory that was at
    `path` is replaced as a whole.

    Args:
      marker: a file that every directory made here holds.

    Raises:
      UserError: `path` exists, without a marker and not empty, or it cannot be written.
    """
    path = Path(os.path.realpath(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _delete_stale_directories(path)
        _check_replaceable(path, marker)
        partial, lock = _make_partial_directory(path)
        try:
            yield partial
            for below in [*partial.rglob("*"), partial]:
                _sync(below)
            _replace_directory(partial, path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            os.close(lock)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error}; free some space, or choose another directory"
        ) from error


def lock_directory(directory: Path) -> int | None:
    """An open, locked descriptor of a directory; None where another process has the lock."""
    descriptor = os.open(directory, os.O_RDONLY)
    if try_lock(descriptor, if_unsupported=True):
        return descriptor
    os.close(descriptor)
    return None


def _partial_name(name: str) -> str:
    return f"{name}.partial-{os.getpid()}-{secrets.token_hex(4)}"


def _unwritable(path: Path, error: OSError) -> UserError:
    if error.errno in _FULL:
        remedy = f"free some space on the disk of {path.parent}, or choose another directory"
    else:
        remedy = f"check that {path.parent} is a directory in which you may write"
    return UserError(f"cannot write {path}: {error.strerror}; {remedy}")


def _open_partial(path: Path) -> BinaryIO:
    while True:
        name = path.with_name(_partial_name(path.name))
        file = open(name, "xb", _BUFFER)  # noqa: SIM115 (atomic_file closes it)
        # not locked yet: another process may have taken it for stale, locked and deleted it
        if try_lock(file.fileno(), if_unsupported=True) and name.exists():
            return file
        file.close()


def _make_partial_directory(path: Path) -> tuple[Path, int]:
    while True:
        partial = path.with_name(_partial_name(path.name))
        partial.mkdir()
        with contextlib.suppress(FileNotFoundError):  # as in _open_partial
            lock = lock_directory(partial)
            if lock is not None:
                return partial, lock


def _delete_stale_files(path: Path) -> None:
    for partial in path.parent.glob(f"{glob.escape(path.name)}.partial-*"):
        with contextlib.suppress(OSError), partial.open("rb") as file:
            if try_lock(file.fileno(), if_unsupported=False):
                partial.unlink()


def _delete_stale_directories(path: Path) -> None:
    """Deletes what killed writers left; puts back what one of them was about to replace."""
    partials = path.parent.glob(f"{glob.escape(path.name)}.partial-*")
    for partial in sorted(partials, reverse=True):  # -old first
        writer = partial.with_name(partial.name.removesuffix(_OLD))
        if writer.exists():
            lock = lock_directory(writer)
            if lock is None:  # alive
                continue
            os.close(lock)
        if partial.name.endswith(_OLD) and not path.exists():
            partial.rename(path)
        else:
            shutil.rmtree(partial, ignore_errors=True)


def _check_replaceable(path: Path, marker: str) -> None:
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not (path / marker).is_file():
        raise UserError(
            f"{path} exists and holds no {marker}, so it was not created by inf_jax and "
            "will not be overwritten: choose another directory"
        )


def _replace_directory(partial: Path, path: Path) -> None:
    old = partial.with_name(partial.name + _OLD)
    if path.exists():
        path.rename(old)
    try:
        partial.rename(path)
    except OSError:
        if old.exists():
            old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some file systems cannot sync a directory
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
