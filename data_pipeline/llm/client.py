"""The connection to an OpenAI-compatible endpoint, and what its answers mean.

One attempt is one HTTP request: retrying is the caller's business, since every attempt has its own
row in the journal.
"""

import asyncio
import dataclasses
import email.utils
import json
import math
import os
import re
import time
from typing import Any
from urllib.parse import urlsplit

import httpx2
import openai
import pydantic

from data_pipeline.llm.budget import Usage
from data_pipeline.llm.journal import ANSWER, REJECTED, UNKNOWN, UNPAID
from data_pipeline.llm.request import Request
from data_pipeline.llm.schemas import SCHEMAS
from inf_jax.core.errors import UserError

_RATE_HEADERS = ("requests", "tokens")
_LOOKS_LIKE_KEY = re.compile(r"\b(?:sk|key|hf|gsk)[-_][\w*.\-]{4,}|\S*\*{3,}\S*")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_EPOCH = 1e9  # a number of seconds above this is a time, not a duration
_NOTHING = Usage(0, 0, 0)
_QUOTA = ("insufficient_quota", "billing_hard_limit_reached")
# A request that is refused for these is refused for all: the run stops.
_FATAL = (401, 402, 403, 404)
# A gateway that has lost patience: the model may go on, and what it computes is billed.
_TOO_LATE = (504, 524)
# A connection pool looks through all its connections for each request: several small ones.
_POOL = 16


