"""Writes a run's out_dir, whether it is on a local disk or in a bucket (gs://BUCKET/DIRECTORY).

An object in a bucket can be neither appended to nor renamed. So a small file is one upload, a
directory is built locally and uploaded with its marker last, and files that grow live in a
`WorkDir`. Orbax writes the checkpoints itself; in a bucket commit_success.txt marks complete ones.
"""

import contextlib
import errno
import io
import os
import secrets
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from etils import epath

from inf_jax.core.errors import UserError
from inf_jax.io import gcs
from inf_jax.io.atomic import atomic_directory, atomic_file, lock_directory

AnyPath = Path | epath.Path  # the second where it is in a bucket

_UPLOADING = ".uploading"  # marks a directory whose upload a kill interrupted as ours
_READ_AT_ONCE = 16 << 20  # bytes of an object that is read from its beginning to its end
_OWNER = "owner.txt"  # the run that claimed a directory in a bucket last


def is_bucket(path: str | os.PathLike) -> bool:
    """Whether a path is in a bucket."""
    return str(path).startswith("gs://")


def as_path(path: str | os.PathLike) -> AnyPath:
    """A path object, local or in a bucket; UserError if it needs gcsfs, which is not installed."""
    return gcs.open_path(path) if is_bucket(path) else Path(path)


def exists(path: AnyPath) -> bool:
    """Whether there is such a file. Raises UserError where a bucket does not say."""
    return gcs.object_info(path) is not None if is_bucket(path) else path.exists()


def file_size(path: AnyPath) -> int:
    """Bytes of a file. Raises FileNotFoundError and other OSError; UserError in a bucket."""
    if not is_bucket(path):
        return os.stat(path).st_size
    if (info := gcs.object_info(path)) is None:
        raise FileNotFoundError(errno.ENOENT, "no such object", str(path))
    return info.size


def read_bytes(path: AnyPath, start: int = 0, stop: int | None = None) -> bytes:
    """The bytes start..stop-1 of a file, to its end by default; errors as of `file_size`."""
    if is_bucket(path):
        return gcs.read_object_range(path, start, file_size(path) if stop is None else stop)
    with open(path, "rb", 0 if stop else -1) as file:
        file.seek(start)
        return file.read(-1 if stop is None else stop - start)


def open_to_read(path: AnyPath, buffer: int = 1 << 20) -> io.BufferedReader:
    """A file open for reading; of an object, long ranges are read one after another. Errors as of
    `file_size`, and from reading."""
    if is_bucket(path):
        return io.BufferedReader(_ObjectReader(path), _READ_AT_ONCE)
    return open(path, "rb", buffer)


def copy_here(source: AnyPath, target: Path) -> None:
    """Copies an object into TMPDIR; errors as of `file_size`, and UserError where it cannot be
    written there."""
    with open_to_read(source) as file, in_tmpdir(), open(target, "wb") as copy:
        shutil.copyfileobj(file, copy, _READ_AT_ONCE)


class _ObjectReader(io.RawIOBase):
    def __init__(self, path: epath.Path):
        self._path, self._size, self._at = path, file_size(path), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_CUR: self._at, os.SEEK_END: self._size}.get(whence, 0)
        return self._at

    def readinto(self, into: memoryview) -> int:
        data = gcs.read_object_range(self._path, self._at, min(self._at + len(into), self._size))
        into[: len(data)] = data
        self._at += len(data)
        return len(data)


def check_access(directory: AnyPath) -> None:
    """Raises UserError where this process cannot write and read in a directory.

    Finds missing permissions and credentials, network failures, read-only and full disks before any
    long work; leaves nothing behind.
    """
    if is_bucket(directory):
        gcs.check_bucket_access(directory)
        return
    directory = directory.absolute()
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    probe = existing / f".probe-{secrets.token_hex(8)}"
    try:
        with atomic_file(probe) as file:
            file.write(bytes(1 << 16))
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


@contextlib.contextmanager
def locked(out_dir: AnyPath, *, timeout_s: float = 10.0) -> Iterator[None]:
    """Makes a local directory and locks it, against other processes of this machine at least.

    A bucket has no locks, see `WorkDir.claim`. Raises UserError where another process holds the
    lock for `timeout_s` more.
    """
    if is_bucket(out_dir):
        yield
        return
    try:
        Path(out_dir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out_dir}: cannot be created ({error}); choose another out_dir") from None
    deadline = time.monotonic() + timeout_s
    while (lock := lock_directory(Path(out_dir))) is None:
        if time.monotonic() > deadline:
            raise UserError(
                f"{out_dir}: another run is using it; wait for that run, stop it, or choose "
                "another out_dir"
            )
        time.sleep(0.2)
    try:
        yield
    finally:
        os.close(lock)


