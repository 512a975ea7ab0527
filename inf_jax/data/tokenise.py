"""Tokenises a split of a text dataset into indexed TFRecords, once per tokenizer and templates.

`TokenisedDataset` reads the result, `<split>-<hash>/` with shards `tokens-XXXXX-of-NNNNN.tfrecord`,
an index for each, and `manifest.json`, written last. Files are written atomically and depend on the
inputs alone: a killed run continues where it stopped and produces the same bytes.
"""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import tqdm

from inf_jax.core.errors import UserError
from inf_jax.data.records import AnyExample, most_pairs, read_sources
from inf_jax.data.tokenised.shards import (
    EXAMPLES_PER_SHARD,
    plan_shards,
    source_files,
    write_manifest,
    write_shard,
)
from inf_jax.text.splice_check import sampled
from inf_jax.text.templates import TextConfig
from inf_jax.text.tokenizer import TextTokenizer


def tokenise(
    dataset_dir: str | os.PathLike,
    split: str,
    *,
    tokenizer: TextTokenizer,
    text: TextConfig,
    out_dir: str | os.PathLike,
    progress: bool = True,
    examples_per_shard: int = EXAMPLES_PER_SHARD,
    expected: str | None = None,
) -> Path:
    """Tokenises one split of a TFDS directory, unless its result exists already.

    Args:
      dataset_dir: the directory with `dataset_info.json`, as `data_pipeline.build` writes it.
      examples_per_shard: a killed run repeats at most this many examples.
      expected: the fingerprint that the result must have (when a run is resumed).

    Returns:
      `<out_dir>/<split>-<hash16>`, for `TokenisedDataset`. The hash covers the schema, the source
      files' contents, the tokenizer, the templates, the limits and `examples_per_shard`.
    Raises:
      UserError: the split is missing, damaged or empty, a text has no tokens, a file cannot be
        written; or, before any text is tokenised, the fingerprint is not the expected one.
    """
    plan = plan_shards(
        dataset_dir,
        split,
        tokenizer=tokenizer,
        text=text,
        out_dir=out_dir,
        examples_per_shard=examples_per_shard,
    )
    if expected and plan.fingerprint != expected:
        raise UserError(
            f"{dataset_dir}, {split}: not the data of the resumed run, its records or tokenizer "
            "have changed: restore the old ones or give a new out_dir"
        )
    todo = plan.todo()
    if todo is None:
        return plan.directory
    options = {"pairs_per_example": most_pairs(plan.sources), "tokenizer": tokenizer, "text": text}
    sample: list[AnyExample] = []
    examples = sampled(read_sources(plan.sources), count=plan.num_examples, into=sample)
    with tqdm.tqdm(
        total=plan.num_examples, desc=f"tokenise {split}", unit="ex", disable=not progress
    ) as bar:
        for number, (path, count) in enumerate(plan.shards):
            shard = itertools.islice(examples, count)
            if number in todo:
                write_shard(path, shard, progress=bar.update, **options)
            else:
                bar.update(sum(1 for _ in shard))
        next(examples, None)  # the last source file raises if it holds too many records
    write_manifest(plan, sample, tokenizer=tokenizer, text=text)
    return plan.directory


def read_examples(dataset_dir: str | os.PathLike, split: str) -> Iterator[AnyExample]:
    """The examples of one split of a TFDS directory, in the order of its files; UserError where it
    is missing, damaged or empty, names file and record."""
    yield from read_sources(source_files(Path(dataset_dir), split))
