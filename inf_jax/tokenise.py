"""Text TFRecords -> tokenised TFRecords with an index, made once per tokenizer and templates.

    python -m inf_jax.tokenise --config=configs/medquad_minilm.py

does it for a config's train split; training does the same on first use. The result is a
directory `<split>-<hash>`: shards `tokens-XXXXX-of-NNNNN.tfrecord`, an index beside each, and
`manifest.json`, written last. All files are atomic and depend on the inputs alone, so that a killed
run goes on where it was and ends with the same bytes. `TokenisedDataset` reads it.
"""

import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import tqdm
from ml_collections import ConfigDict

from inf_jax.atomic import atomic_file
from inf_jax.composition import check_composition, sampled
from inf_jax.config import ReadLog, run
from inf_jax.errors import UserError
from inf_jax.records import (
    PAIRS_PER_EXAMPLE,
    TOKENISED_SCHEMA,
    Example,
    TokenisedRecord,
    decode_example,
    encode_tokenised,
    pairs,
    part_lengths,
    text_hash,
)
from inf_jax.text import TextConfig, TextTokenizer
from inf_jax.tfrecord import CorruptRecordError, Reader, Writer, read_records
from inf_jax.tokenised import (
    MANIFEST,
    TokenisedDataset,
    index_path,
    load_sidecar,
    read_json,
)

__all__ = ["TokenisedDataset", "tokenise"]

_TEXTS = 2 * PAIRS_PER_EXAMPLE
_BATCH = 1024  # examples tokenised in one call: enough to keep all cores busy, little memory


def tokenise(
    dataset_dir: str | os.PathLike,
    split: str,
    *,
    tokenizer: TextTokenizer,
    text: TextConfig,
    out_dir: str | os.PathLike,
    progress: bool = True,
    examples_per_shard: int = 8192,
) -> Path:
    """Tokenises one split of a TFDS directory, or finds that it has been done.

    Args:
      dataset_dir: the directory with `dataset_info.json`, as `data_pipeline.build` writes it.
      split: a split's name, "train" or "dev".
      examples_per_shard: a killed run repeats at most so many examples.

    Returns:
      `<out_dir>/<split>-<hash16>`, for `TokenisedDataset`. The hash covers the schema, the source
      files' contents, the tokenizer, the templates, the limits and `examples_per_shard`.
    Raises:
      UserError: the split is missing, damaged or empty, a text has no tokens, or a file cannot be
        written; names file and record.
    """
    sources = _source_files(Path(dataset_dir), split)
    num_examples = sum(count for _, count in sources)
    recipe = {
        "schema": TOKENISED_SCHEMA,
        "split": split,
        "sources": [[path.name, count, _checksum(path)] for path, count in sources],
        "tokenizer": tokenizer.fingerprint,
        "text": dataclasses.asdict(text),
        "examples_per_shard": examples_per_shard,
    }
    fingerprint = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
    directory = Path(out_dir) / f"{split}-{fingerprint[:16]}"
    shards = _shards(directory, num_examples, examples_per_shard)
    todo = {path for path, count in shards if not _finished(path, count)}
    manifest = directory / MANIFEST
    if not todo and manifest.exists():
        print(f"{split}: {num_examples} examples are tokenised already, reusing {directory}")
        return directory
    if len(todo) < len(shards):
        print(f"{split}: reusing {len(shards) - len(todo)} of {len(shards)} shards in {directory}")

    sample: list[Example] = []
    examples = sampled(_examples(sources), count=num_examples, into=sample)
    with tqdm.tqdm(
        total=num_examples, desc=f"tokenise {split}", unit="ex", disable=not progress
    ) as bar:
        for path, count in shards:
            shard = itertools.islice(examples, count)
            if path in todo:
                _write_shard(path, shard, tokenizer=tokenizer, text=text, bar=bar)
            else:
                bar.update(sum(1 for _ in shard))
        next(examples, None)  # lets the last source file find that it holds too many records
    contents = {
        "fingerprint": fingerprint,
        "recipe": recipe,
        "special_tokens": [ids.tolist() for ids in tokenizer.special],
        "composition": check_composition(sample, tokenizer, text)._asdict(),
    }
    _write_manifest(manifest, contents, shards=shards)
    return directory


def read_examples(dataset_dir: str | os.PathLike, split: str) -> Iterator[Example]:
    """The examples of one split of a TFDS directory, in the order of its files.

    Args:
      dataset_dir, split: as for `tokenise`.

    Raises:
      UserError: the split is missing, damaged or empty; names file and record.
    """
    yield from _examples(_source_files(Path(dataset_dir), split))


