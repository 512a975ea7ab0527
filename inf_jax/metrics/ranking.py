"""Retrieval metrics of a ranking: nDCG, MRR, MAP and recall.

Layouts (those of pytrec_eval): a run is {query id: {document id: score}}, qrels are {query id:
{document id: relevance}}; a relevance above 0 is relevant. Documents are ranked by their float32
score, ties by the larger document id first, as trec_eval does.

Every function returns a `Score`: the mean as a float, and the averaged values in `.per_query`. As
in trec_eval the mean is over the queries that are in the run and in the qrels; a query without any
relevant document counts 0.
"""

from collections.abc import Callable, Mapping

import numpy as np

from inf_jax.core.errors import UserError
from inf_jax.metrics.runs import Qrels, Run, Score, check_run, ranked_by_id


def ndcg(results: Run, qrels: Qrels, k: int | None = None) -> Score:
    """nDCG@k with linear gain: sum over ranks r <= k of rel_r / log2(r + 1), over the ideal's.

    Args:
      qrels: graded relevance; below 0 counts as 0.
      k: the cut-off, 1 or more; None takes the whole run.

    Raises:
      UserError: empty run, k < 1, malformed run or qrels, or no query in both.
    """

    def value(gains: np.ndarray, judged: np.ndarray) -> float:
        best = _dcg(np.sort(judged)[::-1][:k])
        return _dcg(gains[:k]) / best if best > 0 else 0.0

    return _over_queries(results, qrels, k=k, value=value)


def mrr(results: Run, qrels: Qrels, k: int | None = None) -> Score:
    """MRR@k: 1 / rank of the first relevant document in the first k, else 0. Like `ndcg`."""

    def value(gains: np.ndarray, judged: np.ndarray) -> float:
        hits = np.flatnonzero(gains[:k] > 0)
        return 1.0 / (hits[0] + 1) if hits.size else 0.0

    return _over_queries(results, qrels, k=k, value=value)


def average_precision(results: Run, qrels: Qrels, k: int | None = None) -> Score:
    """MAP@k: the sum of the precisions at each relevant document of the first k, over their number.

    The divisor counts all relevant documents, even if more than k (trec_eval's map_cut). Arguments
    and errors as in `ndcg`.
    """

    def value(gains: np.ndarray, judged: np.ndarray) -> float:
        relevant = np.count_nonzero(judged)
        ranks = np.flatnonzero(gains[:k] > 0) + 1
        return float(np.sum(np.arange(1, ranks.size + 1) / ranks) / relevant) if relevant else 0.0

    return _over_queries(results, qrels, k=k, value=value)


def recall(results: Run, qrels: Qrels, k: int | None = None) -> Score:
    """Recall@k: the share of a query's relevant documents among the first k. Like `ndcg`."""

    def value(gains: np.ndarray, judged: np.ndarray) -> float:
        relevant = np.count_nonzero(judged)
        return np.count_nonzero(gains[:k]) / relevant if relevant else 0.0

    return _over_queries(results, qrels, k=k, value=value)


def _over_queries(results: Run, qrels: Qrels, *, k: int | None, value: Callable) -> Score:
    """value(gains of the ranked documents, gains of the judged ones) of each common query."""
    if k is not None and (isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1):
        raise UserError(f"the cut-off k is {k!r}; it must be a whole number, 1 or more")
    check_run(results)
    per_query = {}
    for qid, run in results.items():
        if qid not in qrels:
            continue
        judged = qrels[qid]
        if not isinstance(judged, Mapping):
            raise UserError(f"qrels of query {qid!r}: expected {{document id: relevance}}")
        gains = np.array([max(judged.get(d, 0), 0) for d in ranked_by_id(run)], np.float64)
        per_query[qid] = float(value(gains, np.maximum([*judged.values(), 0.0], 0.0)))
    if not per_query:
        raise UserError("no query of the run is in the qrels; compare the ids of the two")
    return Score(per_query)


def _dcg(gains: np.ndarray) -> float:
    return float(np.sum(gains / np.log2(np.arange(2, gains.size + 2))))
