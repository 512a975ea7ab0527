"""`inf_jax.tokenise` on Apache Beam: the same files, their shards written by many workers.

python -m data_pipeline.beam_tokenise --config=configs/medquad_minilm.py --runner=DirectRunner \\
    --direct_num_workers=0 --direct_running_mode=multi_processing

Flags that begin with --config are those of `inf_jax.train`, which then finds its train split
tokenised; --runner and all others are Beam's. Killed, it goes on where it was. data.dir must be on
a file system that every worker mounts under the same path.
"""

import argparse
import functools
import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import tensorflow_datasets as tfds

from data_pipeline.beam_build import add_runner, check_paths, make_config, quiet
from data_pipeline.beam_errors import worker_errors
from inf_jax.composition import SAMPLE
from inf_jax.config import ReadLog, parse
from inf_jax.errors import UserError, main_guard
from inf_jax.models import hf
from inf_jax.records import Example
from inf_jax.run import dataset_dir, load_model, text_config
from inf_jax.text import TextConfig, TextTokenizer, load_tokenizer
from inf_jax.tfrecord import build_index, read_slice
from inf_jax.token_shards import (
    EXAMPLES_PER_SHARD,
    Plan,
    decode_at,
    make_plan,
    write_manifest,
    write_shard,
)


class Piece(NamedTuple):
    """Neighbouring records of one text TFRecord, all of one shard.

    Attributes:
      start: number of its first example in the split.
      file: the TFRecord.
      offset: byte in it.
      first: number of the first record in the file.
      count: records.
    """

    start: int
    file: str
    offset: int
    first: int
    count: int

    def read(self) -> Iterator[tuple[int, Example]]:
        """The examples, each with its number in the split."""
        records = read_slice(self.file, offset=self.offset, first=self.first, count=self.count)
        for n, data in enumerate(records):
            yield self.start + n, decode_at(Path(self.file), self.first + n, data)


def tokenise(
    config: ReadLog,
    beam_config: tfds.download.DownloadConfig,
    *,
    examples_per_shard: int = EXAMPLES_PER_SHARD,
) -> Path:
    """Tokenises the train split of a run, or finds that it has been done.

    Returns:
      The directory that `inf_jax.tokenise.tokenise` returns, with the same files to the byte.
    Raises:
      UserError: as there.
    """
    import apache_beam as beam

    model = config.model.name
    tokenizer, text = load_model(config).tokenizer, text_config(config)
    plan = make_plan(
        dataset_dir(config),
        config.data.train_split,
        tokenizer=tokenizer,
        text=text,
        out_dir=Path(config.data.dir) / "tokenised" / config.data.source,
        examples_per_shard=examples_per_shard,
    )
    todo = plan.todo()
    if todo is None:
        return plan.directory
    work = _Work(plan, text, model, tokenizer.fingerprint, todo)
    files = list(zip(_starts(plan.sources), plan.sources, strict=True))
    with (
        worker_errors(),
        beam.Pipeline(beam_config.beam_runner, options=beam_config.beam_options) as pipeline,
    ):
        _ = (
            pipeline
            | "Files" >> beam.Create(files, reshuffle=True)
            | "Pieces" >> beam.FlatMap(work.pieces)
            | "ByShard" >> beam.GroupByKey()
            | "Write" >> beam.FlatMapTuple(work.write)
            | "Samples" >> beam.combiners.ToList()
            | "Manifest" >> beam.Map(work.finish)
        )
    return plan.directory


class _Work(NamedTuple):
    """What each worker has to know; the methods are the pipeline's steps."""

    plan: Plan
    text: TextConfig
    model: str
    fingerprint: str  # the tokenizer's
    todo: set[int]

    def pieces(self, file: tuple[int, tuple[Path, int]]) -> Iterator[tuple[int, Piece]]:
        """The pieces of a file by shard; `file` is its first example's number, path, records."""
        start, (path, count) = file
        offsets = build_index(path, count=count).offsets
        size = self.plan.recipe["examples_per_shard"]
        for shard in range(start // size, -(-(start + count) // size)):
            first = max(shard * size - start, 0)
            stop = min((shard + 1) * size - start, count)
            if first < stop:
                offset = int(offsets[first])
                yield shard, Piece(start + first, str(path), offset, first, stop - first)

    def write(self, shard: int, pieces: Iterable[Piece]) -> list[tuple[int, Example]]:
        """Writes a shard, unless it is there; the sample's examples in it, with their numbers."""
        every = -(-self.plan.num_examples // SAMPLE)  # as `composition.sampled`
        sample: list[tuple[int, Example]] = []

        def examples() -> Iterator[Example]:
            for number, example in itertools.chain(*(piece.read() for piece in sorted(pieces))):
                if number % every == 0:
                    sample.append((number, example))
                yield example

        if shard in self.todo:
            path, _ = self.plan.shards[shard]
            write_shard(path, examples(), tokenizer=self._tokenizer(), text=self.text)
        else:
            for _ in examples():
                pass
        return sample

    def finish(self, sample: list[tuple[int, Example]]) -> None:
        """Writes the manifest."""
        examples = [example for _, example in sorted(sample, key=lambda each: each[0])]
        write_manifest(self.plan, examples, tokenizer=self._tokenizer(), text=self.text)

    def _tokenizer(self) -> TextTokenizer:
        tokenizer = _load(self.model)
        if tokenizer.fingerprint != self.fingerprint:
            raise UserError(
                f"model.name={self.model!r}: a worker has another tokenizer under this name; give "
                "a directory that all workers mount"
            )
        return tokenizer


@functools.cache  # one for all threads and bundles of a worker
def _load(model: str) -> TextTokenizer:
    return load_tokenizer(hf.resolve_model(model))


def _starts(sources: list[tuple[Path, int]]) -> list[int]:
    return list(itertools.accumulate([count for _, count in sources[:-1]], initial=0))


def main(argv: Sequence[str] | None = None) -> None:
    """The command; `argv` without the program's name."""
    argv = sys.argv[1:] if argv is None else list(argv)
    ours = [flag for flag in argv if flag.startswith("--config")]
    parser = argparse.ArgumentParser(
        prog="python -m data_pipeline.beam_tokenise",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_runner(parser)
    args, options = parser.parse_known_args([flag for flag in argv if flag not in ours])
    with main_guard():
        quiet()
        config = parse(["beam_tokenise", *ours])
        check_paths(**{"config.data.dir": config.data.dir})
        directory = tokenise(ReadLog(config), make_config(args.runner, options))
        print(f"tokenised records: {directory}")


if __name__ == "__main__":
    main()
