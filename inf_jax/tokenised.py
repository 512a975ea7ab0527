"""Reading tokenised examples: a directory that `inf_jax.tokenise` wrote, by number."""

import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from inf_jax.errors import UserError
from inf_jax.records import PAIRS_PER_EXAMPLE, TOKENISED_SCHEMA, TokenisedRecord, decode_tokenised
from inf_jax.tfrecord import CorruptRecordError, Index, Reader

MANIFEST = "manifest.json"
_TEXTS = 2 * PAIRS_PER_EXAMPLE


class TokenisedDataset:
    """Random access to the tokenised examples of one split; threads may share it.

    Attributes:
      directory: Path, as `tokenise` returned it.
      num_examples: int.
      text_lengths: int32[num_examples, 6], tokens of IQ0, P0, IQ1, P1, IQ2, P2; 0 marks an absent
        pair. Known without reading a record.
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
            shards = [(s["file"], s["examples"]) for s in manifest["shards"]]
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{self.directory / MANIFEST} is not a manifest ({error!r}); delete it and "
                "tokenise the split again"
            ) from error
        self._readers, lengths = [], []
        for name, count in shards:
            path = self.directory / name
            index, text_lengths = load_index(path)
            if len(index) != count:
                raise UserError(
                    f"{index_path(path)} has {len(index)} records, {MANIFEST} says {count}; "
                    f"delete {self.directory} and tokenise the split again"
                )
            self._readers.append(Reader(path, index))
            lengths.append(text_lengths)
        self.text_lengths = np.concatenate(lengths)
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
        lengths = np.array([record.lengths for record in records]).reshape(-1, _TEXTS)
        differs = (lengths != self.text_lengths[wanted]).any(axis=1)
        if differs.any():
            first = int(differs.argmax())
            raise CorruptRecordError(
                self._readers[shards[first]].path,
                int(in_shard[first]),
                f"its text lengths are {lengths[first].tolist()}, the index says "
                f"{self.text_lengths[wanted[first]].tolist()}",
            )
        return records


def index_path(shard: Path) -> Path:
    """Where the index of a shard is."""
    return shard.with_name(shard.name + ".index.npz")


def load_index(shard: Path) -> tuple[Index, np.ndarray]:
    """The index of a shard and its text lengths, int32[n, 6]; UserError if damaged or missing."""
    path = index_path(shard)
    try:
        with open(path, "rb") as file, np.load(file) as arrays:
            index = Index(arrays["offsets"], arrays["lengths"], arrays["crcs"])
            text_lengths = arrays["text_lengths"]
        shapes = {len(index), len(index.lengths), len(index.crcs), len(text_lengths)}
        if len(shapes) != 1 or text_lengths.shape[1:] != (_TEXTS,):
            raise ValueError("its arrays do not fit together")
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; tokenise the split again") from error
    except (OSError, EOFError, KeyError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} is damaged ({error}); delete it and tokenise the split again"
        ) from error
    return index, text_lengths


def read_json(path: Path, *, remedy: str) -> dict:
    """A JSON file; UserError with the remedy where it is missing or damaged."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; {remedy}") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); {remedy}") from error
