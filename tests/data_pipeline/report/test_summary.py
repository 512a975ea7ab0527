"""The report counts every pair once, against numbers by hand, in bounded memory."""

import json
import tracemalloc

import pytest

from data_pipeline.items import Fingerprint, Item, example_hash
from data_pipeline.report.sample import AuditSample
from data_pipeline.report.summary import summarise
from inf_jax.core.errors import UserError
from inf_jax.io.json_files import write_json
from tests.data_pipeline.factory_items import USAGE, corpus, judged, made


@pytest.fixture(scope="module")
def report():
    return summarise(iter(corpus()), USAGE, pairs_report={"read": 10, "drawn": 8})


def test_outcomes(report):
    assert (report["pairs"], report["kept"], report["dropped"]) == (8, 2, 6)
    assert report["source"] == {"read": 10, "drawn": 8}
    dropped = [(row["stage"], row["arrived"], row["dropped"]) for row in report["stages"]]
    assert dropped == [
        ("generate", 8, 1),
        ("filter", 7, 1),
        ("judge", 6, 1),
        ("judge_2", 5, 1),
        ("score", 4, 1),
        ("review", 3, 1),
    ]
    assert report["stages"][-1]["left"] == report["kept"]
    assert report["reasons"] == {
        "generate": {"refusal": 1},
        "filter": {"too_short:query_negative": 1, "too_short:query_positive": 1},
        "judge": {"I+Q+|P-1": 1, "I-Q+|P+": 1},
        "judge_2": {"I+Q+|P-1": 1},
        "score": {"too_hard:hard_negative_document_1": 1},
        "review": {"rejected": 1},
    }


def test_mix_relevance_and_agreement(report):
    assert report["types"] == {
        "audience": {"made": 5, "kept": 1},
        "length": {"made": 2, "kept": 1},
    }
    assert report["rewritten"] == {"made": 1, "kept": 1}
    rows = {(r["query"], r["passage"]): r for r in report["relevance"]["judge"]}
    assert rows["I+Q+", "P-1"] == {
        "query": "I+Q+",
        "passage": "P-1",
        "judged": 6,
        "relevant": 1,
        "share": 1 / 6,
        "expected": False,
    }
    assert rows["I-Q+", "P-1"]["share"] == 1.0
    assert [r["expected"] for r in rows.values()].count(True) == 3
    assert report["agreement"]["judged"] == 27
    # 26 of 27 alike; the first says 9 times relevant, the second 10 times
    chance = (9 * 10 + 18 * 17) / 27**2
    assert report["agreement"]["kappa"] == pytest.approx((26 / 27 - chance) / (1 - chance))


def test_lengths_and_scores(report):
    lengths = report["lengths"]
    assert {kind: n["count"] for kind, n in lengths.items()} == {
        "instruction": 4,
        "query": 4,
        "positive passage": 2,
        "negative passage": 4,
    }
    assert lengths["instruction"]["counts"][3] == 4  # 6 and 7 words
    assert (lengths["instruction"]["least"], lengths["instruction"]["most"]) == (6, 7)
    assert lengths["query"]["counts"][:6] == [0, 0, 0, 2, 2, 0]
    assert lengths["negative passage"]["mean"] == pytest.approx((9 + 4) / 2)
    positive = report["scores"]["positive"]
    assert (positive["count"], positive["least"], positive["most"]) == (3, 0.25, 0.75)
    assert positive["mean"] == pytest.approx((0.75 + 0.75 + 0.25) / 3)
    assert [n for n, count in enumerate(positive["counts"]) if count] == [12, 17]


def test_long_texts_and_extreme_scores_are_in_the_last_bins():
    item = made("a", document_positive="word " * 9000)
    item.scores = {"margin_poisoned_query": -1.5}
    found = summarise([item], USAGE, pairs_report={})
    assert found["lengths"]["positive passage"]["counts"][-1] == 1
    assert found["lengths"]["positive passage"]["most"] == 9000
    assert found["scores"]["margin_poisoned_query"]["counts"][0] == 1


def test_cost_and_provenance(report):
    assert report["usage"] == USAGE
    assert report["usd_per_kept"] == 0.375
    assert report["provenance"]["generate"] == [
        {
            "model": "gpt-4o-mini",
            "prompt": "generate_v1",
            "prompt_hash": "0123456789ab",
            "items": 7,
        }
    ]
    assert report["provenance"]["judge_2"][0]["items"] == 3


def test_nothing_kept_and_no_second_judge():
    report = summarise([made("a", "filter:short")], USAGE, pairs_report={})
    assert (report["kept"], report["usd_per_kept"], report["agreement"]) == (0, None, None)
    assert report["relevance"] == report["scores"] == {}
    assert report["lengths"]["query"]["mean"] is None
    assert summarise([], USAGE, pairs_report={})["pairs"] == 0


def test_an_id_has_one_outcome():
    with pytest.raises(UserError, match="the pair 'a' has two outcomes"):
        summarise([made("a"), made("b"), made("a", "judge:x")], USAGE, pairs_report={})
    with pytest.raises(UserError, match="item z is not dropped but has no example"):
        summarise([made("a"), Item("z", "q", "p")], USAGE, pairs_report={})


def test_fingerprint_is_of_the_texts_not_of_the_outcomes(report):
    items = corpus()
    assert report["corpus"] == str(Fingerprint(items))
    items[0].drop("review", "rejected")
    items[4].reasons.clear()
    assert str(Fingerprint(items)) == report["corpus"]
    assert str(Fingerprint(items[::-1])) != report["corpus"]
    changed = made("a", query_negative="yet another")
    assert example_hash(changed) != example_hash(items[0])
    assert example_hash(items[0]) == example_hash(Item.from_json(items[0].to_json()))


def test_report_is_written(report, tmp_path):
    write_json(tmp_path / "report.json", report)
    assert json.loads((tmp_path / "report.json").read_text()) == report


def test_memory_is_flat():
    def stream(count):
        for n in range(count):
            reason = ["judge:I+Q+|P-1"] if n % 3 else []
            yield judged(made(str(n))) if n % 100 == 0 else made(str(n), *reason)

    def peak(count):
        sample = AuditSample(kept=20, dropped=10)
        tracemalloc.start()
        try:
            summarise(stream(count), USAGE, pairs_report={}, tap=sample.add)
            assert len(sample.items()) == 30
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(500)  # what is cached once and for all
    assert peak(6000) < peak(1000) + 50_000


def test_sample_is_stable_and_spread_over_reasons():
    items = [made(str(n)) for n in range(200)]
    items += [made(f"j{n}", "judge:I+Q+|P-1", "judge:I+Q+|P-2") for n in range(100)]
    items += [made("s", "score:too_easy:x"), Item("none", "q", "p", reasons=["generate:refusal"])]

    def sample(items, **options):
        found = AuditSample(**({"kept": 10, "dropped": 4} | options))
        for item in items:
            found.add(item)
        return [item.id for item in found.items()]

    ids = sample(items)
    assert [len(ids), ids[-1], sum(i[0] == "j" for i in ids)] == [14, "s", 3]
    assert sample(items[::-1]) == ids  # whatever their order
    assert sample(items, seed=1) != ids
    assert set(sample(items, kept=5)) <= set(ids)
    assert set(sample(items[50:])) >= set(ids) - {i.id for i in items[:50]}  # it moves with a few
    assert sample(items, kept=0, dropped=0) == []
    assert len(sample(items, kept=0, dropped=500)) == 101
