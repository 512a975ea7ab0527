"""Reads tokenised examples by number from a directory that `data.tokenise` wrote."""

import functools
import os
from collections.abc import Sequence

import numpy as np

from inf_jax.core.errors import UserError, first_line
from inf_jax.data.negatives import KnownInstructions, usual_siblings
from inf_jax.data.records import pair_hashes
from inf_jax.data.tokenised.records import (
    TOKENISED_SCHEMA,
    TokenisedBatch,
    TokenisedRecord,
    decode_batch,
    decode_tokenised,
    part_lengths,
)
from inf_jax.data.tokenised.sidecars import index_path, joined, load_sidecar
from inf_jax.io.json_files import path_inside, read_json
from inf_jax.io.storage import AnyPath, as_path
from inf_jax.io.tfrecord import CorruptRecordError, Reader
from inf_jax.text.splice_check import Composition

MANIFEST = "manifest.json"


class TokenisedDataset:
    """Random access to the tokenised examples of one split; threads may share it.

    Attributes:
      directory: as `tokenise` returned it.
      pairs_per_example: k, pairs of an example, absent ones included; an example's pairs have the
        numbers k * example to k * example + k - 1.
      text_lengths, part_lengths, instruction_hashes: as in `Sidecar`, of all examples.
      negative_counts: int32[n, k], hard negatives of each pair; None where there are none.
      scored: whether any pair has a teacher's scores.
      special: int32[...] twice, the special tokens before and after every text.
      max_query_tokens: int, the limit of an instructed query.
      fingerprint: str, hash of everything that the contents depend on.
      sources: this one alone; a mixture has several.

    Raises:
      UserError: a file is missing or unreadable, or counts do not agree; names file and remedy.
    """

    windowed = False  # whether `data.windows` orders the examples
    _compared = ("text_lengths", "part_lengths", "instruction_hashes")  # of records and index

    def __init__(self, directory: str | os.PathLike):
        self.directory = as_path(directory)
        path = self.directory / MANIFEST
        manifest = read_json(path, remedy="tokenise the split again, it was not finished")
        try:
            recipe = manifest["recipe"]
            if recipe["schema"] != TOKENISED_SCHEMA:
                raise UserError(
                    f"{self.directory} has schema {recipe['schema']}, this version reads "
                    f"{TOKENISED_SCHEMA}; delete it and tokenise the split again"
                )
            self.fingerprint: str = manifest["fingerprint"]
            # older manifests are of InF-IR's three
            self.pairs_per_example = int(manifest.get("pairs_per_example", 3))
            self.max_query_tokens: int = recipe["text"]["max_query_tokens"]
            before, after = (np.array(ids, np.int32) for ids in manifest["special_tokens"])
            self.special: tuple[np.ndarray, np.ndarray] = before, after
            self._composition = Composition(**manifest["composition"])
            self._template: str = recipe["text"]["query_template"]
            shards = [(os.fspath(s["file"]), s["examples"]) for s in manifest["shards"]]
            if not shards:
                raise ValueError("it names no shards")
        except UserError:
            raise
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(
                f"{path} is not a manifest ({first_line(error)}); delete it and tokenise again"
            ) from error
        self._manifest = manifest
        self._load_index([(path_inside(self.directory, name, path), n) for name, n in shards])

    def _load_index(self, shards: list[tuple[AnyPath, int]]) -> None:
        """Reads what the index says of these shards, each with its number of examples."""
        self._readers, sidecars, k = [], [], self.pairs_per_example
        for path, count in shards:
            sidecar = load_sidecar(path)
            if len(sidecar.index) != count:
                raise UserError(
                    f"{index_path(path)} has {len(sidecar.index)} records, {MANIFEST} says "
                    f"{count}; delete {self.directory} and tokenise the split again"
                )
            if sidecar.text_lengths.shape[1] != 2 * k:
                raise UserError(
                    f"{index_path(path)} has examples of {sidecar.text_lengths.shape[1] / 2:g} "
                    f"pairs, {MANIFEST} says {k}; delete {self.directory} and tokenise the split "
                    "again"
                )
            self._readers.append(Reader(path, sidecar.index))
            sidecars.append(sidecar)
        self.text_lengths, self.part_lengths, self.instruction_hashes = (
            np.concatenate([sidecar[n] for sidecar in sidecars]) for n in (1, 2, 3)
        )
        self._pair_hashes = [sidecar.pair_hashes for sidecar in sidecars]
        self._siblings = joined(
            sidecars, "siblings", lambda one: usual_siblings(one.text_lengths[:, ::2] > 0)
        )
        self.scored = any(sidecar.scored is not None for sidecar in sidecars)
        self.negative_counts = joined(
            sidecars, "negative_counts", lambda one: np.zeros((len(one.index), k), np.int32)
        )
        self._negative_lengths = joined(
            sidecars, "negative_lengths", lambda one: np.empty(0, np.int32)
        )
        self._paths = [path for path, _ in shards]
        self._ends = np.cumsum([len(reader) for reader in self._readers])
        self.sources = [self]
        self.num_examples = len(self.text_lengths)

    def __len__(self) -> int:
        return self.num_examples

    def read(self, indices: Sequence[int] | np.ndarray) -> list[TokenisedRecord]:
        """The examples of these numbers (0 to num_examples - 1), in the given order.

        Raises:
          CorruptRecordError: a record is damaged, or disagrees with the index.
          IndexError: a number is out of range.
        """
        return [decode_tokenised(data) for data in self.read_batch(indices).data]

    def read_batch(
        self, indices: Sequence[int] | np.ndarray, *, negatives: bool = False
    ) -> TokenisedBatch:
        """As `read`, decoded at once: over ten times faster, but for records of older versions.
        Hard negatives are left out unless asked for."""
        wanted = np.asarray(indices, np.int64)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= self.num_examples):
            bad = wanted[(wanted < 0) | (wanted >= self.num_examples)][0]
            raise IndexError(f"{self.directory} has {self.num_examples} examples, not number {bad}")
        shards, in_shard = self._places(wanted)
        data = self._stored(wanted)

        def error(place: int, problem: str) -> CorruptRecordError:
            return CorruptRecordError(self._paths[shards[place]], int(in_shard[place]), problem)

        try:
            batch = decode_batch(data, self.pairs_per_example, negatives=negatives)
        except UserError:
            for place, each in enumerate(data):
                try:
                    decode_tokenised(each)
                except UserError as problem:
                    raise error(place, str(problem)) from problem
            raise
        decoded = {
            "text_lengths": batch.lengths,
            "part_lengths": part_lengths(batch.spans),
            "instruction_hashes": batch.hashes[:, :, 0],
        }
        decoded = {name: decoded[name] for name in self._compared}
        if negatives and self.negative_counts is not None:
            decoded["negative_counts"] = batch.negatives.counts
        for name, read in decoded.items():
            indexed = getattr(self, name)[wanted]
            differs = (read != indexed).any(axis=tuple(range(1, read.ndim)))
            if differs.any():
                first = int(differs.argmax())
                values, in_index = read[first].tolist(), indexed[first].tolist()
                what = f"its {name.replace('_', ' ')} are {values}, the index says {in_index}"
                raise error(first, what)
        return batch

    def _places(self, examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """int64[m] each, the shard of each example and its number there."""
        shards = np.searchsorted(self._ends, examples, side="right")
        return shards, examples - np.concatenate(([0], self._ends))[shards]

    def _stored(self, examples: np.ndarray) -> list[bytes]:
        """The records of these examples, int64[m]; CorruptRecordError where one is damaged."""
        shards, in_shard = self._places(examples)
        data: list[bytes] = [b""] * len(examples)
        for shard in np.unique(shards).tolist():
            places = np.flatnonzero(shards == shard)
            found = self._readers[shard].read_many(in_shard[places].tolist())
            for place, each in zip(places.tolist(), found, strict=True):
                data[place] = each
        return data

    @functools.cached_property
    def instructions(self) -> tuple[bool, bool]:
        """Whether some pair has an instruction, and whether some has none."""
        has = self.part_lengths[:, :, 2] > 0
        return bool(has.any()), bool((~has & (self.text_lengths[:, ::2] > 0)).any())

    def siblings(self, examples: np.ndarray) -> np.ndarray:
        """int64[p], of the pairs of these examples, numbered in this order, the number of the pair
        with the same query under another instruction, or its own number."""
        if self._siblings is None:
            places = usual_siblings(self.text_lengths[examples, ::2] > 0)
        else:
            places = self._siblings[examples]
        return (places + self.pairs_per_example * np.arange(len(examples))[:, None]).ravel()

    def negative_lengths(self, examples: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        """int[p, h], tokens of the drawn hard negatives of these examples' pairs, int64[p, h]
        numbers in the pairs' lists; 0 where none is drawn."""
        number = self._first_negatives(examples).reshape(-1, 1) + drawn
        lengths = self._negative_lengths[np.where(drawn >= 0, number, 0)]
        return np.where(drawn >= 0, lengths, 0)

    def drawn_tokens(self, count: int) -> np.ndarray:
        """int64[n], mean tokens of an example's hard negatives if `count` of each pair's are
        drawn."""
        if not count or self.negative_counts is None:
            return np.zeros(self.num_examples, np.int64)
        ends = np.concatenate([[0], np.cumsum(self._negative_lengths, dtype=np.int64)])
        counts, first = self.negative_counts, self._first_negative
        tokens = ends[first + counts] - ends[first]
        mean = tokens * np.minimum(counts, count) / np.maximum(counts, 1)
        return np.rint(mean.sum(1)).astype(np.int64)

    def _first_negatives(self, examples: np.ndarray) -> np.ndarray:
        """int64[m, k], the place of each pair's first one in `_negative_lengths`."""
        return self._first_negative[examples]

    @functools.cached_property
    def _first_negative(self) -> np.ndarray:
        """int64[n, k], the place of each pair's first one in `_negative_lengths`."""
        counts = self.negative_counts
        return np.cumsum(counts.ravel(), dtype=np.int64).reshape(counts.shape) - counts

    def known_instructions(self, examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`KnownInstructions.of` the pairs of these examples, by all examples of the split; reads
        once all records of a shard whose index lacks `pair_hashes`."""
        return self._known.of(self.pair_hashes[examples].ravel())

    @functools.cached_property
    def _known(self) -> KnownInstructions:
        return KnownInstructions.joined([self])

    @functools.cached_property
    def pair_hashes(self) -> np.ndarray:
        """uint64[n, k], `records.pair_hashes` of all examples."""
        every = []
        for reader, hashes in zip(self._readers, self._pair_hashes, strict=True):
            if hashes is None:
                data = reader.read_many([*range(len(reader))])
                hashes = pair_hashes(decode_batch(data, self.pairs_per_example).hashes)
            every.append(hashes)
        return np.concatenate(every)

    def check_composition(self, kind: str) -> None:
        """Raises UserError where texts of a kind (a field of `Composition`) cannot be spliced."""
        wrong, checked = getattr(self._composition, kind), self._composition.checked
        if not wrong:
            return
        what, remedy = {
            "crossed": (
                "a query under another instruction",
                "put white space or punctuation around {instruction} in data.query_template, or "
                "leave loss.instruction_negatives at 0 (block I then has the poisons alone)",
            ),
            "alone": (
                "a query or an instruction as a text of its own",
                'train with model.query_encoder="joint"',
            ),
        }[kind]
        raise UserError(
            f"{self.directory}: with data.query_template={self._template!r} this model's tokenizer "
            f"merges across the boundary of query and instruction, so {what} cannot be spliced "
            f"from tokens ({wrong} of {checked} checked differ); {remedy}"
        )
