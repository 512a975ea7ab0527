"""Plans and writes the shards of a tokenised split.

Each depends on its slice of the split alone: `data.tokenise` writes one after another, the workers
of `data_pipeline.beam_tokenise` many at once. The manifest is written last.
"""

import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from inf_jax.core.errors import UserError, first_line
from inf_jax.data.negatives import find_siblings, usual_siblings
from inf_jax.data.records import (
    AnyExample,
    Pair,
    pair_hashes,
    pairs,
    text_hash,
)
from inf_jax.data.tokenised.dataset import MANIFEST, Sidecar, load_sidecar, write_sidecar
from inf_jax.data.tokenised.records import (
    TOKENISED_SCHEMA,
    TokenisedNegatives,
    TokenisedRecord,
    encode_tokenised,
    part_lengths,
)
from inf_jax.io.atomic import atomic_write
from inf_jax.io.json_files import path_inside, read_json, sha256_of_file
from inf_jax.io.tfrecord import Reader, Writer
from inf_jax.text.splice_check import check_composition
from inf_jax.text.templates import TextConfig
from inf_jax.text.tokenizer import TextTokenizer

EXAMPLES_PER_SHARD = 8192  # a killed run repeats at most this many
_BATCH = 1024  # examples tokenised in one call: enough to keep all cores busy, little memory


@dataclasses.dataclass(frozen=True)
class TokenisingPlan:
    """What tokenising a split reads and writes.

    Attributes:
      sources: the split's text TFRecords, each with its number of records.
      directory: `<out_dir>/<split>-<hash16>`.
      shards: the files to write there, each with its number of examples.
      recipe: everything that the result depends on.
      fingerprint: hash of the recipe.
    """

    sources: list[tuple[Path, int]]
    directory: Path
    shards: list[tuple[Path, int]]
    recipe: dict
    fingerprint: str

    @property
    def num_examples(self) -> int:
        return sum(count for _, count in self.sources)

    @property
    def manifest(self) -> Path:
        return self.directory / MANIFEST

    def todo(self) -> set[int] | None:
        """Shards still to write, None where the split is finished; prints what is reused."""
        split, total = self.recipe["split"], len(self.shards)
        missing = {n for n, shard in enumerate(self.shards) if not _is_finished(*shard)}
        if not missing and self.manifest.exists():
            count = self.num_examples
            print(f"{split}: {count} examples are tokenised already, reusing {self.directory}")
            return None
        if len(missing) < total:
            print(f"{split}: reusing {total - len(missing)} of {total} shards in {self.directory}")
        return missing


def plan_shards(
    dataset_dir: str | os.PathLike,
    split: str,
    *,
    tokenizer: TextTokenizer,
    text: TextConfig,
    out_dir: str | os.PathLike,
    examples_per_shard: int = EXAMPLES_PER_SHARD,
) -> TokenisingPlan:
    """The plan of `tokenise` for these arguments; reads the source files once for their checksums.

    Raises:
      UserError: the split is missing or empty, or a file of it cannot be read.
    """
    sources = source_files(Path(dataset_dir), split)
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
    shards = _shards(directory, sum(count for _, count in sources), examples_per_shard)
    return TokenisingPlan(sources, directory, shards, recipe, fingerprint)


def split_names(directory: Path) -> list[str]:
    """The splits of a TFDS directory that have examples; UserError as of `source_files`."""
    info_path = directory / "dataset_info.json"
    info = read_json(info_path, remedy="build the dataset with `python -m data_pipeline.build`")
    try:
        return [s["name"] for s in info["splits"] if sum(map(int, s["shardLengths"]))]
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"{info_path}: not a dataset_info.json of TFDS ({first_line(error)}); build it again"
        ) from error


