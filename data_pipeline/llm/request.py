"""Requests to a language model: prompt templates, bodies of chat completions, content hashes."""

import dataclasses
import functools
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from data_pipeline.llm.schemas import response_format
from inf_jax.core.errors import UserError

PROMPTS = Path(__file__).parents[1] / "prompts"
_PAYLOAD = "{{payload}}"
# Forms in which endpoints take a request, most exact first; "auto" in a config tries them all.
FORMATS = ("json_schema", "json_object", "none")
LIMITS = ("max_completion_tokens", "max_tokens")
_BY_TEXT = "Answer with one JSON object and nothing else, valid under this JSON Schema: "


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """One chat completion request."""

    key: str  # hex hash of stage and body; equal requests have equal keys in every run
    stage: str  # names the answer's schema: query, generate or judge
    body: dict[str, Any]  # JSON of POST /chat/completions
    bytes: int  # UTF-8 bytes of its texts, an upper bound of its prompt tokens
    formats: tuple[str, ...] = FORMATS  # forms of `response_format` to try, in this order
    limits: tuple[str, ...] = LIMITS  # names of the field with the limit of tokens, the same

    @property
    def model(self) -> str:
        """The model's name at the endpoint."""
        return self.body["model"]

    @property
    def max_completion_tokens(self) -> int:
        """Limit of the answer's tokens, reasoning included."""
        return next(self.body[name] for name in LIMITS if name in self.body)


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt file: a `# system` and a `# user` section, the latter with one {{payload}}."""

    name: str  # the file's name without its suffix, e.g. generate_v1
    hash: str  # first 12 hex digits of the file's SHA-256
    system: str
    user: str

    @classmethod
    def read(cls, name: str) -> "Prompt":
        """Reads a prompt of `data_pipeline/prompts/` by its name, or any file by its path.

        Raises:
          UserError: the file cannot be read or lacks a section.
        """
        path = Path(name) if "/" in name or name.endswith(".md") else PROMPTS / f"{name}.md"
        try:
            data = path.read_bytes()
            text = data.decode()
        except (OSError, UnicodeDecodeError) as error:
            known = ", ".join(sorted(p.stem for p in PROMPTS.glob("*.md")))
            raise UserError(
                f"cannot read the prompt {name!r} ({path}: {error}); choose one of {known}, or "
                "give the path of a file"
            ) from error
        parts = re.split(r"^# (system|user)[ \t]*$", text, flags=re.MULTILINE)
        sections = dict(zip(parts[1::2], map(str.strip, parts[2::2]), strict=True))
        if set(sections) != {"system", "user"} or sections["user"].count(_PAYLOAD) != 1:
            raise UserError(
                f"{path}: a prompt needs a '# system' and a '# user' section, the latter with "
                f"exactly one {_PAYLOAD}"
            )
        return cls(path.stem, hashlib.sha256(data).hexdigest()[:12], **sections)

    def messages(self, payload: dict[str, Any]) -> list[dict[str, str]]:
        """The chat messages; as one JSON object no text of the payload can break out of it."""
        user = self.user.replace(_PAYLOAD, json.dumps(payload, ensure_ascii=False))
        return [{"role": "system", "content": self.system}, {"role": "user", "content": user}]


@dataclasses.dataclass(frozen=True)
class RequestTemplate:
    """Model, prompt and parameters of one stage's requests."""

    stage: str  # query, generate or judge
    model: str  # the model's name at the endpoint
    prompt: Prompt
    max_completion_tokens: int  # limit of an answer's tokens, reasoning included
    # further fields of the body, e.g. temperature, reasoning_effort
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    response_format: str = "auto"  # one of FORMATS; these two do not change the key
    token_limit: str = "auto"  # one of LIMITS

    def request(self, payload: dict[str, Any]) -> Request:
        """The request with this payload filled in."""
        body = {
            "model": self.model,
            "messages": self.prompt.messages(payload),
            "response_format": _response_format(self.stage),
            "max_completion_tokens": self.max_completion_tokens,
            **self.options,
        }
        data = json.dumps([self.stage, body], sort_keys=True, ensure_ascii=False).encode()
        key = hashlib.blake2b(data, digest_size=16).hexdigest()
        formats = FORMATS if self.response_format == "auto" else (self.response_format,)
        limits = LIMITS if self.token_limit == "auto" else (self.token_limit,)
        return Request(key, self.stage, body, len(data), formats, limits)

    def settings(self) -> list[Any]:
        """Everything that determines the answers except the payload, as JSON."""
        return [self.model, self.prompt.hash, self.max_completion_tokens, self.options]

    def provenance(self) -> dict[str, str]:
        """The provenance entry of records made by this template."""
        return {"model": self.model, "prompt": self.prompt.name, "prompt_hash": self.prompt.hash}


def in_form(request: Request, response_format: str, token_limit: str) -> Request:
    """The request as it is sent, with the same key; without a schema field the text has it."""
    body = dict(request.body)
    if token_limit != LIMITS[0]:
        body[token_limit] = body.pop(LIMITS[0])
    if response_format == FORMATS[0]:
        return dataclasses.replace(request, body=body)
    schema = body.pop("response_format")["json_schema"]["schema"]
    if response_format != "none":
        body["response_format"] = {"type": response_format}
    system, *others = body["messages"]
    text = f"{system['content']}\n\n{_BY_TEXT}{json.dumps(schema, ensure_ascii=False)}"
    body["messages"] = [system | {"content": text}, *others]
    size = request.bytes + len(_BY_TEXT) + 2  # the schema is counted already
    return dataclasses.replace(request, body=body, bytes=size)


def form_of(sent: Request) -> tuple[str, str]:
    """Response format and token limit of a request from `in_form`."""
    given = sent.body.get("response_format", {"type": "none"})["type"]
    return given, next(name for name in LIMITS if name in sent.body)


_response_format = functools.cache(response_format)