@contextlib.contextmanager
def new_file(path: AnyPath) -> Iterator[BinaryIO]:
    """A binary file open for writing that becomes `path` when the block ends: `atomic_file`."""
    if not is_bucket(path):
        with atomic_file(path) as file:
            yield file
        return
    file = io.BytesIO()
    yield file
    gcs.upload(path, file.getvalue())


@contextlib.contextmanager
def new_directory(path: AnyPath, *, marker: str) -> Iterator[Path]:
    """A local directory to fill, which becomes `path` when the block ends: `atomic_directory`.

    In a bucket the old `marker` is deleted first and the new one uploaded last: a directory without
    it is incomplete. After a kill during the upload there is neither the old directory nor the new
    one, and the next call may replace what is left.
    """
    if not is_bucket(path):
        with atomic_directory(path, marker=marker) as partial:
            yield partial
        return
    old = set(gcs.files_below(path))
    if old and not old & {marker, _UPLOADING}:
        raise UserError(
            f"{path} is not empty and holds no {marker}, so it was not created by inf_jax "
            "and will not be overwritten: choose another directory"
        )
    with local_directory() as partial:
        yield partial
        new = {str(f.relative_to(partial)) for f in partial.rglob("*") if f.is_file()}
        gcs.upload(path / _UPLOADING, b"")
        for name in sorted(old - {_UPLOADING}, key=lambda name: name != marker):
            if name == marker or name not in new:
                gcs.delete_object(path / name)
        for name in sorted(new, key=lambda name: (name == marker, name)):
            gcs.upload(path / name, partial / name)
        gcs.delete_object(path / _UPLOADING)


class WorkDir(contextlib.AbstractContextManager):
    """A local directory for the files of out_dir that grow: metrics, TensorBoard's events.

    On a local disk its `path` is out_dir itself. For a bucket it is a temporary directory, from
    which `push` uploads whole files: before each checkpoint, and at the end, also after an error.
    So a kill, which leaves the directory in TMPDIR, loses only lines of steps that the resumed run
    repeats. Each process of a run has one; their files must have different names.
    """

    def __init__(self, out_dir: AnyPath):
        self._remote = out_dir if is_bucket(out_dir) else None
        self._pushed: dict[Path, tuple[int, int]] = {}
        self._owner = ""
        self._stack = contextlib.ExitStack()
        self.path = self._stack.enter_context(local_directory()) if self._remote else out_dir
        self.path.mkdir(parents=True, exist_ok=True)

    def pull(self, name: str) -> None:
        """Downloads a file of out_dir, if there is one, to append to it. Raises UserError."""
        if self._remote:
            gcs.download(self._remote / name, self.path / name)

    def claim(self) -> None:
        """Claims the directory for this run: in a bucket, which has no locks, `push` fails once
        another run has claimed it. Raises UserError."""
        if self._remote:
            when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
            self._owner = f"{socket.gethostname()}, {when}, {secrets.token_hex(4)}"
            gcs.upload(self._remote / _OWNER, self._owner.encode())

    def push(self) -> None:
        """Uploads the files that have changed; nothing may write to them meanwhile.

        Raises:
          UserError: an upload fails, or another run has claimed the directory.
        """
        if not self._remote:
            return
        if self._owner:
            self._check_owner()
        for file in sorted(self.path.rglob("*")):
            stat = file.stat()
            stamp = stat.st_size, stat.st_mtime_ns
            if file.is_file() and self._pushed.get(file) != stamp:
                gcs.upload(self._remote / file.relative_to(self.path).as_posix(), file)
                self._pushed[file] = stamp

    def _check_owner(self) -> None:
        with local_directory() as folder:
            if not gcs.download(self._remote / _OWNER, folder / _OWNER):
                return  # deleted by hand; another run would have replaced it
            owner = (folder / _OWNER).read_text()
        if owner != self._owner:
            remote, self._remote = self._remote, None  # no upload at the end either
            raise UserError(
                f"{remote}: another run has started in it since ({owner}); this one ends before "
                "their checkpoints mix: give each run its own out_dir"
            )

    def __exit__(self, kind: type | None, *_: object) -> None:
        with self._stack:
            try:
                self.push()
            except UserError as error:
                if kind is None:
                    raise
                print(f"error: {error}", file=sys.stderr)  # the first error propagates


@contextlib.contextmanager
def local_directory() -> Iterator[Path]:
    """A new directory in TMPDIR, deleted when the block ends. Raises UserError."""
    with in_tmpdir(), tempfile.TemporaryDirectory(prefix="inf_jax-") as name:
        yield Path(name)


@contextlib.contextmanager
def in_tmpdir() -> Iterator[None]:
    """Turns an OSError of the block, which writes in TMPDIR, into a UserError with the remedy."""
    try:
        yield
    except OSError as error:
        where = "temporary files"
        with contextlib.suppress(OSError):  # there may be no directory for them at all
            where = f"in {tempfile.gettempdir()}"
        raise UserError(
            f"cannot write {where}: {error.strerror or error}; free some space there, or set "
            "TMPDIR to another directory"
        ) from error
