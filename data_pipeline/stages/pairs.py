"""The stage `pairs`: a source's pairs, filtered and sampled, become the factory's items.

Which pairs are taken and what type of instruction they get are functions of (seed, id) alone. The
order of the source does not matter, a larger count keeps what a smaller one took, and another mix
of types changes only as many types as it must: nothing that was paid for is paid for again.
"""

import heapq
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

from data_pipeline.items import Item
from data_pipeline.llm.schemas import INSTRUCTION_TYPES
from data_pipeline.quality.rules import Limits
from data_pipeline.sources.folding import fold
from data_pipeline.sources.pairs import SourcePair
from inf_jax.core.errors import UserError
from inf_jax.data.records import text_hash

EVEN_TYPES: Mapping[str, float] = dict.fromkeys(INSTRUCTION_TYPES, 1.0)


class Evaluation(Protocol):
    """The evaluation set's texts, which must not be trained on."""

    def shares_query(self, text: str) -> str:
        """Why the query counts as one of the set's; "" where it does not."""

    def shares_passage(self, text: str) -> str:
        """Why the passage counts as one of the set's; "" where it does not."""


def make_items(
    pairs: Iterable[SourcePair],
    *,
    dropped: Counter[str],
    limits: Limits = Limits(),
    evaluation: Evaluation | None = None,
    count: int | None = None,
    seed: int = 0,
    types: Mapping[str, float] = EVEN_TYPES,
) -> Iterator[Item]:
    """The items of the pairs that are fit, `count` of them in the order of `sample`.

    Args:
      pairs: of a source.
      dropped: counts here each pair that becomes no item, under one reason: empty:passage,
        too_short: or too_long: and query or passage, shared_with_eval: and the evaluation's
        reason, not_sampled, duplicate_pair.
      limits: words of a query (where there is one) and of a passage (`document_words`).
      evaluation: None where there is no evaluation set.
      count: how many, less those that are the same texts under another id; None for all, in the
        source's order.
      seed: of the sample and of the types.
      types: instruction type -> weight, as `draw_type`.

    Raises:
      UserError: an impossible count or weight, an id that occurs twice, or no pair is fit.
    """
    check_types(types)
    fit = 0

    def fit_pairs() -> Iterator[SourcePair]:
        nonlocal fit
        for pair in pairs:
            if reason := _unfit(pair, limits, evaluation):
                dropped[reason] += 1
            else:
                fit += 1
                yield pair

    sampled, seen = 0, set()
    for pair in sample(fit_pairs(), count=count, seed=seed):
        sampled += 1
        # of the sample, not of the source: whatever its order, the same ones are left
        identity = text_hash(f"{fold(pair.query)}\x1f{fold(pair.passage)}")
        if identity in seen:
            dropped["duplicate_pair"] += 1
            continue
        seen.add(identity)
        yield Item(pair.id, pair.query, pair.passage, draw_type(pair.id, types=types, seed=seed))
    if not fit:
        why = ", ".join(f"{number} for {reason!r}" for reason, number in dropped.most_common(3))
        raise UserError(
            f"no pair of the source is fit{': ' + why if why else ''}; give another source or "
            "other limits"
        )
    if fit > sampled:
        dropped["not_sampled"] += fit - sampled


def sample(pairs: Iterable[SourcePair], *, count: int | None, seed: int) -> Iterator[SourcePair]:
    """The `count` pairs whose ids have the least hashes under the seed, least first.

    The same pairs in the same order whatever the order of the source; a larger count begins with
    them. Memory is O(count). With None all pairs as they come, and only a hash of each is held.

    Raises:
      UserError: the count is less than 1, or an id occurs twice among the pairs that are given.
    """
    if count is None:
        seen: set[int] = set()
        for pair in pairs:
            before = len(seen)
            seen.add(text_hash(f"id {pair.id}"))
            if len(seen) == before:
                raise _repeated(pair.id)
            yield pair
        return
    if count < 1:
        raise UserError(f"count={count}: must be at least 1, or None for all pairs")
    heap: list[tuple[int, str]] = []  # (-hash, id), so that the greatest hash is on top
    held: dict[str, SourcePair] = {}
    repeated: set[str] = set()
    for pair in pairs:
        if pair.id in held:
            # an error only if the pair stays, so that the order of the source decides nothing
            repeated.add(pair.id)
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
    return UserError(f"id {id!r} occurs twice in the source; give each pair an id of its own")


def draw_type(id: str, *, types: Mapping[str, float], seed: int) -> str:
    """A type for an id, each with a probability in proportion to its weight.

    Rendezvous hashing: each type has a draw of its own, which its weight speeds up, and the first
    to arrive wins. A greater weight, or a new type, only wins ids over; no others change places.
    """

    def arrival(name: str) -> float:
        uniform = (text_hash(f"type {seed} {name} {id}") + 0.5) / 2.0**64
        return -math.log(uniform) / types[name]

    return min((name for name in types if types[name]), key=lambda name: (arrival(name), name))


def check_types(types: Mapping[str, float]) -> None:
    """Raises UserError unless every type is known, no weight negative, and one above zero."""
    for name, weight in types.items():
        if name not in INSTRUCTION_TYPES:
            raise UserError(
                f"types: no instruction type {name!r}; choose of {', '.join(INSTRUCTION_TYPES)}"
            )
        if not 0 <= weight < math.inf:
            raise UserError(f"types: {name} has weight {weight}; give a number of 0 or more")
    if not any(types.values()):
        raise UserError("types: no instruction type has a weight above 0; give one at least")


def _unfit(pair: SourcePair, limits: Limits, evaluation: Evaluation | None) -> str:
    """The first reason against a pair; "" for none."""
    if not pair.passage:
        return "empty:passage"
    texts = {"query": (pair.query, limits.query_words)} if pair.query else {}
    texts["passage"] = (pair.passage, limits.document_words)
    for name, (text, (least, most)) in texts.items():
        words = len(text.split())
        if words < least:
            return f"too_short:{name}"
        if words > most:
            return f"too_long:{name}"
    if not evaluation:
        return ""
    shared = (pair.query and evaluation.shares_query(pair.query)) or evaluation.shares_passage(
        pair.passage
    )
    return f"shared_with_eval:{shared}" if shared else ""
