"""Validates pairs: each by the rules for its texts, then all pairs of one query together.

Of a query's pairs those with the same instruction and passage become one with all their negatives;
where some of their rows have a teacher's scores, with the negatives of these. A negative is dropped
if it equals the pair's passage or that of another pair of the query under the same instruction, its
characters composed (NFC) and white space collapsed.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

from data_pipeline.quality.rules import Limits, contains_query, wrong_length
from data_pipeline.sources.folding import fold
from data_pipeline.sources.pairs import SourcePair
from inf_jax.data.records import Pair, PairExample, text_hash

# Reasons for a row that is no pair of its own.
_MERGED, _REPEATED, _ALONE = "merged_pair", "duplicate_pair", "no_relevant_passage"


def pair_reasons(pair: SourcePair, limits: Limits) -> Iterator[str]:
    """Each violated rule, as in `rules.validate`: empty:, too_short: and too_long: with query,
    instruction (which may be empty) or passage; repeats_query:instruction."""
    for name in ("query", "instruction", "passage"):
        text = getattr(pair, name)
        if not text or text.isspace():
            if name != "instruction":
                yield f"empty:{name}"
        elif reason := wrong_length(text, limits.of(name)):
            yield f"{reason}:{name}"
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
      reasons: counts rows: merged_pair, whose negatives another pair has now, duplicate_pair, which
        bring no others, and no_relevant_passage, negatives of a query without a pair.
      dropped: counts negatives by reason: equals_passage, other_positive, repeated, empty,
        too_short, too_long, over_limit, and no_score, where the pair has scores from other rows.
    """
    if len(pairs) == 1 and not pairs[0].negatives and pairs[0].relevant:  # the usual case
        [pair] = pairs
        texts = pair.instruction, pair.query, pair.passage
        yield PairExample(pair.id, (Pair(*texts, scores=pair.scores[:1]),))
        return
    merged: dict[tuple[str, str], list[SourcePair]] = {}
    positives: dict[str, set[int]] = {}
    irrelevant: dict[str, list[SourcePair]] = {}
    for pair in pairs:
        instruction = fold(pair.instruction)
        if not pair.relevant:
            irrelevant.setdefault(instruction, []).append(pair)
            continue
        merged.setdefault((instruction, fold(pair.passage)), []).append(pair)
        positives.setdefault(instruction, set()).add(text_hash(pair.passage))
    for instruction, those in irrelevant.items():
        reasons[_MERGED if instruction in positives else _ALONE] += len(those)
    for (instruction, _), rows in merged.items():
        first, used = rows[0], _taken(rows)
        known = set(used[0].negatives)
        for row in used[1:]:
            reasons[_REPEATED if known.issuperset(row.negatives) else _MERGED] += 1
            known.update(row.negatives)
        scored = bool(used[0].scores)
        others = [text for row in rows if bool(row.scores) != scored for text in row.negatives]
        if len(used) < len(rows):
            reasons[_REPEATED] += len(rows) - len(used)
        others += [row.passage for row in irrelevant.get(instruction, [])]
        own = used[0].scores[:1]
        seen, kept, scores = {text_hash(first.passage)}, [], list(own)
        for text, score in (*_scored(used, own), *((text, ()) for text in others)):
            identity = text_hash(text)
            reason = _refusal(text, identity, seen, positives[instruction], limits)
            if not reason and own and not score:
                reason = "no_score"
            if not reason and most and len(kept) == most:
                reason = "over_limit"
            if reason:
                dropped[f"dropped: {reason}"] += 1
                continue
            seen.add(identity)
            kept.append(text)
            scores += score
        texts = first.instruction, first.query, first.passage
        yield PairExample(first.id, (Pair(*texts, tuple(kept), tuple(scores)),))


def _taken(rows: list[SourcePair]) -> list[SourcePair]:
    """The rows of one pair whose negatives and scores it gets: those with scores, if there are any
    and they are not without the negatives that others have."""
    scored = [row for row in rows if row.scores]
    if len(scored) in (0, len(rows)):
        return rows
    if any(row.negatives for row in scored) or not any(row.negatives for row in rows):
        return scored
    return [row for row in rows if not row.scores]


def _scored(rows: list[SourcePair], own: Sequence[float]) -> Iterator[tuple[str, Sequence[float]]]:
    """Each negative with its score, () for none. A row's scores are shifted so that the passage's
    is `own` in all: their differences are what a teacher says, and in some sets all that is there.
    """
    for row in rows:
        for number, text in enumerate(row.negatives, 1):
            yield text, [row.scores[number] + (own[0] - row.scores[0])] if own else ()


def _refusal(text: str, identity: int, seen: set[int], positives: set[int], limits: Limits) -> str:
    """Why a negative is dropped; "" if it is not. The first of `seen` is the pair's passage."""
    if not text or text.isspace():
        return "empty"
    if identity in positives:
        return "equals_passage" if identity in seen else "other_positive"
    if identity in seen:
        return "repeated"
    return wrong_length(text, limits.document_words)
