"""Scores the embeddings of a task: ranking quality, and whether the ranking obeys instructions.

Every query is searched with each of its instructions and without any, over all passages of the
split. All scores are times 100, as in the papers.
"""

import functools
import itertools
from collections.abc import Iterable

import numpy as np
from jax.sharding import Mesh

from inf_jax import metrics
from inf_jax.core.errors import UserError
from inf_jax.evaluation.search import topk_blocks
from inf_jax.evaluation.task import Task
from inf_jax.metrics.runs import Score

METRICS = {  # key in the result of `score_task` -> name in tables and figures
    "ndcg@10": "nDCG@10",
    "recall@1": "R@1",
    "mrr@10": "MRR@10",
    "within_focus_accuracy": "within-focus accuracy",
    "p_mrr": "p-MRR",
    "robustness@10": "Robustness@10",
}
_OF_CHANGED = ("within_focus_accuracy", "p_mrr")  # absent without queries whose relevance changes
_OF_TEN = {  # metrics of the first ten passages
    "ndcg@10": functools.partial(metrics.ndcg, k=10),
    "recall@1": functools.partial(metrics.recall, k=1),
    "mrr@10": functools.partial(metrics.mrr, k=10),
}


def metrics_of(task: Task) -> list[str]:
    """The keys of `METRICS` that `score_task` gives for a task."""
    return [name for name in METRICS if task.changed or name not in _OF_CHANGED]


def score_task(
    task: Task, queries: np.ndarray, passages: np.ndarray, *, top_k: int, mesh: Mesh | None = None
) -> dict[str, float]:
    """The scores of `METRICS`, each times 100.

    nDCG@10, R@1 (recall@1) and MRR@10 are means over the instructed queries. Robustness@10 is the
    mean over queries of the worst nDCG@10 among their instructions. Within-focus accuracy is the
    share of queries for which a relevant passage scores above all passages that are relevant to
    the same query under other instructions only. p-MRR compares the ranks of those same passages
    with and without the instruction. The last two are absent if no query has such passages.

    Args:
      task: the task.
      queries: float32[q, e], embeddings of `task.searches`, in that order.
      passages: float32[p, e], embeddings of `task.corpus`, in that order.
      top_k: passages retrieved per query, at least 10. p-MRR is exact if it covers the corpus; a
        passage that was not retrieved counts as the one after the last.
      mesh: devices over which the search is sharded; None: the default device.

    Raises:
      UserError: `top_k` below 10; embeddings that are not finite, or not one of each text.
    """
    if top_k < 10:
        raise UserError(f"eval.top_k={top_k}: nDCG@10 needs 10 or more")
    if len(queries) != len(task.searches) or len(passages) != len(task.corpus):
        raise UserError(
            f"{len(queries)} query and {len(passages)} passage embeddings for "
            f"{len(task.searches)} searches in {len(task.corpus)} passages; give one each"
        )
    per_query, ranks = _search(task, queries, passages, top_k, mesh)
    means = {name: Score(values) for name, values in per_query.items()}
    robustness = metrics.worst_of_groups(means["ndcg@10"], groups=task.groups)
    scores = means | {"robustness@10": robustness}
    if task.changed:
        scores["within_focus_accuracy"] = _within_focus(task, queries, passages)
        both = {
            qid: [(ranks[task.groups[qid]][d], ranks[qid][d]) for d in documents]
            for qid, documents in task.changed.items()
        }
        scores["p_mrr"] = metrics.p_mrr_of_ranks(both)
    return {name: 100 * float(scores[name]) for name in METRICS if name in scores}


def _search(
    task: Task, queries: np.ndarray, passages: np.ndarray, top_k: int, mesh: Mesh | None
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, int]]]:
    """What the scores need of each ranking, block by block of queries.

    Returns:
      {metric: {query id: value}} of the instructed queries, and {id: {document id: rank}} of all
      searches, for the documents of `task.changed`; one that was not retrieved is next after the
      last.
    """
    row_of = {document: n for n, document in enumerate(task.corpus)}
    ids = sorted(task.corpus, reverse=True)  # ties as in `metrics`; topk: the lower index first
    place = {document: n for n, document in enumerate(ids)}
    wanted: dict[str, dict[str, None]] = {}
    for qid, documents in task.changed.items():
        wanted[qid] = dict.fromkeys(documents)
        wanted.setdefault(task.groups[qid], {}).update(wanted[qid])
    per_query: dict[str, dict[str, float]] = {name: {} for name in _OF_TEN}
    ranks: dict[str, dict[str, int]] = {}
    searches = iter(task.searches)
    rows, k = [row_of[document] for document in ids], min(top_k, len(ids))
    for scores, indices in topk_blocks(queries, passages[rows], k, mesh=mesh):
        block = list(itertools.islice(searches, len(scores)))
        finite = np.isfinite(scores).all(axis=1)
        if not finite.all():
            raise UserError(f"query {block[finite.argmin()]!r}: a score is NaN or infinite")
        run = {
            qid: dict(zip([ids[n] for n in found], values, strict=True))
            for qid, found, values in zip(
                block, indices[:, :10].tolist(), scores[:, :10].tolist(), strict=True
            )
            if qid in task.queries
        }
        if run:
            for name, metric in _OF_TEN.items():
                per_query[name] |= metric(run, task.qrels).per_query
        for qid, row in zip(block, indices, strict=True):
            if qid in wanted:
                ranks[qid] = {d: _rank(row, place[d]) for d in wanted[qid]}
    return per_query, ranks


def _rank(found: np.ndarray, place: int) -> int:
    """The 1-based rank of a place among those that were found, int32[k]; k + 1 if it was not."""
    hits = found == place
    return int(hits.argmax()) + 1 if hits.any() else len(found) + 1


def _within_focus(task: Task, queries: np.ndarray, passages: np.ndarray) -> float:
    """Share of queries whose best relevant passage scores strictly above all of `task.changed`."""
    query_row, passage_row = (
        {name: n for n, name in enumerate(names)} for names in (task.searches, task.corpus)
    )

    def best(qid: str, documents: Iterable[str]) -> float:
        query = queries[query_row[qid]]
        return max(float(query @ passages[passage_row[d]]) for d in documents)

    right = [best(qid, task.qrels[qid]) > best(qid, task.changed[qid]) for qid in task.changed]
    return sum(right) / len(right)
