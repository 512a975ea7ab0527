"""Retrieval metrics of a ranking: nDCG, MRR, MAP and recall.

Layouts (those of pytrec_eval): a run is {query id: {document id: score}}, qrels are {query id:
{document id: relevance}}; a relevance above 0 is relevant. Documents are ranked by their float32
score, ties by the larger document id first, as trec_eval does.

Every function returns a `Score`: the mean as a float, and the averaged values in `.per_query`. As
in trec_eval the mean is over the queries that are in the run and in the qrels; a query without any
relevant document counts 0.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from inf_jax.core.errors import UserError
from inf_jax.metrics.runs import Qrels, Run, Score, check_run, ranked_by_id

CUTS = (1, 3, 5, 10, 20, 100, 1000)  # those of mteb


def ndcg(results: Run, qrels: Qrels, k: int | None = None) -> Score:
    """nDCG@k with linear gain: sum over ranks r <= k of rel_r / log2(r + 1), over the ideal's.

    Args:
      qrels: graded relevance; below 0 counts as 0.
      k: the cut-off, 1 or more; None takes the whole run.

    Raises:
      UserError: empty run, k < 1, malformed run or qrels, or no query in both.
    """
    return _over_queries(results, qrels, {"": (_ndcg, k)})[""]


def mrr(results: Run, qrels: Qrels, k: int | None = None) -> Score:
    """MRR@k: 1 / rank of the first relevant document in the first k, else 0. Like `ndcg`."""
    return _over_queries(results, qrels, {"": (_reciprocal_rank, k)})[""]


def average_precision(results: Run, qrels: Qrels, k: int | None = None) -> Score:
    """MAP@k: the sum of the precisions at each relevant document of the first k, over their number.

    The divisor counts all relevant documents, even if more than k (trec_eval's map_cut). Arguments
    and errors as in `ndcg`.
    """
    return _over_queries(results, qrels, {"": (_average_precision, k)})[""]


def recall(results: Run, qrels: Qrels, k: int | None = None) -> Score:
    """Recall@k: the share of a query's relevant documents among the first k. Like `ndcg`."""
    return _over_queries(results, qrels, {"": (_recall, k)})[""]


def ranking_scores(results: Run, qrels: Qrels, cuts: Sequence[int] = CUTS) -> dict[str, Score]:
    """All metrics of mteb at all cut-offs, from one ranking of each query.

    Returns:
      {"ndcg@10": Score, ...} of ndcg, map, mrr, recall, precision (relevant documents of the first
      k, over k) and hit_rate (1 if there is one), as of trec_eval.

    Raises:
      UserError: as `ndcg`.
    """
    values = {f"{name}@{k}": (value, k) for name, value in _METRICS.items() for k in cuts}
    return _over_queries(results, qrels, values)


def _ndcg(gains: np.ndarray, judged: np.ndarray, k: int | None) -> float:
    best = _dcg(np.sort(judged)[::-1][:k])
    return _dcg(gains[:k]) / best if best > 0 else 0.0


def _average_precision(gains: np.ndarray, judged: np.ndarray, k: int | None) -> float:
    relevant = np.count_nonzero(judged)
    ranks = np.flatnonzero(gains[:k] > 0) + 1
    return float(np.sum(np.arange(1, ranks.size + 1) / ranks) / relevant) if relevant else 0.0


def _reciprocal_rank(gains: np.ndarray, judged: np.ndarray, k: int | None) -> float:
    hits = np.flatnonzero(gains[:k] > 0)
    return 1.0 / (hits[0] + 1) if hits.size else 0.0


def _recall(gains: np.ndarray, judged: np.ndarray, k: int | None) -> float:
    relevant = np.count_nonzero(judged)
    return np.count_nonzero(gains[:k]) / relevant if relevant else 0.0


def _precision(gains: np.ndarray, judged: np.ndarray, k: int) -> float:
    return np.count_nonzero(gains[:k]) / k


def _hit(gains: np.ndarray, judged: np.ndarray, k: int) -> float:
    return float(np.any(gains[:k] > 0))


_METRICS = {
    "ndcg": _ndcg,
    "map": _average_precision,
    "mrr": _reciprocal_rank,
    "recall": _recall,
    "precision": _precision,
    "hit_rate": _hit,
}


def _over_queries(
    results: Run, qrels: Qrels, values: Mapping[str, tuple[Callable, int | None]]
) -> dict[str, Score]:
    """Each function of (gains of the ranked documents, gains of the judged ones, k), for each
    common query."""
    for _, k in values.values():
        if k is not None and (isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1):
            raise UserError(f"the cut-off k is {k!r}; it must be a whole number, 1 or more")
    check_run(results)
    per_query: dict[str, dict[str, float]] = {name: {} for name in values}
    for qid, run in results.items():
        if qid not in qrels:
            continue
        judged = qrels[qid]
        if not isinstance(judged, Mapping):
            raise UserError(f"qrels of query {qid!r}: expected {{document id: relevance}}")
        gains = np.array([max(judged.get(d, 0), 0) for d in ranked_by_id(run)], np.float64)
        ideal = np.maximum([*judged.values(), 0.0], 0.0)
        for name, (value, k) in values.items():
            per_query[name][qid] = float(value(gains, ideal, k))
    if not all(per_query.values()):
        raise UserError("no query of the run is in the qrels; compare the ids of the two")
    return {name: Score(each) for name, each in per_query.items()}


def _dcg(gains: np.ndarray) -> float:
    return float(np.sum(gains / np.log2(np.arange(2, gains.size + 2))))
