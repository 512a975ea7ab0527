"""Shuffles a split once, while it is tokenised, so that it can be read in long stretches later.

Every example may come to any place. Shards, and in a shard all blocks of
BLOCK_RECORDS records, hold texts of all lengths evenly, so that steps that are cut from different
places need the same shape.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from inf_jax.data.records import AnyExample, decode_at
from inf_jax.io.storage import AnyPath, is_bucket, read_bytes
from inf_jax.io.tfrecord import FRAME_BYTES, build_index, read_frames

SHUFFLE = 2  # version of the order, in a plan's recipe; in 1 the last shard held the longest
BLOCK_RECORDS = 64  # records
_MOST_PLACES = 1 << 24  # above this many examples, neighbours move together, a few of them
_SOURCES, _SHARD = 5 << 32, 6 << 32  # random streams

# data.shuffle=auto: steps and examples, of data in a bucket and on a disk, from which on it is read
# in windows. A global order leaves out no example; its index stays below INDEX_LIMIT bytes.
_WINDOW_STEPS, _WINDOWS_FROM, _WINDOWS_FROM_ON_DISK = 4, 1 << 17, 1 << 23
INDEX_BYTES, INDEX_LIMIT = 250, 1 << 31  # of an example of a pair, in a host's memory


def is_large(examples: int, directory: AnyPath, *, batch: int) -> bool:
    """Whether data.shuffle=auto reads so many in windows; `batch` is of a step."""
    least = _WINDOWS_FROM if is_bucket(directory) else _WINDOWS_FROM_ON_DISK
    return examples >= max(least, _WINDOW_STEPS * batch)


class _Runs(NamedTuple):
    """Runs of neighbouring records, in the smallest types: there is one for each example.

    Attributes:
      files: uint16[n], number of the source.
      records: uint32[n], number of the first record in its file.
      counts: uint32[n], records.
      offsets: int64[n], byte at which the first one's frame starts.
      sizes: int64[n], bytes of the frames.
    """

    files: np.ndarray
    records: np.ndarray
    counts: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray


class ShuffledExamples:
    """The examples of text TFRecords in shuffled order, read by place.

    Args:
      sources: files on a local disk, each with its number of records; read once for an index.
      shards: over which lengths are spread evenly, parts of equal size.

    Raises:
      CorruptRecordError: as of `read_records`.
    """

    def __init__(self, sources: list[tuple[AnyPath, int]], *, shards: int):
        self._paths = [path for path, _ in sources]
        total = sum(count for _, count in sources)
        run = -(-total // _MOST_PLACES)
        runs = [_runs(number, source, run) for number, source in enumerate(sources)]
        rng = np.random.Generator(np.random.Philox(key=[_SOURCES, SHUFFLE]))
        order = spread_evenly(np.concatenate([each.sizes for each in runs]), shards, rng)
        # column by column, so that no second copy of all is held
        self._runs = _Runs(*(np.concatenate(column)[order] for column in zip(*runs, strict=True)))
        self._ends = np.cumsum(self._runs.counts, dtype=np.int64)

    def read(self, first: int, count: int) -> Iterator[AnyExample]:
        """The `count` examples from place `first`, in the order of the files."""
        low, high = np.searchsorted(self._ends, (first, first + count - 1), side="right")
        runs = _Runs(*(column[low : high + 1].astype(np.int64) for column in self._runs))
        begin = self._ends[low : high + 1] - runs.counts
        skip = np.maximum(first - begin, 0)
        stop = np.minimum(first + count - begin, runs.counts)
        for number in np.lexsort((runs.records, runs.files)).tolist():
            file, record, count, offset, size = (int(column[number]) for column in runs)
            path = self._paths[file]
            data = read_bytes(path, offset, offset + size)
            found = read_frames(path, data, first=record, count=count)
            for n in range(skip[number], stop[number]):
                yield decode_at(path, record + n, found[n])


def _runs(number: int, source: tuple[AnyPath, int], run: int) -> _Runs:
    """Those of a file, `run` records each."""
    path, count = source
    index = build_index(path, count=count)
    ends = np.append(index.offsets, (index.lengths + FRAME_BYTES).sum())
    first = np.arange(0, count, run)
    last = np.minimum(first + run, count)
    return _Runs(
        np.full(len(first), number, np.uint16),
        first.astype(np.uint32),
        (last - first).astype(np.uint32),
        ends[first],
        ends[last] - ends[first],
    )


def spread_by_length(tokens: np.ndarray, *, number: int) -> np.ndarray:
    """int64[n], a random order of a shard's examples in which each block holds all lengths evenly.

    Args:
      tokens: int[n], of each example.
      number: of the shard; the order is a function of it and of `tokens`.
    """
    rng = np.random.Generator(np.random.Philox(key=[_SHARD, number]))
    return spread_evenly(tokens, len(tokens) // BLOCK_RECORDS, rng)


def spread_evenly(sizes: np.ndarray, parts: int, rng: np.random.Generator) -> np.ndarray:
    """int64[n], a random order of n sizes in which each of the parts (at least one), of which the
    first ones have one more, holds all sizes evenly."""
    parts = max(1, parts)
    order = rng.permutation(len(sizes))
    rest = len(sizes) % parts
    left, order = order[:rest], order[rest:]
    if sizes.max(initial=0) < 1 << 16:
        sizes = sizes.astype(np.uint16)  # sorted by radix
    order = order[np.argsort(sizes[order], kind="stable")].reshape(-1, parts)
    rng.permuted(order, axis=1, out=order)  # of neighbours by size a part gets one
    rng.permuted(order, axis=0, out=order)
    return np.insert(order.T.ravel(), len(order) * np.arange(1, rest + 1), left)
