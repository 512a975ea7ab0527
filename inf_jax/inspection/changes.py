"""Finds the queries whose ranks changed most: between two models, or between two instructions."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

from inf_jax.inspection.rankings import Ranking

MOST = 50  # queries of a page's section
_OF_A_GROUP = 20  # instructions of a query that are compared with each other


@dataclasses.dataclass(frozen=True)
class RankChange:
    """How a query's ranks changed from a first ranking to a second.

    Attributes:
      task: its name.
      queries: ids of the two; the same one where models are compared.
      document: the one whose rank changed most.
      ranks: its two ranks.
      size: how often its rank doubled or halved.
    """

    task: str
    queries: tuple[str, str]
    document: str
    ranks: tuple[int, int]
    size: float


def between_models(
    task: str, before: Mapping[str, Ranking], after: Mapping[str, Ranking]
) -> list[RankChange]:
    """The change of each query from one model's ranking to the other's."""
    found = (_change(task, (qid, qid), before[qid], after[qid]) for qid in before if qid in after)
    return [change for change in found if change]


def between_instructions(
    task: str, rankings: Mapping[str, Ranking], groups: Mapping[str, Sequence[str]]
) -> list[RankChange]:
    """The change of each group of queries: the largest between two of its first 20 instructions.

    Args:
      groups: group id -> ids of one query under several instructions.
    """
    found = []
    for members in groups.values():
        changes = [
            _change(task, pair, rankings[pair[0]], rankings[pair[1]])
            for pair in itertools.combinations(members[:_OF_A_GROUP], 2)
        ]
        found += largest(filter(None, changes), 1)
    return found


def largest(changes: Iterable[RankChange], most: int = MOST) -> list[RankChange]:
    """The largest changes first; of equal ones, the earlier."""
    return sorted(changes, key=lambda change: -change.size)[:most]


def _change(
    task: str, queries: tuple[str, str], before: Ranking, after: Ranking
) -> RankChange | None:
    """None where no interesting document changed its rank."""
    best = None
    for document in before.ranks.keys() & after.ranks.keys():
        ranks = before.ranks[document], after.ranks[document]
        size = abs(math.log2(ranks[1] / ranks[0]))
        if size and (best is None or (-size, document) < (-best.size, best.document)):
            best = RankChange(task, queries, document, ranks, size)
    return best
