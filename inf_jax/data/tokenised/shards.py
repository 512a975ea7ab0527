"""Writes the shards of a tokenised split.

Each depends on its slice of the split alone: `data.tokenise` writes one after another, the workers
of `data_pipeline.beam_tokenise` many at once. The manifest is written last.
"""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from inf_jax.core.errors import UserError
from inf_jax.data.negatives import find_siblings, usual_siblings
from inf_jax.data.records import (
    AnyExample,
    Pair,
    pair_hashes,
    text_hash,
)
from inf_jax.data.tokenised.columns import write_columns
from inf_jax.data.tokenised.plans import TokenisingPlan
from inf_jax.data.tokenised.records import (
    TokenisedNegatives,
    TokenisedRecord,
    encode_tokenised,
    part_lengths,
)
from inf_jax.data.tokenised.rewriting import AS_WRITTEN, Rewriting
from inf_jax.data.tokenised.shuffle import spread_by_length
from inf_jax.data.tokenised.sidecars import Sidecar, load_sidecar, write_sidecar
from inf_jax.io.storage import AnyPath, new_file
from inf_jax.io.tfrecord import Writer
from inf_jax.text.splice_check import check_composition
from inf_jax.text.templates import TextConfig
from inf_jax.text.tokenizer import TextTokenizer

_BATCH = 1024  # examples tokenised in one call: enough to keep all cores busy, little memory


def write_shard(
    path: AnyPath,
    examples: Iterable[AnyExample],
    *,
    pairs_per_example: int,
    tokenizer: TextTokenizer,
    text: TextConfig,
    progress: Callable[[int], object] = lambda count: None,
    shuffle: int | None = None,
    rewriting: Rewriting = AS_WRITTEN,
) -> None:
    """Writes a shard of these examples, then its index.

    Args:
      progress: called with the number of examples since the last call.
      pairs_per_example: after rewriting.
      shuffle: number of the shard, of which its order is a function (`spread_by_length`); None
        keeps that of the examples.

    Raises:
      UserError: a text has no tokens, or a file cannot be written.
    """
    each: dict[str, list] = {"lengths": [], "parts": [], "hashes": [], "counts": [], "scored": []}
    none = [0] * pairs_per_example
    negatives = [np.empty(0, np.int32)]
    options = {"pairs_per_example": pairs_per_example, "tokenizer": tokenizer, "text": text}
    options["rewriting"] = rewriting

    def tokenised() -> Iterator[TokenisedRecord]:
        while batch := list(itertools.islice(examples, _BATCH)):
            yield from tokenise_batch(batch, **options)
            progress(len(batch))

    records = tokenised()
    if shuffle is not None:
        every = [*records]
        tokens = np.array([record.lengths.sum() for record in every])
        records = (every[n] for n in spread_by_length(tokens, number=shuffle).tolist())
    with Writer(path) as writer:
        for record in records:
            writer.write(encode_tokenised(record))
            each["lengths"].append(record.lengths)
            each["parts"].append(part_lengths(record.spans))
            each["hashes"].append(record.hashes)
            if found := record.negatives:
                negatives.append(found.lengths)
            each["counts"].append(found.counts if found else none)
            each["scored"].append(~np.isnan(found.positive_scores) if found else none)
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
    rewriting: Rewriting = AS_WRITTEN,
) -> Iterator[TokenisedRecord]:
    """The records of these examples, in order; UserError where a text has no tokens."""
    all_pairs = [rewriting.pairs(example) for example in examples]
    present = [pair for group in all_pairs for pair in group if pair is not None]
    asked = [(p.query, rewriting.instruction(p)) for p in present]
    queries = iter(tokenizer.query_parts(asked, text))
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
    change = plan.rewriting
    each = [pair for example in sample for pair in change.pairs(example) if pair]
    queries = [(pair.query, change.instruction(pair)) for pair in each]
    limits, counts, k = (text.max_query_tokens, text.max_passage_tokens), np.zeros(4, np.int64), 0

    def counted() -> Iterator[Sidecar]:
        nonlocal k
        for shard, _ in plan.shards:
            sidecar = load_sidecar(shard)
            lengths = sidecar.text_lengths
            at_limit = (lengths.reshape(-1, 2) == limits).sum(0)
            counts[:] += (np.count_nonzero(lengths), lengths.sum(), *at_limit)
            k = lengths.shape[1] // 2
            yield sidecar

    columns = {}
    if plan.shuffled:
        columns = write_columns(plan.directory, counted())
    else:
        for _ in counted():
            pass
    manifest = {
        "fingerprint": plan.fingerprint,
        "recipe": plan.recipe,
        "special_tokens": [ids.tolist() for ids in tokenizer.special],
        "composition": check_composition(queries, tokenizer, text)._asdict(),
        "pairs_per_example": k,
        "shards": [{"file": shard.name, "examples": count} for shard, count in plan.shards],
        "texts": int(counts[0]),
        "tokens": int(counts[1]),
        # as long as the limit allows: most of these were truncated
        "queries_at_limit": int(counts[2]),
        "passages_at_limit": int(counts[3]),
    }
    manifest |= {"columns": columns} if plan.shuffled else {}
    with new_file(plan.manifest) as file:
        file.write(f"{json.dumps(manifest, indent=2, sort_keys=True)}\n".encode())
