"""Reading tokenised examples: a directory that `data.tokenise` wrote, by number."""

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from inf_jax.core.errors import UserError
from inf_jax.data.records import (
    PAIRS_PER_EXAMPLE,
    TOKENISED_SCHEMA,
    TokenisedRecord,
    decode_tokenised,
    part_lengths,
)
from inf_jax.data.splice_check import Composition
from inf_jax.io.json_files import read_json
from inf_jax.io.tfrecord import CorruptRecordError, Index, Reader

MANIFEST = "manifest.json"
_TEXTS = 2 * PAIRS_PER_EXAMPLE


class Sidecar(NamedTuple):
    """What is known of the n examples of one shard without reading a record.

    Attributes:
      index: where the records are.
      text_lengths: int32[n, 6], tokens of IQ0, P0, IQ1, P1, IQ2, P2; 0 marks an absent pair.
      part_lengths: int32[n, 3, 3], tokens of each pair's instructed query before it was cut, of its
        query and of its instruction.
      instruction_hashes: uint64[n, 3], which pairs have the same instruction.
    """

    index: Index
    text_lengths: np.ndarray
    part_lengths: np.ndarray
    instruction_hashes: np.ndarray


class TokenisedDataset:
    """Random access to the tokenised examples of one split; threads may share it.

    Attributes:
      directory: Path, as `tokenise` returned it.
      num_examples: int.
      text_lengths: int32[num_examples, 6], tokens of IQ0, P0, IQ1, P1, IQ2, P2; 0 marks an absent
        pair. Known without reading a record, and so are the next two.
      part_lengths: int32[num_examples, 3, 3], see `Sidecar`.
      instruction_hashes: uint64[num_examples, 3], of each pair.
      special: int32[...] twice, the special tokens before and after every text.
      max_query_tokens: int, the limit of an instructed query.
      fingerprint: str, the hash of all that the contents depend on.

    Raises:
      UserError: a file is missing or unreadable, or counts do not agree; names it and the remedy.
    """

    def __init__(self, directory: str | os.PathLike):
        self.directory = Path(directory)
        manifest = read_json(
            self.directory / MANIFEST, remedy="tokenise the split again, it was not finished"
        )
        try:
            if manifest["recipe"]["schema"] != TOKENISED_SCHEMA:
                raise UserError(
                    f"{self.directory} has schema {manifest['recipe']['schema']}, this version "
                    f"reads {TOKENISED_SCHEMA}; tokenise the split again"
                )
            self.fingerprint: str = manifest["fingerprint"]
            self.max_query_tokens: int = manifest["recipe"]["text"]["max_query_tokens"]
            before, after = (np.array(ids, np.int32) for ids in manifest["special_tokens"])
            self.special: tuple[np.ndarray, np.ndarray] = before, after
            self._composition = Composition(**manifest["composition"])
            self._template: str = manifest["recipe"]["text"]["query_template"]
            shards = [(s["file"], s["examples"]) for s in manifest["shards"]]
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{self.directory / MANIFEST} is not a manifest ({error!r}); delete it and "
                "tokenise the split again"
            ) from error
        self._readers, sidecars = [], []
        for name, count in shards:
            path = self.directory / name
            sidecar = load_sidecar(path)
            if len(sidecar.index) != count:
                raise UserError(
                    f"{index_path(path)} has {len(sidecar.index)} records, {MANIFEST} says "
                    f"{count}; delete {self.directory} and tokenise the split again"
                )
            self._readers.append(Reader(path, sidecar.index))
            sidecars.append(sidecar)
        self.text_lengths, self.part_lengths, self.instruction_hashes = (
            np.concatenate([sidecar[n] for sidecar in sidecars]) for n in (1, 2, 3)
        )
        self._ends = np.cumsum([len(reader) for reader in self._readers])
        self.num_examples = len(self.text_lengths)

    def __len__(self) -> int:
        return self.num_examples

    def read(self, indices: Sequence[int] | np.ndarray) -> list[TokenisedRecord]:
        """The examples of these numbers (0 to num_examples - 1), in the order asked for.

        Raises:
          CorruptRecordError: a record is damaged, or its text lengths are not the index's.
          IndexError: there is no such example.
        """
        wanted = np.asarray(indices, np.int64)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= self.num_examples):
            bad = wanted[(wanted < 0) | (wanted >= self.num_examples)][0]
            raise IndexError(f"{self.directory} has {self.num_examples} examples, no number {bad}")
        shards = np.searchsorted(self._ends, wanted, side="right")
        in_shard = wanted - np.concatenate(([0], self._ends))[shards]
        records = []
        for shard, number in zip(shards.tolist(), in_shard.tolist(), strict=True):
            reader = self._readers[shard]
            try:
                records.append(decode_tokenised(reader.read(number)))
            except CorruptRecordError:
                raise
            except UserError as error:
                raise CorruptRecordError(reader.path, number, str(error)) from error
        for name, of_record in (
            ("text_lengths", lambda r: r.lengths),
            ("part_lengths", lambda r: part_lengths(r.spans)),
            ("instruction_hashes", lambda r: r.hashes[:, 0]),
        ):
            indexed = getattr(self, name)[wanted]
            found = np.array([of_record(record) for record in records]).reshape(indexed.shape)
            differs = (found != indexed).any(axis=tuple(range(1, found.ndim)))
            if differs.any():
                first = int(differs.argmax())
                raise CorruptRecordError(
                    self._readers[shards[first]].path,
                    int(in_shard[first]),
                    f"its {name.replace('_', ' ')} are {found[first].tolist()}, the index says "
                    f"{indexed[first].tolist()}",
                )
        return records

    def check_composition(self, kind: str) -> None:
        """Raises UserError where texts cannot be put together from the parts of instructed queries.

        Args:
          kind: "crossed", a query under another pair's instruction, or "alone", query and
            instruction as texts of their own.
        """
        wrong, checked = getattr(self._composition, kind), self._composition.checked
        if not wrong:
            return
        what, remedy = {
            "crossed": (
                "a query under another instruction",
                "put white space or punctuation around {instruction} in data.query_template, or "
                "leave loss.instruction_negatives at 0 (the poisons alone then are block I)",
            ),
            "alone": (
                "a query or an instruction as a text of its own",
                'train with model.query_encoder="joint"',
            ),
        }[kind]
        raise UserError(
            f"{self.directory}: for {what} the tokens of data.query_template="
            f"{self._template!r} do not give what this model's tokenizer gives ({wrong} of "
            f"{checked} checked differ), since it merges over the border; {remedy}"
        )


def index_path(shard: Path) -> Path:
    """Where the index of a shard is."""
    return shard.with_name(shard.name + ".index.npz")


def load_sidecar(shard: Path) -> Sidecar:
    """The index of a shard and what it says of the texts; UserError if damaged or missing."""
    path = index_path(shard)
    try:
        with open(path, "rb") as file, np.load(file) as arrays:
            index = Index(arrays["offsets"], arrays["lengths"], arrays["crcs"])
            sidecar = Sidecar(index, *(arrays[name] for name in Sidecar._fields[1:]))
        n = len(index)
        shapes = [x.shape for x in (index.lengths, index.crcs, *sidecar[1:])]
        if shapes != [(n,), (n,), (n, _TEXTS), (n, PAIRS_PER_EXAMPLE, 3), (n, PAIRS_PER_EXAMPLE)]:
            raise ValueError("its arrays do not fit together")
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; tokenise the split again") from error
    except (  # a flipped bit can also ask the zip reader for a method that it does not have
        *(OSError, EOFError, KeyError, ValueError, TypeError, RuntimeError),
        zipfile.BadZipFile,
    ) as error:
        raise UserError(
            f"{path} is damaged ({error}); delete it and tokenise the split again"
        ) from error
    return sidecar