def _source_files(directory: Path, split: str) -> list[tuple[Path, int]]:
    """The text TFRecords of a split in a TFDS directory, each with its number of records."""
    info_path = directory / "dataset_info.json"
    info = read_json(info_path, remedy="build the dataset with `python -m data_pipeline.build`")
    try:
        splits = {s["name"]: s for s in info["splits"]}
        if split not in splits:
            raise UserError(f"{info_path} has no split {split!r}; it has {sorted(splits)}")
        counts = [int(n) for n in splits[split]["shardLengths"]]
        file_format = info.get("fileFormat", "tfrecord")
        if file_format != "tfrecord":
            raise UserError(f"{info_path}: file format {file_format!r}, only tfrecord can be read")
        template = splits[split].get(
            "filepathTemplate", "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        )
        names = [
            template.format(
                DATASET=info["name"],
                SPLIT=split,
                FILEFORMAT=file_format,
                SHARD_INDEX=f"{n:05d}",
                NUM_SHARDS=f"{len(counts):05d}",
                SHARD_X_OF_Y=f"{n:05d}-of-{len(counts):05d}",
            )
            for n in range(len(counts))
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{info_path} is not a dataset_info.json of TFDS ({error!r}); build the dataset again"
        ) from error
    if not sum(counts):
        raise UserError(f"{info_path}: split {split!r} has no examples")
    return [(directory / name, count) for name, count in zip(names, counts, strict=True)]


def _checksum(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; build the dataset again") from error


def _examples(sources: list[tuple[Path, int]]) -> Iterator[Example]:
    for path, count in sources:
        for number, data in enumerate(read_records(path, count=count)):
            try:
                yield decode_example(data)
            except UserError as error:
                raise CorruptRecordError(path, number, str(error)) from error


def _shards(directory: Path, num_examples: int, per_shard: int) -> list[tuple[Path, int]]:
    if per_shard < 1:
        raise UserError(f"examples_per_shard={per_shard} must be 1 or more")
    starts = range(0, num_examples, per_shard)
    return [
        (
            directory / f"tokens-{n:05d}-of-{len(starts):05d}.tfrecord",
            min(per_shard, num_examples - start),
        )
        for n, start in enumerate(starts)
    ]


def _finished(path: Path, count: int) -> bool:
    """Whether a shard and its index are whole; the index is written last."""
    try:
        index = load_sidecar(path).index
        Reader(path, index)  # compares sizes
    except UserError:
        return False
    return len(index) == count


def _write_shard(
    path: Path,
    examples: Iterable[Example],
    *,
    tokenizer: TextTokenizer,
    text: TextConfig,
    bar: tqdm.tqdm,
) -> None:
    lengths, parts, instructions = [], [], []
    with Writer(path) as writer:
        while batch := list(itertools.islice(examples, _BATCH)):
            for record in _tokenise_batch(batch, tokenizer=tokenizer, text=text):
                writer.write(encode_tokenised(record))
                lengths.append(record.lengths)
                parts.append(part_lengths(record.spans))
                instructions.append(record.hashes[:, 0])
            bar.update(len(batch))
    index = writer.index
    with atomic_file(index_path(path)) as file:
        np.savez(
            file,
            offsets=index.offsets,
            lengths=index.lengths,
            crcs=index.crcs,
            text_lengths=np.array(lengths, np.int32),
            part_lengths=np.array(parts, np.int32),
            instruction_hashes=np.array(instructions, np.uint64),
        )


def _tokenise_batch(
    examples: list[Example], *, tokenizer: TextTokenizer, text: TextConfig
) -> Iterator[TokenisedRecord]:
    all_pairs = [pairs(example) for example in examples]
    present = [pair for group in all_pairs for pair in group if pair is not None]
    queries = iter(tokenizer.query_parts([(p.query, p.instruction) for p in present], text))
    passages = iter(tokenizer.passages([p.passage for p in present], text))
    for example, group in zip(examples, all_pairs, strict=True):
        tokens, lengths = [], np.zeros(_TEXTS, np.int32)
        hashes = np.zeros((PAIRS_PER_EXAMPLE, 3), np.uint64)
        uncut, spans = [np.empty(0, np.int32)], np.zeros((PAIRS_PER_EXAMPLE, 5), np.int32)
        for n, pair in enumerate(group):
            if pair is None:
                continue
            (query, parts), passage = next(queries), next(passages)
            if not (len(query) and len(passage)):  # length 0 would say that the pair is absent
                raise UserError(
                    f"example {example.id!r}: a text of pair {n} has no tokens; remove the example "
                    "with the validation of `python -m data_pipeline.build`"
                )
            tokens += (query, passage)
            lengths[2 * n : 2 * n + 2] = len(query), len(passage)
            hashes[n] = [text_hash(part) for part in pair]
            spans[n] = len(parts.ids), *parts.query, *parts.instruction
            if len(query) < len(parts.ids):
                uncut.append(parts.ids)
        yield TokenisedRecord(
            example.id, np.concatenate(tokens), lengths, hashes, spans, np.concatenate(uncut)
        )


def _write_manifest(path: Path, contents: dict, *, shards: list[tuple[Path, int]]) -> None:
    lengths = np.concatenate([load_sidecar(shard).text_lengths for shard, _ in shards])
    text = contents["recipe"]["text"]
    at_limit = lengths.reshape(-1, 2) == (text["max_query_tokens"], text["max_passage_tokens"])
    manifest = contents | {
        "shards": [{"file": shard.name, "examples": count} for shard, count in shards],
        "texts": int(np.count_nonzero(lengths)),
        "tokens": int(lengths.sum()),
        # as long as the limit allows: most of these have been cut
        "queries_at_limit": int(at_limit[:, 0].sum()),
        "passages_at_limit": int(at_limit[:, 1].sum()),
    }
    with atomic_file(path) as file:
        file.write(json.dumps(manifest, indent=2, sort_keys=True).encode() + b"\n")


def main(resolved: ConfigDict) -> None:
    """Tokenises the train split of a run, as training would."""
    # what is imported here is built on this module
    from inf_jax import report
    from inf_jax.run import load_model, tokenised_split

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
