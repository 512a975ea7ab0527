"""Asking through the journal: once, within the limits, to an end, against the local server."""

import asyncio
import json
import logging
import socket

import pytest

from data_pipeline.llm import async_asker
from data_pipeline.llm.ask import Result, recorded_result
from data_pipeline.llm.async_asker import AsyncAsker, JournalWriter
from data_pipeline.llm.budget import Budget, BudgetReached, price_of
from data_pipeline.llm.client import Endpoint, Reply
from data_pipeline.llm.journal import ANSWER, UNKNOWN, UNPAID, UNUSABLE, Journal, Received, Sent
from data_pipeline.llm.limiter import Limiter
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
    """One process's asking; a new one on the same path is the next run."""

    def __init__(self, path, base_url, *, max_usd=None, **options):
        self.journal = Journal(path)
        endpoint = Endpoint(base_url=base_url, key_env="TEST_KEY", timeout_s=options.pop("t", 5.0))
        self.budget = Budget(self.journal, max_usd)
        settings = {"concurrency": 16, "max_attempts": 3, "give_up_s": 5.0} | options
        self.ask = AsyncAsker(endpoint, self.journal, self.budget, PRICES, **settings)
        self._endpoint = endpoint

    async def close(self):
        await self.ask.settle()
        await self._endpoint.close()
        self.journal.close()


def run(path, base_url, requests, **options):
    """(results or errors, the run) after all have been asked at once."""

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


def test_under_faults_the_same_as_without_and_nothing_twice(llm_server, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    requests = [question(n) for n in range(200)]
    calm, stormy = llm_server(), llm_server("all", latency_ms=2)
    expected, _ = run(tmp_path / "calm.sqlite", calm.base_url, requests)
    results, one = run(tmp_path / "stormy.sqlite", stormy.base_url, requests, t=3.0, give_up_s=60.0)
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


def test_the_cost_is_what_the_server_billed(llm_server, tmp_path):
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


def test_an_answer_without_usage_costs_the_most(llm_server, tmp_path):
    server, request = llm_server([{"kind": "no_usage"}]), question()
    [result], one = run(tmp_path / "j", server.base_url, [request])
    assert result.text
    assert one.budget.usd == pytest.approx(PRICES["o3-mini"].upper_bound(request, batch=False))


@pytest.mark.parametrize("kind", UNUSABLE)
def test_useless_answers_are_paid_and_end(llm_server, tmp_path, kind):
    fault = "wrong_schema" if kind == "schema" else kind
    server = llm_server([{"kind": fault, "times": 99}])
    [result], one = run(tmp_path / "j", server.base_url, [question()])
    assert (result.failure, result.text) == (kind, "")
    assert server.stats(requests=False)["totals"]["received"] == 3
    assert one.budget.usd > 0
    [again], _ = run(tmp_path / "j", server.base_url, [question()])
    assert again.failure == kind
    assert server.stats(requests=False)["totals"]["received"] == 3
    server.set_faults("")  # more attempts than before: asked again
    [better], _ = run(tmp_path / "j", server.base_url, [question()], max_attempts=4)
    assert better.text


def test_the_same_question_of_two_records_is_one(llm_server, tmp_path):
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
def test_what_stops_a_run_keeps_all_and_the_next_goes_on(
    llm_server, tmp_path, server, options, says
):
    bad = llm_server(**server)
    requests = [question(n) for n in range(40)]
    results, _ = run(tmp_path / "j", bad.base_url, requests, **options)
    assert {type(result) for result in results} == {UserError}
    assert all(says in str(result) for result in results)
    assert KEY not in str(results)
    good = llm_server()
    results, _ = run(tmp_path / "j", good.base_url, requests)
    assert all(texts(results))


def test_one_question_alone_is_enough_to_see_that_none_is_taken(llm_server, tmp_path):
    server = llm_server(max_context=1)
    [result], _ = run(tmp_path / "j", server.base_url, [question()])
    assert "accepts no request of the stage judge" in str(result)
    assert server.stats(requests=False)["totals"]["received"] == 3


def test_nobody_there(tmp_path):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}/v1"
        results, one = run(tmp_path / "j", url, [question(n) for n in range(20)])
    assert all("cannot be reached" in str(result) for result in results)
    assert one.budget.worst_case == pytest.approx(0)


def test_a_server_that_comes_back(llm_server, tmp_path):
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


def test_a_rejected_question_is_not_asked_again(llm_server, tmp_path):
    server = llm_server(max_context=2000)
    long = question(0, passage="word " * 9000)
    results, _ = run(tmp_path / "j", server.base_url, [long, *(question(n) for n in range(30))])
    assert results[0].failure == "rejected"
    assert all(texts(results[1:]))
    before = server.stats(requests=False)["totals"]["received"]
    [result], _ = run(tmp_path / "j", server.base_url, [long])
    assert result.failure == "rejected"
    assert server.stats(requests=False)["totals"]["received"] == before


def test_a_question_that_never_gets_an_answer_ends_while_others_go_on(
    llm_server, tmp_path, monkeypatch
):
    server = llm_server([{"kind": "500", "times": 10**6, "stage": "generate"}])
    payload = {"query": "q", "passage": "p", "instruction_type": "audience"}

    async def asked():
        one = Run(tmp_path / "j", server.base_url, give_up_s=0.5)
        doomed = asyncio.create_task(one.ask(GENERATE.request(payload)))
        number = 0
        while not doomed.done():
            number += 1
            await one.ask(question(number))
        await one.close()
        return doomed.result()

    assert asyncio.run(asked()).failure == "unanswered"


