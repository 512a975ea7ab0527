"""Ranking metrics against pytrec_eval and mteb; ties, edges, and bad input."""

import json
import pickle
from collections import defaultdict

import numpy as np
import pytest

from inf_jax import metrics
from inf_jax.core.errors import UserError
from tests.inf_jax.metrics.golden import CUTS, EXACT, golden


@pytest.mark.parametrize("case", golden("trec"))
def test_trec_eval(case):
    run, qrels, expected = case["results"], case["qrels"], case["expected"]
    scores = {
        "map": metrics.average_precision(run, qrels),
        "recip_rank": metrics.mrr(run, qrels),
        "ndcg": metrics.ndcg(run, qrels),
    }
    means = defaultdict(dict)
    for k in CUTS:
        scores[f"ndcg_cut_{k}"] = means["ndcg"][f"NDCG@{k}"] = metrics.ndcg(run, qrels, k)
        scores[f"map_cut_{k}"] = means["map"][f"MAP@{k}"] = metrics.average_precision(run, qrels, k)
        scores[f"recall_{k}"] = means["recall"][f"Recall@{k}"] = metrics.recall(run, qrels, k)
        means["mrr"][f"MRR@{k}"] = metrics.mrr(run, qrels, k)
        assert [*means["mrr"][f"MRR@{k}"].per_query.values()] == pytest.approx(
            expected["mteb_mrr_per_query_in_results_order"][f"MRR@{k}"], abs=EXACT
        )
    ours = {q: {name: s.per_query[q] for name, s in scores.items()} for q in run}
    others = ("P_", "success_")  # of trec_eval, not among our metrics
    theirs = {
        q: {name: x for name, x in values.items() if not name.startswith(others)}
        for q, values in expected["per_query"].items()
    }
    assert ours.keys() == theirs.keys()
    for q, values in theirs.items():
        assert ours[q] == pytest.approx(values, abs=EXACT)
    assert means.keys() == expected["mteb_mean"].keys()
    for name, values in expected["mteb_mean"].items():  # mteb rounds to 5 digits
        assert means[name] == pytest.approx(values, abs=6e-6)


@pytest.mark.parametrize("case", golden("pmrr"))
@pytest.mark.parametrize("mode", ["og", "changed"])
def test_rankings_of_both_modes(case, mode):
    run = {q: r for q, r in case["results"].items() if q.endswith(f"-{mode}")}
    expected = case["expected"][mode]
    for k in CUTS:
        ours = {
            f"ndcg_at_{k}": metrics.ndcg(run, case["qrels"], k),
            f"map_at_{k}": metrics.average_precision(run, case["qrels"], k),
            f"recall_at_{k}": metrics.recall(run, case["qrels"], k),
            f"mrr_at_{k}": metrics.mrr(run, case["qrels"], k),
        }
        assert ours == pytest.approx({name: expected[name] for name in ours}, abs=6e-6)


def test_ties_and_float32():
    qrels = {"q": {"b": 1}}
    assert metrics.mrr({"q": {"a": 1.0, "b": 1.0, "c": 1.0}}, qrels) == 0.5  # c, b, a
    assert metrics.mrr({"q": {"a": 1 + 1e-12, "b": 1.0}}, qrels) == 1  # equal in float32
    assert metrics.mrr({"q": {"a": 1 + 1e-6, "b": 1.0}}, qrels) == 0.5


def test_edges():
    qrels = {"q": {"a": 2, "b": -1}, "none": {"a": 0}}
    run = {"q": {"b": 2.0, "a": 1.0}, "none": {"a": 1.0}, "unjudged": {"a": 1.0}}
    score = metrics.ndcg(run, qrels)
    assert score.per_query == {"q": pytest.approx(1 / np.log2(3)), "none": 0}
    assert score == pytest.approx(0.5 / np.log2(3))
    assert metrics.recall({"q": {}}, qrels, 5) == 0
    assert metrics.average_precision({"q": {"c": 1.0}}, qrels) == 0


def test_score_is_a_float_that_survives_json_and_pickle():
    score = metrics.mrr({"q": {"a": 1.0}}, {"q": {"a": 1}})
    assert json.dumps(score) == "1.0"
    copy = pickle.loads(pickle.dumps(score))
    assert copy == score and copy.per_query == score.per_query


RUN, QRELS = {"q_1": {"a": 1.0}}, {"q_1": {"a": 1}}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.ndcg({}, QRELS, 10), "run is empty"),
        (lambda: metrics.ndcg(RUN, QRELS, 0), "k is 0"),
        (lambda: metrics.mrr(RUN, QRELS, -1), "k is -1"),
        (lambda: metrics.recall(RUN, QRELS, 1.5), r"k is 1\.5"),
        (lambda: metrics.average_precision(RUN, QRELS, True), "k is True"),
        (lambda: metrics.ndcg(RUN, {"other": {"a": 1}}), "no query of the run"),
        (lambda: metrics.ndcg(RUN, {"q_1": ["a"]}), "qrels of query 'q_1'"),
        (lambda: metrics.ndcg({"q_1": ["a"]}, QRELS), "query 'q_1': expected"),
        (lambda: metrics.ndcg({1: {"a": 1.0}}, QRELS), "query 1: expected"),
        (lambda: metrics.ndcg({"q_1": {7: 1.0}}, QRELS), "document id is not a string"),
        (lambda: metrics.ndcg({"q_1": {"a": float("nan")}}, QRELS), "NaN"),
        (lambda: metrics.ndcg({"q_1": {"a": "1"}}, QRELS), "not a number"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(UserError, match=message):
        call()
