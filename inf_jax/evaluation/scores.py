"""Scores the embeddings of a task: ranking quality, and whether the ranking obeys instructions.

Every query is searched with each of its instructions and without any, over all passages of the
split. All scores are times 100, as in the papers.
"""

import itertools
from collections.abc import Iterable

import numpy as np
from jax.sharding import Mesh

from inf_jax import metrics
from inf_jax.core.errors import UserError
from inf_jax.evaluation.search import topk
from inf_jax.evaluation.task import Task

METRICS = {  # key in the result of `score_task` -> name in tables and figures
    "ndcg@10": "nDCG@10",
    "recall@1": "R@1",
    "mrr@10": "MRR@10",
    "within_focus_accuracy": "within-focus accuracy",
    "p_mrr": "p-MRR",
    "robustness@10": "Robustness@10",
}
_OF_CHANGED = ("within_focus_accuracy", "p_mrr")  # absent without queries whose relevance changes


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
      UserError: `top_k` below 10; embeddings that are not finite.
    """
    if top_k < 10:
        raise UserError(f"eval.top_k={top_k}: nDCG@10 needs 10 or more")
    run = _search(task, queries, passages, top_k, mesh)
    instructed = {qid: dict(itertools.islice(run[qid].items(), 10)) for qid in task.queries}
    ndcg = metrics.ndcg(instructed, task.qrels, 10)
    scores = {
        "ndcg@10": ndcg,
        "recall@1": metrics.recall(instructed, task.qrels, 1),
        "mrr@10": metrics.mrr(instructed, task.qrels, 10),
        "robustness@10": metrics.worst_of_groups(ndcg, groups=task.groups),
    }
    if task.changed:
        scores["within_focus_accuracy"] = _within_focus(task, queries, passages)
        both = {f"{qid}-og": run[task.groups[qid]] for qid in task.changed}
        both |= {f"{qid}-changed": run[qid] for qid in task.changed}
        scores["p_mrr"] = metrics.p_mrr(both, task.changed)
    return {name: 100 * float(scores[name]) for name in METRICS if name in scores}


def _search(
    task: Task, queries: np.ndarray, passages: np.ndarray, top_k: int, mesh: Mesh | None
) -> dict[str, dict[str, float]]:
    """{query id: {document id: score}} in rank order; ties as in `metrics`, larger ids first."""
    ids = list(task.corpus)
    order = sorted(range(len(ids)), key=ids.__getitem__, reverse=True)  # topk: lower index first
    scores, indices = topk(queries, passages[order], min(top_k, len(ids)), mesh=mesh)
    return {
        qid: dict(zip([ids[order[i]] for i in row], row_scores, strict=True))
        for qid, row, row_scores in zip(
            task.searches, np.asarray(indices).tolist(), np.asarray(scores).tolist(), strict=True
        )
    }


def _within_focus(task: Task, queries: np.ndarray, passages: np.ndarray) -> float:
    """Share of queries whose best relevant passage scores strictly above all of `task.changed`."""
    query_of = dict(zip(task.searches, queries, strict=True))
    passage_of = dict(zip(task.corpus, passages, strict=True))

    def best(qid: str, documents: Iterable[str]) -> float:
        return max(float(query_of[qid] @ passage_of[d]) for d in documents)

    right = [best(qid, task.qrels[qid]) > best(qid, task.changed[qid]) for qid in task.changed]
    return sum(right) / len(right)
