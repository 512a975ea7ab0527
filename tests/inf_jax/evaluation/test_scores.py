"""The scores of a task, against values worked out by hand."""

import math

import numpy as np
import pytest

from inf_jax import metrics
from inf_jax.core.errors import UserError
from inf_jax.data.records import Example
from inf_jax.distributed.mesh import make_mesh
from inf_jax.evaluation import search
from inf_jax.evaluation.scores import METRICS, score_task
from inf_jax.evaluation.task import task_from_examples


def example(number, query, instruction, document, *poisons):
    return Example(str(number), query, instruction, document, *poisons)


# A has passages under instructions 1, 2 (queries of the task) and 3 (only a poison), B under 1 and
# a poison; C is only a poisoned query.
EXAMPLES = [
    example(0, "A", "one", "a1", "two", "a2", "B", "b1"),
    example(1, "A", "two", "a2", "three", "a3"),
    example(2, "B", "one", "b1", "nine", "b2", "C", "c1"),
]
# Scores of a1, a2, b1, a3, b2, c1 (in the order of the examples) for each query.
SCORES = {
    ("A", ""): [0.9, 0.8, 0.1, 0.7, 0.05, 0.0],  # a1 a2 a3 b1 b2 c1
    ("A", "one"): [0.5, 0.9, 0.2, 0.1, 0.3, 0.0],  # a2 a1 b2 b1 a3 c1
    ("A", "two"): [0.3, 0.9, 0.1, 0.2, 0.0, 0.8],  # a2 c1 a1 a3 b1 b2
    ("B", ""): [0.3, 0.2, 0.8, 0.1, 0.9, 0.0],  # b2 b1 a1 a2 a3 c1
    ("B", "one"): [0.9, 0.8, 0.7, 0.1, 0.6, 0.0],  # a1 a2 b1 b2 a3 c1
}


def score(task, scores, **options):
    """Passages are unit vectors, so that a query's vector holds its scores."""
    queries = np.array([scores[q] for q in task.searches.values()], np.float32)
    passages = np.eye(len(task.corpus), dtype=np.float32)
    return score_task(task, queries, passages, **{"top_k": 10, **options})


@pytest.mark.parametrize("mesh", [None, "all"])
def test_scores_worked_out_by_hand(mesh):
    task = task_from_examples(EXAMPLES)
    found = score(task, SCORES, mesh=make_mesh() if mesh else None)
    # ranks of the relevant passage: a1 2nd for (A, one), a2 1st for (A, two), b1 3rd for (B, one)
    gains = [1 / math.log2(3), 1.0, 1 / math.log2(4)]
    expected = {
        "ndcg@10": sum(gains) / 3,
        "recall@1": (0 + 1 + 0) / 3,
        "mrr@10": (1 / 2 + 1 + 1 / 3) / 3,
        # (A, one): a1 0.5 under a2 0.9; (A, two): a2 over all of A; (B, one): b1 0.7 over b2 0.6
        "within_focus_accuracy": (0 + 1 + 1) / 3,
        # rank without -> rank with the instruction, of the passages that it excludes:
        # (A, one): a2 2 -> 1: 1/2 - 1 = -0.5; a3 3 -> 5: 1 - 3/5 = 0.4; mean -0.05
        # (A, two): a1 1 -> 3: 1 - 1/3 = 2/3; a3 3 -> 4: 1 - 3/4 = 0.25; mean 11/24
        # (B, one): b2 1 -> 4: 1 - 1/4 = 0.75
        "p_mrr": (-0.05 + 11 / 24 + 0.75) / 3,
        # the worse of A's two, and B's one
        "robustness@10": (gains[0] + gains[2]) / 2,
    }
    assert list(found) == list(METRICS)
    assert found == pytest.approx({name: 100 * value for name, value in expected.items()})


def test_passage_outside_the_run_is_next_after_its_last():
    examples = [example(n, "A", f"number {n}", f"a{n}") for n in range(15)]
    task = task_from_examples(examples)
    falling = np.linspace(1, 0, 15)
    # alone: a0, a1, ...; under an instruction the others in that order, then its own
    scores = {("A", ""): falling}
    for n in range(15):
        scores["A", f"number {n}"] = np.insert(falling[:-1], n, -1.0)
    whole = score(task, scores, top_k=1000)
    ten = score(task, scores, top_k=10)
    assert whole["within_focus_accuracy"] == ten["within_focus_accuracy"] == 0
    # document j under instruction n: rank j + 1 alone, then j + 1 (j < n) or j (j > n)

    def change(j, n, run):
        old, new = (min(rank, run + 1) for rank in (j + 1, j + (j < n)))
        return new / old - 1  # it never falls

    for found, run in ((whole, 15), (ten, 10)):
        mean = np.mean([[change(j, n, run) for j in range(15) if j != n] for n in range(15)])
        assert found["p_mrr"] == pytest.approx(100 * mean)
    assert whole["p_mrr"] < ten["p_mrr"] < 0


