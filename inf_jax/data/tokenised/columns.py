"""Keeps the index of a large split as one file a column, which is mapped into memory where used."""

import contextlib
import math
import mmap
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
import numpy as np

from inf_jax.core.errors import UserError
from inf_jax.data.negatives import KnownInstructions, usual_siblings
from inf_jax.data.tokenised.shuffle import BLOCK_RECORDS
from inf_jax.io import gcs
from inf_jax.io.storage import (
    AnyPath,
    in_tmpdir,
    is_bucket,
    local_directory,
    new_file,
    open_to_read,
)
from inf_jax.io.tfrecord import FRAME_BYTES

_PIECE = 16 << 20  # bytes read at once

# Columns and their types. "block_ends" and "block_crcs" have an entry for each block of a shard:
# the byte at which it ends, and a checksum of its records' checksums. "first_negative" is the
# number of an example's first hard negative in "negative_lengths". "known_pairs" and
# "known_instructions" are of `KnownInstructions`.
_TYPES = {
    "text_lengths": "<i4",
    "part_lengths": "<i4",
    "instruction_hashes": "<u8",
    "pair_hashes": "<u8",
    "block_ends": "<i8",
    "block_crcs": "<u4",
    "siblings": "<i4",
    "negative_counts": "<i4",
    "first_negative": "<i8",
    "negative_lengths": "<i4",
    "known_pairs": "<u8",
    "known_instructions": "<u8",
}
_SHORT = "<u2"  # of lengths, which are cut to a limit


class Column:
    """An array in a file; indexing reads a part of it."""

    def __init__(self, stored: np.ndarray, dtype: str):
        self._stored, self._dtype, self.shape = stored, np.dtype(dtype), stored.shape

    def __getitem__(self, key: Any) -> np.ndarray:
        return self._stored[key].astype(self._dtype)

    def take(self, rows: np.ndarray, axis: int) -> np.ndarray:
        """As of an array, of whole rows alone."""
        return self._stored.take(rows, axis=axis).astype(self._dtype)

    def __len__(self) -> int:
        return self.shape[0]


def column_path(directory: AnyPath, name: str) -> AnyPath:
    return directory / f"index-{name.replace('_', '-')}.bin"


def block_crc(crcs: np.ndarray) -> int:
    """A checksum of the records' checksums, uint32[n]."""
    return google_crc32c.value(crcs.astype("<u4").tobytes())


def write_columns(directory: AnyPath, sidecars: Iterable[Any]) -> dict[str, Any]:
    """Writes the columns of all shards, given as `Sidecar`s; returns what a manifest says of them.

    Raises:
      UserError: a length does not fit, or a file cannot be written.
    """
    with local_directory() as folder, contextlib.ExitStack() as stack:
        files = {n: stack.enter_context(open(folder / n, "w+b")) for n in _TYPES}
        rows, seen, negatives = dict.fromkeys(_TYPES, 0), {"some": False, "none": False}, 0
        odd, scored, k = False, False, 1

        def put(name: str, values: np.ndarray) -> None:
            kind = _kind(name)
            if kind == _SHORT and values.max(initial=0) >= 1 << 16:
                raise UserError(f"{directory}: a text of {values.max()} tokens, 65,535 at most")
            files[name].write(values.astype(kind).tobytes())
            rows[name] += len(values)

        for one in sidecars:
            n, k = one.text_lengths.shape[0], one.text_lengths.shape[1] // 2
            for name in ("text_lengths", "part_lengths", "instruction_hashes", "pair_hashes"):
                put(name, getattr(one, name))
            ends = np.cumsum(one.index.lengths + FRAME_BYTES)
            last = np.append(np.arange(BLOCK_RECORDS, n, BLOCK_RECORDS), n)
            put("block_ends", ends[last - 1])
            put("block_crcs", np.array([*map(block_crc, np.split(one.index.crcs, last[:-1]))]))
            present, has = one.text_lengths[:, ::2] > 0, one.part_lengths[:, :, 2] > 0
            seen["some"] |= bool(has.any())
            seen["none"] |= bool((present & ~has).any())
            odd |= one.siblings is not None
            put("siblings", usual_siblings(present) if one.siblings is None else one.siblings)
            counts = one.negative_counts
            counts = np.zeros((n, k), np.int32) if counts is None else counts
            put("negative_counts", counts)
            each = counts.sum(1)
            put("first_negative", negatives + np.cumsum(each) - each)
            negatives += int(each.sum())
            if one.negative_lengths is not None:
                put("negative_lengths", one.negative_lengths)
            scored |= one.scored is not None
        if seen["some"]:
            known = _known(files, rows["text_lengths"], k)
            put("known_pairs", known.pairs)
            put("known_instructions", known.instructions)
        dropped = set() if odd else {"siblings"}
        dropped |= set() if negatives else {"negative_counts", "first_negative", "negative_lengths"}
        dropped |= set() if seen["some"] else {"known_pairs", "known_instructions"}
        written = {}
        for name in [name for name in _TYPES if name not in dropped]:
            files[name].flush()
            crc = _copy(folder / name, column_path(directory, name))
            written[name] = {"rows": rows[name], "crc32c": crc}
    return {"files": written, "instructions": seen, "scored": scored}


