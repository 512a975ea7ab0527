"""Client of an OpenAI-compatible endpoint: one HTTP request per call, replies classified.

Retrying is the caller's business, since every attempt has its own row in the journal.
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
from data_pipeline.llm.journal import ANSWER, PAID, REJECTED, UNKNOWN, UNPAID
from data_pipeline.llm.request import Request
from data_pipeline.llm.schemas import SCHEMAS
from inf_jax.core.errors import UserError

_KEY_LIKE = re.compile(r"\b(?:sk|key|hf|gsk)[-_][\w*.\-]{4,}|\S*\*{3,}\S*")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_EPOCH = 1e9  # a larger number of seconds is a time since 1970, not a duration
_NO_USAGE = Usage(0, 0, 0)
_QUOTA_CODES = ("insufficient_quota", "billing_hard_limit_reached")
# Behind a gateway that timed out the model may go on, and what it computes is billed.
GATEWAY_TIMEOUTS = (504, 524)
# A connection pool scans all its connections for each request: several small pools are faster.
_POOL_SIZE = 16


@dataclasses.dataclass(frozen=True)
class Reply:
    """The result of one attempt, or of one row of a batch."""

    outcome: str  # one of `data_pipeline.llm.journal`
    text: str  # the answer's content, or what went wrong, without secrets
    usage: Usage = _NO_USAGE
    wait_s: float | None = None  # seconds before the next request, if the headers ask to wait
    slow_down: bool = False  # whether the number of concurrent requests should shrink
    fatal: str = ""  # error that would meet every further request too
    reached: bool = True  # False if no connection was made

    @property
    def paid(self) -> bool:
        """Whether the model answered, validly or not."""
        return self.outcome in PAID


class Endpoint:
    """Client of one endpoint.

    Args:
      base_url: e.g. http://127.0.0.1:8000/v1; "" for OpenAI.
      key_env: environment variable with the API key; it may be unset if `base_url` is given.
      timeout_s: time limit of one request.

    Raises:
      UserError: OpenAI without a key, a malformed key or base_url.
    """

    def __init__(self, *, base_url: str, key_env: str, timeout_s: float):
        self.base_url, self._key_env, self._timeout_s = base_url, key_env, timeout_s
        self._key = os.environ.get(key_env, "").strip()
        if not self._key and not base_url:
            raise UserError(
                f"the environment variable {key_env} is not set; export it with your API key, or "
                "name another endpoint by llm.base_url"
            )
        if not re.fullmatch(r"[!-~]*", self._key):
            raise UserError(
                f"the environment variable {key_env} holds no API key: it has spaces or characters "
                "outside printable ASCII"
            )
        self._ssl = httpx2.create_ssl_context()
        try:
            parts = urlsplit(base_url or "https://api.openai.com")
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
                raise ValueError("it must look like http://host:port/v1")
            self.client = self._make_client()
        except (ValueError, httpx2.InvalidURL) as error:
            raise UserError(f"llm.base_url={self.name!r}: {error}") from error
        self._pools = [[self.client, 0]]  # client, active requests

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
        """The endpoint's URL for messages, without user, password and query."""
        url = self.base_url or str(self.client.base_url)  # which may come from OPENAI_BASE_URL
        return re.sub(r"//[^/]*@", "//", url).split("?")[0].rstrip("/")

    async def close(self) -> None:
        """Closes all connections."""
        for client, _ in self._pools:
            await client.close()

    async def ask(self, request: Request) -> Reply:
        """Sends a request once; every failure of endpoint or network is a Reply."""
        try:
            # the client's own timeout applies between two chunks, this one to the whole answer
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
            return Reply(UNPAID, "a web page instead of a chat completion", reached=False)
        reply = read_answer(request.stage, response.content)
        return dataclasses.replace(reply, wait_s=_rate_limit_wait(response.headers))

    async def _post(self, request: Request) -> httpx2.Response:
        pool = min(self._pools, key=lambda pool: pool[1])
        if pool[1] >= _POOL_SIZE:
            pool = [self._make_client(), 0]
            self._pools.append(pool)
        pool[1] += 1
        try:
            # chat.completions.create spends more time on its types than all the rest takes
            return await pool[0].post(
                "/chat/completions",
                body=request.body,
                cast_to=httpx2.Response,
                options={"security": {"bearer_auth": True}},
            )
        finally:
            pool[1] -= 1

    def _refused(self, request: Request, error: openai.APIStatusError) -> Reply:
        given = error.body if isinstance(error.body, dict) else {}
        body = {"message": error.message} | {k: v for k, v in given.items() if v}
        headers = error.response.headers
        wait = _retry_after(headers)
        wait = _rate_limit_wait(headers) if wait is None else wait
        return self.refusal(error.status_code, body, model=request.model, wait_s=wait)

    def refusal(
        self, status: int, body: dict[str, Any], *, model: str, wait_s: float | None = None
    ) -> Reply:
        """The reply for an error response to a request, or to a row of a batch.

        Args:
          body: the `error` object of the response.
          model: for the message.
        """
        code = str(body.get("code") or "")
        text = self.clean(f"{status} {code}: {body.get('message') or ''}")
        if code in _QUOTA_CODES or body.get("type") in _QUOTA_CODES:
            return Reply(UNPAID, text, fatal=f"{self.name} refuses: {text}; check the account")
        if status in GATEWAY_TIMEOUTS:
            return Reply(UNKNOWN, text, wait_s=wait_s, slow_down=True)
        if status in (408, 409, 429) or status >= 500:
            return Reply(UNPAID, text, wait_s=wait_s, slow_down=status in (429, 503))
        remedies = {  # of statuses that every further request would get too: the run stops
            401: f"check the key in {self._key_env}",
            402: "check the account",
            403: f"check what the key in {self._key_env} may use",
            404: f"check the model {model!r} and llm.base_url",
        }
        if status in remedies:
            return Reply(UNPAID, text, fatal=f"{self.name} answers {text}; {remedies[status]}")
        return Reply(REJECTED, text)

    def clean(self, text: str) -> str:
        """The text as one line of at most 300 characters, with anything like an API key masked."""
        if self._key:
            text = text.replace(self._key, "***")
        return _one_line(_KEY_LIKE.sub("***", text))


