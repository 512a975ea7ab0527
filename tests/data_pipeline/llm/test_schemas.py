"""Schemas of answers: accepted by strict mode, validated on arrival."""

import json

import pydantic
import pytest

from data_pipeline.llm.schemas import SCHEMAS, JudgeAnswer, TripletAnswer, response_format

TRIPLET = {name: f"some {name}" for name in TripletAnswer.model_fields}


@pytest.mark.parametrize("stage", SCHEMAS)
def test_strict_mode_accepts_them(client_of, calm_server, stage):
    client = client_of(calm_server)
    payload = {"passage": "Some passage.", "query": "q", "instruction": "Briefly."}
    payload["instruction_type"] = "length"
    answer = client.chat.completions.create(
        model="gpt-4o-mini",
        messages=[{"role": "user", "content": json.dumps(payload)}],
        response_format=response_format(stage),
    )
    SCHEMAS[stage].model_validate_json(answer.choices[0].message.content)


@pytest.mark.parametrize("stage", SCHEMAS)
def test_all_fields_are_required_and_described(stage):
    schema = response_format(stage)["json_schema"]["schema"]
    fields = list(SCHEMAS[stage].model_fields)
    assert schema["required"] == list(schema["properties"]) == fields
    assert schema["additionalProperties"] is False
    assert all(part["description"] for part in schema["properties"].values())


def test_the_judge_reasons_before_it_decides():
    assert list(JudgeAnswer.model_fields) == ["reason", "relevant"]


def test_only_the_positive_passage_may_be_null():
    assert TripletAnswer(**TRIPLET | {"document_positive": None}).document_positive is None
    for name in TRIPLET.keys() - {"document_positive"}:
        for bad in (None, "", "  \n", 3):
            with pytest.raises(pydantic.ValidationError):
                TripletAnswer(**TRIPLET | {name: bad})


def test_missing_and_unknown_fields():
    for bad in (TRIPLET | {"more": "x"}, {k: v for k, v in TRIPLET.items() if k[0] != "q"}):
        with pytest.raises(pydantic.ValidationError):
            TripletAnswer.model_validate_json(json.dumps(bad))


def test_surrounding_whitespace_is_removed():
    assert TripletAnswer(**TRIPLET | {"query_negative": " q \n"}).query_negative == "q"
