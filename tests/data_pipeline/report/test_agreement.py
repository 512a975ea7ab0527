"""Cohen's kappa as scikit-learn computes it; which combinations count."""

import math
import random
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.items import INSTRUCTED_QUERIES, PASSAGES, Item, Judgement
from data_pipeline.report.agreement import Agreement, cohen_kappa

cohen_kappa_score = pytest.importorskip("sklearn.metrics").cohen_kappa_score  # comes with torch

COUNT = st.integers(0, 40)


@given(COUNT, COUNT, COUNT, COUNT)
def test_kappa_is_that_of_scikit_learn(both, first, second, neither):
    a = [1] * both + [1] * first + [0] * second + [0] * neither
    b = [1] * both + [0] * first + [1] * second + [0] * neither
    kappa = cohen_kappa(both, first, second, neither)
    if not a:
        assert kappa is None
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where the kappa is undefined
        expected = cohen_kappa_score(a, b, labels=[0, 1])
    if math.isnan(expected):
        assert kappa is None
    else:
        assert kappa == pytest.approx(expected, abs=1e-12)


def test_kappa_of_known_tables():
    assert cohen_kappa(20, 5, 10, 15) == pytest.approx(0.4)  # Wikipedia's and many books' example
    assert cohen_kappa(3, 0, 0, 4) == 1.0
    assert cohen_kappa(0, 3, 3, 0) == -1.0
    assert cohen_kappa(5, 5, 5, 5) == 0.0
    assert cohen_kappa(5, 5, 0, 0) == 0.0  # one judge says the same of all, the other does not
    assert cohen_kappa(0, 0, 0, 0) is None
    assert cohen_kappa(9, 0, 0, 0) is None
    assert cohen_kappa(0, 0, 0, 9) is None


def judged(number, answers):
    rows = [Judgement(judge, q, p, relevant, "") for (judge, q, p), relevant in answers.items()]
    return Item(str(number), "q", "p", judgements=rows)


def test_agreement_counts_what_both_have_judged():
    rng = random.Random(0)
    items, pooled, by_combination = [], ([], []), {}
    for number in range(200):
        answers = {}
        for q in INSTRUCTED_QUERIES:
            for p in PASSAGES:
                first = rng.random() < (0.9 if INSTRUCTED_QUERIES.index(q) == 0 else 0.2)
                second = first if rng.random() < 0.7 else not first
                seen = rng.random() < 0.8, rng.random() < 0.5
                if seen[0]:
                    answers["judge", q, p] = first
                if seen[1]:
                    answers["judge_2", q, p] = second
                if all(seen):
                    for each in (pooled, by_combination.setdefault((q, p), ([], []))):
                        each[0].append(first)
                        each[1].append(second)
        items.append(judged(number, answers))
    found = Agreement(items).to_json()
    assert found["judged"] == len(pooled[0])
    assert found["agreement"] == pytest.approx(sum(map(bool.__eq__, *pooled)) / len(pooled[0]))
    assert found["kappa"] == pytest.approx(cohen_kappa_score(*pooled))
    assert len(found["combinations"]) == 9
    for row in found["combinations"]:
        first, second = by_combination[row["query"], row["passage"]]
        assert row["judged"] == len(first)
        assert row["kappa"] == pytest.approx(cohen_kappa_score(first, second))
        assert row["judge"] == sum(a and not b for a, b in zip(first, second, strict=True))


def test_agreement_of_one_judge_is_none():
    assert Agreement([judged(1, {("judge", "I+Q+", "P+"): True})]).to_json() is None
    assert Agreement().to_json() is None
    both = {("judge", "I+Q+", "P+"): True, ("judge_2", "I+Q+", "P+"): True}
    found = Agreement([judged(1, both)]).to_json()
    assert (found["agreement"], found["kappa"]) == (1.0, None)