def read_answer(stage: str, data: bytes | dict[str, Any]) -> Reply:
    """Classifies the body of a chat completion and validates its content for the stage."""
    try:
        body = json.loads(data) if isinstance(data, bytes) else data
        choice, usage = body["choices"][0], Usage.parse(body.get("usage"))
        message, finish = choice["message"], choice.get("finish_reason")
        content = message.get("content")
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        # the answer may have been computed and billed all the same
        return Reply(UNKNOWN, f"not a chat completion: {type(error).__name__}")
    except RecursionError:
        return Reply(UNKNOWN, "not a chat completion: nested too deeply")
    if message.get("refusal"):
        return Reply("refusal", _one_line(str(message["refusal"])), usage)
    if finish == "length":
        return Reply("truncated", "cut at max_completion_tokens", usage)
    if finish == "content_filter":
        return Reply("content_filter", "stopped by the endpoint's content filter", usage)
    try:
        SCHEMAS[stage].model_validate_json(content or "")
    except pydantic.ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "content"
        return Reply("schema", _one_line(f"{where}: {first['msg']}"), usage)
    return Reply(ANSWER, content, usage)


def _one_line(text: str) -> str:
    """The text as one line of valid UTF-8, at most 300 characters."""
    return " ".join(text.encode("utf-8", "replace").decode().split())[:300]


def _retry_after(headers: Any) -> float | None:
    """Seconds from retry-after-ms or retry-after (number or date); None without a valid one."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name, "")
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


def _rate_limit_wait(headers: Any) -> float | None:
    """Seconds until exhausted rate limits are reset; None if none is exhausted."""
    waits = (
        _parse_seconds(headers.get(f"x-ratelimit-reset-{kind}", ""))
        for kind in ("requests", "tokens")
        if headers.get(f"x-ratelimit-remaining-{kind}", "").strip() == "0"
    )
    return max(waits, default=None)


def _parse_seconds(text: str) -> float:
    """Parses "6m0s", "120ms", "1.5" or seconds since 1970; 1 second for anything else."""
    if parts := _DURATION.findall(text):
        return sum(float(number) * _SECONDS[unit] for number, unit in parts)
    try:
        seconds = float(text)
    except ValueError:
        return 1.0
    if seconds > _EPOCH:
        seconds -= time.time()
    return max(0.0, seconds) if math.isfinite(seconds) else 1.0
