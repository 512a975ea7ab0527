"""Schemas of the models' answers, one per stage: sent as JSON Schema, validated on arrival.

What is sent is in `answer_schemas/`, with the descriptions that are in the classes here: changing
such a file changes the key of every request of its stage, and what the journal has answered is
asked and paid for again.
"""

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

FILES = Path(__file__).parent / "answer_schemas"
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

# What follows one of these is the answer; what comes before are thoughts.
_THOUGHT_END = re.compile(
    r"</(?:\w+:)?(?:think|thinking|thought|thoughts|reasoning|reflection)>|\[/THINK\]|◁/think▷"
    r"|<\|message\|>|<\|end_of_thought\|>|<channel\|>|assistantfinal(?=\s*[{`])",
    re.IGNORECASE,
)
_TAG = re.compile(
    r"</?(?:\w+:)?(?:think|thinking|thought|thoughts|reasoning|reflection)>|\[/?THINK\]|◁/?think▷",
    re.IGNORECASE,
)
THOUGHTS = ("reasoning_content", "reasoning", "thinking")  # fields of a message
_FENCE = re.compile(r"^```\w*\s*\n(.*)\n\s*```$", re.DOTALL)
_MOST_OBJECTS = 1000  # candidates that are looked at in one answer


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
    """The request's `response_format`: the stage's schema as strict structured output.

    Read from a file, not printed from the classes above: pydantic's printing is another one in
    another version, and the keys of all requests depend on it.
    """
    return json.loads((FILES / f"{stage}.json").read_text(encoding="utf-8"))


def message_texts(message: dict[str, Any]) -> tuple[str, str, list[str]]:
    """Content, refusal and thoughts of a message, whose content may be in parts."""
    content, refusal = message.get("content"), message.get("refusal")
    thoughts = [message.get(name) for name in THOUGHTS]
    texts = []
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, dict):
            kind, text = part.get("type") or "text", part.get("text")
            if isinstance(text, dict):
                text = text.get("value")
            if not {"type", "text"} & part.keys():  # the answer itself, as an object
                texts.append(json.dumps(part, ensure_ascii=False))
            elif kind == "refusal":
                refusal = refusal or part.get("refusal")
            elif kind in ("text", "output_text"):
                texts.append(text)
        else:
            texts.append(part)
    content = "".join(text for text in texts if isinstance(text, str)) or _arguments(message)
    refusal = refusal if isinstance(refusal, str) else json.dumps(refusal) if refusal else ""
    return content, refusal, [text for text in thoughts if isinstance(text, str)]


def _arguments(message: dict[str, Any]) -> str:
    """The arguments of a message's only tool call, as JSON: how some gateways have a model answer
    by a schema."""
    calls = message.get("tool_calls") or [{"function": message.get("function_call")}]
    call = calls[0] if isinstance(calls, list) and len(calls) == 1 else None
    function = call.get("function") if isinstance(call, dict) else None
    arguments = function.get("arguments") if isinstance(function, dict) else None
    if isinstance(arguments, dict):
        return json.dumps(arguments, ensure_ascii=False)
    return arguments if isinstance(arguments, str) else ""


def find_answer(stage: str, content: str, thoughts: list[str]) -> tuple[str, str]:
    """(the answer's JSON, "") or ("", what is wrong with the content).

    Prose, fences and thoughts around the JSON are left out. Where several different objects would
    be valid answers, none is taken. Thoughts count only where there is no content at all, and only
    if they are the JSON and nothing else: some servers put it there.
    """
    if not content.strip():
        for text in thoughts:
            if not (answer := _whole(stage, text))[1]:
                return answer
    answer = problem = _whole(stage, content)
    ends = [match.end() for match in _THOUGHT_END.finditer(content)]
    for start in ends or [0]:
        if not answer[1]:
            break
        valid: dict[str, str] = {}
        for value in _objects(content[start:]):
            text = json.dumps(value, ensure_ascii=False)
            wrong = _problem(stage, text)
            if not wrong:
                valid[json.dumps(value, sort_keys=True)] = text
            elif not valid:
                problem = ("", wrong)
        if len(valid) == 1:
            answer = (*valid.values(), "")
        elif valid:
            problem = ("", f"content: {len(valid)} different answers")
    if answer[1] and ends:  # thoughts that are the JSON and nothing else
        answer = _whole(stage, _TAG.sub("", content))
    return problem if answer[1] else answer


def _whole(stage: str, text: str) -> tuple[str, str]:
    """As `find_answer`, for a text that is JSON but for a byte order mark and a fence."""
    bare = text.strip().strip("\ufeff").strip()
    fenced = _FENCE.match(bare)
    bare = fenced[1] if fenced else text if bare == text.strip() else bare
    if bare.lstrip().startswith('"'):  # encoded twice
        with contextlib.suppress(ValueError, RecursionError):
            bare = str(json.loads(bare))
    problem = _problem(stage, bare)
    return ("", problem) if problem else (bare, "")


def _problem(stage: str, text: str) -> str:
    """What is wrong with the JSON of an answer; "" for nothing."""
    try:
        SCHEMAS[stage].model_validate_json(text)
        json.loads(text, object_pairs_hook=_single)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "content"
        return one_line(f"{where}: {first['msg']}")
    except ValueError as error:
        return one_line(f"content: {error}")
    return ""


def _single(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs; ValueError if it gives a field two values."""
    values: dict[str, Any] = {}
    for name, value in pairs:
        if values.setdefault(name, value) != value:
            raise ValueError(f"two values of the field {name!r}")
    return values


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects in a text, outermost only; line breaks in strings are allowed."""
    decoder, start = json.JSONDecoder(strict=False, object_pairs_hook=_single), 0
    for _ in range(_MOST_OBJECTS):
        start = text.find("{", start)
        if start < 0:
            return
        try:
            value, start = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            start += 1
            continue
        yield value


def one_line(text: str) -> str:
    """The text as one line of valid UTF-8, at most 300 characters."""
    return " ".join(text.encode("utf-8", "replace").decode().split())[:300]