def source_files(directory: Path, split: str) -> list[tuple[Path, int]]:
    """The text TFRecords of a split in a TFDS directory, each with its number of records."""
    info_path = directory / "dataset_info.json"
    info = read_json(info_path, remedy="build the dataset with `python -m data_pipeline.build`")
    try:
        splits = {s["name"]: s for s in info["splits"]}
        if split not in splits:
            raise UserError(f"{info_path}: no split {split!r}; it has {', '.join(sorted(splits))}")
        counts = [int(n) for n in splits[split]["shardLengths"]]
        file_format = info.get("fileFormat", "tfrecord")
        if file_format != "tfrecord":
            raise UserError(f"{info_path}: file format {file_format!r}, only tfrecord can be read")
        default = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        template, total = splits[split].get("filepathTemplate", default), f"{len(counts):05d}"
        whole = {"DATASET": info["name"], "SPLIT": split, "FILEFORMAT": file_format}
        names = [
            template.format(
                **whole, SHARD_INDEX=n, NUM_SHARDS=total, SHARD_X_OF_Y=f"{n}-of-{total}"
            )
            for n in (f"{number:05d}" for number in range(len(counts)))
        ]
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{info_path}: not a dataset_info.json of TFDS ({first_line(error)}); build it again"
        ) from error
    if not sum(counts):
        raise UserError(f"{info_path}: split {split!r} has no examples")
    files = [path_inside(directory, name, info_path) for name in names]
    return list(zip(files, counts, strict=True))


