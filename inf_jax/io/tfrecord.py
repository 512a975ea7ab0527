"""Reads and writes TFRecord files without TensorFlow, with random access by an index.

A file is a sequence of frames, with nothing before, between or after them:

    uint64 length | uint32 masked_crc32c(length) | byte data[length] | uint32 masked_crc32c(data)

all little-endian (https://www.tensorflow.org/tutorials/load_data/tfrecord). There is no
compression: it would rule out random access.
"""

import array
import contextlib
import dataclasses
import functools
import io
import mmap
import os
import struct
from collections.abc import Iterator
from typing import BinaryIO, Self

import google_crc32c
import numpy as np

from inf_jax.core.errors import UserError
from inf_jax.io.storage import AnyPath, new_file, open_to_read

_LENGTH, _CRC, _HEADER = struct.Struct("<Q"), struct.Struct("<I"), struct.Struct("<QI")
FRAME_BYTES = _HEADER.size + _CRC.size  # what a frame adds to its data
_BUFFER = 1 << 20


class CorruptRecordError(UserError):
    """A record is damaged or missing; `record` is its number in the file, from 0."""

    def __init__(self, path: str | os.PathLike, record: int, reason: str):
        super().__init__(
            f"{os.fspath(path)}: record {record} (counting from 0): {reason}; "
            "delete the file and build it again"
        )
        self.path, self.record, self.reason = path, record, reason

    def __reduce__(self):  # a loader's worker process sends its errors to the parent
        return type(self), (self.path, self.record, self.reason)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Index:
    """The positions of the n records of one file.

    Attributes:
      offsets: int64[n], byte at which the record's frame starts.
      lengths: int64[n], bytes of the record's data, frame not included.
      crcs: uint32[n], masked CRC-32C of the record's data.
    """

    offsets: np.ndarray
    lengths: np.ndarray
    crcs: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets)


def masked_crc32c(data: bytes) -> int:
    """CRC-32C rotated right by 15 bits, plus a constant, as TFRecord stores it; unsigned 32-bit."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


class Writer:
    """Writes one TFRecord file, whole or not at all.

    with Writer(path) as writer:
        writer.write(data)
    writer.index  # Index of what was written

    Raises:
      UserError: as `inf_jax.io.storage.new_file`, from `with` and `write`.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = path
        self._stack = contextlib.ExitStack()
        self._lengths, self._crcs = [], []

    def __enter__(self) -> Self:
        self._file = self._stack.enter_context(new_file(self.path))
        return self

    def __exit__(self, *error) -> bool | None:
        return self._stack.__exit__(*error)

    def write(self, data: bytes) -> None:
        """Appends one record."""
        length = _LENGTH.pack(len(data))
        crc = masked_crc32c(data)
        self._file.write(b"".join((length, _CRC.pack(masked_crc32c(length)), data, _CRC.pack(crc))))
        self._lengths.append(len(data))
        self._crcs.append(crc)

    @property
    def index(self) -> Index:
        """The index of the records written so far."""
        return _index(self._lengths, self._crcs)


def read_records(path: str | os.PathLike, *, count: int | None = None) -> Iterator[bytes]:
    """The data of every record of a file, in order; both checksums of each are checked.

    A file truncated between two records is a valid TFRecord file: pass `count`, the number of
    records that the file must have, to detect that too.

    Raises:
      CorruptRecordError: at the first damaged, missing or surplus record.
      UserError: the file cannot be opened.
    """
    with _open(path) as file:
        yield from _frames(path, file, stop=count, whole=True)


def read_range(path: str | os.PathLike, *, offset: int, first: int, count: int) -> Iterator[bytes]:
    """The data of `count` records from number `first`, whose frame starts at byte `offset`.

    Errors as `read_records`, but for surplus records.
    """
    with _open(path) as file:
        yield from _frames(path, file, offset=offset, first=first, stop=first + count)