@dataclasses.dataclass(frozen=True)
class Reply:
    """What one attempt, or one row of a batch, came to.

    Attributes:
      outcome: see `data_pipeline.llm.journal`.
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
        self._key = os.environ.get(key_env, "").strip()
        self._timeout_s = timeout_s
        if not self._key and not base_url:
            raise UserError(
                f"the environment variable {key_env} is not set; export it with your API key, or "
                "name another endpoint by llm.base_url"
            )
        if not re.fullmatch(r"[!-~]*", self._key):
            raise UserError(
                f"the environment variable {key_env} holds more than one word of plain ASCII: no "
                "API key looks like that"
            )
        self._ssl = httpx2.create_ssl_context()
        try:
            parts = urlsplit(base_url or "https://api.openai.com")
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
                raise ValueError("it must look like http://host:port/v1")
            self.client = self._make_client()
        except (ValueError, httpx2.InvalidURL) as error:
            raise UserError(f"llm.base_url={self.name!r}: {error}") from error
        self._pools = [[self.client, 0]]  # client, requests under way

    def _make_client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            api_key=self._key or "none",
            base_url=self.base_url or None,
            timeout=self._timeout_s,
            max_retries=0,
            http_client=openai.DefaultAsyncHttpxClient(verify=self._ssl),
        )

    @property
    def name(self) -> str:
        """The endpoint, for messages: without user, password and query."""
        url = self.base_url or str(self.client.base_url)  # the client reads OPENAI_BASE_URL
        return re.sub(r"//[^/]*@", "//", url).split("?")[0].rstrip("/")

    async def close(self) -> None:
        """Closes all connections."""
        for client, _ in self._pools:
            await client.close()

    async def ask(self, request: Request) -> Reply:
        """One attempt; never raises but for bugs and cancellation."""
        try:
            # an answer may drip: the client's own timeout is between two pieces
            async with asyncio.timeout(self._timeout_s):
                response = await self._post(request)
        except openai.APIStatusError as error:
            return self._refused(request, error)
        except TimeoutError:
            return Reply(UNKNOWN, "timeout", slow_down=True)
        except openai.APIConnectionError as error:
            cause = error.__cause__
            if isinstance(cause, (httpx2.ConnectError, httpx2.ConnectTimeout)):
                return Reply(UNPAID, self.clean(f"no connection: {cause}"), reached=False)
            if isinstance(cause, httpx2.TimeoutException):
                return Reply(UNKNOWN, "timeout", slow_down=True)
            return Reply(UNKNOWN, self.clean(f"connection lost: {cause or error}"))
        if response.headers.get("content-type", "").startswith("text/html"):
            return Reply(UNPAID, "a web page in place of a chat completion", reached=False)
        reply = read_answer(request.stage, response.content)
        return dataclasses.replace(reply, wait_s=_exhausted(response.headers))

    async def _post(self, request: Request) -> httpx2.Response:
        pool = min(self._pools, key=lambda pool: pool[1])
        if pool[1] >= _POOL:
            pool = [self._make_client(), 0]
            self._pools.append(pool)
        pool[1] += 1
        try:
            # not chat.completions.create: it takes longer over the types than all else together
            return await pool[0].post(
                "/chat/completions",
                body=request.body,
                cast_to=httpx2.Response,
                options={"security": {"bearer_auth": True}},
            )
        finally:
            pool[1] -= 1

    def _refused(self, request: Request, error: openai.APIStatusError) -> Reply:
        body = error.body if isinstance(error.body, dict) else {}
        body = {"message": error.message} | {k: v for k, v in body.items() if v}
        headers = error.response.headers
        wait = _retry_after(headers)
        wait = _exhausted(headers) if wait is None else wait
        return self.refusal(error.status_code, body, model=request.model, wait_s=wait)

    def refusal(
        self, status: int, body: dict[str, Any], *, model: str, wait_s: float | None = None
    ) -> Reply:
        """What a request came to that was refused, alone or as a row of a batch.

        Args:
          status: of HTTP.
          body: the answer's `error`.
          wait_s: see Reply.
        """
        code, wait = str(body.get("code") or ""), wait_s
        text = self.clean(f"{status} {code}: {body.get('message') or ''}")
        if code in _QUOTA or body.get("type") in _QUOTA:
            return Reply(UNPAID, text, fatal=f"{self.name} refuses: {text}; check the account")
        if status in _TOO_LATE:
            return Reply(UNKNOWN, text, wait_s=wait, slow_down=True)
        if status in (408, 409, 429) or status >= 500:
            return Reply(UNPAID, text, wait_s=wait, slow_down=status in (429, 503))
        if status in _FATAL:
            remedy = {
                401: f"check the key in {self._key_env}",
                402: "check the account",
                403: f"check what the key in {self._key_env} may use",
                404: f"check the model {model!r} and llm.base_url",
            }[status]
            return Reply(UNPAID, text, fatal=f"{self.name} answers {text}; {remedy}")
        return Reply(REJECTED, text)

    def clean(self, text: str) -> str:
        """The text in a line of at most 300 characters, without the key or what looks like one."""
        if self._key:
            text = text.replace(self._key, "***")
        return _line(_LOOKS_LIKE_KEY.sub("***", text))


def read_answer(stage: str, data: bytes | dict[str, Any]) -> Reply:
    """The body of a chat completion, checked against the stage's schema."""
    try:
        body = json.loads(data) if isinstance(data, bytes) else data
        choice, usage = body["choices"][0], Usage.of(body.get("usage"))
        message, finish = choice["message"], choice.get("finish_reason")
        content = message.get("content")
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        # it may have been computed and billed all the same
        return Reply(UNKNOWN, f"not a chat completion: {type(error).__name__}")
    except RecursionError:
        return Reply(UNKNOWN, "not a chat completion: nested too deeply")
    if message.get("refusal"):
        return Reply("refusal", _line(str(message["refusal"])), usage)
    if finish == "length":
        return Reply("truncated", "cut at max_completion_tokens", usage)
    if finish == "content_filter":
        return Reply("content_filter", "stopped by the endpoint's content filter", usage)
    try:
        SCHEMAS[stage].model_validate_json(content or "")
    except pydantic.ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "content"
        return Reply("schema", _line(f"{where}: {first['msg']}"), usage)
    return Reply(ANSWER, content, usage)


def _line(text: str) -> str:
    """The text in one line of at most 300 characters that any file takes."""
    return " ".join(text.encode("utf-8", "replace").decode().split())[:300]


def _retry_after(headers: Any) -> float | None:
    """Seconds of retry-after-ms or retry-after, a number or a date; None where neither tells."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) * unit
        except ValueError:
            try:
                seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
            except (ValueError, OverflowError):
                continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    return None


def _exhausted(headers: Any) -> float | None:
    """Seconds until a used-up limit is reset; None where none is used up."""
    waits = []
    for kind in _RATE_HEADERS:
        if headers.get(f"x-ratelimit-remaining-{kind}", "").strip() == "0":
            waits.append(_seconds(headers.get(f"x-ratelimit-reset-{kind}", "")))
    return max(waits, default=None)


def _seconds(text: str) -> float:
    """Seconds of "6m0s", "120ms", "1.5" or a time in seconds since 1970; 1 where it tells none."""
    parts = _DURATION.findall(text)
    if parts:
        return sum(float(number) * _SECONDS[unit] for number, unit in parts)
    try:
        seconds = float(text)
    except ValueError:
        return 1.0
    if seconds > _EPOCH:
        seconds -= time.time()
    return max(0.0, seconds) if math.isfinite(seconds) else 1.0
