"""Single requests through the journal: each paid once, within limits and cap, to a final result."""

import asyncio
import json
import logging
import socket
from types import SimpleNamespace

import pytest

from data_pipeline.llm import async_asker
from data_pipeline.llm.ask import Result
from data_pipeline.llm.async_asker import AsyncAsker, JournalWriter
from data_pipeline.llm.budget import Budget, BudgetReached, price_of
from data_pipeline.llm.client import Endpoint
from data_pipeline.llm.journal import ANSWER, UNUSABLE, Journal, Received, Sent
from data_pipeline.llm.request import Prompt, RequestTemplate
from inf_jax.core.errors import UserError

JUDGE = RequestTemplate("judge", "o3-mini", Prompt.read("judge_v1"), 1000)
GENERATE = RequestTemplate("generate", "gpt-4o-mini", Prompt.read("generate_v1"), 2000)
PRICES = {name: price_of(name) for name in ("o3-mini", "gpt-4o-mini")}
KEY = "sk-proj-Zq7XvT0t4LLy5ecret_9"


def question(number=0, **changes):
    payload = {"instruction": "Statistics only.", "query": f"q {number}", "passage": "."}
    return JUDGE.request(payload | changes)


class Run:
    """What one process does; another one on the same path is the next run."""

    def __init__(self, path, base_url, *, max_usd=None, retry_rejected=False, **options):
        self.journal = Journal(path, retry_rejected=retry_rejected)
        endpoint = Endpoint(base_url=base_url, key_env="TEST_KEY", timeout_s=60.0)
        self.budget = Budget(self.journal, max_usd)
        settings = {"concurrency": 16, "max_attempts": 3, "give_up_s": 60.0} | options
        self.ask = AsyncAsker(endpoint, self.journal, self.budget, PRICES, **settings)
        self._endpoint = endpoint

    async def close(self):
        await self.ask.settle()
        await self._endpoint.close()
        self.journal.close()


def run(path, base_url, requests, **options):
    """(results or errors, the run) after asking all at once."""

    async def asked():
        one = Run(path, base_url, **options)
        results = await asyncio.gather(*map(one.ask, requests), return_exceptions=True)
        await one.close()
        return results, one

    return asyncio.run(asked())


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(async_asker, "MAX_BACKOFF_S", 0.02)
    monkeypatch.setenv("TEST_KEY", KEY)


def texts(results):
    assert not [r for r in results if isinstance(r, Exception)]
    return [result.text for result in results]


