"""Retrieval runs: their types, checks and ranking rules, and the mean of a metric over queries."""

import math
from collections.abc import Mapping
from numbers import Real
from typing import Self

import numpy as np

from inf_jax.core.errors import UserError

Run = Mapping[str, Mapping[str, float]]  # query id -> document id -> score
Qrels = Mapping[str, Mapping[str, int]]  # query id -> document id -> relevance


class Score(float):
    """The mean of a metric over queries, as a float that also keeps the single values."""

    per_query: dict[str, float]  # by query id or group id, in the order of the run

    def __new__(cls, per_query: Mapping[str, float]) -> Self:
        values = dict(per_query)
        score = super().__new__(cls, math.fsum(values.values()) / len(values))
        score.per_query = values
        return score

    def __getnewargs__(self):  # pickling and copying build a Score from its values again
        return (self.per_query,)


def check_run(results: Run) -> None:
    """Raises UserError, naming the query, for an empty run or an id or score of the wrong type."""
    if not results:
        raise UserError("the run is empty: no query has results; search before scoring")
    for qid, run in results.items():
        if not isinstance(qid, str) or not isinstance(run, Mapping):
            raise UserError(f"run, query {qid!r}: expected {{query id: {{document id: score}}}}")
        if not all(isinstance(d, str) for d in run):
            raise UserError(f"run, query {qid!r}: a document id is not a string")
        if not all(isinstance(s, Real) and not math.isnan(s) for s in run.values()):
            raise UserError(f"run, query {qid!r}: a score is NaN or not a number")


def without_identical_ids(results: Run) -> Run:
    """The run without documents whose id is their query's (queries that are part of the corpus)."""
    return {q: {d: s for d, s in run.items() if d != q} for q, run in results.items()}


def ranked_by_id(run: Mapping[str, float]) -> list[str]:
    """Document ids by float32 score, ties by the larger id first."""
    names = list(run)
    scores = np.fromiter(run.values(), np.float64, len(run)).astype(np.float32)
    return [names[i] for i in np.lexsort((np.array(names, str), scores))[::-1]]


def ranked_in_order(run: Mapping[str, float]) -> list[str]:
    """Document ids by score as a Python float, ties in the order of the run."""
    return sorted(run, key=run.__getitem__, reverse=True)


RANKINGS = {"id": ranked_by_id, "order": ranked_in_order}
