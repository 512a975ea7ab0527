"""Batches across kills and outages: found again, never submitted twice, given up on demand."""

import asyncio

import pytest

from data_pipeline.llm import batch_api
from data_pipeline.llm.budget import price_of
from inf_jax.core.errors import UserError
from tests.data_pipeline.llm.batch_runs import MODEL, Run, batches, names, questions, submitted

STUCK = [{"kind": "batch_stuck"}]


@pytest.fixture(autouse=True)
def one_try(monkeypatch):
    """The client's own retries, which wait longer each time, are left to its authors."""
    monkeypatch.setattr(batch_api, "_RETRIES", 0)


@pytest.mark.parametrize("kind", ["batch_create_lost", "batch_create_500"])
def test_a_lost_reply_does_not_submit_twice(llm_server, tmp_path, kind):
    server = llm_server([{"kind": kind, "times": 1}])
    Run(tmp_path, server.base_url).ask(questions(10))
    assert len(names(server)) == 1


def test_a_killed_run_finds_its_batches_again(llm_server, tmp_path):
    server = llm_server(STUCK)
    run = Run(tmp_path, server.base_url)
    (tmp_path / "batches").mkdir()
    for name in ("0123.jsonl", "4567.jsonl.partial-1-2"):  # left by other kills
        (tmp_path / "batches" / name).touch()
    run.ask_until(questions(20), lambda: len(batches(server)) == 2)
    assert run.spent[1] > 0  # possibly billed
    server.set_faults("")
    answers = run.ask(questions(20))
    assert all('"relevant"' in text for text in answers)
    assert len(names(server)) == len(set(names(server))) == 2
    assert run.spent[0] > 0 and run.spent[1] == 0
    assert not list((tmp_path / "batches").iterdir())


def test_a_run_killed_before_it_knows_of_its_batch(llm_server, tmp_path):
    """The batch exists, but the journal has only its file: it is found by name."""
    server = llm_server()
    run = Run(tmp_path, server.base_url)
    run.ask(questions(3))

    async def forget():
        async with run.asker() as asker:
            lifecycle = asker._lifecycle
            planned = [(r, 0.01) for r in questions(8)[3:]]
            name, _ = lifecycle.plan(planned)
            file = await lifecycle._upload(name)
            await lifecycle._api.create(file, name)  # ... and the reply is never written

    asyncio.run(forget())
    assert len(names(server)) == 2
    assert all('"relevant"' in text for text in run.ask(questions(8)))
    assert len(names(server)) == len(set(names(server))) == 2


def test_an_outage_of_the_server(llm_server, tmp_path, monkeypatch):
    server = llm_server(STUCK, state=tmp_path / "server")
    run = Run(tmp_path / "run", server.base_url)
    noticed = asyncio.Event()

    class Unreachable(batch_api.Unreachable):
        def __init__(self, *args):
            super().__init__(*args)
            noticed.set()

    monkeypatch.setattr(batch_api, "Unreachable", Unreachable)

    async def asked():
        async with run.asker() as asker:
            tasks = [asyncio.create_task(asker(request)) for request in questions(10)]
            while not await asyncio.to_thread(lambda: batches(server)):
                await asyncio.sleep(0.01)
            server.kill()
            await noticed.wait()
            await asyncio.to_thread(server.restart)
            server.set_faults("")
            return await asyncio.gather(*tasks)

    assert all('"relevant"' in result.text for result in asyncio.run(asked()))
    assert len(set(names(server))) == len(names(server))


def test_an_endpoint_without_batches_says_what_to_do(tmp_path, llm_server):
    server = llm_server()
    base_url = server.base_url + "/nothing"
    with pytest.raises(UserError, match=r"llm\.mode=async"):
        Run(tmp_path, base_url).ask(questions(2))


def test_a_server_that_never_answers_ends_the_run(tmp_path):
    run = Run(tmp_path, "http://127.0.0.1:9/v1", give_up_s=0.1)
    with pytest.raises(UserError, match="all answers are kept"):
        run.ask(questions(2))


def test_unsubmitted_requests_are_sent_anew_only_if_needed(llm_server, tmp_path):
    run = Run(tmp_path, "http://127.0.0.1:9/v1", give_up_s=0.1)
    with pytest.raises(UserError):
        run.ask(questions(10))  # planned and never uploaded
    assert run.spent[1] > 0
    server = llm_server()
    most = price_of(MODEL).upper_bound(questions(1)[0], batch=True)
    poor = Run(tmp_path, server.base_url, max_usd=0.5 * most)
    with pytest.raises(UserError, match="the cap of"):
        poor.ask(questions(10))
    assert not batches(server) and poor.spent == (0, 0)
    assert len(Run(tmp_path, server.base_url).ask(questions(3))) == 3
    assert [b["request_counts"]["total"] for b in batches(server)] == [3]


def test_a_batch_that_no_longer_exists_is_given_up_on_demand(llm_server, tmp_path):
    server = llm_server(STUCK)
    run = Run(tmp_path, server.base_url)
    run.ask_until(questions(5), lambda: submitted(tmp_path) == 1)
    other = Run(tmp_path, llm_server().base_url)
    with pytest.raises(UserError, match="--forget-batches"):
        other.ask(questions(5))

    async def forget():
        async with other.asker() as asker:
            await asker.settle()
            return asker._lifecycle.forget()

    assert asyncio.run(forget()) == 1
    assert other.spent[1] > 0  # stays possibly billed
    assert all('"relevant"' in text for text in other.ask(questions(5)))