def _frames(
    path: str | os.PathLike,
    file: BinaryIO,
    *,
    offset: int = 0,
    first: int = 0,
    stop: int | None = None,
    whole: bool = False,
) -> Iterator[bytes]:
    """The data of the records from `first` to `stop`, where a `whole` file must end."""
    size, end, record = file.seek(0, os.SEEK_END), file.seek(offset), first
    while (whole or record != stop) and (header := file.read(_HEADER.size)):
        if record == stop:
            raise CorruptRecordError(path, record, f"the file must end after {stop} records")
        length = _check_header(path, record, header)
        end += FRAME_BYTES + length
        if end > size:
            raise CorruptRecordError(
                path, record, f"the file is truncated: {size} bytes, the record ends at {end}"
            )
        data = file.read(length)
        _check_data(path, record, data, file.read(_CRC.size))
        yield data
        record += 1
    if stop is not None and record < stop:
        raise CorruptRecordError(
            path, record, f"the file is truncated: it must hold {stop} records"
        )


def build_index(path: str | os.PathLike, *, count: int | None = None) -> Index:
    """The index of a file, by reading all of it; checks and errors as in `read_records`."""
    lengths, crcs = array.array("q"), array.array("I")  # lists take 7 times the memory
    for data in read_records(path, count=count):
        lengths.append(len(data))
        crcs.append(masked_crc32c(data))
    return _index(lengths, crcs)


