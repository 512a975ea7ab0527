"""Sorts records by a key in little memory: beyond a limit they wait in files, by range of keys."""

import contextlib
import operator
import os
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

from inf_jax.core.errors import UserError

KEY_BYTES = 16
_HEADER = struct.Struct(f"<{KEY_BYTES}sI")
_BUCKET_BITS = 10  # of a key: files, each of which is sorted in memory
_LIMIT = 64 << 20  # bytes of data held before they are written
_ROW_BYTES = 150  # what Python's objects of a row take besides its data


class Spill:
    """Takes records in any order and gives them back by key, those of one key in the order taken.

    Memory is `limit`, or that of a 1024th of all data if that is more.

    Args:
      directory: where files are written, in a directory that is deleted with the last record.
      limit: bytes that are held in memory.

    Raises:
      UserError: from `add` and while iterating: a file cannot be written or read.
    """

    def __init__(self, directory: Path, *, limit: int = _LIMIT):
        self._parent, self._files = directory, ""
        self._buckets: list[list[bytes]] = [[] for _ in range(1 << _BUCKET_BITS)]
        self._limit, self._held = limit, 0
        self.count = 0
        self.size = 0  # bytes of all data

    def add(self, key: bytes, data: bytes) -> None:
        """Takes a record; keys are KEY_BYTES bytes, evenly distributed."""
        bucket = int.from_bytes(key[:2], "big") >> (16 - _BUCKET_BITS)
        self._buckets[bucket].append(_HEADER.pack(key, len(data)) + data)
        self.count += 1
        self.size += len(data)
        self._held += len(data) + _ROW_BYTES
        if self._held >= self._limit:
            self._write()

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        """Yields (key, data), once."""
        for number, rows in enumerate(self._buckets):
            data = b"".join(rows)
            rows.clear()
            if self._files:
                data = self._taken(number) + data
            yield from _sorted(data)
        if self._files:
            os.rmdir(self._files)

    def _taken(self, number: int) -> bytes:
        """What is in a file, which is deleted."""
        file = self._file(number)
        with self._errors():
            if not file.exists():
                return b""
            data = file.read_bytes()
            file.unlink()
            return data

    def _file(self, number: int) -> Path:
        return Path(self._files, f"{number:04d}")

    def _write(self) -> None:
        with self._errors():
            self._files = self._files or tempfile.mkdtemp(prefix="sorting-", dir=self._parent)
            for number, rows in enumerate(self._buckets):
                if rows:
                    with open(self._file(number), "ab") as file:
                        file.write(b"".join(rows))
                    rows.clear()
        self._held = 0

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"cannot sort records in {self._parent}: {error.strerror}; free space there, or "
                "choose another --data-dir"
            ) from error


def _sorted(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    rows, place = [], 0
    while place < len(data):
        key, size = _HEADER.unpack_from(data, place)
        place += _HEADER.size
        rows.append((key, data[place : place + size]))
        place += size
    rows.sort(key=operator.itemgetter(0))
    return iter(rows)