def test_ties_count_as_in_the_metrics_of_the_whole_run():
    rng = np.random.default_rng(0)
    examples = [example(n, f"Q{n // 3}", f"number {n}", f"text {n}") for n in range(30)]
    task = task_from_examples(examples)
    texts = [*task.queries.values(), *task.alone.values()]
    scores = {text: rng.integers(0, 3, 30) / 2 for text in texts}  # three values: ties everywhere
    found = score(task, scores)
    run = {
        qid: dict(zip(task.corpus, scores[text].tolist(), strict=True))
        for qid, text in task.queries.items()
    }
    assert found["ndcg@10"] == pytest.approx(100 * metrics.ndcg(run, task.qrels, 10))
    assert found["mrr@10"] == pytest.approx(100 * metrics.mrr(run, task.qrels, 10))
    assert found["recall@1"] == pytest.approx(100 * metrics.recall(run, task.qrels, 1))
    assert found["robustness@10"] == pytest.approx(100 * metrics.robustness(run, task.qrels))
    assert found["mrr@10"] < 50  # ties cost: no query is credited with the first of its tie


@pytest.mark.parametrize("mesh", [None, "all"])
def test_blocks_of_queries_give_the_scores_of_the_whole_matrix(mesh, monkeypatch):
    """Against numpy, on whole numbers: every score is exact, and ties are everywhere."""
    rng = np.random.default_rng(0)
    examples = [
        example(n, f"Q{n % 90}", f"number {n}", f"text {n % 170}", f"number {n + 1}", f"poison {n}")
        for n in range(200)
    ]
    task = task_from_examples(examples)
    searches = list(task.searches)
    queries, passages = (
        rng.integers(-3, 4, (len(names), 6)).astype(np.float32) for names in (searches, task.corpus)
    )
    sizes, compiled = [], search._topk_sharded if mesh else search._topk

    def spy(queries, *arguments, **options):
        sizes.append(len(queries))
        return compiled(queries, *arguments, **options)

    monkeypatch.setattr(search, compiled.__name__, spy)
    monkeypatch.setattr(search, "QUERIES", 64)
    found = score_task(task, queries, passages, top_k=100, mesh=make_mesh() if mesh else None)
    assert len(sizes) == 5 and set(sizes) == {58}  # 290 searches

    every = (queries @ passages.T).tolist()
    whole = {
        qid: dict(zip(task.corpus, row, strict=True))
        for qid, row in zip(searches, every, strict=True)
    }
    run = {qid: whole[qid] for qid in task.queries}
    ndcg = metrics.ndcg(run, task.qrels, 10)

    def retrieved(qid):
        """The best 100: by score, ties by the larger id."""
        best = sorted(whole[qid], key=lambda d: (whole[qid][d], d), reverse=True)[:100]
        return {d: whole[qid][d] for d in best}

    both = {f"{qid}-og": retrieved(task.groups[qid]) for qid in task.changed}
    both |= {f"{qid}-changed": retrieved(qid) for qid in task.changed}
    above = [
        max(whole[qid][d] for d in task.qrels[qid]) > max(whole[qid][d] for d in documents)
        for qid, documents in task.changed.items()
    ]
    expected = {
        "ndcg@10": ndcg,
        "recall@1": metrics.recall(run, task.qrels, 1),
        "mrr@10": metrics.mrr(run, task.qrels, 10),
        "within_focus_accuracy": sum(above) / len(above),
        "p_mrr": metrics.p_mrr(both, task.changed),
        "robustness@10": metrics.worst_of_groups(ndcg, groups=task.groups),
    }
    assert found == {name: 100 * float(value) for name, value in expected.items()}


def test_equal_scores_do_not_follow_the_instruction():
    task = task_from_examples(EXAMPLES)
    scores = {text: np.full(6, 0.5) for text in SCORES}
    found = score(task, scores)
    assert found["within_focus_accuracy"] == 0
    assert found["p_mrr"] == 0


def test_no_query_with_two_passages():
    task = task_from_examples([example(0, "A", "one", "a1"), example(1, "B", "one", "b1")])
    assert task.changed == {}
    found = score(task, {(q, i): [1.0, 0.5] for q in "AB" for i in ("one", "")})
    assert "p_mrr" not in found and "within_focus_accuracy" not in found
    assert found["recall@1"] == 50


def test_bad_input():
    task = task_from_examples(EXAMPLES)
    with pytest.raises(UserError, match="top_k=9: nDCG@10 needs 10 or more"):
        score(task, SCORES, top_k=9)
    for bad in (math.nan, math.inf):
        with pytest.raises(UserError, match="query 'q0_0': a score is NaN or infinite"):
            score(task, SCORES | {("A", "one"): [bad] * 6})
    vectors = np.ones((5, 3), np.float32), np.ones((6, 3), np.float32)
    for short in (0, 1):
        parts = [part[: len(part) - (n == short)] for n, part in enumerate(vectors)]
        with pytest.raises(UserError, match="embeddings for 5 searches in 6 passages"):
            score_task(task, *parts, top_k=10)