def _checksum(path: Path) -> str:
    try:
        return sha256_of_file(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; build the dataset again") from error


def _shards(directory: Path, num_examples: int, per_shard: int) -> list[tuple[Path, int]]:
    if per_shard < 1:
        raise UserError(f"examples_per_shard={per_shard} must be 1 or more")
    starts = range(0, num_examples, per_shard)
    names = (f"tokens-{n:05d}-of-{len(starts):05d}.tfrecord" for n in range(len(starts)))
    sizes = (min(per_shard, num_examples - start) for start in starts)
    return [(directory / name, size) for name, size in zip(names, sizes, strict=True)]


def _is_finished(path: Path, count: int) -> bool:
    """Whether a shard and its index are complete; the index is written last."""
    try:
        index = load_sidecar(path).index
        Reader(path, index)  # compares sizes
    except UserError:
        return False
    return len(index) == count


def write_shard(
    path: Path,
    examples: Iterable[AnyExample],
    *,
    pairs_per_example: int,
    tokenizer: TextTokenizer,
    text: TextConfig,
    progress: Callable[[int], object] = lambda count: None,
) -> None:
    """Writes a shard of these examples, then its index; `progress` is called with the number of
    examples since the last call. UserError: a text has no tokens, or a file cannot be written."""
    each: dict[str, list] = {"lengths": [], "parts": [], "hashes": [], "counts": [], "scored": []}
    none = [0] * pairs_per_example
    negatives = [np.empty(0, np.int32)]
    options = {"pairs_per_example": pairs_per_example, "tokenizer": tokenizer, "text": text}
    with Writer(path) as writer:
        while batch := list(itertools.islice(examples, _BATCH)):
            for record in tokenise_batch(batch, **options):
                writer.write(encode_tokenised(record))
                each["lengths"].append(record.lengths)
                each["parts"].append(part_lengths(record.spans))
                each["hashes"].append(record.hashes)
                if found := record.negatives:
                    negatives.append(found.lengths)
                each["counts"].append(found.counts if found else none)
                each["scored"].append(~np.isnan(found.positive_scores) if found else none)
            progress(len(batch))
    lengths, parts, counts = (
        np.array(each[name], np.int32) for name in ("lengths", "parts", "counts")
    )
    hashes, scored = np.array(each["hashes"], np.uint64), np.array(each["scored"], bool)
    present = lengths[:, ::2] > 0
    siblings, usual = find_siblings(hashes, present), usual_siblings(present)
    sidecar = Sidecar(writer.index, lengths, parts, hashes[:, :, 0], pair_hashes(hashes))
    if (siblings != usual).any():
        sidecar = sidecar._replace(siblings=siblings.astype(np.int32))
    if scored.any():
        sidecar = sidecar._replace(scored=scored)
    if counts.any():
        sidecar = sidecar._replace(
            negative_counts=counts, negative_lengths=np.concatenate(negatives)
        )
    write_sidecar(path, sidecar)


def tokenise_batch(
    examples: list[AnyExample],
    *,
    pairs_per_example: int,
    tokenizer: TextTokenizer,
    text: TextConfig,
) -> Iterator[TokenisedRecord]:
    """The records of these examples, in order; UserError where a text has no tokens."""
    all_pairs = [pairs(example) for example in examples]
    present = [pair for group in all_pairs for pair in group if pair is not None]
    queries = iter(tokenizer.query_parts([(p.query, p.instruction) for p in present], text))
    wanted = [p.passage for p in present] + [negative for p in present for negative in p.negatives]
    every = tokenizer.passages(wanted, text)
    passages, others = iter(every[: len(present)]), iter(every[len(present) :])
    for example, group in zip(examples, all_pairs, strict=True):
        tokens, lengths = [np.empty(0, np.int32)], np.zeros(2 * pairs_per_example, np.int32)
        hashes = np.zeros((pairs_per_example, 3), np.uint64)
        uncut, spans = [np.empty(0, np.int32)], np.zeros((pairs_per_example, 5), np.int32)
        negatives: list[list[np.ndarray]] = [[] for _ in range(pairs_per_example)]
        for n, pair in enumerate(group):
            if pair is None:
                continue
            (query, parts), passage = next(queries), next(passages)
            negatives[n] = list(itertools.islice(others, len(pair.negatives)))
            # length 0 would mean that the pair is absent
            texts = pair.query, pair.passage, *pair.negatives
            for place, ids in enumerate((query, passage, *negatives[n])):
                if not len(ids):
                    name = ("query", "passage")[place] if place < 2 else f"negative {place - 2}"
                    raise UserError(
                        f"example {example.id!r}: the {name} of pair {n}, {texts[place]!r:.40}, "
                        "has no tokens; remove it from the source, and build the dataset again"
                    )
            tokens += (query, passage)
            lengths[2 * n : 2 * n + 2] = len(query), len(passage)
            hashes[n] = [text_hash(part) for part in pair[:3]]
            spans[n] = len(parts.ids), *parts.query, *parts.instruction
            if len(query) < len(parts.ids):
                uncut.append(parts.ids)
        yield TokenisedRecord(
            example.id,
            np.concatenate(tokens),
            lengths,
            hashes,
            spans,
            np.concatenate(uncut),
            _negatives(example.id, group, negatives),
        )


def _negatives(
    id: str, group: tuple[Pair | None, ...], texts: list[list[np.ndarray]]
) -> TokenisedNegatives | None:
    """The negatives of an example's pairs and their teacher scores; None where there are none."""
    positive_scores, scores = np.full(len(texts), np.nan, np.float32), []
    for n, pair in enumerate(group):
        found = pair.scores if pair else ()
        count = len(texts[n])
        if len(found) not in (0, 1 + count):
            raise UserError(
                f"example {id!r}: pair {n} has {len(found)} teacher scores, expected one of its "
                f"passage and of each of its {count} negatives; build the dataset again"
            )
        positive_scores[n], *rest = found or [np.nan] * (1 + count)
        scores += rest
    flat = [ids for each in texts for ids in each]
    if not flat and np.isnan(positive_scores).all():
        return None
    return TokenisedNegatives(
        counts=np.array([len(each) for each in texts], np.int32),
        lengths=np.array([len(ids) for ids in flat], np.int32),
        tokens=np.concatenate([np.empty(0, np.int32), *flat]),
        hashes=np.array([text_hash(t) for p in group if p for t in p.negatives], np.uint64),
        positive_scores=positive_scores,
        scores=np.array(scores, np.float32),
    )


def write_manifest(
    plan: TokenisingPlan, sample: list[AnyExample], *, tokenizer: TextTokenizer, text: TextConfig
) -> None:
    """Finishes a directory whose shards all exist; `sample` are the examples of `sampled`.
    UserError: an index is missing, or the file cannot be written."""
    lengths = np.concatenate([load_sidecar(shard).text_lengths for shard, _ in plan.shards])
    queries = [(p.query, p.instruction) for example in sample for p in pairs(example) if p]
    at_limit = lengths.reshape(-1, 2) == (text.max_query_tokens, text.max_passage_tokens)
    manifest = {
        "fingerprint": plan.fingerprint,
        "recipe": plan.recipe,
        "special_tokens": [ids.tolist() for ids in tokenizer.special],
        "composition": check_composition(queries, tokenizer, text)._asdict(),
        "pairs_per_example": lengths.shape[1] // 2,
        "shards": [{"file": shard.name, "examples": count} for shard, count in plan.shards],
        "texts": int(np.count_nonzero(lengths)),
        "tokens": int(lengths.sum()),
        # as long as the limit allows: most of these were truncated
        "queries_at_limit": int(at_limit[:, 0].sum()),
        "passages_at_limit": int(at_limit[:, 1].sum()),
    }
    atomic_write(plan.manifest, json.dumps(manifest, indent=2, sort_keys=True) + "\n")
