"""Schemas of answers: accepted by strict mode, validated on arrival."""

import hashlib
import inspect
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
def test_the_frozen_schema_is_that_of_the_class(stage):
    """By the class itself: how a version of pydantic prints its schema must not matter."""
    schema, answer = response_format(stage)["json_schema"]["schema"], SCHEMAS[stage]
    assert schema.keys() == {
        *("type", "description", "properties", "required", "additionalProperties")
    }
    assert schema["description"] == inspect.getdoc(answer)
    assert list(schema["properties"]) == list(answer.model_fields) == schema["required"]
    for name, field in answer.model_fields.items():
        part = dict(schema["properties"][name])
        assert part.pop("description") == field.description
        types = {str: {"type": "string"}, bool: {"type": "boolean"}}
        types[str | None] = {"anyOf": [{"type": "string"}, {"type": "null"}]}
        assert part == types[field.annotation]


def test_keys_do_not_depend_on_how_pydantic_prints_a_schema(monkeypatch):
    def other(*_, **__):
        return {"type": "object", "title": "as another version prints it"}

    monkeypatch.setattr(pydantic.BaseModel, "model_json_schema", other)
    for stage in SCHEMAS:
        assert response_format(stage)["json_schema"]["schema"]["properties"]


@pytest.mark.parametrize(
    ("stage", "sha256"),
    [
        ("query", "8ce8c9bf89e1489e"),
        ("generate", "8132c02de1406de1"),
        ("judge", "6a9d6fa77b2f7ec3"),
    ],
)
def test_the_frozen_schemas_do_not_change(stage, sha256):
    """A changed one would ask and pay again for everything in existing journals."""
    text = json.dumps(response_format(stage), sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == sha256


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
