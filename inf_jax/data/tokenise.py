"""Tokenises a split of a text dataset into indexed TFRecords, once per tokenizer and templates.

`TokenisedDataset` reads the result, `<split>-<hash>/` with shards `tokens-XXXXX-of-NNNNN.tfrecord`,
an index for each, and `manifest.json`, written last. Files are written atomically and depend on the
inputs alone: a killed run continues where it stopped and produces the same bytes.
"""

import contextlib
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tqdm

from inf_jax.core.errors import UserError
from inf_jax.data.records import AnyExample, most_pairs, read_sources
from inf_jax.data.tokenised.plans import (
    EXAMPLES_PER_SHARD,
    TokenisingPlan,
    plan_shards,
    source_files,
)
from inf_jax.data.tokenised.shards import write_manifest, write_shard
from inf_jax.data.tokenised.shuffle import ShuffledExamples
from inf_jax.io.storage import AnyPath, as_path, copy_here, is_bucket, local_directory
from inf_jax.io.tfrecord import CorruptRecordError
from inf_jax.text.splice_check import sampled, sampled_places
from inf_jax.text.templates import TextConfig
from inf_jax.text.tokenizer import TextTokenizer


def tokenise(
    dataset_dir: AnyPath,
    split: str,
    *,
    tokenizer: TextTokenizer,
    text: TextConfig,
    out_dir: AnyPath,
    progress: bool = True,
    examples_per_shard: int = EXAMPLES_PER_SHARD,
    expected: str | None = None,
) -> AnyPath:
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
    return tokenise_plan(plan, tokenizer=tokenizer, text=text, progress=progress, expected=expected)


def tokenise_plan(
    plan: TokenisingPlan,
    *,
    tokenizer: TextTokenizer,
    text: TextConfig,
    progress: bool = True,
    expected: str | None = None,
) -> AnyPath:
    """As `tokenise`, of a plan for this tokenizer and these templates."""
    split = plan.recipe["split"]
    if expected and plan.fingerprint != expected:
        raise UserError(
            f"{plan.sources[0][0].parent}, {split}: not the data of the resumed run, its records "
            "or tokenizer have changed: restore the old ones or give a new out_dir"
        )
    todo = plan.todo()
    if todo is None:
        return plan.directory
    sample: list[AnyExample] = []
    bar = tqdm.tqdm(
        total=plan.num_examples, desc=f"tokenise {split}", unit="ex", disable=not progress
    )
    with _here(plan.sources) as sources, bar:
        k = plan.rewriting.count(most_pairs(sources))
        options = {"pairs_per_example": k, "tokenizer": tokenizer, "text": text}
        options["rewriting"] = plan.rewriting
        if plan.shuffled:
            shuffled = ShuffledExamples(sources, shards=len(plan.shards))
            every = itertools.chain.from_iterable(
                shuffled.read(first, 1) for first in sampled_places(plan.num_examples)
            )
            sample += every
        else:
            examples = sampled(read_sources(sources), count=plan.num_examples, into=sample)
        first = 0
        for number, (path, count) in enumerate(plan.shards):
            place, first = first, first + count
            if not plan.shuffled:
                shard = itertools.islice(examples, count)
                if number in todo:
                    write_shard(path, shard, progress=bar.update, **options)
                else:
                    bar.update(sum(1 for _ in shard))
            elif number in todo:
                shard = shuffled.read(place, count)
                write_shard(path, shard, progress=bar.update, shuffle=number, **options)
            else:
                bar.update(count)
        if not plan.shuffled:
            next(examples, None)  # the last source file raises if it holds too many records
    write_manifest(plan, sample, tokenizer=tokenizer, text=text)
    return plan.directory


@contextlib.contextmanager
def _here(sources: list[tuple[AnyPath, int]]) -> Iterator[list[tuple[AnyPath, int]]]:
    """The files on a local disk, to which those in a bucket are copied while the block runs."""
    if not is_bucket(sources[0][0]):
        yield sources
        return
    with local_directory() as folder, ThreadPoolExecutor(8) as pool:
        copies = [folder / path.name for path, _ in sources]
        each = pool.map(copy_here, [path for path, _ in sources], copies)
        list(tqdm.tqdm(each, total=len(copies), desc="copy from the bucket", unit="file"))
        try:
            yield [(copy, count) for copy, (_, count) in zip(copies, sources, strict=True)]
        except CorruptRecordError as error:  # not of the copy, which goes
            path = sources[0][0].parent / Path(error.path).name
            raise CorruptRecordError(path, error.record, error.reason) from error


def read_examples(dataset_dir: AnyPath, split: str) -> Iterator[AnyExample]:
    """The examples of one split of a TFDS directory, in the order of its files; UserError where it
    is missing, damaged or empty, names file and record."""
    yield from read_sources(source_files(as_path(dataset_dir), split))
