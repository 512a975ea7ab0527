"""Directories that are whole or absent: the counterpart of `atomic.atomic_file`.

A partial is `<name>.partial-<pid>-<random>` beside the final directory and stays locked (flock)
while its writer lives; what a killed writer left is deleted by the next one.
"""

import contextlib
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from inf_jax.core.errors import UserError

_OLD = "-old"  # what is being replaced, between the two renames


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike, *, marker: str) -> Iterator[Path]:
    """A new directory to fill, which becomes `path` when the block ends without an error.

    After any error, the block's own included, `path` is as it was before and the partial is gone.
    A directory that was at `path` is replaced as a whole.

    Args:
      marker: a file that every directory made here holds; one without it is nobody's to replace.

    Raises:
      UserError: `path` is something else than a directory of this kind (or an empty one), or it
        cannot be written.
    """
    path = Path(os.path.realpath(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_stale(path)
        _check_replaceable(path, marker)
        partial = path.with_name(f"{path.name}.partial-{os.getpid()}-{secrets.token_hex(4)}")
        partial.mkdir()
        held = lock(partial)
        try:
            yield partial
            _sync(partial)
            _replace(partial, path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            os.close(held)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error}; free some space, or choose another directory"
        ) from error


def _check_replaceable(path: Path, marker: str) -> None:
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not (path / marker).is_file():
        raise UserError(
            f"{path} exists and holds no {marker}, so it was not written from here and is not "
            "replaced: choose another directory"
        )


def _replace(partial: Path, path: Path) -> None:
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


def _clear_stale(path: Path) -> None:
    """Deletes what killed writers left; puts back what one of them was about to replace."""
    for found in sorted(path.parent.glob(f"{path.name}.partial-*"), reverse=True):  # -old first
        writer = found.with_name(found.name.removesuffix(_OLD))
        if writer.exists():
            try:
                os.close(lock(writer))
            except BlockingIOError:  # alive
                continue
        if found.name.endswith(_OLD) and not path.exists():
            found.rename(path)
        else:
            shutil.rmtree(found, ignore_errors=True)


def lock(directory: Path) -> int:
    """An open, locked descriptor of a directory; raises BlockingIOError where another process has
    the lock."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:  # a file system without locks: nobody can call it stale either
        pass
    return descriptor


def _sync(directory: Path) -> None:
    for found in [*directory.rglob("*"), directory]:
        descriptor = os.open(found, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # some file systems cannot sync a directory
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
