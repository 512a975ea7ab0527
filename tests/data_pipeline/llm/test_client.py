"""The client against the local server and broken ones: classified replies, no secrets in them."""

import asyncio
import json
import logging
import socket

import pytest

from data_pipeline.llm.client import Endpoint
from data_pipeline.llm.journal import ANSWER, MODERATED, REJECTED, UNKNOWN, UNPAID
from data_pipeline.llm.request import Prompt, RequestTemplate
from inf_jax.core.errors import UserError

KEY = "sk-proj-Zq7XvT0t4LLy5ecret_9"
WRAPPING = ("fence", "think", "parts", "bom", "prose", "as_thoughts")
JUDGE = RequestTemplate("judge", "o3-mini", Prompt.read("judge_v1"), 1000)


def request(number=0, **changes):
    made = JUDGE.request(
        {"instruction": "Statistics only.", "query": f"q {number}", "passage": "."}
    )
    made.body.update(changes)
    return made


def endpoint(base_url, timeout_s=60.0):
    return Endpoint(base_url=base_url, key_env="TEST_KEY", timeout_s=timeout_s)


def ask(base_url, *requests, timeout_s=60.0):
    """The replies to requests sent one after another."""

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
    """A server whose faults a test sets; without faults again at the end."""
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
        *((kind, ANSWER, False) for kind in WRAPPING),
        ("error_200", UNPAID, True),
        ("bad_request", REJECTED, False),
        ("forbidden", REJECTED, False),
        ("moderated", MODERATED, False),
        ("content_policy", MODERATED, False),
        ("slow", ANSWER, False),
    ],
)
def test_outcome_of_each_fault(faulty, kind, outcome, slow_down):
    faulty.set_faults([{"kind": kind, "times": 1, "seconds": 0.05}])
    first, second = ask(faulty.base_url, request(kind), request(kind))
    assert (first.outcome, first.slow_down, first.fatal) == (outcome, slow_down, "")
    assert second.outcome == ANSWER and json.loads(second.text)["reason"]
    paid = outcome in (ANSWER, "schema", "refusal", "truncated", "content_filter")
    assert first.usage.reported == (paid and kind != "no_usage")


def test_timeout_of_silent_and_slow_answers(faulty):
    faulty.set_faults([{"kind": "timeout", "times": 1}, {"kind": "slow", "seconds": 2, "times": 1}])
    hang, drip = ask(faulty.base_url, *[request("late")] * 2, timeout_s=0.5)
    [good] = ask(faulty.base_url, request("late"))
    # each chunk of the second one comes in time, the whole does not
    assert (hang.outcome, hang.text, hang.slow_down) == (UNKNOWN, "timeout", True)
    assert (drip.outcome, drip.text) == (UNKNOWN, "timeout")
    assert good.outcome == ANSWER


def test_an_exhausted_quota_is_fatal(faulty):
    faulty.set_faults([{"kind": "quota"}])
    [reply] = ask(faulty.base_url)
    assert reply.outcome == UNPAID and "check the account" in reply.fatal
    assert "insufficient_quota" in reply.fatal and faulty.base_url in reply.fatal


def test_a_wrong_key_is_not_repeated(llm_server):
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


def test_an_invalid_request_is_rejected(calm_server):
    [reply] = ask(calm_server.base_url, request(max_completion_tokens=10**7))
    assert reply.outcome == REJECTED and "too large" in reply.text


def test_no_connection():
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
def test_an_invalid_base_url(url):
    with pytest.raises(UserError, match=r"llm\.base_url"):
        endpoint(url)


def test_only_openai_needs_a_key(monkeypatch):
    monkeypatch.delenv("TEST_KEY")
    with pytest.raises(UserError, match="TEST_KEY is not set"):
        endpoint("")
    endpoint("http://127.0.0.1:1/v1")


def test_a_key_with_invalid_characters(monkeypatch):
    for bad in ("sk-ärger", "sk-a b", "sk-a\x01b", "sk-a\nb"):
        monkeypatch.setenv("TEST_KEY", bad)
        with pytest.raises(UserError, match="TEST_KEY") as caught:
            endpoint("")
        assert bad not in str(caught.value)


def test_whitespace_around_a_key_is_removed(monkeypatch, llm_server):
    server = llm_server(key="sk-right")
    monkeypatch.setenv("TEST_KEY", " sk-right\n")
    assert ask(server.base_url)[0].outcome == ANSWER


def test_other_variables_of_the_openai_client_send_no_other_key(monkeypatch, llm_server):
    server = llm_server(key=KEY)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
    monkeypatch.setenv("OPENAI_ADMIN_KEY", "sk-admin")
    assert ask(server.base_url)[0].outcome == ANSWER


def test_secrets_in_the_url_are_not_shown():
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

    def ask(self, timeout_s=60.0):
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
def test_broken_servers(answer, outcome, says):
    reply = Raw(answer).ask()
    assert reply.outcome == outcome and says in reply.text
    reply.text.encode()
    assert len(reply.text) <= 300


def test_payment_required_is_fatal():
    reply = Raw(http(402, b'{"error": {"message": "Insufficient Balance"}}')).ask()
    assert "check the account" in reply.fatal


def test_the_reply_says_when_to_continue_after_a_rate_limit(llm_server):
    server = llm_server(rate=0.01, burst=2)
    first, second, third = ask(server.base_url, *[request("limit")] * 3)
    assert first.wait_s is None
    assert second.outcome == ANSWER and 0 < second.wait_s <= 101
    assert third.outcome == UNPAID and third.slow_down and 0 < third.wait_s <= 101


def test_many_concurrent_requests(llm_server):
    server = llm_server(gather=101)

    async def asked():
        one = endpoint(server.base_url)
        replies = [await asyncio.gather(*(one.ask(request(n)) for n in range(150))) for _ in "ab"]
        await one.close()
        return replies

    for replies in asyncio.run(asked()):
        assert {reply.outcome for reply in replies} == {ANSWER}
    assert server.stats()["most_active"] > 100
