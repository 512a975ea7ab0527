"""Reads a shuffled split in long stretches, from a local disk or a bucket (`data.windows`)."""

import functools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from inf_jax.core.errors import UserError
from inf_jax.data.negatives import KnownInstructions
from inf_jax.data.tokenised.columns import Column, block_crc, load_column
from inf_jax.data.tokenised.dataset import MANIFEST, TokenisedDataset
from inf_jax.data.tokenised.shuffle import BLOCK_RECORDS
from inf_jax.data.tokenised.staging import PieceKey, Stage
from inf_jax.io.storage import AnyPath, read_bytes
from inf_jax.io.tfrecord import (
    CorruptRecordError,
    crcs_of_frames,
    data_of_frames,
    read_frames,
    starts_of_frames,
)

STAGE_KEY = "data.stage_mb"
_MOST_BLOCKS = 128  # of a piece: a few MB


class _Piece(NamedTuple):
    """Whole blocks of a shard: their bytes, and the start of each frame."""

    data: bytes
    starts: np.ndarray


class WindowedDataset(TokenisedDataset):
    """As `TokenisedDataset`, of a split whose records are shuffled; most of it stays on the disk.

    Attributes:
      shard_sizes: int64[shards], examples of each.

    Args:
      limit: bytes of records in memory at most.
    """

    windowed = True
    _compared = ("text_lengths",)

    def __init__(self, directory: AnyPath, *, limit: int):
        self._limit = limit
        super().__init__(directory)

    def _load_index(self, shards: list[tuple[AnyPath, int]]) -> None:
        columns, k = self._manifest["columns"], self.pairs_per_example
        try:
            self._files = {name: dict(entry) for name, entry in columns["files"].items()}
            seen = columns["instructions"]
            self.instructions = bool(seen["some"]), bool(seen["none"])
            self.scored = bool(columns["scored"])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(
                f"{self.directory / MANIFEST} is damaged; delete {self.directory} and tokenise the "
                "split again"
            ) from error
        self._paths, self.sources = [path for path, _ in shards], [self]
        self.shard_sizes = np.array([count for _, count in shards])
        self._ends = np.cumsum(self.shard_sizes)
        blocks = -(-self.shard_sizes // BLOCK_RECORDS)
        self._first_block = np.cumsum(blocks) - blocks
        self.num_examples = int(self._ends[-1])
        self.text_lengths = self._column("text_lengths", 2 * k)
        if len(self.text_lengths) != self.num_examples:
            raise UserError(
                f"{self.directory}: the index has {len(self.text_lengths)} examples, {MANIFEST} "
                f"says {self.num_examples}; delete the directory and tokenise the split again"
            )
        self.negative_counts = self._optional("negative_counts", k)
        self._stage = Stage(self._load, size=self._size, limit=self._limit, key=STAGE_KEY)

    def _column(self, name: str, *shape: int) -> Column:
        return load_column(self.directory, name, self._files[name], *shape)

    def _optional(self, name: str, *shape: int) -> Column | None:
        return self._column(name, *shape) if name in self._files else None

    @functools.cached_property
    def part_lengths(self) -> Column:
        return self._column("part_lengths", self.pairs_per_example, 3)

    @functools.cached_property
    def instruction_hashes(self) -> Column:
        return self._column("instruction_hashes", self.pairs_per_example)

    @functools.cached_property
    def _siblings(self) -> Column | None:
        return self._optional("siblings", self.pairs_per_example)

    @functools.cached_property
    def _negative_lengths(self) -> Column | None:
        return self._optional("negative_lengths")

    @functools.cached_property
    def _first_negative(self) -> Column | None:
        return self._optional("first_negative")

    @functools.cached_property
    def pair_hashes(self) -> Column:
        """uint64[n, k], `records.pair_hashes` of all examples."""
        return self._column("pair_hashes", self.pairs_per_example)

    @functools.cached_property
    def _known(self) -> KnownInstructions:
        known = [self._optional(name) for name in ("known_pairs", "known_instructions")]
        return KnownInstructions(*(np.empty(0, np.uint64) if c is None else c[:] for c in known))

    @functools.cached_property
    def _blocks(self) -> tuple[Column, Column]:
        return self._column("block_ends"), self._column("block_crcs")

    def _first_negatives(self, examples: np.ndarray) -> np.ndarray:
        counts = self.negative_counts[examples]
        return self._first_negative[examples][:, None] + np.cumsum(counts, 1) - counts

    def tokens_of(self, examples: np.ndarray, *, negatives: int) -> np.ndarray:
        """int64[m], tokens of these examples, with the mean ones of so many drawn hard negatives a
        pair."""
        tokens = self.text_lengths[examples].sum(1, dtype=np.int64)
        if not negatives or self.negative_counts is None:
            return tokens
        counts, first = self.negative_counts[examples], self._first_negatives(examples)
        flat = counts.ravel()
        place = np.arange(flat.sum()) - np.repeat(np.cumsum(flat) - flat, flat)
        lengths = self._negative_lengths[np.repeat(first.ravel(), flat) + place]
        ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        each = np.diff(ends[np.concatenate([[0], np.cumsum(flat)])])
        mean = each * np.minimum(flat, negatives) / np.maximum(flat, 1)
        return tokens + np.rint(mean.reshape(counts.shape).sum(1)).astype(np.int64)

    def stage(self, now: Iterable[tuple[int, int]], ahead: Iterable[tuple[int, int]] = ()) -> None:
        """Reads the records of these examples into memory, in threads, and forgets all others.

        Args:
          now, ahead: (first, last + 1) of examples that follow each other in one shard.

        Raises:
          UserError: they are larger than the limit.
        """
        both = [self._keys(first, last) for first, last in now]
        later = [self._keys(first, last) for first, last in ahead]
        pieces = sorted({key for keys in both for key in keys})
        self._stage.want(pieces, sorted({key for keys in later for key in keys}))
        every = np.array(pieces).reshape(-1, 3)
        start = (self._ends - self.shard_sizes)[every[:, 0]]
        self._staged = (
            pieces,
            start + every[:, 1] * BLOCK_RECORDS,
            start + every[:, 2] * BLOCK_RECORDS,
        )

    _staged: tuple[list[PieceKey], np.ndarray, np.ndarray] = [], np.empty(0, int), np.empty(0, int)

    def _keys(self, first: int, last: int) -> list[PieceKey]:
        """The pieces that hold these examples of one shard: (shard, first block, last + 1)."""
        shard = int(np.searchsorted(self._ends, first, side="right"))
        start = int(self._ends[shard] - self.shard_sizes[shard])
        block, end = (first - start) // BLOCK_RECORDS, -(-(last - start) // BLOCK_RECORDS)
        return [
            (shard, low, min(low + _MOST_BLOCKS, end)) for low in range(block, end, _MOST_BLOCKS)
        ]

    def _bytes(self, key: PieceKey) -> tuple[int, int]:
        shard, first, last = key
        ends, start = self._blocks[0], int(self._first_block[shard])
        return int(ends[start + first - 1]) if first else 0, int(ends[start + last - 1])

    def _size(self, key: PieceKey) -> int:
        start, stop = self._bytes(key)
        return stop - start

    def _load(self, key: PieceKey) -> _Piece:
        shard, first, last = key
        path, number = self._paths[shard], first * BLOCK_RECORDS
        count = min(last * BLOCK_RECORDS, int(self.shard_sizes[shard])) - number
        try:
            data = read_bytes(path, *self._bytes(key))
        except OSError as error:
            raise UserError(
                f"cannot read {path}: {error.strerror or error}; tokenise the split again"
            ) from error
        starts = starts_of_frames(data)
        if len(starts) != count + 1 or starts[-1] != len(data):
            read_frames(path, data, first=number, count=count)  # names the record
            raise CorruptRecordError(path, number, "it is not where the index says")
        crcs = np.split(
            crcs_of_frames(data, starts), np.arange(BLOCK_RECORDS, count, BLOCK_RECORDS)
        )
        indexed = self._blocks[1][self._first_block[shard] + np.arange(first, last)]
        if not np.array_equal([*map(block_crc, crcs)], indexed):
            read_frames(path, data, first=number, count=count)
            raise CorruptRecordError(path, number, "these are not the records that the index knows")
        return _Piece(data, starts)

    def _stored(self, examples: np.ndarray) -> list[bytes]:
        keys, first, last = self._staged
        piece = np.searchsorted(first, examples, side="right") - 1
        staged = piece >= 0
        staged[staged] = examples[staged] < last[piece[staged]]
        wanted: dict[PieceKey, list[int]] = {}
        for place, number in enumerate(piece.tolist()):
            if staged[place]:
                key = keys[number]
            else:
                [key] = self._keys(int(examples[place]), int(examples[place]) + 1)
            wanted.setdefault(key, []).append(place)
        _, in_shard = self._places(examples)
        data: list[bytes] = [b""] * len(examples)
        for (key, places), found in zip(wanted.items(), self._stage.get([*wanted]), strict=True):
            numbers, starts = in_shard[places] - key[1] * BLOCK_RECORDS, found.starts
            records, _, good = data_of_frames(found.data, starts[numbers], starts[numbers + 1])
            if not good.all():
                path, count = self._paths[key[0]], len(starts) - 1
                read_frames(path, found.data, first=key[1] * BLOCK_RECORDS, count=count)
            for place, each in zip(places, records, strict=True):
                data[place] = each
        return data
