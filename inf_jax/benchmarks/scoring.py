"""A run's scores on a task: every metric that its judgements allow, query by query."""

import re
from collections.abc import Mapping

from inf_jax import metrics
from inf_jax.benchmarks.task import BenchmarkTask
from inf_jax.core.errors import UserError
from inf_jax.metrics.runs import Run, Score, without_identical_ids

# Metrics in tables: key -> name. The ranking metrics have other cut-offs as well.
METRIC_NAMES = {
    "p_mrr": "p-MRR",
    "robustness@10": "Robustness@10",
    "paired_accuracy": "paired accuracy",
    "wise": "WISE",
    "sicr": "SICR",
    "ndcg@10": "nDCG@10",
    "mrr@10": "MRR@10",
    "recall@1": "R@1",
    "recall@100": "R@100",
}


def score_run(task: BenchmarkTask, run: Run) -> dict[str, Score]:
    """The metrics of a run, as fractions (p-MRR, WISE: -1 to 1).

    Args:
      run: query id -> {document id: score}, for each query of the task; at most `task.top_k`
        documents each.

    Returns:
      "ndcg@10" and all other ranking metrics at all cut-offs (`metrics.ranking_scores`), over all
      queries and, as "<label>/ndcg@10", over each of `task.subsets`; "p_mrr", "robustness@10",
      "paired_accuracy", "wise", "ideal_wise" and "sicr" where the task has their judgements.

    Raises:
      UserError: a query of the task is not in the run, or the judgements do not fit a metric.
    """
    missing = [qid for qid in task.queries if qid not in run]
    if missing:
        raise UserError(f"{task.name}: query {missing[0]!r} is not in the run; search it as well")
    run = {qid: run[qid] for qid in task.queries}
    if task.ignore_identical_ids:
        run = without_identical_ids(run)
    scores = metrics.ranking_scores(run, task.qrels, task.cuts)
    special: dict[str, Score] = {}
    if task.groups:
        special["robustness@10"] = metrics.worst_of_groups(scores["ndcg@10"], groups=task.groups)
    if task.pairs:
        special["paired_accuracy"] = metrics.paired_accuracy(run, task.qrels)
    if task.changed:
        special["p_mrr"] = metrics.p_mrr(run, task.changed)
    if task.positives:
        special |= _infosearch(task, run)
    for label, ids in task.subsets.items():
        chosen = set(ids)
        for name, score in scores.items():
            values = {q: value for q, value in score.per_query.items() if q in chosen}
            if values:
                special[f"{label}/{name}"] = Score(values)
    return scores | special


def _infosearch(task: BenchmarkTask, run: Run) -> dict[str, Score]:
    """WISE, SICR and p-MRR as InfoSearch's code gives them."""
    bases = {*task.positives, *task.negatives}
    runs: dict[str, Mapping[str, Mapping[str, float]]] = {
        mode: {base: run[f"{base}-{mode}"] for base in bases} for mode in ("ori", "ins", "rev")
    }
    scores = {
        "wise": metrics.wise(runs, task.positives, task.negatives),
        "ideal_wise": metrics.wise(runs, task.positives, task.negatives, ideal=True),
        "sicr": metrics.sicr(runs, task.positives),
    }
    if any(task.negatives.values()):
        both = {f"{base}-og": each for base, each in runs["ori"].items()}
        both |= {f"{base}-changed": each for base, each in runs["ins"].items()}
        scores["p_mrr"] = metrics.p_mrr(both, task.negatives, ties="order")
    return scores


def clusters_of(task: BenchmarkTask) -> dict[str, dict[str, str]]:
    """What an interval must draw together: queries that are one question.

    They are the members of a group, the queries of a base id (`-og` and `-changed`, InfoSearch's
    three, NevIR's pair, IFIR's levels), those of equal text, and what is linked by several of
    these; the scores of a cluster rise and fall together.

    Returns:
      "" -> query id -> its cluster; and for the metrics that are a mean of groups, pairs or base
      ids, the metric -> their id -> its cluster.
    """
    cluster = {qid: qid for qid in task.queries}

    def first(qid: str) -> str:
        while cluster[qid] != qid:
            cluster[qid] = qid = cluster[cluster[qid]]
        return qid

    members: dict[tuple[str, str], str] = {}
    bases = bool(task.changed or task.positives or task.pairs)
    for qid, (text, _) in task.queries.items():
        keys = [("text", text)]
        if qid in task.groups:
            keys.append(("group", task.groups[qid]))
        if bases:
            keys.append(("base", qid.rpartition("_" if task.pairs else "-")[0]))
        if task.suite == "ifir":  # a question at three levels, whose ids hold v1 to v3
            keys.append(("level", re.sub("v[123]", "", qid)))
        for key in keys:
            cluster[first(qid)] = first(members.setdefault(key, qid))
    units = {kind: {} for kind in ("text", "group", "base", "level")}
    for (kind, name), qid in members.items():
        units[kind][name] = first(qid)
    found = {"": {qid: first(qid) for qid in cluster}}
    if task.groups:
        found["robustness@10"] = units["group"]
    if bases:
        of_bases = ("p_mrr", "wise", "ideal_wise", "sicr", "paired_accuracy")
        found |= dict.fromkeys(of_bases, units["base"])
    return found
