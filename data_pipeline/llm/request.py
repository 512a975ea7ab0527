"""A request to a model: the whole body of a chat completion, and its identity."""

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
    """One question.

    Attributes:
      key: hex hash of stage and body: the same question has the same key, in any run.
      stage: names the schema of the answer.
      body: of POST /chat/completions.
      bytes: of the texts in it, UTF-8: an upper bound of its prompt tokens.
    """

    key: str
    stage: str
    body: dict[str, Any]
    bytes: int

    @property
    def model(self) -> str:
        """The model's name."""
        return self.body["model"]

    @property
    def max_completion_tokens(self) -> int:
        """The most tokens of the answer, reasoning included."""
        return self.body["max_completion_tokens"]


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt file: `# system` and `# user` parts, the latter with {{payload}}.

    Attributes:
      name: the file's name without its suffix, e.g. generate_v1; or the path that was given.
      hash: first 12 hex digits of the SHA-256 of the file.
    """

    name: str
    hash: str
    system: str
    user: str

    @classmethod
    def read(cls, name: str) -> "Prompt":
        """A prompt of `data_pipeline/prompts/` by name, or any file by its path.

        Raises:
          UserError: no such file, or it lacks a part.
        """
        path = PROMPTS / f"{name}.md"
        if "/" in name or name.endswith(".md"):
            path = Path(name)
        try:
            data = path.read_bytes()
            text = data.decode()
        except (OSError, UnicodeDecodeError) as error:
            known = ", ".join(sorted(p.stem for p in PROMPTS.glob("*.md")))
            raise UserError(
                f"cannot read the prompt {name!r} ({path}: {error}); give one of {known}, or the "
                "path of a file"
            ) from error
        parts = re.split(r"^# (system|user)[ \t]*$", text, flags=re.MULTILINE)
        found = dict(zip(parts[1::2], map(str.strip, parts[2::2]), strict=True))
        if set(found) != {"system", "user"} or found["user"].count(_PAYLOAD) != 1:
            raise UserError(
                f"{path}: a prompt has a '# system' and a '# user' part, the latter with "
                f"{_PAYLOAD} once"
            )
        return cls(path.stem, hashlib.sha256(data).hexdigest()[:12], found["system"], found["user"])

    def messages(self, payload: dict[str, Any]) -> list[dict[str, str]]:
        """The chat with the payload as one JSON object: what a text says cannot end it."""
        user = self.user.replace(_PAYLOAD, json.dumps(payload, ensure_ascii=False))
        return [{"role": "system", "content": self.system}, {"role": "user", "content": user}]


@dataclasses.dataclass(frozen=True)
class Asker:
    """Makes the requests of one stage.

    Attributes:
      stage: query, generate or judge.
      model: the endpoint's name of the model.
      prompt: see Prompt.
      max_completion_tokens: of an answer, reasoning included.
      options: further fields of the body, e.g. temperature, reasoning_effort.
    """

    stage: str
    model: str
    prompt: Prompt
    max_completion_tokens: int
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def request(self, payload: dict[str, Any]) -> Request:
        """The request with this payload."""
        body = {
            "model": self.model,
            "messages": self.prompt.messages(payload),
            "response_format": _response_format(self.stage),
            "max_completion_tokens": self.max_completion_tokens,
            **self.options,
        }
        data = json.dumps([self.stage, body], sort_keys=True, ensure_ascii=False).encode()
        return Request(
            hashlib.blake2b(data, digest_size=16).hexdigest(), self.stage, body, len(data)
        )

    def settings(self) -> list[Any]:
        """All that the answers depend on but the payload."""
        return [self.model, self.prompt.hash, self.max_completion_tokens, self.options]

    def provenance(self) -> dict[str, str]:
        """What a record says about how it was made."""
        return {
            "model": self.model,
            "prompt": self.prompt.name,
            "prompt_hash": self.prompt.hash,
        }


_response_format = functools.cache(response_format)