def test_faults_change_no_answer_and_nothing_is_paid_twice(llm_server, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    requests = [question(n) for n in range(200)]
    calm, stormy = llm_server(), llm_server("all", latency_ms=2)
    expected, _ = run(tmp_path / "calm.sqlite", calm.base_url, requests)
    results, one = run(tmp_path / "stormy.sqlite", stormy.base_url, requests)
    assert texts(results) == texts(expected) and all(texts(results))
    stats = stormy.stats()
    assert len(stats["faults"]) > 8
    counts = [stats["requests"][stormy.hash_of(request.body)] for request in requests]
    assert {count["answered"] for count in counts} == {1}
    assert stats["most_active"] <= 16 and one.ask.limiter.highest <= 16
    again, _ = run(tmp_path / "stormy.sqlite", stormy.base_url, requests)
    assert texts(again) == texts(expected)
    assert stormy.stats()["totals"] == stats["totals"]  # nothing was sent
    for path in tmp_path.iterdir():
        assert KEY.encode() not in path.read_bytes()
    assert KEY not in caplog.text


def test_the_cost_is_the_server_s_bill(llm_server, tmp_path):
    requests = [question(n) for n in range(100)]
    server = llm_server("paid")
    _, one = run(tmp_path / "j", server.base_url, requests)
    billed = server.stats(requests=False)["totals"]
    price = PRICES["o3-mini"]
    fresh = billed["prompt"] - billed["cached"]
    usd = fresh * price.input + billed["cached"] * price.cached_input
    usd = (usd + billed["completion"] * price.output) / 1e6
    assert one.budget.usd == pytest.approx(usd)
    assert one.budget.worst_case == pytest.approx(usd)


def test_an_answer_without_usage_costs_the_upper_bound(llm_server, tmp_path):
    server, request = llm_server([{"kind": "no_usage"}]), question()
    [result], one = run(tmp_path / "j", server.base_url, [request])
    assert result.text
    assert one.budget.usd == pytest.approx(PRICES["o3-mini"].upper_bound(request, batch=False))


@pytest.mark.parametrize("kind", UNUSABLE)
def test_unusable_answers_are_paid_and_limited(llm_server, tmp_path, kind):
    fault = "wrong_schema" if kind == "schema" else kind
    server = llm_server([{"kind": fault, "times": 99}])
    [result], one = run(tmp_path / "j", server.base_url, [question()])
    assert (result.failure, result.text) == (kind, "")
    assert server.stats(requests=False)["totals"]["received"] == 3
    assert one.budget.usd > 0
    [again], _ = run(tmp_path / "j", server.base_url, [question()])
    assert again.failure == kind
    assert server.stats(requests=False)["totals"]["received"] == 3
    server.set_faults("")  # with more attempts allowed
    [better], _ = run(tmp_path / "j", server.base_url, [question()], max_attempts=4)
    assert better.text


def test_equal_requests_are_sent_once(llm_server, tmp_path):
    server = llm_server(latency_ms=20)
    results, _ = run(tmp_path / "j", server.base_url, [question(1)] * 20)
    assert len(set(texts(results))) == 1
    assert server.stats(requests=False)["totals"]["received"] == 1


@pytest.mark.parametrize(
    ("server", "options", "says"),
    [
        ({"faults": [{"kind": "quota"}]}, {}, "check the account"),
        ({"key": "sk-right"}, {}, "check the key in TEST_KEY"),
        ({"models": "local"}, {}, "check the model 'o3-mini'"),
        ({"max_context": 1}, {}, "accepts no request of the stage judge"),
        ({"faults": [{"kind": "500", "times": 99}]}, {"give_up_s": 0.3}, "no answer for 0 s"),
        (
            {"faults": [{"kind": "429", "times": 99, "retry_after": "86400"}]},
            {},
            "asks to wait 86400 s",
        ),
        (
            {"faults": [{"kind": "429", "times": 99, "retry_after": "0.05"}]},
            {"give_up_s": 0.3},
            "no answer for 0 s",
        ),
    ],
)
def test_a_stopped_run_continues_later(llm_server, tmp_path, server, options, says):
    bad = llm_server(**server)
    requests = [question(n) for n in range(40)]
    results, _ = run(tmp_path / "j", bad.base_url, requests, **options)
    assert {type(result) for result in results} == {UserError}
    assert all(says in str(result) for result in results)
    assert KEY not in str(results)
    good = llm_server()
    results, _ = run(tmp_path / "j", good.base_url, requests)
    assert all(texts(results))


def test_one_request_is_enough_to_see_that_the_stage_is_rejected(llm_server, tmp_path):
    server = llm_server(max_context=1)
    [result], _ = run(tmp_path / "j", server.base_url, [question()])
    assert "accepts no request of the stage judge" in str(result)
    assert server.stats(requests=False)["totals"]["received"] == 3


def test_no_endpoint(tmp_path):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}/v1"
        results, one = run(tmp_path / "j", url, [question(n) for n in range(20)])
    assert all("cannot be reached" in str(result) for result in results)
    assert one.budget.worst_case == pytest.approx(0)


