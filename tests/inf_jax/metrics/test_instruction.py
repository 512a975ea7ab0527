"""Metrics of instruction following against mteb and InfoSearch; and bad input."""

from collections import defaultdict

import numpy as np
import pytest

from inf_jax import metrics
from inf_jax.core.errors import UserError
from inf_jax.metrics.runs import without_identical_ids
from tests.inf_jax.metrics.golden import CUTS, EXACT, golden


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


RUN, QRELS = {"q_1": {"a": 1.0}}, {"q_1": {"a": 1}}
PAIR = {"1-og": {"a": 1.0}, "1-changed": {"a": 1.0}}
INFO = {mode: {"q": {"a": 1.0}} for mode in ("ori", "ins", "rev")}


@pytest.mark.parametrize(
    ("call", "message"),
    [
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
