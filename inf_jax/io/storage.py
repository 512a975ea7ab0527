"""A run's out_dir, on a local disk or in a bucket (gs://BUCKET/DIRECTORY): one way to use both.

An object in a bucket is there whole or not at all, and can be neither appended to nor renamed. So a
small file is one upload, a directory is built locally and uploaded with its marker last, and files
that grow live in a `WorkDir`. Checkpoints are Orbax's affair, which marks what is whole by a file
commit_success.txt where there are no renames.
"""

import contextlib
import io
import os
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from etils import epath

from inf_jax.core.errors import UserError
from inf_jax.io import gcs as bucket
from inf_jax.io.atomic import atomic_directory, atomic_file, lock_directory

AnyPath = Path | epath.Path  # the second where it is in a bucket

_UPLOADING = ".uploading"  # tells what a kill left of a directory from one that is not ours
_OWNER = "owner.txt"  # the run that has claimed a bucket's directory last


def is_bucket(path: str | os.PathLike) -> bool:
    """Whether this is a path in a bucket."""
    return str(path).startswith("gs://")


def as_path(path: str | os.PathLike) -> AnyPath:
    """A path to join and read from, local or in a bucket.

    Raises:
      UserError: it is in a bucket, and gcsfs is not installed.
    """
    return bucket.open_path(path) if is_bucket(path) else Path(path)


def check(directory: AnyPath) -> None:
    """Raises UserError where this process cannot write and read there; leaves nothing behind.

    For before any long work: permission, credentials, network; a read-only or full disk.
    """
    if is_bucket(directory):
        bucket.check(directory)
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
def taken(out_dir: AnyPath, *, patience_s: float = 10.0) -> Iterator[None]:
    """Makes a local directory and keeps it for this process, on one machine at least; a bucket has
    no locks, see `WorkDir.claim`.

    Args:
      patience_s: how long a process that had it before may take to end.

    Raises:
      UserError: another process has it.
    """
    if is_bucket(out_dir):
        yield
        return
    try:
        Path(out_dir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out_dir}: no directory to write in ({error}); give another") from None
    deadline = time.monotonic() + patience_s
    while (lock := lock_directory(Path(out_dir))) is None:
        if time.monotonic() > deadline:
            raise UserError(
                f"{out_dir}: another run is at work in it; wait for it, stop it, or give "
                "another out_dir"
            )
        time.sleep(0.2)
    try:
        yield
    finally:
        os.close(lock)


@contextlib.contextmanager
def new_file(path: AnyPath) -> Iterator[BinaryIO]:
    """A binary file open for writing that is at `path`, whole, once the block has ended.

    Raises:
      UserError: it cannot be written.
    """
    if not is_bucket(path):
        with atomic_file(path) as file:
            yield file
        return
    file = io.BytesIO()
    yield file
    bucket.write(path, file.getvalue())


@contextlib.contextmanager
def new_directory(path: AnyPath, *, marker: str) -> Iterator[Path]:
    """A local directory to fill, which is at `path` once the block has ended: `atomic_directory`.

    In a bucket `marker` goes first and comes last: what lies there without it is not whole. After a
    kill during the upload neither the old nor the new one is there, and the next one is taken.

    Raises:
      UserError: as of `atomic_directory`.
    """
    if not is_bucket(path):
        with atomic_directory(path, marker=marker) as partial:
            yield partial
        return
    old = set(bucket.files_below(path))
    if old and not old & {marker, _UPLOADING}:
        raise UserError(
            f"{path} is not empty and holds no {marker}, so it was not written from here and is "
            "not replaced: choose another directory"
        )
    with _local_directory() as partial:
        yield partial
        new = {str(f.relative_to(partial)) for f in partial.rglob("*") if f.is_file()}
        bucket.write(path / _UPLOADING, b"")
        for name in sorted(old - {_UPLOADING}, key=lambda name: name != marker):
            if name == marker or name not in new:
                bucket.delete(path / name)
        for name in sorted(new, key=lambda name: (name == marker, name)):
            bucket.write(path / name, partial / name)
        bucket.delete(path / _UPLOADING)


class WorkDir(contextlib.AbstractContextManager):
    """A local directory for the files of out_dir that grow: metrics, TensorBoard's events.

    On a local disk it is out_dir itself. For a bucket it is a temporary directory, from which
    `push` uploads whole files: before each checkpoint, and at the end whatever the end. A kill thus
    loses lines of steps that the newest checkpoint does not cover either, and that the resumed run
    does again; the directory is left to the machine's own tidying of TMPDIR. Each process of a run
    has one; their files must have different names.

    Attributes:
      path: the local directory.
    """

    def __init__(self, out_dir: AnyPath):
        self._remote = out_dir if is_bucket(out_dir) else None
        self._pushed: dict[Path, tuple[int, int]] = {}
        self._owner = ""
        self._stack = contextlib.ExitStack()
        self.path = self._stack.enter_context(_local_directory()) if self._remote else out_dir
        self.path.mkdir(parents=True, exist_ok=True)

    def pull(self, name: str) -> None:
        """Takes a file of out_dir, if it is there, to go on writing it. Raises UserError."""
        if self._remote:
            bucket.read(self._remote / name, self.path / name)

    def claim(self) -> None:
        """Makes the directory this run's: in a bucket, which has no locks, `push` refuses once
        another run has claimed it. Raises UserError."""
        if self._remote:
            when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
            self._owner = f"{socket.gethostname()}, {when}, {secrets.token_hex(4)}"
            bucket.write(self._remote / _OWNER, self._owner.encode())

    def push(self) -> None:
        """Uploads the files that have changed; nothing may write to them meanwhile.

        Raises:
          UserError: the bucket does not take them, or another run has claimed the directory.
        """
        if not self._remote:
            return
        if self._owner:
            self._check_owner()
        for file in sorted(self.path.rglob("*")):
            found = file.stat()
            stamp = found.st_size, found.st_mtime_ns
            if file.is_file() and self._pushed.get(file) != stamp:
                bucket.write(self._remote / file.relative_to(self.path).as_posix(), file)
                self._pushed[file] = stamp

    def _check_owner(self) -> None:
        with _local_directory() as folder:
            if not bucket.read(self._remote / _OWNER, folder / _OWNER):
                return  # somebody has tidied up; no other run would
            owner = (folder / _OWNER).read_text()
        if owner != self._owner:
            remote, self._remote = self._remote, None  # nor is anything pushed at the end
            raise UserError(
                f"{remote}: another run has begun in it since ({owner}), so this one ends, "
                "before it mixes its checkpoints with that one's; give each its own out_dir"
            )

    def __exit__(self, kind: type | None, *_: object) -> None:
        with self._stack:
            try:
                self.push()
            except UserError as error:
                if kind is None:
                    raise
                print(f"error: {error}", file=sys.stderr)  # beside what ends the run


@contextlib.contextmanager
def _local_directory() -> Iterator[Path]:
    try:
        with tempfile.TemporaryDirectory(prefix="inf_jax-") as name:
            yield Path(name)
    except OSError as error:
        raise UserError(
            f"cannot write in {tempfile.gettempdir()}: {error}; free some space there, or name "
            "another directory in TMPDIR"
        ) from error
