"""Schemas of the models' answers, one per stage: sent as JSON Schema, validated on arrival.

Docstrings and descriptions of the answers are sent too: changing one changes the key of every
request of its stage, and what the journal has answered is asked and paid for again.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

# What an instruction demands beyond the query; one is drawn for each pair.
INSTRUCTION_TYPES = (
    "audience",  # who the passage is for: a child, a nurse, an investor
    "format",  # a list of steps, a table, a dialogue
    "length",  # one sentence, several paragraphs
    "exclusion",  # must not mention something
    "negation",  # the opposite case: what does not help, is not true, did not happen
    "perspective",  # a critic's, a patient's, a historical one
    "domain",  # law, economics, chemistry
)


class Answer(BaseModel):
    """Base of all answers: unknown fields are errors, surrounding whitespace is removed."""

    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True)


class QueryAnswer(Answer):
    """The query stage: a query for a passage that came without one."""

    query: str = Field(
        min_length=1, description="A query that a user would type; the passage answers it."
    )


class TripletAnswer(Answer):
    """The generate stage: a positive triplet, two poisoned ones (arXiv 2505.21439, sec. 3)."""

    instruction_positive: str = Field(
        min_length=1, description="An instruction of the asked type; it does not repeat the query."
    )
    document_positive: str | None = Field(
        description="The passage, rewritten so that it fits query and instruction; null where the "
        "passage fits as it is."
    )
    instruction_negative: str = Field(
        min_length=1,
        description="A poisoned instruction: of the same type, but the positive passage does "
        "not fit it.",
    )
    hard_negative_document_1: str = Field(
        min_length=1, description="A passage that answers the query under the poisoned instruction."
    )
    query_negative: str = Field(
        min_length=1,
        description="A poisoned query: near the query, but the positive passage does not "
        "answer it.",
    )
    hard_negative_document_2: str = Field(
        min_length=1, description="A passage that answers the poisoned query under the instruction."
    )


class JudgeAnswer(Answer):
    """The judge stage: whether one passage is relevant to one query under one instruction."""

    reason: str = Field(min_length=1, description="One or two sentences that decide it.")
    relevant: bool = Field(
        description="True only if the passage answers the query and meets the instruction in full."
    )


SCHEMAS: dict[str, type[Answer]] = {
    "query": QueryAnswer,
    "generate": TripletAnswer,
    "judge": JudgeAnswer,
}


def response_format(stage: str) -> dict[str, Any]:
    """The request's `response_format`: the stage's schema as strict structured output."""
    schema = SCHEMAS[stage].model_json_schema()
    _strict(schema)
    return {
        "type": "json_schema",
        "json_schema": {"name": f"{stage}_answer", "strict": True, "schema": schema},
    }


def _strict(schema: dict[str, Any]) -> None:
    """Reduces a schema, in place, to what strict mode supports."""
    for name in ("title", "minLength", "default"):
        schema.pop(name, None)
    if "properties" in schema:
        schema["required"] = list(schema["properties"])
        schema["additionalProperties"] = False
    for part in (*schema.get("properties", {}).values(), *schema.get("anyOf", ())):
        _strict(part)
