"""Shuffles a split once, while it is tokenised, so that it can be read in long stretches later.

Every example may come to any place. Shards, and in a shard all blocks of
BLOCK_RECORDS records, hold texts of all lengths evenly, so that steps that are cut from different
places need the same shape.
"""

from collections.abc import Iterator

import numpy as np

from inf_jax.data.records import AnyExample, decode_at
from inf_jax.io.storage import AnyPath, read_bytes
from inf_jax.io.tfrecord import FRAME_BYTES, build_index, read_frames

SHUFFLE = 1  # version of the order, in a plan's recipe
BLOCK_RECORDS = 64  # records
_MOST_PLACES = 1 << 24  # above this many examples, neighbours move together, a few of them
_SOURCES, _SHARD = 5 << 32, 6 << 32  # random streams


class ShuffledExamples:
    """The examples of text TFRecords in shuffled order, read by place.

    Args:
      sources: files on a local disk, each with its number of records; read once for an index.
      per_shard: examples of a shard, over which lengths are spread evenly.

    Raises:
      CorruptRecordError: as of `read_records`.
    """

    def __init__(self, sources: list[tuple[AnyPath, int]], *, per_shard: int):
        self._paths = [path for path, _ in sources]
        total = sum(count for _, count in sources)
        run = -(-total // _MOST_PLACES)
        columns = []
        for number, (path, count) in enumerate(sources):
            index = build_index(path, count=count)
            first = np.arange(0, count, run)
            ends = np.append(index.offsets, (index.lengths + FRAME_BYTES).sum())
            last = np.minimum(first + run, count)
            columns.append([np.full(len(first), number), first, last - first, ends[first]])
            columns[-1].append(ends[last] - ends[first])
        self._runs = np.concatenate([np.stack(part, 1) for part in columns])
        order = _spread_over_shards(self._runs[:, 4], max(1, total // per_shard))
        self._runs = self._runs[order]
        self._ends = np.cumsum(self._runs[:, 2])

    def read(self, first: int, count: int) -> Iterator[AnyExample]:
        """The `count` examples from place `first`, in the order of the files."""
        low, high = np.searchsorted(self._ends, (first, first + count - 1), side="right")
        runs = self._runs[low : high + 1].copy()
        begin = self._ends[low : high + 1] - runs[:, 2]
        skip = np.maximum(first - begin, 0)
        stop = np.minimum(first + count - begin, runs[:, 2])
        for number in np.lexsort((runs[:, 1], runs[:, 0])).tolist():
            file, record, count, offset, size = runs[number].tolist()
            path = self._paths[file]
            data = read_bytes(path, offset, offset + size)
            found = read_frames(path, data, first=record, count=count)
            for n in range(skip[number], stop[number]):
                yield decode_at(path, record + n, found[n])


def _spread_over_shards(sizes: np.ndarray, shards: int) -> np.ndarray:
    """int64[n], a random order in which each of the shards, parts of equal length, holds all
    sizes evenly."""
    rng = np.random.Generator(np.random.Philox(key=[_SOURCES, SHUFFLE]))
    order = rng.permutation(len(sizes))
    rest = len(sizes) % shards
    left, order = order[:rest], order[rest:]
    order = order[np.argsort(sizes[order], kind="stable")].reshape(-1, shards)
    order = rng.permuted(order, axis=1)  # of neighbours by size a shard gets one
    return np.concatenate([order.T.ravel(), left])


def spread_by_length(tokens: np.ndarray, *, number: int) -> np.ndarray:
    """int64[n], a random order of a shard's examples in which each block holds all lengths evenly.

    Args:
      tokens: int[n], of each example.
      number: of the shard; the order is a function of it and of `tokens`.
    """
    rng = np.random.Generator(np.random.Philox(key=[_SHARD, number]))
    blocks = max(1, len(tokens) // BLOCK_RECORDS)
    order = rng.permutation(len(tokens))
    rest = len(tokens) % blocks
    left, order = order[:rest], order[rest:]
    order = order[np.argsort(tokens[order], kind="stable")].reshape(-1, blocks)
    order = rng.permuted(rng.permuted(order, axis=1), axis=0)
    return np.concatenate([order.T.ravel(), left])