def test_a_restart_of_the_server(llm_server, tmp_path):
    server = llm_server(latency_ms=10, state=tmp_path / "state")

    async def asked():
        one = Run(tmp_path / "j", server.base_url, give_up_s=60.0)
        asks = [asyncio.create_task(one.ask(question(n))) for n in range(200)]
        await asyncio.wait(asks, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.to_thread(server.restart)
        results = await asyncio.gather(*asks)
        await one.close()
        return results

    assert all(texts(asyncio.run(asked())))
    totals = server.stats(requests=False)["totals"]
    assert totals["received"] <= 200 + 16


def test_a_rejected_request_is_not_sent_again(llm_server, tmp_path):
    server = llm_server(max_context=2000)
    long = question(0, passage="word " * 9000)
    results, _ = run(tmp_path / "j", server.base_url, [long, *(question(n) for n in range(30))])
    assert results[0].failure == "too_long"
    assert all(texts(results[1:]))
    before = server.stats(requests=False)["totals"]["received"]
    [result], _ = run(tmp_path / "j", server.base_url, [long])
    assert result.failure == "too_long"
    assert server.stats(requests=False)["totals"]["received"] == before


ALWAYS = {"times": 10**6}


def test_a_burst_of_rejections_stops_the_run_and_loses_nothing(llm_server, tmp_path):
    server = llm_server()
    first, later = [question(n) for n in range(20)], [question(n) for n in range(20, 120)]
    assert all(texts(run(tmp_path / "j", server.base_url, first)[0]))
    server.set_faults([{"kind": "bad_request"} | ALWAYS])
    for _ in "ab":  # in the second run every request has been rejected before
        results, _ = run(tmp_path / "j", server.base_url, later)
        assert {type(result) for result in results} == {UserError}
        assert "rejects 10 requests of the stage judge in a row: 400" in str(results[0])
        assert "check the model 'o3-mini' and the stage's options" in str(results[0])
    received = server.stats(requests=False)["totals"]["received"]
    assert received < 20 + 2 * 40
    server.set_faults("")
    assert all(texts(run(tmp_path / "j", server.base_url, first + later)[0]))


def test_a_few_rejections_among_answers_are_asked_again(llm_server, tmp_path):
    requests = [question(n) for n in range(60)]
    server = llm_server([{"kind": "bad_request", "rate": 0.2, "times": 2}])
    assert all(texts(run(tmp_path / "j", server.base_url, requests)[0]))


def test_an_unexplained_rejection_expires_with_its_run(llm_server, tmp_path):
    requests = [question(n) for n in range(30)]
    server = llm_server([{"kind": "bad_request", "contains": 'q 7\\"'} | ALWAYS])
    results, _ = run(tmp_path / "j", server.base_url, requests)
    assert [r.failure for r in results] == ["rejected" if n == 7 else "" for n in range(30)]
    before = server.stats(requests=False)["totals"]["received"]
    [again], _ = run(tmp_path / "j", server.base_url, [requests[7]])
    assert again.failure == "rejected"  # alone, at once: it was rejected before
    assert server.stats(requests=False)["totals"]["received"] == before + 1
    server.set_faults("")
    assert texts(run(tmp_path / "j", server.base_url, [requests[7]])[0]) != [""]


@pytest.mark.parametrize("kind", ["moderated", "content_policy", "forbidden", "bad_request"])
@pytest.mark.parametrize("latency_ms", [0, 100])
def test_one_rejected_text_does_not_stop_the_others(llm_server, tmp_path, kind, latency_ms):
    """Wherever it stands, and though a rejection comes sooner than an answer."""
    rule = {"kind": kind, "contains": 'q 0\\"'} | ALWAYS
    server = llm_server([rule], latency_ms=latency_ms)
    requests = [question(n) for n in range(20)]
    results, _ = run(tmp_path / "j", server.base_url, requests)
    failure = "moderated" if kind in ("moderated", "content_policy") else "rejected"
    assert results[0].failure == failure
    assert all(texts(results[1:]))
    before = server.stats(requests=False)["totals"]["received"]
    server.set_faults("")
    [again], _ = run(tmp_path / "j", server.base_url, requests[:1])
    asked = server.stats(requests=False)["totals"]["received"] - before
    assert (again.failure, asked) == (("moderated", 0) if failure == "moderated" else ("", 1))
    [again], _ = run(tmp_path / "j", server.base_url, requests[:1], retry_rejected=True)
    assert again.text


@pytest.mark.parametrize("answered_before", [False, True])
def test_a_key_without_rights_stops_at_once(llm_server, tmp_path, answered_before):
    server = llm_server()
    if answered_before:
        assert all(texts(run(tmp_path / "j", server.base_url, [question()])[0]))
    server.set_faults([{"kind": "forbidden"} | ALWAYS])
    results, _ = run(tmp_path / "j", server.base_url, [question(n) for n in range(1, 40)])
    assert all("check the key in TEST_KEY and what it may use" in str(one) for one in results)
    assert {type(result) for result in results} == {UserError}
    assert server.stats(requests=False)["totals"]["received"] <= 17
    server.set_faults("")
    assert all(texts(run(tmp_path / "j", server.base_url, [question(9)])[0]))


def test_a_journal_of_earlier_versions_whose_burst_was_final(llm_server, tmp_path):
    """99 pairs of a real run: a proxy had answered 400 to 200 requests."""
    server, request = llm_server(), question()
    assert all(texts(run(tmp_path / "j", server.base_url, [question(1)])[0]))
    journal = Journal(tmp_path / "j")
    sent = Sent(journal.new_id(), request.key, "judge", "o3-mini", 0.1)
    journal.write([sent, Received(sent.id, "rejected", "400 : Bad Request")])
    journal.close()
    assert all(texts(run(tmp_path / "j", server.base_url, [request])[0]))


def test_a_request_without_answers_fails_while_others_go_on(llm_server, tmp_path, monkeypatch):
    server = llm_server([{"kind": "500", "times": 10**6, "stage": "generate"}])
    payload = {"query": "q", "passage": "p", "instruction_type": "audience"}
    answered = 0
    clock = SimpleNamespace(monotonic=lambda: float(answered))  # a second per answered request
    monkeypatch.setattr(async_asker, "time", clock)

    async def asked():
        nonlocal answered
        one = Run(tmp_path / "j", server.base_url, give_up_s=10.0)
        doomed = asyncio.create_task(one.ask(GENERATE.request(payload)))
        while not doomed.done():
            await one.ask(question(answered))
            answered += 1
        await one.close()
        return doomed.result()

    assert asyncio.run(asked()).failure == "unanswered"


@pytest.mark.parametrize("burst", [4, 40])
def test_rate_limits_are_respected(llm_server, tmp_path, burst):
    server = llm_server(rate=200, burst=burst)
    results, _ = run(tmp_path / "j", server.base_url, [question(n) for n in range(150)])
    assert all(texts(results))
    refused = server.stats(requests=False)["faults"].get("rate_limit", 0)
    assert refused < 300  # a client that ignores the headers has 450


def test_the_cap_holds_by_the_server_s_count(llm_server, tmp_path):
    lost = [{"kind": kind, "rate": 0.02, "times": 1} for kind in ("drop", "malformed_json")]
    server = llm_server(lost, latency_ms=2)
    price, cap = PRICES["o3-mini"], 0.04
    requests = [question(n) for n in range(250)]
    results, one = run(tmp_path / "j", server.base_url, requests, max_usd=cap)
    assert any(isinstance(result, BudgetReached) for result in results)
    assert sum(isinstance(result, Result) for result in results) > 10
    billed = server.stats(requests=False)["totals"]
    most = (billed["prompt"] * price.input + billed["completion"] * price.output) / 1e6
    assert 0.2 * cap < most <= one.budget.worst_case + 1e-9 <= cap + 2e-9
    results, one = run(tmp_path / "j", server.base_url, requests, max_usd=cap)
    assert one.budget.worst_case <= cap + 1e-9
    results, one = run(tmp_path / "j", server.base_url, requests, max_usd=100.0)
    assert all(texts(results))


def test_stopping_ends_a_pause_and_active_requests_go_on(llm_server, tmp_path):
    rules = [{"kind": "429", "times": 1, "retry_after": "60", "stage": "generate"}]
    server = llm_server(rules, latency_ms=100)
    payload = {"query": "q", "passage": "p", "instruction_type": "audience"}

    async def asked():
        one = Run(tmp_path / "j", server.base_url, give_up_s=100.0)
        slow = [asyncio.create_task(one.ask(question(n))) for n in range(4)]
        while server.stats(requests=False)["totals"]["received"] < 4:
            await asyncio.sleep(0.01)
        paused = asyncio.create_task(one.ask(GENERATE.request(payload)))
        later = asyncio.create_task(one.ask(question(99)))
        results = await asyncio.gather(*slow)
        while one.ask.limiter.active:
            await asyncio.sleep(0.01)
        one.ask.stop(UserError("interrupted"))
        ended = await asyncio.gather(paused, later, return_exceptions=True)
        await one.close()
        return results, ended

    results, ended = asyncio.run(asked())
    assert all(texts(results))
    assert "interrupted" in str(ended[0])


def test_the_answer_of_a_cancelled_call_is_kept(llm_server, tmp_path):
    server = llm_server(latency_ms=50)

    async def asked():
        one = Run(tmp_path / "j", server.base_url)
        task = asyncio.create_task(one.ask(question()))
        while not server.stats(requests=False)["totals"]["received"]:
            await asyncio.sleep(0.005)
        task.cancel()
        await one.close()

    asyncio.run(asked())
    [result], _ = run(tmp_path / "j", server.base_url, [question()])
    assert result.text and server.stats(requests=False)["totals"]["received"] == 1


def test_an_error_in_writing_reaches_those_who_wait(tmp_path):
    async def written():
        journal = Journal(tmp_path / "j")
        writer = JournalWriter(journal)
        rows = [Sent(journal.new_id(), "k", "judge", "m", 0.1) for _ in range(5)]
        await asyncio.gather(*map(writer.write, rows))
        with pytest.raises(UserError):
            await writer.write(rows[0])  # its id is taken
        with pytest.raises(UnicodeEncodeError):
            await writer.write(Received(rows[0].id, ANSWER, "\ud800"))
        await writer.write(Received(rows[0].id, ANSWER, "{}"))
        assert journal.outcomes("k") == [(ANSWER, "{}")]
        journal.close()

    asyncio.run(asyncio.wait_for(written(), 60))


def test_answers_match_the_schema(calm_server, tmp_path):
    results, _ = run(tmp_path / "j", calm_server.base_url, [question(7)])
    assert set(json.loads(results[0].text)) == {"reason", "relevant"}
