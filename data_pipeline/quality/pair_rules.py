"""Validates pairs: each by the rules for its texts, then all pairs of one query together.

Of a query's pairs those with the same instruction and passage become one with all their negatives.
A negative is dropped if it equals the pair's passage or that of another pair of the query under the
same instruction, its characters composed (NFC) and white space collapsed.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

from data_pipeline.quality.rules import Limits, contains_query
from data_pipeline.sources.folding import fold
from data_pipeline.sources.pairs import SourcePair
from inf_jax.data.records import Pair, PairExample, text_hash

_MERGED, _REPEATED = "merged_pair", "duplicate_pair"  # reasons for a row that is no pair of its own


def pair_reasons(pair: SourcePair, limits: Limits) -> Iterator[str]:
    """Each violated rule, as in `rules.validate`: empty:, too_short: and too_long: with query,
    instruction (which may be empty) or passage; repeats_query:instruction."""
    for name in ("query", "instruction", "passage"):
        least, most = limits.of(name)
        words = len(getattr(pair, name).split())
        if not words:
            if name != "instruction":
                yield f"empty:{name}"
        elif words < least:
            yield f"too_short:{name}"
        elif words > most:
            yield f"too_long:{name}"
    if pair.instruction and contains_query(fold(pair.query), fold(pair.instruction)):
        yield "repeats_query:instruction"


def settle(
    pairs: Sequence[SourcePair],
    *,
    limits: Limits,
    most: int,
    reasons: Counter[str],
    dropped: Counter[str],
) -> Iterator[PairExample]:
    """Yields an example for each different pair of one query, in order.

    Args:
      pairs: all that the source has of the query.
      limits: of a negative's words, as of any passage.
      most: negatives that a pair keeps, the first ones; 0 for all.
      reasons: counts merged_pair and duplicate_pair rows; the former bring negatives, the latter no
        others, or other scores.
      dropped: counts negatives by reason: equals_passage, other_positive, repeated, empty,
        too_short, too_long, over_limit.
    """
    if len(pairs) == 1 and not pairs[0].negatives:  # the usual case
        [pair] = pairs
        texts = pair.instruction, pair.query, pair.passage
        yield PairExample(pair.id, (Pair(*texts, scores=pair.scores[:1]),))
        return
    merged: dict[tuple[str, str], list[SourcePair]] = {}
    known: dict[tuple[str, str], set[str]] = {}  # the negatives of their rows
    positives: dict[str, set[int]] = {}
    for pair in pairs:
        key = fold(pair.instruction), fold(pair.passage)
        rows, negatives = merged.setdefault(key, []), known.setdefault(key, set())
        if rows:
            if negatives.issuperset(pair.negatives) or rows[0].scores[:1] != pair.scores[:1]:
                reasons[_REPEATED] += 1
                continue
            reasons[_MERGED] += 1
        rows.append(pair)
        negatives.update(pair.negatives)
        positives.setdefault(key[0], set()).add(text_hash(pair.passage))
    for (instruction, _), rows in merged.items():
        first = rows[0]
        seen, kept, scores = {text_hash(first.passage)}, [], list(first.scores[:1])
        for row in rows:
            for number, text in enumerate(row.negatives, 1):
                identity = text_hash(text)
                reason = _refusal(text, identity, seen, positives[instruction], limits)
                if not reason and most and len(kept) == most:
                    reason = "over_limit"
                if reason:
                    dropped[f"dropped: {reason}"] += 1
                    continue
                seen.add(identity)
                kept.append(text)
                scores += row.scores[number : number + 1]
        texts = first.instruction, first.query, first.passage
        yield PairExample(first.id, (Pair(*texts, tuple(kept), tuple(scores)),))


def _refusal(text: str, identity: int, seen: set[int], positives: set[int], limits: Limits) -> str:
    """Why a negative is dropped; "" if it is not. The first of `seen` is the pair's passage."""
    words = len(text.split())
    if not words:
        return "empty"
    if identity in positives:
        return "equals_passage" if identity in seen else "other_positive"
    if identity in seen:
        return "repeated"
    least, most = limits.document_words
    return "too_short" if words < least else "too_long" if words > most else ""
