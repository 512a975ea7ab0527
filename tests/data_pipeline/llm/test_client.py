"""The client against the local server and worse ones: what each answer means, and no secrets."""

import asyncio
import email.utils
import json
import logging
import socket
import time

import pytest

from data_pipeline.llm.client import (
    Endpoint,
    _parse_seconds,
    _rate_limit_wait,
    _retry_after,
    read_answer,
)
from data_pipeline.llm.journal import ANSWER, REJECTED, UNKNOWN, UNPAID
from data_pipeline.llm.request import Prompt, RequestTemplate
from inf_jax.core.errors import UserError

KEY = "sk-proj-Zq7XvT0t4LLy5ecret_9"
JUDGE = RequestTemplate("judge", "o3-mini", Prompt.read("judge_v1"), 1000)


def request(number=0, **changes):
    made = JUDGE.request(
        {"instruction": "Statistics only.", "query": f"q {number}", "passage": "."}
    )
    made.body.update(changes)
    return made


def endpoint(base_url, timeout_s=5.0):
    return Endpoint(base_url=base_url, key_env="TEST_KEY", timeout_s=timeout_s)


def ask(base_url, *requests, timeout_s=5.0):
    """The replies, one after another."""

    async def asked():
        one = endpoint(base_url, timeout_s)
        replies = [await one.ask(each) for each in requests or (request(),)]
        await one.close()
        return replies

    return asyncio.run(asked())


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("TEST_KEY", KEY)


@pytest.fixture
def faulty(calm_server):
    """A server whose faults a test sets; calm again at the end."""
    yield calm_server
    calm_server.set_faults("")


@pytest.mark.parametrize(
    ("kind", "outcome", "slow_down"),
    [
        ("429", UNPAID, True),
        ("503", UNPAID, True),
        ("500", UNPAID, False),
        ("not_json", UNPAID, False),
        ("drop", UNKNOWN, False),
        ("drop_before", UNKNOWN, False),
        ("malformed_json", UNKNOWN, False),
        ("malformed_content", "schema", False),
        ("wrong_schema", "schema", False),
        ("refusal", "refusal", False),
        ("truncated", "truncated", False),
        ("content_filter", "content_filter", False),
        ("no_usage", ANSWER, False),
        ("slow", ANSWER, False),
    ],
)
def test_what_each_fault_means(faulty, kind, outcome, slow_down):
    faulty.set_faults([{"kind": kind, "times": 1, "seconds": 0.05}])
    first, second = ask(faulty.base_url, request(kind), request(kind))
    assert (first.outcome, first.slow_down, first.fatal) == (outcome, slow_down, "")
    assert second.outcome == ANSWER and json.loads(second.text)["reason"]
    paid = outcome in (ANSWER, "schema", "refusal", "truncated", "content_filter")
    assert first.usage.reported == (paid and kind != "no_usage")


def test_hang_and_drip_end_at_the_timeout(faulty):
    faulty.set_faults([{"kind": "timeout", "times": 1}, {"kind": "slow", "seconds": 2, "times": 1}])
    hang, drip, good = ask(faulty.base_url, *[request("late")] * 3, timeout_s=0.5)
    # of a drip each piece comes in time, the whole does not
    assert (hang.outcome, hang.text, hang.slow_down) == (UNKNOWN, "timeout", True)
    assert (drip.outcome, drip.text) == (UNKNOWN, "timeout")
    assert good.outcome == ANSWER


def test_quota_stops_all(faulty):
    faulty.set_faults([{"kind": "quota"}])
    [reply] = ask(faulty.base_url)
    assert reply.outcome == UNPAID and "check the account" in reply.fatal
    assert "insufficient_quota" in reply.fatal and faulty.base_url in reply.fatal


def test_a_wrong_key_is_told_without_the_key(llm_server):
    [reply] = ask(llm_server(key="sk-right").base_url)
    assert "check the key in TEST_KEY" in reply.fatal
    assert "Incorrect API key provided: ***" in reply.fatal
    for part in (KEY, KEY[:8], KEY[-4:]):
        assert part not in str(reply)


def test_unknown_model_and_wrong_path(calm_server):
    [reply] = ask(calm_server.base_url, request(model="gpt-9"))
    assert reply.outcome == UNPAID and "check the model 'gpt-9' and llm.base_url" in reply.fatal
    [reply] = ask(calm_server.base_url + "/v2")
    assert "llm.base_url" in reply.fatal


def test_what_the_endpoint_never_takes_is_rejected(calm_server):
    [reply] = ask(calm_server.base_url, request(max_completion_tokens=10**7))
    assert reply.outcome == REJECTED and "too large" in reply.text


