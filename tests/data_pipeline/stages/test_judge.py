"""The stage judge on scripted answers: which combinations are judged, what drops an example."""

import asyncio

import pytest

from data_pipeline.items import INSTRUCTED_QUERIES, PASSAGES, Item
from data_pipeline.stages.judge import CROSSED, DIAGONAL, Judges, judge
from inf_jax.data.records import Example
from tests.data_pipeline.stages.scripted_model import ScriptedModel, template

EXAMPLE = Example("a", "cold", "For a child.", "A text.", "For a doctor.", "D1", "flu", "D2")


def _table(wrong=()):
    """Answers as expected, except for the (model, query, passage) in `wrong`."""
    texts = {
        ("For a child.", "cold"): "I+Q+",
        ("For a doctor.", "cold"): "I-Q+",
        ("For a child.", "flu"): "I+Q-",
    }
    passages = {"A text.": "P+", "D1": "P-1", "D2": "P-2"}

    def answer(_, model, payload):
        query = texts[payload["instruction"], payload["query"]]
        passage = passages[payload["passage"]]
        right = (query, passage) in DIAGONAL
        return {"reason": "because", "relevant": right ^ ((model, query, passage) in wrong)}

    return answer


def _judged(wrong=(), **options) -> tuple[Item, ScriptedModel]:
    model, item = ScriptedModel(_table(wrong)), Item("a", "cold", "A text.", example=EXAMPLE)
    judges = Judges(template("judge", "j1"), **options)
    return asyncio.run(judge(item, model, judges=judges)), model


def test_an_example_with_the_expected_table_is_kept():
    item, model = _judged()
    assert item.alive
    assert {(j.query, j.passage) for j in item.judgements} == {*DIAGONAL, *CROSSED}
    assert all(j.relevant == j.expected and j.reason == "because" for j in item.judgements)
    assert len(model.asked) == len(INSTRUCTED_QUERIES) * len(PASSAGES) == 9


@pytest.mark.parametrize("wrong", [*DIAGONAL, *CROSSED])
def test_any_wrong_judgement_drops_the_example(wrong):
    item, model = _judged({("j1", *wrong)})
    assert item.reasons == ["judge:" + "|".join(wrong)]
    assert len(model.asked) == (3 if wrong in DIAGONAL else 9)  # the crossed ones are not paid for


def test_full_table():
    item, model = _judged({("j1", "I+Q+", "P+")}, full_table=True)
    assert not item.alive and len(model.asked) == 9


def test_second_judge():
    second = template("judge", "j2")
    item, model = _judged({("j2", "I+Q+", "P-1")}, second=second)
    assert item.reasons == ["judge_2:I+Q+|P-1"]
    assert len(model.asked) == 18
    judges = Judges(template("judge", "j1"), second, share=0.3)
    seen = sum("judge_2" in judges.of(Item(str(n), "q", "p")) for n in range(2000))
    assert 500 < seen < 700


def test_a_judge_without_an_answer_drops_the_example():
    table = _table()
    model = ScriptedModel(lambda s, m, p: "truncated" if p["passage"] == "D1" else table(s, m, p))
    item = Item("a", "cold", "A text.", example=EXAMPLE)
    asyncio.run(judge(item, model, judges=Judges(template("judge"))))
    assert item.reasons == ["judge:truncated"]
    assert len(item.judgements) == 2