@pytest.mark.parametrize("burst", [4, 40])
def test_a_rate_limit_is_kept_to(llm_server, tmp_path, burst):
    server = llm_server(rate=200, burst=burst)
    results, _ = run(tmp_path / "j", server.base_url, [question(n) for n in range(150)])
    assert all(texts(results))
    refused = server.stats(requests=False)["faults"].get("rate_limit", 0)
    assert refused < 300  # the headers say when a limit is used up; who ignores them has 450


def test_the_cap_holds_by_the_server_s_own_count(llm_server, tmp_path):
    server = llm_server("lost", latency_ms=2)
    price, cap = PRICES["o3-mini"], 0.04
    requests = [question(n) for n in range(250)]
    results, one = run(tmp_path / "j", server.base_url, requests, max_usd=cap, t=1.5)
    assert any(isinstance(result, BudgetReached) for result in results)
    assert sum(isinstance(result, Result) for result in results) > 10
    billed = server.stats(requests=False)["totals"]
    most = (billed["prompt"] * price.input + billed["completion"] * price.output) / 1e6
    assert 0.2 * cap < most <= one.budget.worst_case + 1e-9 <= cap + 2e-9
    results, one = run(tmp_path / "j", server.base_url, requests, max_usd=cap, t=1.5)
    assert one.budget.worst_case <= cap + 1e-9
    results, one = run(tmp_path / "j", server.base_url, requests, max_usd=100.0, t=1.5)
    assert all(texts(results))


def test_stopping_ends_a_pause_and_lets_what_is_under_way_end(llm_server, tmp_path):
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


def test_a_cancelled_caller_loses_no_answer(llm_server, tmp_path):
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


def test_known(tmp_path):
    journal = Journal(tmp_path / "j")

    def add(key, outcome, text=""):
        sent = Sent(journal.new_id(), key, "judge", "m", 0.1)
        journal.write([sent, Received(sent.id, outcome, text)])

    assert recorded_result(journal, "k", 2) is None
    for outcome in (UNPAID, UNKNOWN, "schema"):
        add("k", outcome)
        assert recorded_result(journal, "k", 2) is None
    add("k", "refusal")
    assert recorded_result(journal, "k", 2).failure == "refusal"
    assert recorded_result(journal, "k", 3) is None
    add("k", ANSWER, "{}")
    assert recorded_result(journal, "k", 2).text == "{}"
    journal.close()


def test_the_writer_tells_those_who_wait_of_any_error(tmp_path):
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

    asyncio.run(asyncio.wait_for(written(), 10))


class Clock:
    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(async_asker.time, "monotonic", lambda: self.now)


def test_the_limit_grows_and_shrinks(monkeypatch):
    clock, limiter = Clock(monkeypatch), Limiter(100)
    good, slow = Reply(ANSWER, ""), Reply(UNPAID, "", slow_down=True)
    assert limiter.limit == 8
    for _ in range(8):
        limiter.adapt(good)
    assert limiter.limit == 16  # twice as many a round
    for _ in range(200):
        limiter.adapt(good)
    assert limiter.limit == 100
    for _ in range(50):
        limiter.adapt(slow)
    assert limiter.limit == 70  # all those under way are one event
    for _ in range(70):
        limiter.adapt(good)
    assert 70.9 < limiter.limit < 71  # from now on one more a round
    for _ in range(50):
        clock.now += 1
        limiter.adapt(slow)
    assert limiter.limit == 1
    limiter.adapt(Reply("schema", ""))
    assert limiter.limit == 1
    assert Limiter(3).limit == 3


def test_the_limiter_never_lets_in_more_and_forgets_nobody():
    async def entered():
        limiter, active, most, done = Limiter(50), 0, 0, 0

        async def one(number):
            nonlocal active, most, done
            async with limiter.slot(number % 3):
                active += 1
                most = max(most, active)
                assert active <= max(limiter.limit, 50 * 0.7**4)
                await asyncio.sleep(0.001 * (number % 3))
                kind = number % 40
                slow = kind == 0
                wait = 0.01 if kind in (0, 20) else None
                limiter.adapt(Reply(UNPAID if slow else ANSWER, "", wait_s=wait, slow_down=slow))
                active -= 1
                done += 1

        await asyncio.wait_for(asyncio.gather(*map(one, range(2000))), 60)
        return most, done, limiter

    most, done, limiter = asyncio.run(entered())
    assert done == 2000
    assert 8 < most <= limiter.highest <= 50 and limiter.active == 0  # highest: with those let in


def test_what_ends_an_example_goes_first_and_who_gives_up_keeps_no_place():
    async def entered():
        limiter, order = Limiter(1), []

        async def one(rank):
            async with limiter.slot(rank):
                order.append(rank)
                await asyncio.sleep(0.001)

        tasks = [asyncio.create_task(one(rank)) for rank in (2, 2, 1, 0, 1, 0)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return order, limiter.active

    assert asyncio.run(entered()) == ([2, 0, 0, 1, 1], 0)


def test_answers_pass_the_schema(calm_server, tmp_path):
    results, _ = run(tmp_path / "j", calm_server.base_url, [question(7)])
    assert set(json.loads(results[0].text)) == {"reason", "relevant"}
