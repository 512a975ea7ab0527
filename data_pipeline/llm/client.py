"""Client of an OpenAI-compatible endpoint: one HTTP request per call, replies classified.

Retrying is the caller's business, since every attempt has its own row in the journal.
"""

import asyncio
import dataclasses
import email.utils
import ipaddress
import math
import os
import re
import time
from typing import Any

import httpx2
import openai

from data_pipeline.llm.journal import UNKNOWN, UNPAID
from data_pipeline.llm.replies import Reply, error_of, read_answer, read_error
from data_pipeline.llm.request import Request
from data_pipeline.llm.schemas import one_line
from inf_jax.core.errors import UserError

_KEY_LIKE = re.compile(r"\b(?:sk|key|hf|gsk)[-_][\w*.\-]{4,}|\S*\*{3,}\S*")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_EPOCH = 1e9  # a larger number of seconds is a time since 1970, not a duration
# A connection pool scans all its connections for each request: several small pools are faster.
_POOL_SIZE = 16
_OPENAI_URL = "https://api.openai.com/v1"
_SHOWN_OF_KEY = 7  # longest part of a key that messages may show


class Endpoint:
    """Client of one endpoint.

    Args:
      base_url: e.g. http://127.0.0.1:8000/v1; "": that of OPENAI_BASE_URL, or OpenAI's.
      key_env: environment variable with the API key of this endpoint; "": OPENAI_API_KEY for
        OpenAI, for others none is sent.
      timeout_s: time limit of one request.

    Raises:
      UserError: OpenAI without a key, a malformed key or base_url, a key in plain text over a
        network.
    """

    def __init__(self, *, base_url: str, key_env: str, timeout_s: float):
        self._base_url = base_url or os.environ.get("OPENAI_BASE_URL", "").strip() or _OPENAI_URL
        self._timeout_s = timeout_s
        try:
            # parsed as it will be used: no other reading may decide where a key goes
            url = httpx2.URL(self._base_url)
            if url.scheme not in ("http", "https") or not url.host or url.port == 0:
                raise ValueError("it must look like http://host:port/v1")
        except (ValueError, httpx2.InvalidURL) as error:
            raise UserError(f"llm.base_url={self.name!r}: {error}") from error
        self._openai = url.scheme == "https" and f".{url.host}".endswith(".api.openai.com")
        self._key_env = key_env or ("OPENAI_API_KEY" if self._openai else "")
        self._key = os.environ.get(self._key_env, "").strip() if self._key_env else ""
        if not self._key and self._openai:
            raise UserError(
                f"the environment variable {self._key_env} is not set; export it with your API "
                "key, or name another endpoint by llm.base_url"
            )
        if not re.fullmatch(r"[!-~]*", self._key):
            raise UserError(
                f"the environment variable {self._key_env} holds no API key: it has spaces or "
                "characters outside printable ASCII"
            )
        self._local = _is_loopback(url.host)
        if (self._key or url.userinfo) and url.scheme == "http" and not self._local:
            raise UserError(
                f"llm.base_url={self.name!r}: the key would cross the network in plain text; use "
                "https, a tunnel to 127.0.0.1 (ssh -L), or no llm.key_env"
            )
        self._ssl = httpx2.create_ssl_context()
        self.client = self._make_client()
        self._pools = [[self.client, 0]]  # client, active requests

    def _make_client(self) -> openai.AsyncOpenAI:
        # no proxy of the environment stands between two processes of one machine
        http = openai.DefaultAsyncHttpxClient(verify=self._ssl, trust_env=not self._local)
        client = openai.AsyncOpenAI(
            api_key=self._key or "none",
            base_url=self._base_url,
            timeout=self._timeout_s,
            max_retries=0,
            http_client=http,
        )
        if not self._openai:  # what it took from the environment is meant for OpenAI
            client.admin_api_key = client.organization = client.project = None
            client._custom_headers = {}
        return client

    @property
    def name(self) -> str:
        """The endpoint's URL for messages, without user, password and query."""
        return re.sub(r"//[^/]*@", "//", self._base_url).split("?")[0].rstrip("/")

    @property
    def key_hint(self) -> str:
        """Where the key comes from, or that none is sent, for messages: "check ..."."""
        if self._key:
            return f"the key in {self._key_env}"
        if self._key_env:
            return f"the environment variable {self._key_env}: it is not set, so no key was sent"
        return "llm.key_env: it names no variable with this endpoint's key, so none was sent"

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
        html = response.headers.get("content-type", "").casefold().startswith("text/html")
        if html and not response.content.lstrip().startswith(b"{"):
            return Reply(UNPAID, "a web page instead of a chat completion", reached=False)
        reply = self.answer(request.stage, response.content, model=request.model)
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
        headers = error.response.headers
        wait = _retry_after(headers)
        wait = _rate_limit_wait(headers) if wait is None else wait
        try:  # not error.body, which lacks what stands beside "error"
            body = error.response.json()
        except ValueError:
            body = error.response.text
        body = body or error.message
        return self.refusal(error.status_code, body, model=request.model, wait_s=wait)

    def refusal(self, status: int, body: Any, *, model: str, wait_s: float | None = None) -> Reply:
        """The reply for an error response to a request for a model, or to a row of a batch."""
        return self._named(read_error(error_of(body, status), wait_s=wait_s), model)

    def answer(self, stage: str, data: bytes | dict[str, Any], *, model: str) -> Reply:
        """The reply for a response with status 200 to a request for a model."""
        return self._named(read_answer(stage, data), model)

    def _named(self, reply: Reply, model: str) -> Reply:
        """The reply without secrets, its messages with the names of this endpoint."""
        if reply.paid:
            return reply
        text = self.clean(reply.text)
        names = {"key": self.key_hint, "model": repr(model)}
        fatal = f"{self.name} answers {text}; {reply.fatal.format(**names)}" if reply.fatal else ""
        remedy = reply.remedy.format(**names)
        return dataclasses.replace(reply, text=text, fatal=fatal, remedy=remedy)

    def clean(self, text: str) -> str:
        """The text as one line of at most 300 characters, with anything like an API key masked."""
        text = text.replace(self._key, "***") if self._key else text
        for length in range(len(self._key), _SHOWN_OF_KEY, -1):  # its beginning or end
            text = text.replace(self._key[:length], "***").replace(self._key[-length:], "***")
        return one_line(_KEY_LIKE.sub("***", text))


def _is_loopback(host: str) -> bool:
    """Whether a host is this machine, without asking any name server."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


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
    """Parses "6m0s", "120ms", "1.5", seconds or milliseconds since 1970; 1 second for the rest."""
    if parts := _DURATION.findall(text):
        return sum(float(number) * _SECONDS[unit] for number, unit in parts)
    try:
        seconds = float(text)
    except ValueError:
        return 1.0
    if seconds > _EPOCH:
        seconds = seconds / (1000 if seconds > 1000 * _EPOCH else 1) - time.time()
    return max(0.0, seconds) if math.isfinite(seconds) else 1.0
