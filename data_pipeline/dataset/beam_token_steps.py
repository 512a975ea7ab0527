"""The steps of `data_pipeline.beam_tokenise` that run on Beam's workers.

They are not in the command's module, because workers cannot unpickle what `__main__` defines.
"""

import collections
import functools
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from inf_jax.core.errors import UserError
from inf_jax.data.records import AnyExample, decode_at
from inf_jax.data.tokenised.plans import TokenisingPlan
from inf_jax.data.tokenised.shards import write_manifest, write_shard
from inf_jax.io.tfrecord import build_index, read_range
from inf_jax.models.hf.config import read_config
from inf_jax.models.hf.resolve import resolve_model
from inf_jax.text.splice_check import CHECKED_EXAMPLES
from inf_jax.text.templates import TextConfig
from inf_jax.text.tokenizer import TextTokenizer, load_tokenizer


class Piece(NamedTuple):
    """Consecutive records of one text TFRecord that go into one shard.

    Attributes:
      start: number of the first example in the split.
      file: the TFRecord.
      offset: byte offset in it.
      first: number of the first record in the file.
      count: number of records.
    """

    start: int
    file: str
    offset: int
    first: int
    count: int

    def read(self) -> Iterator[tuple[int, AnyExample]]:
        """Yields the examples, each with its number in the split."""
        records = read_range(self.file, offset=self.offset, first=self.first, count=self.count)
        for n, data in enumerate(records):
            yield self.start + n, decode_at(Path(self.file), self.first + n, data)


class ShardJob(NamedTuple):
    """The data that every worker needs; the methods are the pipeline's steps.

    Attributes:
      plan: sources and shards.
      text: templates and limits.
      model: `model.name` of the config; workers load the tokenizer, which may be large, by name.
      append_eos: see `inf_jax.text.tokenizer.TextTokenizer`.
      fingerprint: of the tokenizer.
      todo: numbers of the shards to write; the others exist.
      pairs_per_example: k, of the whole split.
    """

    plan: TokenisingPlan
    text: TextConfig
    model: str
    append_eos: str
    fingerprint: str
    todo: set[int]
    pairs_per_example: int

    def pieces(self, file: tuple[int, tuple[Path, int]]) -> Iterator[tuple[int, Piece]]:
        """Splits a TFRecord, (number of its first example, (path, number of records)), into pieces;
        yields (shard, piece)."""
        start, (path, count) = file
        offsets = build_index(path, count=count).offsets
        size = self.plan.recipe["examples_per_shard"]
        for shard in range(start // size, -(-(start + count) // size)):
            first = max(shard * size - start, 0)
            stop = min((shard + 1) * size - start, count)
            if first < stop:
                offset = int(offsets[first])
                yield shard, Piece(start + first, str(path), offset, first, stop - first)

    def write(self, shard: int, pieces: Iterable[Piece]) -> list[tuple[int, AnyExample]]:
        """Writes a shard unless it exists; returns its examples that belong to the manifest's
        sample, with their numbers."""
        every = -(-self.plan.num_examples // CHECKED_EXAMPLES)  # as `splice_check.sampled`
        sample: list[tuple[int, AnyExample]] = []

        def examples() -> Iterator[AnyExample]:
            for number, example in itertools.chain(*(piece.read() for piece in sorted(pieces))):
                if number % every == 0:
                    sample.append((number, example))
                yield example

        if shard in self.todo:
            path, _ = self.plan.shards[shard]
            options = {"tokenizer": self._tokenizer(), "text": self.text}
            options["pairs_per_example"] = self.pairs_per_example
            options["rewriting"] = self.plan.rewriting
            write_shard(path, examples(), **options)
        else:
            collections.deque(examples(), maxlen=0)  # only for the sample
        return sample

    def finish(self, sample: list[tuple[int, AnyExample]]) -> None:
        """Writes the manifest."""
        examples = [example for _, example in sorted(sample, key=lambda each: each[0])]
        write_manifest(self.plan, examples, tokenizer=self._tokenizer(), text=self.text)

    def _tokenizer(self) -> TextTokenizer:
        tokenizer = _load(self.model, self.append_eos)
        if tokenizer.fingerprint != self.fingerprint:
            raise UserError(
                f"model.name={self.model!r}: a worker loaded a different tokenizer; give "
                "a directory that all workers mount"
            )
        return tokenizer


@functools.cache  # once per worker process
def _load(model: str, append_eos: str) -> TextTokenizer:
    directory = resolve_model(model)
    rows = read_config(directory).vocab_size
    return load_tokenizer(directory, append_eos=append_eos, rows=rows)
