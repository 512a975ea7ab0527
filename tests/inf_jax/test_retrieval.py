"""The task of a split and its figures, against values worked out by hand."""

import math

import numpy as np
import pytest

from inf_jax import metrics
from inf_jax.core.errors import UserError
from inf_jax.data.records import Example
from inf_jax.data.tokenise import read_examples
from inf_jax.distributed.mesh import make_mesh
from inf_jax.evaluation.scores import METRICS, evaluate
from inf_jax.evaluation.task import task_from_examples


def example(number, query, instruction, document, *poisons):
    return Example(str(number), query, instruction, document, *poisons)


# A has passages under instructions 1, 2 (queries of the task) and 3 (a poison alone), B under 1 and
# a poison; C occurs as a poisoned query alone.
EXAMPLES = [
    example(0, "A", "one", "a1", "two", "a2", "B", "b1"),
    example(1, "A", "two", "a2", "three", "a3"),
    example(2, "B", "one", "b1", "nine", "b2", "C", "c1"),
]
# What each query says of a1, a2, b1, a3, b2, c1: the order in which the examples name them.
SCORES = {
    ("A", ""): [0.9, 0.8, 0.1, 0.7, 0.05, 0.0],  # a1 a2 a3 b1 b2 c1
    ("A", "one"): [0.5, 0.9, 0.2, 0.1, 0.3, 0.0],  # a2 a1 b2 b1 a3 c1
    ("A", "two"): [0.3, 0.9, 0.1, 0.2, 0.0, 0.8],  # a2 c1 a1 a3 b1 b2
    ("B", ""): [0.3, 0.2, 0.8, 0.1, 0.9, 0.0],  # b2 b1 a1 a2 a3 c1
    ("B", "one"): [0.9, 0.8, 0.7, 0.1, 0.6, 0.0],  # a1 a2 b1 b2 a3 c1
}


def score(task, scores, **how):
    """Passages are unit vectors, so that a query's vector holds its scores."""
    return evaluate(
        lambda queries: np.array([scores[q] for q in queries], np.float32),
        lambda passages: np.eye(len(passages), dtype=np.float32),
        task,
        **{"top_k": 10, **how},
    )


def test_task_of_a_split():
    task = task_from_examples(EXAMPLES)
    assert list(task.corpus.values()) == ["a1", "a2", "b1", "a3", "b2", "c1"]
    a1, a2, b1, a3, b2, _ = task.corpus
    assert list(task.queries.values()) == [("A", "one"), ("A", "two"), ("B", "one")]
    first, second, third = task.queries
    assert task.qrels == {first: {a1: 1}, second: {a2: 1}, third: {b1: 1}}
    assert task.changed == {first: [a2, a3], second: [a1, a3], third: [b2]}
    groups = list(task.alone)
    assert task.groups == {first: groups[0], second: groups[0], third: groups[1]}
    assert list(task.alone.values()) == [("A", ""), ("B", "")]
    # the layout of InstructIR too, for `metrics.robustness` without groups=
    assert [q.rpartition("_")[0] for q in task.queries] == list(task.groups.values())


def test_several_relevant_passages_and_copies_of_a_text():
    task = task_from_examples(
        [
            example(0, "A", "one", "a1"),
            example(1, "A ", " one", "a2"),
            example(2, "A", "two", "a1\n"),
            # a poisoned pair is a pair: a3 fits (A, one)
            example(3, "A", "two", "a4", "one", "a3"),
        ]
    )
    assert list(task.queries.values()) == [("A", "one"), ("A", "two")]
    one, two = task.queries
    names = dict(zip(task.corpus.values(), task.corpus, strict=True))
    assert list(names) == ["a1", "a2", "a4", "a3"]
    assert task.qrels[one] == {names["a1"]: 1, names["a2"]: 1, names["a3"]: 1}
    assert task.qrels[two] == {names["a1"]: 1, names["a4"]: 1}
    assert task.changed == {one: [names["a4"]], two: [names["a2"], names["a3"]]}


@pytest.mark.parametrize("mesh", [None, "all"])
def test_figures_worked_out_by_hand(mesh):
    task = task_from_examples(EXAMPLES)
    found = score(task, SCORES, mesh=make_mesh() if mesh else None)
    # ranks of the passage that fits: a1 2nd for (A, one), a2 1st for (A, two), b1 3rd for (B, one)
    gains = [1 / math.log2(3), 1.0, 1 / math.log2(4)]
    expected = {
        "ndcg@10": sum(gains) / 3,
        "recall@1": (0 + 1 + 0) / 3,
        "mrr@10": (1 / 2 + 1 + 1 / 3) / 3,
        # (A, one): a1 0.5 under a2 0.9; (A, two): a2 over all of A; (B, one): b1 0.7 over b2 0.6
        "within_focus_accuracy": (0 + 1 + 1) / 3,
        # rank alone -> rank with the instruction, of the passages it rules out:
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
    # alone: a0, a1, ...; under an instruction all the others in that order, but it last
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
    with pytest.raises(UserError, match="no examples"):
        task_from_examples([])
    task = task_from_examples(EXAMPLES)
    with pytest.raises(UserError, match="top_k=9: nDCG@10 needs 10 or more"):
        score(task, SCORES, top_k=9)
    with pytest.raises(UserError, match="NaN"):
        score(task, SCORES | {("A", "one"): [math.nan] * 6})


def test_task_of_a_dataset(tiny_dataset_dir):
    examples = list(read_examples(tiny_dataset_dir, "dev"))
    task = task_from_examples(examples)
    assert len(examples) == len(task.corpus) == len(task.queries) == 20
    assert sorted(query for query, _ in task.alone.values()) == sorted(
        {e.query_positive for e in examples}
    )
    # each query has four passages, of which each of its instructions rules out three
    assert {len(documents) for documents in task.changed.values()} == {3}
    for e in examples:
        qid = next(
            q for q, t in task.queries.items() if t == (e.query_positive, e.instruction_positive)
        )
        assert [task.corpus[d] for d in task.qrels[qid]] == [e.document_positive]


def test_split_that_is_not_there(tiny_dataset_dir):
    with pytest.raises(UserError, match="no split 'test'"):
        list(read_examples(tiny_dataset_dir, "test"))
