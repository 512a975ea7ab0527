"""What is kept of a run to look at: first documents, ranks of interesting ones, all scores."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from inf_jax.metrics.runs import Run

KEPT = 100  # documents of a ranking
_BINS = 40
# Kinds of documents, from what is relevant to a query under its instruction to all the rest.
DOCUMENT_KINDS = ("relevant", "relevant under another instruction", "other")


@dataclasses.dataclass(frozen=True)
class Ranking:
    """A query's ranking.

    Attributes:
      first: the first `KEPT` documents, in order, with their scores.
      ranks: the interesting documents with their ranks, from 1 on; one that was not retrieved has
        the rank after the last.
      length: of the whole ranking.
    """

    first: Mapping[str, float]
    ranks: Mapping[str, int]
    length: int

    def place(self, document: str) -> str:
        """The rank of a document, in words where it is not known."""
        rank = self.ranks.get(document)
        if rank is None:
            rank = next((n for n, d in enumerate(self.first, 1) if d == document), None)
        if rank is None:
            return "not found" if self.length <= KEPT else f"after {KEPT}"
        return "not found" if rank > self.length else f"{rank:,}"


@dataclasses.dataclass(frozen=True)
class Spread:
    """The scores of a run.

    Attributes:
      low, high: the smallest and the largest.
      counts: kind of document, of `DOCUMENT_KINDS` and in that order -> int[_BINS] between the two.
      medians: kind -> the median; kinds without documents are in neither.
    """

    low: float
    high: float
    counts: Mapping[str, np.ndarray]
    medians: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class KeptRun:
    """Of a run: query id -> ranking, the scores of all, and group id -> ids of one query under
    several instructions."""

    rankings: Mapping[str, Ranking]
    spread: Spread
    groups: Mapping[str, Sequence[str]]


def keep_run(
    run: Run, relevant: Mapping[str, Collection[str]], groups: Mapping[str, Sequence[str]]
) -> KeptRun:
    """What is kept of a run whose documents are in the order of their ranks.

    Interesting is what is relevant to a query under any of its instructions.

    Args:
      relevant: query id -> what is relevant to it.
      groups: group id -> ids of one query under several instructions.
    """
    interesting = of_any_instruction(relevant, groups)
    rankings, scores = {}, {kind: [] for kind in DOCUMENT_KINDS}
    for qid, ranked in run.items():
        right, known = set(relevant.get(qid, ())), set(interesting.get(qid, ()))
        ranks = dict.fromkeys(sorted(known), len(ranked) + 1)
        first = {}
        for rank, (document, score) in enumerate(ranked.items(), 1):
            if rank <= KEPT:
                first[document] = float(score)
            if document in known:
                ranks[document] = rank
            alike = (
                DOCUMENT_KINDS[0]
                if document in right
                else DOCUMENT_KINDS[1]
                if document in known
                else DOCUMENT_KINDS[2]
            )
            scores[alike].append(score)
        rankings[qid] = Ranking(first, ranks, len(ranked))
    arrays = {kind: np.asarray(values, np.float64) for kind, values in scores.items() if values}
    return KeptRun(rankings, _spread(arrays), groups)


def of_any_instruction(
    relevant: Mapping[str, Collection[str]], groups: Mapping[str, Sequence[str]]
) -> dict[str, set[str]]:
    """Query id -> what is relevant to the query under any of its instructions."""
    found = {qid: set(documents) for qid, documents in relevant.items()}
    for members in groups.values():
        union = set().union(*(relevant.get(qid, ()) for qid in members))
        found |= dict.fromkeys(members, union)
    return found


def _spread(scores: Mapping[str, np.ndarray]) -> Spread:
    if not scores:
        return Spread(0.0, 0.0, {}, {})
    low = min(float(values.min()) for values in scores.values())
    high = max(float(values.max()) for values in scores.values())
    edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
    counts = {kind: np.histogram(values, edges)[0] for kind, values in scores.items()}
    return Spread(low, high, counts, {kind: float(np.median(v)) for kind, v in scores.items()})
