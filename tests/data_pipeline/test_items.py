"""Items: as JSON lines, and the expected relevance table."""

from data_pipeline.items import INSTRUCTED_QUERIES, PASSAGES, Item, Judgement
from inf_jax.data.records import Example

ITEM = Item(
    id="1",
    query="q\u2028é",
    passage="p\nq",
    instruction_type="format",
    example=Example("1", "q", "i", "p", "i2", "p2", "q2", "p3"),
    provenance={"generate": {"model": "m"}},
    judgements=[Judgement("judge", "I+Q+", "P+", True, "so")],
    scores={"positive": 0.5},
)


def test_round_trip():
    assert Item.from_json(ITEM.to_json()) == ITEM
    assert "\n" not in ITEM.to_json()


def test_expected_is_the_diagonal():
    expected = [
        (q, p)
        for q in INSTRUCTED_QUERIES
        for p in PASSAGES
        if Judgement("judge", q, p, True, "").expected
    ]
    assert expected == [("I+Q+", "P+"), ("I-Q+", "P-1"), ("I+Q-", "P-2")]
