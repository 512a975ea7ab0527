"""The retrieval task inside a split of examples, and its score: does the instruction decide?

Every query of the split is searched under each of its instructions and by itself, over all passages
of the split. The figures are those of the papers, times 100.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jax.sharding import Mesh

from inf_jax import metrics
from inf_jax.core.errors import UserError
from inf_jax.evaluation.search import topk
from inf_jax.evaluation.task import Task

METRICS = {  # key of `evaluate` -> what tables and figures call it
    "ndcg@10": "nDCG@10",
    "recall@1": "R@1",
    "mrr@10": "MRR@10",
    "within_focus_accuracy": "within-focus accuracy",
    "p_mrr": "p-MRR",
    "robustness@10": "Robustness@10",
}


def evaluate(
    embed_queries: Callable[[Sequence[tuple[str, str]]], np.ndarray],
    embed_passages: Callable[[Sequence[str]], np.ndarray],
    task: Task,
    *,
    top_k: int,
    mesh: Mesh | None = None,
) -> dict[str, float]:
    """The figures of `METRICS`, each times 100.

    nDCG@10, R@1 (recall@1) and MRR@10 are over the instructed queries; Robustness@10 is a query's
    worst nDCG@10 over its instructions. Within-focus accuracy: the share of queries for which a
    passage that fits scores above all passages that fit the same query under other instructions
    alone. p-MRR compares each instructed query with the same query alone, on those same passages.
    The last two are absent where no query has such passages.

    Args:
      embed_queries: (query, instruction) pairs -> float32[n, e].
      embed_passages: passages -> float32[n, e].
      task: the task.
      top_k: passages of a run, 10 or more. p-MRR is exact where it is not below the corpus; a
        passage outside a run counts as the next after its last.
      mesh: shards the search.

    Raises:
      UserError: `top_k` under 10; vectors that are not finite.
    """
    if top_k < 10:
        raise UserError(f"eval.top_k={top_k}: nDCG@10 needs 10 or more")
    texts = task.queries | task.alone
    queries = dict(zip(texts, embed_queries(list(texts.values())), strict=True))
    passages = dict(zip(task.corpus, embed_passages(list(task.corpus.values())), strict=True))
    run = _search(queries, passages, top_k, mesh)
    instructed = {qid: dict(itertools.islice(run[qid].items(), 10)) for qid in task.queries}
    ndcg = metrics.ndcg(instructed, task.qrels, 10)
    scores = {
        "ndcg@10": ndcg,
        "recall@1": metrics.recall(instructed, task.qrels, 1),
        "mrr@10": metrics.mrr(instructed, task.qrels, 10),
        "robustness@10": metrics.worst_of_groups(ndcg, groups=task.groups),
    }
    if task.changed:
        scores["within_focus_accuracy"] = _within_focus(queries, passages, task)
        both = {f"{qid}-og": run[task.groups[qid]] for qid in task.changed}
        both |= {f"{qid}-changed": run[qid] for qid in task.changed}
        scores["p_mrr"] = metrics.p_mrr(both, task.changed)
    return {name: 100 * float(scores[name]) for name in METRICS if name in scores}


def _search(
    queries: dict[str, np.ndarray], passages: dict[str, np.ndarray], top_k: int, mesh: Mesh | None
) -> dict[str, dict[str, float]]:
    """Runs in the order of rank, as `metrics` ranks: ties by the larger document id first."""
    names = sorted(passages, reverse=True)  # topk gives ties to the lower place
    scores, places = topk(
        np.stack(list(queries.values())),
        np.stack([passages[name] for name in names]),
        min(top_k, len(names)),
        mesh=mesh,
    )
    return {
        qid: dict(zip([names[i] for i in row], found, strict=True))
        for qid, row, found in zip(
            queries, np.asarray(places).tolist(), np.asarray(scores).tolist(), strict=True
        )
    }


def _within_focus(
    queries: dict[str, np.ndarray], passages: dict[str, np.ndarray], task: Task
) -> float:
    """Share of queries whose best fitting passage scores strictly above all the others."""

    def best(qid: str, documents: Iterable[str]) -> float:
        return max(float(queries[qid] @ passages[d]) for d in documents)

    right = [best(qid, task.qrels[qid]) > best(qid, task.changed[qid]) for qid in task.changed]
    return sum(right) / len(right)