def test_nobody_there():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        [reply] = ask(f"http://127.0.0.1:{bound.getsockname()[1]}/v1")
    assert (reply.outcome, reply.reached) == (UNPAID, False)
    assert "no connection" in reply.text
    [reply] = ask("http://no-such-host.invalid/v1")
    assert (reply.outcome, reply.reached) == (UNPAID, False)


@pytest.mark.parametrize(
    "url",
    ["foo", "http://", "localhost:8000/v1", "ftp://x/v1", "http://h:99999/v1", "http://[::1/v1"],
)
def test_a_base_url_that_is_none(url):
    with pytest.raises(UserError, match=r"llm\.base_url"):
        endpoint(url)


def test_the_key_is_needed_for_openai_only(monkeypatch):
    monkeypatch.delenv("TEST_KEY")
    with pytest.raises(UserError, match="TEST_KEY is not set"):
        endpoint("")
    endpoint("http://127.0.0.1:1/v1")


def test_a_key_that_no_header_takes(monkeypatch):
    for bad in ("sk-ärger", "sk-a b", "sk-a\x01b", "sk-a\nb"):
        monkeypatch.setenv("TEST_KEY", bad)
        with pytest.raises(UserError, match="TEST_KEY") as caught:
            endpoint("")
        assert bad not in str(caught.value)


def test_surrounding_space_of_a_key_is_no_part_of_it(monkeypatch, llm_server):
    server = llm_server(key="sk-right")
    monkeypatch.setenv("TEST_KEY", " sk-right\n")
    assert ask(server.base_url)[0].outcome == ANSWER


def test_other_variables_of_the_openai_client_send_no_other_key(monkeypatch, llm_server):
    server = llm_server(key=KEY)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
    monkeypatch.setenv("OPENAI_ADMIN_KEY", "sk-admin")
    assert ask(server.base_url)[0].outcome == ANSWER


def test_secrets_of_the_url_are_not_told():
    one = endpoint("http://user:secret@127.0.0.1:1/v1?api-key=hidden")
    assert one.name == "http://127.0.0.1:1/v1"


def test_the_key_is_in_no_log(faulty, caplog):
    caplog.set_level(logging.DEBUG)
    for name in ("openai", "httpx2", "httpcore2", "asyncio"):
        caplog.set_level(logging.DEBUG, logger=name)
    faulty.set_faults([{"kind": "500", "times": 1}, {"kind": "drop", "times": 1}])
    ask(faulty.base_url, *[request("logged")] * 3)
    ask("http://127.0.0.1:1/v1")
    assert any(record.name.startswith("httpcore2") for record in caplog.records)
    assert any(record.name.startswith("openai") for record in caplog.records)
    for record in caplog.records:
        assert KEY not in f"{record.getMessage()}{record.__dict__}"


