"""The pairs stage: reads, filters and samples a source's pairs and draws their instruction types.

Sample and types are functions of (seed, id) alone. The order of the source does not matter, a
larger count contains the smaller ones, and another mix of types changes as few types as possible,
so that nothing is paid for twice.
"""

import dataclasses
import heapq
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from data_pipeline.config import SourceConfig
from data_pipeline.items import Item
from data_pipeline.llm.schemas import INSTRUCTION_TYPES
from data_pipeline.quality.contamination import BenchmarkTexts
from data_pipeline.quality.rules import Limits, wrong_length
from data_pipeline.sources.folding import fold
from data_pipeline.sources.pair_readers import read_pairs
from data_pipeline.sources.pairs import SourcePair
from inf_jax.core.errors import UserError
from inf_jax.data.records import text_hash

EVEN_TYPES: Mapping[str, float] = dict.fromkeys(INSTRUCTION_TYPES, 1.0)


def source_pairs(source: SourceConfig, *, dropped: Counter[str]) -> Iterator[SourcePair]:
    """Reads the pairs of a configured source; `dropped` as for `read_pairs`.

    Raises:
      UserError: as `read_pairs`.
    """
    options: dict[str, Any] = {}
    if source.kind in ("beir", "msmarco"):
        options = {n: getattr(source, n) for n in ("split", "min_score", "passages_only")}
    elif source.kind == "fields":
        options = {"fields": {k: v for k, v in dataclasses.asdict(source.fields).items() if v}}
    return read_pairs(source.kind, source.path, dropped=dropped, **options)


def make_items(
    pairs: Iterable[SourcePair],
    *,
    dropped: Counter[str],
    limits: Limits = Limits(),
    evaluation: BenchmarkTexts | None = None,
    count: int | None = None,
    seed: int = 0,
    types: Mapping[str, float] = EVEN_TYPES,
) -> Iterator[Item]:
    """Yields new items for a sample of the valid pairs, in the order of `sample`.

    Args:
      pairs: of a source.
      dropped: counts each pair without an item under one reason: not_relevant, empty:passage,
        too_short: or too_long: and query or passage, shared_with_eval: and the reason of
        `evaluation`, not_sampled, duplicate_pair (another with the same texts, or the same
        pair again).
      limits: words of a query (if there is one) and of a passage (`document_words`).
      evaluation: benchmark texts to leave out; None for none.
      count: size of the sample, from which repeated texts are then removed; None for all pairs in
        the source's order.
      seed: of sample and types.
      types: instruction type -> weight, as in `draw_type`.

    Raises:
      UserError: an invalid count or weight, different pairs with one id, or no valid pair.
    """
    check_types(types)
    valid = 0

    def valid_pairs() -> Iterator[SourcePair]:
        nonlocal valid
        for pair in pairs:
            if reason := _invalid(pair, limits, evaluation):
                dropped[reason] += 1
            else:
                valid += 1
                yield pair

    sampled, seen = 0, set()
    for pair in sample(valid_pairs(), count=count, seed=seed):
        sampled += 1
        # within the sample, so that the order of the source does not matter
        identity = text_hash(f"{fold(pair.query)}\x1f{fold(pair.passage)}")
        if identity in seen:
            dropped["duplicate_pair"] += 1
            continue
        seen.add(identity)
        yield Item(pair.id, pair.query, pair.passage, draw_type(pair.id, types=types, seed=seed))
    if not valid:
        why = ", ".join(f"{number} for {reason!r}" for reason, number in dropped.most_common(3))
        none = f"the source has no valid pair{': ' + why if why else ''}"
        raise UserError(f"{none}; choose another source or other limits")
    if valid > sampled:  # without a count, what `sample` leaves out are copies
        dropped["duplicate_pair" if count is None else "not_sampled"] += valid - sampled


def sample(pairs: Iterable[SourcePair], *, count: int | None, seed: int) -> Iterator[SourcePair]:
    """Yields the `count` pairs whose ids have the smallest hashes under the seed, smallest first.

    Independent of the order of the source; a larger count starts with the same pairs. Memory is
    O(count). With None yields all pairs in the source's order and holds only two hashes of each. A
    pair that comes again, equal and with the same id, is left out.

    Raises:
      UserError: the count is less than 1, or different pairs have the id of a yielded one.
    """
    if count is None:
        seen: dict[int, int] = {}
        for pair in pairs:
            id, identity = text_hash(f"id {pair.id}"), hash(pair)
            if id in seen:
                if seen[id] != identity:
                    raise _repeated(pair.id)
                continue
            seen[id] = identity
            yield pair
        return
    if count < 1:
        raise UserError(f"count={count}: must be at least 1, or None for all pairs")
    heap: list[tuple[int, str]] = []  # (-hash, id): the largest hash is on top
    held: dict[str, SourcePair] = {}
    repeated: set[str] = set()
    for pair in pairs:
        if pair.id in held:
            if pair != held[pair.id]:
                repeated.add(pair.id)  # an error only if it stays, in any order of the source
            continue
        key = (-text_hash(f"sample {seed} {pair.id}"), pair.id)
        if len(heap) < count:
            heapq.heappush(heap, key)
        elif heap[0] < key:
            del held[heapq.heapreplace(heap, key)[1]]
        else:
            continue
        held[pair.id] = pair
    for _, id in sorted(heap, reverse=True):
        if id in repeated:
            raise _repeated(id)
        yield held[id]


def _repeated(id: str) -> UserError:
    return UserError(
        f"id {id!r} occurs twice in the source, with different texts; make the ids unique (that of "
        "a pair is that of its query, a colon and that of its passage)"
    )


def draw_type(id: str, *, types: Mapping[str, float], seed: int) -> str:
    """Draws a type for an id, with probabilities proportional to the weights.

    Weighted rendezvous hashing: each type draws an arrival time and the earliest wins. A larger
    weight or a new type only takes ids over; no other assignments change.
    """

    def arrival(name: str) -> float:
        uniform = (text_hash(f"type {seed} {name} {id}") + 0.5) / 2.0**64
        return -math.log(uniform) / types[name]

    return min((name for name in types if types[name]), key=lambda name: (arrival(name), name))


def check_types(types: Mapping[str, float]) -> None:
    """Raises UserError unless all types are known and the weights are valid, one above zero."""
    for name, weight in types.items():
        if name not in INSTRUCTION_TYPES:
            known = ", ".join(INSTRUCTION_TYPES)
            raise UserError(f"types: no instruction type {name!r}; choose from {known}")
        if not 0 <= weight < math.inf:
            raise UserError(f"types: {name} has weight {weight}; give a number of 0 or more")
    if not any(types.values()):
        raise UserError("types: no instruction type has a weight above 0; give at least one")


def _invalid(pair: SourcePair, limits: Limits, evaluation: BenchmarkTexts | None) -> str:
    """The first reason to drop a pair; "" for a valid one."""
    if not pair.relevant:
        return "not_relevant"
    if not pair.passage:
        return "empty:passage"
    texts = {"query": (pair.query, limits.query_words)} if pair.query else {}
    texts["passage"] = (pair.passage, limits.document_words)
    for name, text in texts.items():
        if reason := wrong_length(*text):
            return f"{reason}:{name}"
    if evaluation is None:
        return ""
    shared = evaluation.shares_query(pair.query) or evaluation.shares_passage(pair.passage)
    return f"shared_with_eval:{shared}" if shared else ""
