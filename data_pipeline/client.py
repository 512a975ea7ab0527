"""The connection to an OpenAI-compatible endpoint, and what its answers mean.

One attempt is one HTTP request: retrying is the caller's business, since every attempt has its own
row in the journal.
"""

import dataclasses
import json
import os
import re
from typing import Any

import httpx2
import openai
import pydantic

from data_pipeline.journal import ANSWER, REJECTED, UNKNOWN, UNPAID
from data_pipeline.llm import Request
from data_pipeline.money import Usage
from data_pipeline.schemas import SCHEMAS
from inf_jax.errors import UserError

_RATE_HEADERS = ("requests", "tokens")
_LOOKS_LIKE_KEY = re.compile(r"\b(sk|key|hf|gsk)[-_][\w*.\-]{4,}")
_DURATION = re.compile(r"([\d.]+)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_NOTHING = Usage(0, 0, 0)
# A request that is refused for these is refused for all: the run stops.
_FATAL = {401: "check the key", 403: "check what the key may use", 404: "check model and base_url"}


@dataclasses.dataclass(frozen=True)
class Reply:
    """What one attempt, or one row of a batch, came to.

    Attributes:
      outcome: see `data_pipeline.journal`.
      text: the answer's content, or what went wrong, without secrets.
      usage: tokens.
      wait_s: seconds that the endpoint asks to wait before the next request; None for none.
      slow_down: whether fewer requests at once are called for.
      fatal: what makes any further request pointless; "" for nothing.
      reached: False where no connection came about.
    """

    outcome: str
    text: str
    usage: Usage = _NOTHING
    wait_s: float | None = None
    slow_down: bool = False
    fatal: str = ""
    reached: bool = True


class Endpoint:
    """A client of one endpoint.

    Args:
      base_url: e.g. http://127.0.0.1:8000/v1; "" for OpenAI's own.
      key_env: the environment variable that holds the key; it may be missing for another base_url.
      timeout_s: of one request.

    Raises:
      UserError: OpenAI's endpoint and no key.
    """

    def __init__(self, *, base_url: str, key_env: str, timeout_s: float):
        self.base_url = base_url
        self._key_env = key_env
        self._key = os.environ.get(key_env, "")
        if not self._key and not base_url:
            raise UserError(
                f"the environment variable {key_env} is not set; export it with your API key, or "
                "name another endpoint by llm.base_url"
            )
        try:
            self.client = openai.AsyncOpenAI(
                api_key=self._key or "none",
                base_url=base_url or None,
                timeout=timeout_s,
                max_retries=0,
            )
        except Exception as error:  # whatever URL parsing raises
            raise UserError(f"llm.base_url={base_url!r}: {error}") from error

    @property
    def name(self) -> str:
        """The endpoint, for messages."""
        return self.base_url or "https://api.openai.com/v1"

    async def ask(self, request: Request) -> Reply:
        """One attempt; never raises but for bugs and cancellation."""
        try:
            raw = await self.client.chat.completions.with_raw_response.create(**request.body)
            headers, data = raw.headers, raw.content
        except openai.APIStatusError as error:
            return self._refused(request, error)
        except openai.APITimeoutError:
            return Reply(UNKNOWN, "timeout", slow_down=True)
        except openai.APIConnectionError as error:
            cause = error.__cause__
            if isinstance(cause, (httpx2.ConnectError, httpx2.ConnectTimeout)):
                return Reply(UNPAID, self.clean(f"no connection: {cause}"), reached=False)
            return Reply(UNKNOWN, self.clean(f"connection lost: {cause or error}"))
        reply = read_answer(request.stage, data)
        return dataclasses.replace(reply, wait_s=_exhausted(headers))

    def _refused(self, request: Request, error: openai.APIStatusError) -> Reply:
        status, body = error.status_code, error.body if isinstance(error.body, dict) else {}
        code = str(body.get("code") or "")
        text = self.clean(f"{status} {code}: {body.get('message') or error.message}")
        wait = _retry_after(error.response.headers) or _exhausted(error.response.headers)
        if code in ("insufficient_quota", "billing_hard_limit_reached"):
            return Reply(UNPAID, text, fatal=f"{self.name} refuses: {text}; check the account")
        if status in (408, 409, 429) or status >= 500:
            return Reply(UNPAID, text, wait_s=wait, slow_down=status in (429, 503))
        if status in _FATAL:
            remedy = _FATAL[status]
            if status == 401:
                remedy = f"check the key in {self._key_env}"
            elif status == 404:
                remedy = f"check the model {request.model!r} and llm.base_url"
            return Reply(UNPAID, text, fatal=f"{self.name} answers {text}; {remedy}")
        return Reply(REJECTED, text)

    def clean(self, text: str) -> str:
        """The text in a line of at most 300 characters, without the key or what looks like one."""
        if self._key:
            text = text.replace(self._key, "***")
        return " ".join(_LOOKS_LIKE_KEY.sub("***", text).split())[:300]


def read_answer(stage: str, data: bytes | dict[str, Any]) -> Reply:
    """The body of a chat completion, checked against the stage's schema."""
    try:
        body = json.loads(data) if isinstance(data, bytes) else data
        choice, usage = body["choices"][0], Usage.of(body.get("usage"))
        message, finish = choice["message"], choice.get("finish_reason")
        content = message.get("content")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        # it may have been computed and billed all the same
        return Reply(UNKNOWN, f"not a chat completion: {type(error).__name__}")
    if message.get("refusal"):
        return Reply("refusal", str(message["refusal"])[:300], usage)
    if finish == "length":
        return Reply("truncated", "cut at max_completion_tokens", usage)
    if finish == "content_filter":
        return Reply("content_filter", "stopped by the endpoint's content filter", usage)
    try:
        SCHEMAS[stage].model_validate_json(content or "")
    except pydantic.ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "content"
        return Reply("schema", f"{where}: {first['msg']}"[:300], usage)
    return Reply(ANSWER, content, usage)


def _retry_after(headers: Any) -> float | None:
    """Seconds of retry-after-ms or retry-after."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers[name]) * unit)
        except (KeyError, ValueError):
            continue
    return None


def _exhausted(headers: Any) -> float | None:
    """Seconds until a used-up limit is reset; None where none is used up."""
    waits = []
    for kind in _RATE_HEADERS:
        if str(headers.get(f"x-ratelimit-remaining-{kind}", "")).strip() == "0":
            waits.append(_seconds(headers.get(f"x-ratelimit-reset-{kind}", "1s")))
    return max(waits, default=None)


def _seconds(text: str) -> float:
    """Seconds of "6m0s", "120ms" or "1.5"."""
    parts = _DURATION.findall(text)
    if parts:
        return sum(float(number) * _SECONDS[unit] for number, unit in parts)
    try:
        return float(text)
    except ValueError:
        return 1.0