def _kind(name: str) -> str:
    return _SHORT if name in ("text_lengths", "negative_lengths") else _TYPES[name]


def _known(files: Mapping[str, BinaryIO], count: int, k: int) -> KnownInstructions:
    def column(name: str, width: int) -> np.ndarray:
        files[name].flush()
        return _mapped(files[name]).view(_kind(name)).reshape(count, width)

    present = column("text_lengths", 2 * k)[:, ::2] > 0
    return KnownInstructions(
        column("pair_hashes", k)[present], column("instruction_hashes", k)[present]
    )


def _copy(source: Path, target: AnyPath) -> int:
    """Copies a file; returns its CRC-32C."""
    with open(source, "rb") as file:
        crc = _crc_of(file)
        if is_bucket(target):
            gcs.upload(target, source)
            return crc
        file.seek(0)
        with new_file(target) as out:
            while piece := file.read(_PIECE):
                out.write(piece)
    return crc


def _crc_of(file: BinaryIO) -> int:
    crc = 0
    while piece := file.read(_PIECE):
        crc = google_crc32c.extend(crc, piece)
    return crc


def load_column(directory: AnyPath, name: str, entry: Mapping[str, int], *shape: int) -> Column:
    """The column of this entry of the manifest, whose rows have this shape.

    One in a bucket is downloaded into a file in TMPDIR without a name, which goes with the process.

    Raises:
      UserError: it is missing or damaged, or TMPDIR cannot be written.
    """
    path = column_path(directory, name)
    shape, kind, found, size = (entry["rows"], *shape), np.dtype(_kind(name)), 0, 0
    try:
        with contextlib.ExitStack() as stack:
            file = source = stack.enter_context(open_to_read(path))
            if is_bucket(path):  # to read an object raises UserError alone
                stack.enter_context(in_tmpdir())
                file = stack.enter_context(tempfile.TemporaryFile())
            while piece := source.read(_PIECE):
                found, size = google_crc32c.extend(found, piece), size + len(piece)
                if file is not source:
                    file.write(piece)
            if (found, size) != (entry["crc32c"], math.prod(shape) * kind.itemsize):
                raise UserError(f"{path} is damaged; delete it and tokenise the split again")
            file.flush()
            stored = _mapped(file) if size else np.empty(0, np.uint8)
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror or error}; tokenise the split again"
        ) from error
    return Column(stored.view(kind).reshape(shape), _TYPES[name])


def _mapped(file: BinaryIO) -> np.ndarray:
    """The bytes of an open file, which may be closed then."""
    return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
