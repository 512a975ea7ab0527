"""The client against the local server and broken ones: classified replies, no secrets in them."""

import asyncio
import json
import logging
import socket

import pytest

from data_pipeline.llm.client import Endpoint
from data_pipeline.llm.journal import ANSWER, MODERATED, REJECTED, TOO_LONG, UNKNOWN, UNPAID
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


def endpoint(base_url, timeout_s=60.0, key_env="TEST_KEY"):
    return Endpoint(base_url=base_url, key_env=key_env, timeout_s=timeout_s)


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
    [reply] = ask("https://no-such-host.invalid/v1")
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
    with pytest.raises(UserError, match="plain text") as caught:
        endpoint("http://user:secret@gpu.example/v1?api-key=hidden", key_env="")
    assert "secret" not in str(caught.value) and "hidden" not in str(caught.value)
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
        self.answer, self.seen = answer, b""

    def ask(self, timeout_s=60.0, key_env="TEST_KEY", host="127.0.0.1"):
        async def asked():
            server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
            url = f"http://{host}:{server.sockets[0].getsockname()[1]}/v1"
            one = endpoint(url, timeout_s, key_env)
            reply = await one.ask(request())
            await one.close()
            server.close()
            return reply

        return asyncio.run(asked())

    async def _serve(self, reader, writer):
        self.seen += await reader.readuntil(b"\r\n\r\n")
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
        (http(200, b"busy, try later"), UNKNOWN, "b'busy, try later'"),
        (http(200, b"[" * 100_000), UNKNOWN, "nested too deeply"),
        (http(200, b"\xff\xfe\x00"), UNKNOWN, "not a chat completion"),
        (http(200, b"gz", "content-encoding: gzip"), UNKNOWN, "connection lost"),
        (http(200, b"<html>", "content-type: text/html"), UNPAID, "a web page"),
        (http(200, b"<html>", "content-type: Text/HTML"), UNPAID, "a web page"),
        (http(200, b'{"error": "busy"}', "content-type: text/html"), UNPAID, "busy"),
        (http(500, b"<html>"), UNPAID, "500"),
        (http(504, b"late"), UNKNOWN, "504"),
        (http(418, b'{"error": "teapot"}'), REJECTED, "418"),
        (http(400, b'{"error": {"message": "\\ud800 no", "code": 7}}'), REJECTED, "400 7: ? no"),
        (http(400, b'{"error": {"message": ["a"], "code": {}}}'), REJECTED, "400"),
        (http(400, b'{"error": null, "message": "context size"}'), TOO_LONG, "context size"),
        (http(400, b'{"code": "7", "error": "x"}'), REJECTED, "400 7: x"),
        (http(400, b'[{"error": {"message": "x"}}]'), REJECTED, "400 : x"),
        (http(400, b"{}"), REJECTED, "400 : Error code: 400"),
    ],
    ids=range(20),
)
def test_broken_servers(answer, outcome, says):
    reply = Raw(answer).ask()
    assert reply.outcome == outcome and says in reply.text
    reply.text.encode()
    assert len(reply.text) <= 300


FOREIGN = ("https://api.openai.com.evil.example/v1", "http://127.0.0.1:1/v1", "https://h/v1")


@pytest.mark.parametrize(
    "url", ["", *FOREIGN, "https://api.openai.com/v1", "https://eu.api.openai.com/v1"]
)
def test_the_key_of_openai_goes_to_openai_alone(monkeypatch, url):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    sent = endpoint(url, key_env="").client.api_key == KEY
    assert sent == (url not in FOREIGN)
    assert endpoint(url, key_env="OPENAI_API_KEY").client.api_key == KEY  # named for this one
    monkeypatch.setenv("OPENAI_BASE_URL", url or "https://elsewhere.example/v1")
    assert (endpoint("", key_env="").client.api_key == KEY) == (sent and bool(url))


def test_nothing_of_the_environment_reaches_another_endpoint(monkeypatch):
    names = ("API_KEY", "ADMIN_KEY", "ORG_ID", "PROJECT_ID")
    for name in names:
        monkeypatch.setenv(f"OPENAI_{name}", f"secret-{name}")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "authorization: secret-1\nx-other: secret-2")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    raw = Raw(http(401, b'{"error": {"message": "no key"}}'))
    reply = raw.ask(key_env="")
    assert raw.seen and b"secret" not in raw.seen
    assert "check llm.key_env: it names no variable" in reply.fatal
    raw.ask(host="localhost")
    assert KEY.encode() in raw.seen  # named, and past the proxy
    monkeypatch.delenv("TEST_KEY")
    assert "TEST_KEY: it is not set, so no key was sent" in raw.ask().fatal


def test_a_redirect_takes_no_key_along():
    other = Raw(http(400, b"{}"))

    async def asked():
        elsewhere = await asyncio.start_server(other._serve, "127.0.0.1", 0)
        location = f"location: http://127.0.0.1:{elsewhere.sockets[0].getsockname()[1]}/v1"
        first = Raw(http(307, b"", location))
        await asyncio.to_thread(first.ask)
        elsewhere.close()
        return first.seen

    assert KEY.encode() in asyncio.run(asked())
    assert other.seen.startswith(b"POST /v1") and KEY.encode() not in other.seen


@pytest.mark.parametrize(
    ("host", "local"),
    [
        *(("127.0.0.1", True), ("127.9.9.9", True), ("localhost", True), ("[::1]", True)),
        *(
            ("10.0.0.5", False),
            ("0.0.0.0", False),
            ("gpu.example", False),
            ("evil-localhost", False),
        ),
        *(("127.0.0.1.evil.example", False), ("[::2]", False), ("localhost.evil.example", False)),
    ],
)
def test_a_key_crosses_no_network_in_plain_text(host, local):
    url = f"http://{host}:8000/v1"
    if local:
        assert endpoint(url).client.api_key == KEY
    else:
        with pytest.raises(UserError, match=r"plain text; use https, a tunnel") as caught:
            endpoint(url)
        assert KEY not in str(caught.value)
    assert endpoint(url, key_env="").client.api_key == "none"
    assert endpoint(f"https://{host}/v1").client.api_key == KEY


def test_a_part_of_the_key_is_not_shown():
    one = endpoint("http://127.0.0.1:1/v1")
    shown = one.clean(f"key {KEY[:10]}... is wrong, {KEY}, it ends with {KEY[-9:]}")
    assert shown == "key *** is wrong, *** it ends with ***"


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
