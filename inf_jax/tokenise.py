"""Text TFRecords -> tokenised TFRecords with an index, made once per tokenizer and templates.

    python -m inf_jax.tokenise --config=configs/medquad_minilm.py

does it for a config's train split; training does the same on first use. The result is a
directory `<split>-<hash>`: shards `tokens-XXXXX-of-NNNNN.tfrecord`, an index beside each, and
`manifest.json`, written last. All files are atomic and depend on the inputs alone, so that a killed
run goes on where it was and ends with the same bytes. `TokenisedDataset` reads it.
"""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tqdm
from ml_collections import ConfigDict

from inf_jax.config import ReadLog, run
from inf_jax.core.errors import UserError
from inf_jax.data.records import Example
from inf_jax.data.splice_check import sampled
from inf_jax.data.token_shards import (
    EXAMPLES_PER_SHARD,
    make_plan,
    read_source,
    source_files,
    write_manifest,
    write_shard,
)
from inf_jax.data.tokenised import TokenisedDataset
from inf_jax.text.tokenizer import TextConfig, TextTokenizer

__all__ = ["TokenisedDataset", "tokenise"]


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
    """Tokenises one split of a TFDS directory, or finds that it has been done.

    Args:
      dataset_dir: the directory with `dataset_info.json`, as `data_pipeline.build` writes it.
      split: a split's name, "train" or "dev".
      examples_per_shard: a killed run repeats at most so many examples.
      expected: the fingerprint that the result must have, of a run that is resumed.

    Returns:
      `<out_dir>/<split>-<hash16>`, for `TokenisedDataset`. The hash covers the schema, the source
      files' contents, the tokenizer, the templates, the limits and `examples_per_shard`.
    Raises:
      UserError: the split is missing, damaged or empty, a text has no tokens, or a file cannot be
        written; names file and record. Or the fingerprint will be another one: said before any text
        is tokenised.
    """
    plan = make_plan(
        dataset_dir,
        split,
        tokenizer=tokenizer,
        text=text,
        out_dir=out_dir,
        examples_per_shard=examples_per_shard,
    )
    if expected and plan.fingerprint != expected:
        raise UserError(
            f"{dataset_dir}, {split}: not what the run that is resumed was trained on: its records "
            "or the tokenizer have changed; put back the old ones or give a new out_dir"
        )
    todo = plan.todo()
    if todo is None:
        return plan.directory
    sample: list[Example] = []
    examples = sampled(_examples(plan.sources), count=plan.num_examples, into=sample)
    with tqdm.tqdm(
        total=plan.num_examples, desc=f"tokenise {split}", unit="ex", disable=not progress
    ) as bar:
        for number, (path, count) in enumerate(plan.shards):
            shard = itertools.islice(examples, count)
            if number in todo:
                write_shard(path, shard, tokenizer=tokenizer, text=text, progress=bar.update)
            else:
                bar.update(sum(1 for _ in shard))
        next(examples, None)  # lets the last source file find that it holds too many records
    write_manifest(plan, sample, tokenizer=tokenizer, text=text)
    return plan.directory


def read_examples(dataset_dir: str | os.PathLike, split: str) -> Iterator[Example]:
    """The examples of one split of a TFDS directory, in the order of its files.

    Args:
      dataset_dir, split: as for `tokenise`.

    Raises:
      UserError: the split is missing, damaged or empty; names file and record.
    """
    yield from _examples(source_files(Path(dataset_dir), split))


def _examples(sources: list[tuple[Path, int]]) -> Iterator[Example]:
    for path, count in sources:
        yield from read_source(path, count=count)


def main(resolved: ConfigDict) -> None:
    """Tokenises the train split of a run, as training would."""
    # what is imported here is built on this module
    from inf_jax.models.hf.backbone import load_model, tokenised_split
    from inf_jax.monitoring import metrics_log as report

    config = ReadLog(resolved)
    split = config.data.train_split
    dataset = tokenised_split(config, load_model(config).tokenizer, split)
    queries, passages = (dataset.text_lengths[:, role::2] for role in (0, 1))
    report.table(
        f"{split}: {dataset.num_examples:,} examples",
        [
            (
                name,
                f"{np.count_nonzero(lengths):,}",
                f"{lengths.sum():,}",
                f"{lengths[lengths > 0].mean():.1f}",
                limit,
                f"{np.mean(lengths[lengths > 0] == limit):.1%}",
            )
            for name, lengths, limit in (
                ("instructed queries", queries, config.data.max_query_tokens),
                ("passages", passages, config.data.max_passage_tokens),
            )
        ],
        header=("", "texts", "tokens", "mean", "limit", "at the limit"),
    )
    print(f"tokenised records: {dataset.directory}")


if __name__ == "__main__":
    run(main, __doc__)
