"""Every golden case of mteb, pytrec_eval and InfoSearch; ties, missing documents, and bad input."""

import json
import pickle
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from inf_jax import metrics
from inf_jax.core.errors import UserError
from inf_jax.metrics.runs import without_identical_ids

GOLDEN = Path(__file__).parents[2] / "golden" / "metrics"
CUTS = (1, 3, 5, 10, 20, 100, 1000)
EXACT = 1e-12


def golden(name):
    cases = json.loads((GOLDEN / f"metrics_{name}.json").read_text())
    return [pytest.param(c, id=f"{name}-{c['seed']}{'-ties' * c['ties']}") for c in cases]


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
def test_p_mrr(case):
    score = metrics.p_mrr(case["results"], case["changed_qrels"])
    assert score == pytest.approx(case["expected"]["p_MRR"], abs=EXACT)
    assert score.per_query == pytest.approx(case["expected"]["per_query"], abs=EXACT)
    for qid, documents in case["expected"]["per_doc"].items():
        for d in documents:
            one = metrics.p_mrr(case["results"], {qid: [d["doc"]]})
            assert one == pytest.approx(d["p_mrr"], abs=EXACT)
    in_order = metrics.p_mrr(case["results"], case["changed_qrels"], ties="order")
    assert in_order == pytest.approx(case["p_MRR_mteb_1_7_64_insertion_order_ties"], abs=EXACT)


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


@pytest.mark.parametrize("case", golden("instructir"))
def test_robustness(case):
    run, qrels, expected = case["results"], case["qrels"], case["expected"]
    score = metrics.robustness(run, qrels)
    assert score == pytest.approx(expected["robustness_at_10"], abs=EXACT)
    without = without_identical_ids(run)
    ndcg = metrics.ndcg(without, qrels, 10)
    assert ndcg.per_query == pytest.approx(expected["ndcg_cut_10"], abs=EXACT)
    instructions = {q: text.split(" [SEP] ")[0] for q, text in case["queries"].items()}
    for name, groups in (("group_by_query", None), ("group_by_instruction", instructions)):
        for k in CUTS:
            for metric, function in (
                ("NDCG", metrics.ndcg),
                ("MAP", metrics.average_precision),
                ("Recall", metrics.recall),
            ):
                values = function(without, qrels, k)
                worst = metrics.worst_of_groups(values, groups=groups)
                key = f"cluster_{metric}@{k}"
                assert values == pytest.approx(expected[name][f"{key}_avg"], abs=EXACT)
                assert worst == pytest.approx(expected[name][f"{key}_min_avg"], abs=EXACT)
            worst = metrics.robustness(run, qrels, k, groups=groups)
            assert worst == pytest.approx(expected[name][f"cluster_NDCG@{k}_min_avg"], abs=EXACT)


@pytest.mark.parametrize("case", golden("infosearch"))
def test_infosearch(case):
    runs, positives, negatives = case["runs"], case["positive_qrels"], case["negative_qrels"]
    for name, ideal in (("WISE", False), ("ideal_WISE", True)):
        score = metrics.wise(runs, positives, negatives, ideal=ideal)
        assert score == pytest.approx(case["expected"][name], abs=EXACT)
        by_query = defaultdict(list)
        for row in case["per_positive_doc"]:
            by_query[row["qid"]].append(row[name])
        means = {q: np.mean(values) for q, values in by_query.items()}
        assert score.per_query == pytest.approx(means, abs=EXACT)
    sicr = metrics.sicr(runs, positives)
    assert sicr == pytest.approx(case["expected"]["SICR"], abs=EXACT)
    sicr = metrics.sicr(runs, positives, all_positives=True)
    assert sicr == pytest.approx(case["SICR_intended_all_golds"], abs=EXACT)
    changed = {f"{q}-og": run for q, run in runs["ori"].items()}
    changed |= {f"{q}-changed": run for q, run in runs["ins"].items()}
    p_mrr = metrics.p_mrr(changed, negatives, ties="order")
    assert p_mrr == pytest.approx(case["expected"]["p-MRR"], abs=EXACT)


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
PAIR = {"1-og": {"a": 1.0}, "1-changed": {"a": 1.0}}
INFO = {mode: {"q": {"a": 1.0}} for mode in ("ori", "ins", "rev")}


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
        (lambda: metrics.ndcg({"q_1": {7: 1.0}}, QRELS), "document id is no string"),
        (lambda: metrics.ndcg({"q_1": {"a": float("nan")}}, QRELS), "NaN"),
        (lambda: metrics.ndcg({"q_1": {"a": "1"}}, QRELS), "no number"),
        (lambda: metrics.robustness({"q": {"a": 1.0}}, {"q": {"a": 1}}), "'q' is not <query>_"),
        (lambda: metrics.robustness(RUN, QRELS, groups={}), "'q_1' has no entry"),
        (lambda: metrics.p_mrr({}, {"1": ["a"]}), "run is empty"),
        (lambda: metrics.p_mrr(RUN, {"1": ["a"]}), "'q_1' is neither"),
        (lambda: metrics.p_mrr({"1-og": {"a": 1.0}}, {"1": ["a"]}), "'1-changed' is not in"),
        (lambda: metrics.p_mrr(PAIR, {"2": ["a"]}), "no query of changed_qrels"),
        (lambda: metrics.p_mrr(PAIR, {"1": "a"}), "list of document ids"),
        (lambda: metrics.p_mrr(PAIR, {"1": ["a"]}, ties="random"), "ties='random'"),
        (lambda: metrics.wise({"ori": RUN}, {"q": ["a"]}, {}), "'ins'"),
        (lambda: metrics.wise(INFO, {"p": ["a"]}, {}), "'p' is not in the 'ori' run"),
        (lambda: metrics.sicr(INFO, {"q": []}), "no positive document"),
        (lambda: metrics.sicr(INFO, {}), "positive qrels are empty"),
        (lambda: metrics.sicr({**INFO, "rev": {}}, {"q": ["a"]}), "run is empty"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(UserError, match=message):
        call()
