"""A server that speaks OpenAI's wire format: for tests, benchmarks and the README's walk-through.

    python tests/doubles/llm_server.py --port 8000

Needs nothing but Python. Serves chat completions with structured outputs, files and batches.
Responses come from `llm_model.py`, a pure function of the request; faults are scripted
(`llm_faults.py`) and PUT /_faults replaces them; GET /_stats tells what the server has seen.
"""

import argparse
import asyncio
import contextlib
import json
import re
import signal
import time
import traceback
from pathlib import Path
from typing import Any

import llm_checks
from llm_batches import Batches
from llm_counts import Counts
from llm_faults import (
    BATCHES,
    FILES,
    GOOD,
    PRESETS,
    REFUSALS,
    REFUSING,
    SPOILING,
    WRAPPING,
    Faults,
    read_rules,
)
from llm_files import Files
from llm_model import Model, draw, request_hash, stage_of, usage
from llm_wire import Request, Response, read_request, write_response

MODELS = "gpt-4o-mini,gpt-4o,gpt-4.1-mini,gpt-4.1-nano,gpt-5-mini,o3-mini,o4-mini,local"
_HTML = b"<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"


class Server:
    """The state of the server and its endpoints; runs in one event loop."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.models = tuple(options.models.split(","))
        self.model = Model(options.seed, options.bad_rate, options.second_judge, options.flip_rate)
        state = Path(options.state) if options.state else None
        self.counts = Counts(state)
        self.faults = Faults(read_rules(options.faults), options.seed)
        for event in self.counts.earlier:
            if event["event"] == "fault" and "group" in event:
                key = (event["group"], event["hash"])
                self.faults.fired[key] = self.faults.fired.get(key, 0) + 1
        self.files = Files(self, state)
        self.batches = Batches(self)
        self._tokens, self._refilled = float(options.burst or options.rate), time.monotonic()
        self._number = 0

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one connection until it is closed."""
        writer.transport.set_write_buffer_limits(0)  # drained means handed to the kernel
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while await self._exchange(reader, writer):
                pass
        writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Serves one request; returns whether the connection stays open."""
        request = await read_request(reader)
        method, path = request.method, request.path
        self.counts.http[f"{method} {re.sub(r'/(file|batch)[-_][^/]+', '/*', path)}"] += 1
        if (method, path) != ("POST", "/v1/chat/completions"):
            response = self._respond(request)
            return await write_response(response, reader, writer, before_last_byte=lambda: None)
        with self.counts.chat_active() as ended:
            response = self._respond(request)
            if self.options.latency_ms:
                jitter = 0.5 + draw(response.identity)
                await asyncio.sleep(self.options.latency_ms / 1000 * jitter)
            while self.counts.most_active < self.options.gather:
                await asyncio.sleep(0.005)
            if not await write_response(response, reader, writer, before_last_byte=ended):
                return False
        if response.identity:
            self.counts.add("written", hash=response.identity)
            kind = response.rule["kind"] if response.rule else ""
            if response.status == 200 and kind in GOOD:
                self.counts.add("answered", hash=response.identity)
        return True

    def _respond(self, request: Request) -> Response:
        try:
            return self._route(request)
        except Exception:
            traceback.print_exc()
            return self.json(*llm_checks.error(500, "bug of the local server"))

    def _route(self, request: Request) -> Response:
        method, path = request.method, request.path
        if path == "/_stats":
            stats = self.counts.summary(requests="totals" not in request.query)
            return self.json(200, stats | {"batches": self.batches.summary()})
        if (method, path) == ("PUT", "/_faults"):
            self.faults = Faults(read_rules(request.body.decode()), self.options.seed)
            return self.json(200, {})
        refused = self._unauthorised(request.headers.get("authorization", ""))
        if refused:
            return refused
        if (method, path) == ("POST", "/v1/chat/completions"):
            return self._chat(request.body)
        if (method, path) == ("GET", "/v1/models"):
            rows = [
                {"id": m, "object": "model", "created": 1_700_000_000, "owned_by": "local"}
                for m in self.models
            ]
            return self.json(200, {"object": "list", "data": rows})
        if path.startswith(("/v1/files", "/v1/batches")):
            return (self.files if path.startswith("/v1/files") else self.batches).route(request)
        return self.json(*llm_checks.error(404, f"Invalid URL ({method} {path})"))

    def _unauthorised(self, authorization: str) -> Response | None:
        key = authorization.removeprefix("Bearer ").strip()
        if not self.options.key or key == self.options.key:
            return None
        if not key:
            message = (
                "You didn't provide an API key. You need to provide it in an Authorization header."
            )
            return self.json(*llm_checks.error(401, message))
        shown = f"{key[:8]}{'*' * max(3, len(key) - 12)}{key[-4:]}"
        message = (
            f"Incorrect API key provided: {shown}. You can find your API key at "
            "https://platform.openai.com/account/api-keys."
        )
        return self.json(*llm_checks.error(401, message, code="invalid_api_key"))

    def _chat(self, data: bytes) -> Response:
        try:
            body = json.loads(data)
        except ValueError:
            message = "We could not parse the JSON body of your request."
            return self.json(*llm_checks.error(400, message))
        identity = request_hash(body)
        stage, name = stage_of(body), str(body.get("model"))
        attempt = self.counts.attempts(identity)
        self.counts.add("received", hash=identity, stage=stage, model=name)
        limited, limits = self._limited()
        if limited:
            return limited._replace(identity=identity)
        text = json.dumps(body.get("messages"), ensure_ascii=False)
        of = {"stage": stage, "model": name, "text": text}
        rule = self.fault((*REFUSING, *SPOILING, *WRAPPING), identity, attempt, **of)
        if rule and rule["kind"] in REFUSING:
            return self._refusal(rule, identity, limits)
        if wrong := self.wrong(body):
            return self.json(*wrong, headers=limits)._replace(identity=identity)
        completion = self.completion(body, identity, rule)
        self.counts.bill(identity, completion["usage"])
        if rule and rule["kind"] in ("no_usage", "long"):
            del completion["usage"]
        answer = self.json(200, completion, headers=limits)
        if rule and rule["kind"] == "malformed_json":
            answer = answer._replace(body=answer.body[: len(answer.body) * 2 // 3])
        return answer._replace(identity=identity, rule=rule)

    def wrong(self, body: Any) -> tuple[int, dict[str, Any]] | None:
        """Status and body of the error for a chat completion's body; None if the body is valid."""
        options = self.options
        wrong = llm_checks.check(body, self.models, options.max_context)
        return wrong or llm_checks.unknown_field(body, options.formats, options.limits)

    def completion(
        self, body: dict[str, Any], identity: str, rule: dict[str, Any] | None
    ) -> dict[str, Any]:
        """The chat completion of a valid request body, with the content fault of `rule` if any."""
        kind = rule["kind"] if rule else ""
        if self.options.ignores_format:  # it sees the messages alone
            body = {name: value for name, value in body.items() if name != "response_format"}
        content: str | None = self.model.answer(body)
        heeded = tuple(self.options.heeds.split(","))
        tokens = usage(body, content, heeded=heeded, thoughts=self.options.thoughts)
        finish, refusal = "stop", None
        if tokens["completion_tokens"] < len(content.encode()) // 4 + 1:
            content, finish = content[: len(content) // 2], "length"
        if kind == "wrong_schema":
            content = json.dumps({"answer": "as you like", "relevant": "perhaps"})
        elif kind == "malformed_content":
            content = content[:-20]
        elif kind == "refusal":
            content, refusal = None, "I'm sorry, I can't assist with that request."
        elif kind == "truncated":
            content, finish = content[: len(content) // 2], "length"
        elif kind == "content_filter":
            content, finish = "", "content_filter"
        message = {"role": "assistant", "content": content, "refusal": refusal, "annotations": []}
        message |= _wrapped(kind, content)
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
        return {
            "id": f"chatcmpl-{identity}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": body["model"],
            "choices": [choice],
            "usage": tokens,
            "service_tier": "default",
            "system_fingerprint": "fp_local",
        }

    def fault(self, kinds: tuple[str, ...], identity: str, attempt: int, **of: str) -> dict | None:
        """The fault that applies to this attempt, if any; it is counted."""
        rule = self.faults.pick(kinds, identity, attempt, **of)
        if rule:
            group = self.faults.group(rule)
            self.counts.add("fault", kind=rule["kind"], hash=identity, group=group)
        return rule

    def file_fault(self, kind: str, identity: str) -> dict[str, Any] | None:
        """The fault of this kind that applies to an attempt on a file or batch, if any."""
        assert kind in (*BATCHES, *FILES)
        number = self.counts.batch_attempts[kind, identity]
        self.counts.batch_attempts[kind, identity] += 1
        return self.fault((kind,), identity, number)

    def _refusal(self, rule: dict[str, Any], identity: str, limits: dict[str, str]) -> Response:
        kind, headers = rule["kind"], dict(limits)
        if "retry_after" in rule:
            headers["retry-after"] = rule["retry_after"]
        headers |= rule.get("headers", {})
        if kind == "not_json":
            return Response(502, _HTML, {"content-type": "text/html"}, identity=identity)
        status, message, code, of = REFUSALS[kind]
        answer = self.json(*llm_checks.error(status, message, code=code, kind=of), headers=headers)
        return answer._replace(identity=identity, rule=rule)

    def _limited(self) -> tuple[Response | None, dict[str, str]]:
        """The 429 response if the request is above the rate limit, and the rate limit headers."""
        rate = self.options.rate
        if not rate:
            return None, _limits(10_000, 9_999, 0.006)
        burst, now = self.options.burst or rate, time.monotonic()
        self._tokens = min(burst, self._tokens + (now - self._refilled) * rate)
        self._refilled = now
        if self._tokens >= 1:
            self._tokens -= 1
            return None, _limits(int(burst), int(self._tokens), (1 - self._tokens % 1) / rate)
        wait = (1 - self._tokens) / rate
        headers = _limits(int(burst), 0, wait)
        headers |= {"retry-after": str(int(wait) + 1), "retry-after-ms": str(int(wait * 1000) + 1)}
        self.counts.add("fault", kind="rate_limit")
        message = f"Rate limit reached: Limit {rate:g} a second. Please try again in {wait:.3f}s."
        wrong = llm_checks.error(429, message, code="rate_limit_exceeded", kind="requests")
        return self.json(*wrong, headers=headers), headers

    def raw(self, content: bytes) -> Response:
        """The response with a file's content."""
        return Response(200, content, {"content-type": "application/octet-stream"})

    def json(self, status: int, value: Any, *, headers: dict[str, str] | None = None) -> Response:
        """The response with a JSON body and the headers that all responses carry."""
        self._number += 1
        common = {
            "content-type": "application/json",
            "x-request-id": f"req_{self._number:012x}",
            "openai-processing-ms": "1",
            "openai-version": "2020-10-01",
        }
        body = json.dumps(value, ensure_ascii=False).encode()
        return Response(status, body, common | (headers or {}))


def _wrapped(kind: str, content: str | None) -> dict[str, Any]:
    """Fields of a message in which the content is wrapped as `kind` says."""
    return {
        "fence": {"content": f"```json\n{content}\n```"},
        "think": {"content": f"<think>\nPerhaps {{}}.\n</think>\n\n{content}"},
        "parts": {"content": [{"type": "text", "text": content}]},
        "bom": {"content": f"\ufeff{content}"},
        "prose": {"content": f"Here it is:\n{content}\nI hope this helps."},
        "long": {"content": f"{content}\n{'and so on ' * 2000}"},  # and without usage
        "as_thoughts": {"content": None, "reasoning_content": content},
    }.get(kind, {})


def _limits(limit: int, remaining: int, reset_s: float) -> dict[str, str]:
    reset = f"{reset_s * 1000:.0f}ms" if reset_s < 1 else f"{reset_s:.3f}s"
    return {
        "x-ratelimit-limit-requests": str(limit),
        "x-ratelimit-remaining-requests": str(remaining),
        "x-ratelimit-reset-requests": reset,
        "x-ratelimit-limit-tokens": "10000000",
        "x-ratelimit-remaining-tokens": "9990000",
        "x-ratelimit-reset-tokens": "6ms",
    }


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="llm_server", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--port", type=int, default=8000, help="0: any free one")
    add("--seed", type=int, default=0, help="of the answers and the faults")
    add("--faults", default="", help=f"JSON list of rules, or of {', '.join(PRESETS)}")
    add("--state", default="", help="directory; a restarted server goes on from it")
    add("--key", default="", help="the only key that is taken; default: any or none")
    add("--models", default=MODELS, help="names, joined by commas")
    add("--latency-ms", type=float, default=0.0, help="mean time of an answer")
    add("--gather", type=int, default=0, help="answer once so many chat requests are active")
    add("--rate", type=float, default=0.0, help="chat requests a second; 0: no limit")
    add("--burst", type=float, default=0.0, help="requests at once; default: the rate")
    add("--bad-rate", type=float, default=0.05, help="share of wrong examples")
    add("--second-judge", default="gpt-4o", help="model that judges otherwise now and then")
    add("--flip-rate", type=float, default=0.04, help="share of judgements it turns round")
    add("--max-context", type=int, default=128_000, help="tokens of a prompt")
    names = "max_completion_tokens,max_tokens"
    add("--formats", default="json_schema,json_object,none", help="response formats it takes")
    add("--limits", default=names, help="names of the limit of tokens that it takes")
    add("--heeds", default=names, help="those that it heeds")
    add("--ignores-format", type=int, default=0, help="1: it takes the formats and heeds none")
    add("--thoughts", type=int, default=0, help="tokens of every answer beside its content")
    add("--until-stdin-closes", action="store_true", help="end with the process that started it")
    add("--batch-step-s", type=float, default=0.05, help="seconds in each state of a batch")
    add("--batch-rows-per-s", type=float, default=5000.0, help="speed of a batch")
    add("--batch-tokens", type=int, default=0, help="most tokens enqueued in batches; 0: any")
    return parser.parse_args(arguments)


async def serve(given: argparse.Namespace) -> None:
    """Runs until SIGTERM or SIGINT."""
    server = Server(given)
    listening = await asyncio.start_server(
        server.connection, "127.0.0.1", given.port, limit=1 << 20, backlog=4096
    )
    server.batches.resume()
    port = listening.sockets[0].getsockname()[1]
    print(f"listening on http://127.0.0.1:{port}/v1", flush=True)
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    if given.until_stdin_closes:
        asyncio.get_running_loop().add_reader(0, ended.set)
    await ended.wait()
    listening.close()


if __name__ == "__main__":
    asyncio.run(serve(options()))
