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


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """One chat completion request."""

    key: str  # hex hash of stage and body; equal requests have equal keys in every run
    stage: str  # names the answer's schema: query, generate or judge
    body: dict[str, Any]  # JSON of POST /chat/completions
    bytes: int  # UTF-8 bytes of its texts, an upper bound of its prompt tokens

    @property
    def model(self) -> str:
        """The model's name at the endpoint."""
        return self.body["model"]

    @property
    def max_completion_tokens(self) -> int:
        """Limit of the answer's tokens, reasoning included."""
        return self.body["max_completion_tokens"]


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
        return Request(key, self.stage, body, len(data))

    def settings(self) -> list[Any]:
        """Everything that determines the answers except the payload, as JSON."""
        return [self.model, self.prompt.hash, self.max_completion_tokens, self.options]

    def provenance(self) -> dict[str, str]:
        """The provenance entry of records made by this template."""
        return {"model": self.model, "prompt": self.prompt.name, "prompt_hash": self.prompt.hash}


_response_format = functools.cache(response_format)