class Raw:
    """A server that answers every request with the same bytes."""

    def __init__(self, answer: bytes):
        self.answer = answer

    def ask(self, timeout_s=2.0):
        async def asked():
            server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
            one = endpoint(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", timeout_s)
            reply = await one.ask(request())
            await one.close()
            server.close()
            return reply

        return asyncio.run(asked())

    async def _serve(self, reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(self.answer)
        await writer.drain()
        writer.close()


def http(status, body, *headers):
    lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


@pytest.mark.parametrize(
    ("answer", "outcome", "says"),
    [
        (b"", UNKNOWN, "connection lost"),
        (b"SSH-2.0-OpenSSH\r\n", UNKNOWN, "connection lost"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{}", UNKNOWN, "connection lost"),
        (http(200, b""), UNKNOWN, "not a chat completion"),
        (http(200, b"[" * 100_000), UNKNOWN, "nested too deeply"),
        (http(200, b"\xff\xfe\x00"), UNKNOWN, "not a chat completion"),
        (http(200, b"gz", "content-encoding: gzip"), UNKNOWN, "connection lost"),
        (http(200, b"<html>", "content-type: text/html"), UNPAID, "a web page"),
        (http(500, b"<html>"), UNPAID, "500"),
        (http(504, b"late"), UNKNOWN, "504"),
        (http(418, b'{"error": "teapot"}'), REJECTED, "418"),
        (http(400, b'{"error": {"message": "\\ud800 no", "code": 7}}'), REJECTED, "400 7: ? no"),
        (http(400, b'{"error": {"message": ["a"], "code": {}}}'), REJECTED, "400"),
    ],
    ids=range(13),
)
def test_worse_servers(answer, outcome, says):
    reply = Raw(answer).ask()
    assert reply.outcome == outcome and says in reply.text
    reply.text.encode()
    assert len(reply.text) <= 300


def test_a_gateway_without_credit_stops_all():
    reply = Raw(http(402, b'{"error": {"message": "Insufficient Balance"}}')).ask()
    assert "check the account" in reply.fatal


def completion(content, finish="stop", **more):
    message = {"content": content} | more
    return {"choices": [{"message": message, "finish_reason": finish}], "usage": {}}


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        ([], UNKNOWN),
        ({"choices": []}, UNKNOWN),
        ({"choices": [None]}, UNKNOWN),
        ({"choices": [{"message": None}]}, UNKNOWN),
        (completion("x") | {"usage": [1]}, UNKNOWN),
        (completion("x") | {"usage": {"prompt_tokens": float("inf")}}, UNKNOWN),
        (completion(None), "schema"),
        (completion([{"type": "text", "text": "x"}]), "schema"),
        (completion('{"reason":"\ud800","relevant":true}'), "schema"),
        (completion('{"reason":"\\ud800","relevant":true}'), "schema"),
        (completion('{"reason":"  ","relevant":true}'), "schema"),
        (completion('{"reason":"x","relevant":true,"more":1}'), "schema"),
        (completion('{"reason":"x"}'), "schema"),
        (completion('{"reason":"x","relevant":true}', "length"), "truncated"),
        (completion('{"reason":"x","relevant":true}', refusal="No \ud800."), "refusal"),
        (completion('{"reason":"x","relevant":true}', None), ANSWER),
    ],
    ids=range(16),
)
def test_bodies(body, outcome):
    reply = read_answer("judge", body)
    assert reply.outcome == outcome
    reply.text.encode()


def test_usage_that_nobody_believes():
    usage = {"prompt_tokens": 10**30, "completion_tokens": -5}
    reply = read_answer("judge", completion('{"reason":"x","relevant":true}') | {"usage": usage})
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (10**9, 0)
    usage = {"prompt_tokens": 10, "prompt_tokens_details": {"cached_tokens": 90}}
    reply = read_answer("judge", completion('{"reason":"x","relevant":true}') | {"usage": usage})
    assert reply.usage.cached_tokens == 10


def test_retry_after():
    assert _retry_after({"retry-after": "2"}) == 2
    assert _retry_after({"retry-after": "0.05"}) == 0.05
    assert _retry_after({"retry-after": "9", "retry-after-ms": "120"}) == 0.12
    assert _retry_after({"retry-after-ms": "soon", "retry-after": "3"}) == 3
    date = email.utils.formatdate(time.time() + 30, usegmt=True)
    assert 28 < _retry_after({"retry-after": date}) <= 30
    assert _retry_after({"retry-after": email.utils.formatdate(0, usegmt=True)}) == 0
    for nothing in ({}, *({"retry-after": text} for text in ("", "soon", "nan", "inf", "1e999"))):
        assert _retry_after(nothing) is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("6m0s", 360), ("1s", 1), ("120ms", 0.12), ("1h0m2s", 3602), ("1d2h", 93600)),
        *(("1.5", 1.5), ("0", 0), ("-3", 0), ("17.123s", 17.123)),
        *(("", 1), ("soon", 1), ("1.2.3", 1), ("nan", 1), ("inf", 1)),
    ],
)
def test_durations(text, seconds):
    assert _parse_seconds(text) == pytest.approx(seconds)


def test_a_reset_as_a_time():
    assert 50 < _parse_seconds(f"{time.time() + 60:.0f}") <= 61


def test_used_up_limits():
    used = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "2s"}
    assert _rate_limit_wait(used) == 2
    used |= {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "6m0s"}
    assert _rate_limit_wait(used) == 360
    assert _rate_limit_wait({"x-ratelimit-remaining-tokens": "0"}) == 1
    assert _rate_limit_wait({"x-ratelimit-remaining-tokens": "1"}) is None
    assert _rate_limit_wait({}) is None


def test_the_reply_tells_when_a_limit_is_used_up(llm_server):
    server = llm_server(rate=0.5, burst=2)
    first, second, third = ask(server.base_url, *[request("limit")] * 3)
    assert first.wait_s is None
    assert second.outcome == ANSWER and 0 < second.wait_s < 3
    assert third.outcome == UNPAID and third.slow_down and 0 < third.wait_s < 3


def test_many_at_once_share_connections(llm_server):
    server = llm_server(latency_ms=400)

    async def asked():
        one = endpoint(server.base_url)
        replies = [await asyncio.gather(*(one.ask(request(n)) for n in range(150))) for _ in "ab"]
        await one.close()
        return replies

    for replies in asyncio.run(asked()):
        assert {reply.outcome for reply in replies} == {ANSWER}
    assert server.stats()["most_active"] > 100