class Reader:
    """Random access to the records of one file; threads may share it, and it can be pickled.

    Raises:
      CorruptRecordError: the file's size differs from the index; names the first record affected.
      UserError: the file cannot be opened.
    """

    def __init__(self, path: str | os.PathLike, index: Index):
        self.path, self.index = path, index
        # Python ints: indexing an array takes longer than the checksum of a record
        self._offsets, self._lengths = index.offsets.tolist(), index.lengths.tolist()
        self._crcs = index.crcs.tolist()
        ends = index.offsets + index.lengths + FRAME_BYTES
        with _open(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size != (ends[-1] if len(ends) else 0):
                missing = int(np.searchsorted(ends, size, side="right"))
                raise CorruptRecordError(
                    path, missing, f"the file has {size} bytes, its index says {ends[-1:].sum()}"
                )
            # an empty file cannot be mapped
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""

    def __len__(self) -> int:
        return len(self._offsets)

    def __reduce__(self):
        return Reader, (self.path, self.index)

    def read(self, record: int) -> bytes:
        """The data of one record. Raises CorruptRecordError, or IndexError for no such record."""
        if not 0 <= record < len(self._offsets):
            raise IndexError(f"{self.path} has {len(self)} records, no number {record}")
        start, length = self._offsets[record], self._lengths[record]
        frame = self._map[start : start + length + FRAME_BYTES]
        if _check_header(self.path, record, frame[: _HEADER.size]) != length:
            raise CorruptRecordError(self.path, record, "its length differs from the index")
        data = frame[_HEADER.size : -_CRC.size]
        _check_data(self.path, record, data, frame[-_CRC.size :], self._crcs[record])
        return data

    def read_many(self, records: list[int]) -> list[bytes]:
        """The data of several records; checks and errors as `read`, in a fraction of its time."""
        if records and not 0 <= min(records) <= max(records) < len(self):
            return [self.read(record) for record in records]  # names the one that is not there
        starts, lengths = self.index.offsets[records], self.index.lengths[records]
        data, crcs, good = data_of_frames(self._map, starts, starts + lengths + FRAME_BYTES)
        good &= crcs == self.index.crcs[records]
        if not good.all():
            self.read(records[int(good.argmin())])  # raises
        return data


def data_of_frames(
    whole: bytes | mmap.mmap, starts: np.ndarray, stops: np.ndarray
) -> tuple[list[bytes], np.ndarray, np.ndarray]:
    """The data of the records whose frames are at int64[n] bytes of `whole`, uint32[n], their
    masked CRC-32C, and bool[n], whether the length and both checksums in each frame are right."""
    if not len(starts):
        return [], np.empty(0, np.uint32), np.empty(0, bool)
    first, last = starts + _HEADER.size, stops - _CRC.size
    data = [whole[start:stop] for start, stop in zip(first.tolist(), last.tolist(), strict=True)]
    # numbers beyond the end are of damaged lengths, which no bytes there agree with
    view = np.frombuffer(whole, np.uint8)
    headers = view.take(starts[:, None] + np.arange(_HEADER.size), mode="clip")
    stored = view.take(last[:, None] + np.arange(_CRC.size), mode="clip").view("<u4")[:, 0]
    lengths, of_length = np.unique(last - first, return_inverse=True)
    expected = b"".join(_frame_header(max(length, 0)) for length in lengths.tolist())
    expected = np.frombuffer(expected, np.uint8).reshape(-1, _HEADER.size)[of_length]
    crcs = np.fromiter(map(google_crc32c.value, data), np.uint64, len(data))
    crcs = ((crcs >> 15 | crcs << 17) + 0xA282EAD8 & 0xFFFFFFFF).astype(np.uint32)
    return data, crcs, (headers == expected).all(1) & (crcs == stored)


def starts_of_frames(data: bytes) -> np.ndarray:
    """int64[n + 1], the byte at which each frame of some whole ones starts, and their end, by the
    lengths alone: beyond len(data) where they are damaged."""
    starts, at = [0], 0
    while at + FRAME_BYTES <= len(data):
        at += FRAME_BYTES + _LENGTH.unpack_from(data, at)[0]
        starts.append(min(at, len(data) + 1))  # a damaged length may not fit into int64
    return np.array(starts, np.int64)


def crcs_of_frames(data: bytes, starts: np.ndarray) -> np.ndarray:
    """uint32[n], the masked CRC-32C of the data that each frame stores."""
    places = (starts[1:, None] - _CRC.size) + np.arange(_CRC.size)
    return np.frombuffer(np.frombuffer(data, np.uint8)[places].tobytes(), "<u4")


def read_frames(path: AnyPath, data: bytes, *, first: int, count: int) -> list[bytes]:
    """The data of the records of some whole frames of a file; CorruptRecordError as of
    `read_records`."""
    return [*_frames(path, io.BytesIO(data), first=first, stop=first + count)]


@functools.lru_cache(maxsize=1 << 16)
def _frame_header(length: int) -> bytes:
    return _HEADER.pack(length, masked_crc32c(_LENGTH.pack(length)))


def _check_header(path: str | os.PathLike, record: int, header: bytes) -> int:
    """The length in a frame's header, after checking its checksum."""
    if len(header) < _HEADER.size:
        raise CorruptRecordError(path, record, "the file is truncated in the record's header")
    length, crc = _HEADER.unpack(header)
    if masked_crc32c(header[: _LENGTH.size]) != crc:
        raise CorruptRecordError(path, record, "the checksum of its length is wrong")
    return length


def _check_data(
    path: str | os.PathLike, record: int, data: bytes, stored: bytes, indexed: int | None = None
) -> None:
    """Checks a record's data against the CRC in the file and, where known, the one in the index."""
    crc = masked_crc32c(data)
    if crc != _CRC.unpack(stored)[0]:
        raise CorruptRecordError(path, record, "the checksum of its data is wrong")
    if indexed is not None and crc != indexed:
        raise CorruptRecordError(path, record, "it is not the record that the index describes")


def _index(lengths: list[int], crcs: list[int]) -> Index:
    sizes = np.array(lengths, np.int64)
    offsets = np.cumsum(sizes + FRAME_BYTES) - (sizes + FRAME_BYTES)
    return Index(offsets, sizes, np.array(crcs, np.uint32))


def _open(path: AnyPath):
    try:
        return open_to_read(path, _BUFFER)
    except OSError as error:
        raise UserError(
            f"cannot read {os.fspath(path)}: {error.strerror}; check the path or build it again"
        ) from error
