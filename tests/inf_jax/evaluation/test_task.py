"""The task that a split of examples defines."""

import pytest

from inf_jax.core.choices import RETRIEVAL_METRICS
from inf_jax.core.errors import UserError
from inf_jax.data.records import Pair, PairExample
from inf_jax.data.tokenise import read_examples
from inf_jax.evaluation.scores import METRICS
from inf_jax.evaluation.task import capped, task_from_examples
from tests.inf_jax.evaluation.test_scores import EXAMPLES, example


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
    # also the layout of InstructIR, for `metrics.robustness` without groups=
    assert [q.rpartition("_")[0] for q in task.queries] == list(task.groups.values())


def test_a_capped_task_keeps_whole_queries_and_fills_up():
    task = task_from_examples(EXAMPLES)
    names = dict(zip(task.corpus.values(), task.corpus, strict=True))
    first, second, third = task.queries
    # A is judged by a1, a2, a3, B by b1, b2
    for most, corpus, queries in (
        (6, ["a1", "a2", "b1", "a3", "b2", "c1"], [first, second, third]),
        (5, ["a1", "a2", "b1", "a3", "b2"], [first, second, third]),
        (4, ["a1", "a2", "b1", "a3"], [first, second]),
        (3, ["a1", "a2", "a3"], [first, second]),
    ):
        found = capped(task, most)
        assert list(found.corpus) == [names[text] for text in corpus]
        assert list(found.queries) == list(found.qrels) == list(found.groups) == queries
        assert set(found.alone) == {task.groups[query] for query in queries}
        assert found.qrels == {query: task.qrels[query] for query in queries}
        assert found.changed == {query: task.changed[query] for query in queries}
    with pytest.raises(UserError, match=r"2 passages do not hold .*; raise eval.max_passages"):
        capped(task, 2)


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


def test_task_of_a_dataset(tiny_dataset_dir):
    examples = list(read_examples(tiny_dataset_dir, "dev"))
    task = task_from_examples(examples)
    assert len(examples) == len(task.corpus) == len(task.queries) == 20
    assert sorted(query for query, _ in task.alone.values()) == sorted(
        {e.query_positive for e in examples}
    )
    # each query has four passages, of which each of its instructions excludes three
    assert {len(documents) for documents in task.changed.values()} == {3}
    for e in examples:
        qid = next(
            q for q, t in task.queries.items() if t == (e.query_positive, e.instruction_positive)
        )
        assert [task.corpus[d] for d in task.qrels[qid]] == [e.document_positive]


def test_split_that_is_not_there(tiny_dataset_dir):
    with pytest.raises(UserError, match="no split 'test'"):
        list(read_examples(tiny_dataset_dir, "test"))


def test_no_examples():
    with pytest.raises(UserError, match="no examples"):
        task_from_examples([])


def test_task_of_pairs_with_negatives():
    pairs = Pair("", "A", "a1", ("a2", "a3")), Pair("", "B", "b1", ("a1",)), None
    task = task_from_examples([PairExample("1", pairs), PairExample("2", pairs[:1])])
    assert list(task.corpus.values()) == ["a1", "a2", "a3", "b1"]
    assert list(task.queries.values()) == [("A", ""), ("B", "")]
    a1, _, _, b1 = task.corpus
    assert list(task.qrels.values()) == [{a1: 1}, {b1: 1}]
    assert not task.changed


def test_the_metrics_of_a_run_are_those_of_a_task():
    assert tuple(f"dev/{name}" for name in METRICS) == RETRIEVAL_METRICS
