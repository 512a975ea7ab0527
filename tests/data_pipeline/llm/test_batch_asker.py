"""Asking by the Batch API: what is submitted, found again, asked again, and waited for."""

import asyncio
import contextlib
import json
import sqlite3
from pathlib import Path

import pytest

from data_pipeline.llm.batch_api import BatchApi, _objects
from data_pipeline.llm.batch_asker import BatchAsker
from data_pipeline.llm.batch_lifecycle import BatchLifecycle
from data_pipeline.llm.budget import Budget, price_of
from data_pipeline.llm.client import Endpoint
from data_pipeline.llm.journal import Journal
from data_pipeline.llm.request import Prompt, Request, RequestTemplate
from inf_jax.core.errors import UserError

MODEL = "gpt-4o-mini"
ASKER = RequestTemplate("judge", MODEL, Prompt.read("judge_v1"), 200)


def questions(count: int) -> list[Request]:
    """Different ones."""
    return [
        ASKER.request({"instruction": "i", "query": f"query {n}", "passage": "a passage"})
        for n in range(count)
    ]


class Run:
    """A process's worth of asking, in one event loop."""

    def __init__(self, directory: Path, base_url: str, *, size=10, max_usd=None, give_up_s=30.0):
        self.directory, self._base_url = directory, base_url
        self._size, self._max_usd, self._give_up_s = size, max_usd, give_up_s

    @contextlib.asynccontextmanager
    async def asker(self):
        """The asker; afterwards all is closed, as at the end of a process."""
        journal = Journal(self.directory / "journal.sqlite")
        endpoint = Endpoint(base_url=self._base_url, key_env="NO_SUCH_KEY", timeout_s=5.0)
        lifecycle = BatchLifecycle(
            endpoint,
            journal,
            self.directory / "batches",
            poll_s=0.05,
            give_up_s=self._give_up_s,
        )
        self.budget = Budget(journal, self._max_usd)
        asker = BatchAsker(
            endpoint,
            journal,
            self.budget,
            {MODEL: price_of(MODEL)},
            lifecycle=lifecycle,
            batch_requests=self._size,
            max_attempts=3,
        )
        try:
            yield asker
        finally:
            await asker.settle()
            await endpoint.close()
            self.spent = journal.spent()
            journal.close()

    def ask(self, requests: list[Request]) -> list[str]:
        """The answers, or the error of any."""

        async def run():
            async with self.asker() as asker:
                return await asyncio.gather(*map(asker, requests))

        return [result.text or result.failure for result in asyncio.run(run())]

    def ask_until(self, requests: list[Request], condition) -> None:
        """Asks, and ends as a killed process would as soon as the condition holds."""

        async def run():
            async with self.asker() as asker:
                tasks = [asyncio.create_task(asker(request)) for request in requests]
                while not await asyncio.to_thread(condition):
                    await asyncio.sleep(0.01)
                for task in tasks:
                    task.cancel()

        asyncio.run(run())


def batches(server) -> list[dict]:
    """The server's, by its own account."""
    return server.stats(requests=False)["batches"]


def submitted(directory: Path) -> int:
    """Batches of which the journal knows that they were."""
    journal = directory / "journal.sqlite"
    with contextlib.closing(sqlite3.connect(f"file:{journal}?mode=ro", uri=True)) as db:
        query = "SELECT count(*) FROM batch_events WHERE event = 'submitted'"
        return db.execute(query).fetchone()[0]


def names(server) -> list[str]:
    """Our names of them, each once where none was submitted twice."""
    return [batch["metadata"]["inf_jax_batch"] for batch in batches(server)]


def test_batches_are_of_the_asked_size_and_equal_questions_are_one(llm_server, tmp_path):
    server = llm_server()
    run = Run(tmp_path, server.base_url)
    asked = questions(25)
    answers = run.ask(asked + asked[:5])
    assert answers[:5] == answers[25:] and all('"relevant"' in text for text in answers)
    assert sorted(b["request_counts"]["total"] for b in batches(server)) == [5, 10, 10]
    assert run.ask(asked) == answers[:25]  # from the journal
    assert len(batches(server)) == 3
    assert run.spent[0] > 0 and run.spent[1] == 0
    assert not list((tmp_path / "batches").iterdir())


def test_what_failed_or_is_missing_is_asked_again_alone(llm_server, tmp_path):
    rules = [{"kind": kind, "rate": 0.3, "times": 1} for kind in ("row_500", "row_missing")]
    server = llm_server(rules)
    answers = Run(tmp_path, server.base_url).ask(questions(20))
    assert all('"relevant"' in text for text in answers)
    counts = [batch["request_counts"]["total"] for batch in batches(server)]
    assert counts[:2] == [10, 10] and 20 < sum(counts) < 40
    answered = [each["answered"] for each in server.stats()["requests"].values()]
    assert len(answered) == 20


@pytest.mark.parametrize("kind", ["batch_create_lost", "batch_create_500"])
def test_a_lost_reply_to_a_submission_is_no_second_batch(llm_server, tmp_path, kind):
    server = llm_server([{"kind": kind, "times": 1}])
    Run(tmp_path, server.base_url).ask(questions(10))
    assert len(names(server)) == 1


def test_a_run_that_is_killed_finds_its_batches_again(llm_server, tmp_path):
    server = llm_server(batch_step_s=0.3)
    run = Run(tmp_path, server.base_url)
    (tmp_path / "batches").mkdir()
    for name in ("0123.jsonl", "4567.jsonl.partial-1-2"):  # what other kills have left
        (tmp_path / "batches" / name).touch()
    run.ask_until(questions(20), lambda: len(batches(server)) == 2)
    assert run.spent[1] > 0  # all of it may still be billed
    answers = run.ask(questions(20))
    assert all('"relevant"' in text for text in answers)
    assert len(names(server)) == len(set(names(server))) == 2
    assert run.spent[0] > 0 and run.spent[1] == 0
    assert not list((tmp_path / "batches").iterdir())


def test_one_that_is_killed_before_it_knows_of_its_batch(llm_server, tmp_path):
    """The batch exists, and the journal has only the file: it is found by its name."""
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


def test_a_server_that_is_away_for_a_while(llm_server, tmp_path):
    server = llm_server(state=tmp_path / "server", batch_step_s=0.3)
    run = Run(tmp_path / "run", server.base_url)

    async def asked():
        async with run.asker() as asker:
            tasks = [asyncio.create_task(asker(request)) for request in questions(10)]
            while not await asyncio.to_thread(lambda: batches(server)):
                await asyncio.sleep(0.01)
            server.kill()
            await asyncio.sleep(0.5)
            await asyncio.to_thread(server.restart)
            return await asyncio.gather(*tasks)

    assert all('"relevant"' in result.text for result in asyncio.run(asked()))
    assert len(set(names(server))) == len(names(server))


def test_batches_that_give_nothing_end_the_run(llm_server, tmp_path):
    server = llm_server([{"kind": "batch_failed", "times": 10**6}])
    with pytest.raises(UserError, match=r"batches in a row gave no answer.*failed"):
        Run(tmp_path, server.base_url).ask(questions(4))
    assert 3 <= len(batches(server)) <= 60


def test_failures_that_come_before_the_answers_do_not_end_the_run(llm_server, tmp_path):
    server = llm_server([{"kind": "batch_expired", "times": 1, "rate": 0.4, "fraction": 0}])
    answers = Run(tmp_path, server.base_url, size=1).ask(questions(40))
    assert all('"relevant"' in text for text in answers)
    expired = [batch for batch in batches(server) if batch["status"] == "expired"]
    assert len(expired) > 10


def test_more_tokens_than_may_be_enqueued_make_smaller_batches(llm_server, tmp_path):
    server = llm_server(batch_tokens=3000)
    answers = Run(tmp_path, server.base_url, size=32).ask(questions(32))
    assert all('"relevant"' in text for text in answers)
    counts = [b["request_counts"]["total"] for b in batches(server) if b["status"] == "completed"]
    assert sum(counts) == 32 and max(counts) < 32


def test_an_endpoint_without_batches_says_what_to_do(tmp_path, llm_server):
    server = llm_server()
    base_url = server.base_url + "/nothing"
    with pytest.raises(UserError, match=r"llm\.mode=async"):
        Run(tmp_path, base_url).ask(questions(2))


def test_one_that_is_silent_ends_the_run_in_time(tmp_path):
    run = Run(tmp_path, "http://127.0.0.1:9/v1", give_up_s=0.1)
    with pytest.raises(UserError, match="all answers are kept"):
        run.ask(questions(2))


def test_the_cap_holds_and_an_earlier_batch_frees_what_it_did_not_need(llm_server, tmp_path):
    server = llm_server(batch_step_s=0.3)
    most = price_of(MODEL).upper_bound(questions(1)[0], batch=True)
    cap = 12 * most
    first = Run(tmp_path, server.base_url, max_usd=cap)
    first.ask_until(questions(10), lambda: len(batches(server)) == 1)
    # ten of twelve are set aside for the batch under way; when it ends there is room for all
    second = Run(tmp_path, server.base_url, max_usd=cap)
    answers = second.ask(questions(30))
    assert all('"relevant"' in text for text in answers)
    assert sum(second.spent) <= cap
    third = Run(tmp_path / "third", server.base_url, max_usd=0.5 * most)
    with pytest.raises(UserError, match="the cap of"):
        third.ask(questions(2))


def test_what_was_never_submitted_is_asked_anew_only_if_it_is_wanted(llm_server, tmp_path):
    run = Run(tmp_path, "http://127.0.0.1:9/v1", give_up_s=0.1)
    with pytest.raises(UserError):
        run.ask(questions(10))  # planned, and that is all
    assert run.spent[1] > 0
    server = llm_server()
    most = price_of(MODEL).upper_bound(questions(1)[0], batch=True)
    poor = Run(tmp_path, server.base_url, max_usd=0.5 * most)
    with pytest.raises(UserError, match="the cap of"):
        poor.ask(questions(10))
    assert not batches(server) and poor.spent == (0, 0)
    assert len(Run(tmp_path, server.base_url).ask(questions(3))) == 3
    assert [b["request_counts"]["total"] for b in batches(server)] == [3]


def test_a_batch_that_is_gone_is_given_up_on_demand(llm_server, tmp_path):
    server = llm_server(batch_step_s=0.3)
    run = Run(tmp_path, server.base_url)
    # what was killed before it knew of the submission is looked for by name, and asked anew
    run.ask_until(questions(5), lambda: submitted(tmp_path) == 1)
    other = Run(tmp_path, llm_server().base_url)
    with pytest.raises(UserError, match="--forget-batches"):
        other.ask(questions(5))

    async def forget():
        async with other.asker() as asker:
            await asker.settle()
            return asker._lifecycle.forget()

    assert asyncio.run(forget()) == 1
    assert other.spent[1] > 0  # it may have been billed: that stays counted
    assert all('"relevant"' in text for text in other.ask(questions(5)))


def test_a_question_that_never_gets_an_answer_ends_and_the_rest_stays(
    llm_server, tmp_path, monkeypatch
):
    *_, doomed = asked = questions(5)
    failed = {"status_code": 500, "body": {"error": {"message": "always"}}}
    altered(
        monkeypatch,
        lambda row: row | ({"response": failed} if row["custom_id"] == doomed.key else {}),
        always=True,
    )
    server = llm_server()
    answers = Run(tmp_path, server.base_url).ask(asked)
    assert all('"relevant"' in text for text in answers[:4])
    assert answers[4] == "unanswered"
    assert Run(tmp_path, server.base_url).ask([doomed]) == ["unanswered"]  # alone, it ends too


def altered(monkeypatch, change, *, always=False) -> None:
    """The rows of the first result file, or of all, are changed as they arrive."""
    rows_of, seen = BatchApi.rows, []

    async def rows(self, file):
        found = await rows_of(self, file)
        if file and (always or not seen):
            seen.append(file)
            found = [change(row) for row in found]
        return found

    monkeypatch.setattr(BatchApi, "rows", rows)


@pytest.mark.parametrize("response", ["abc", None, {"status_code": 200, "body": "x"}, {"x": []}])
def test_a_malformed_row_is_asked_again(llm_server, tmp_path, monkeypatch, response):
    altered(monkeypatch, lambda row: row | {"response": response})
    run = Run(tmp_path, llm_server().base_url)
    assert all('"relevant"' in text for text in run.ask(questions(4)))
    assert run.spent[1] > 0  # the first may have been billed


def test_rows_that_are_all_refused_are_no_end_of_their_questions(llm_server, tmp_path, monkeypatch):
    error = {"code": "billing_hard_limit_reached", "message": "limit"}
    response = {"status_code": 400, "body": {"error": error}}
    server = llm_server()
    with monkeypatch.context() as patch:
        altered(patch, lambda row: row | {"response": response})
        with pytest.raises(UserError, match="check the account"):
            Run(tmp_path, server.base_url).ask(questions(4))
    assert all('"relevant"' in text for text in Run(tmp_path, server.base_url).ask(questions(4)))


def test_a_bug_ends_the_run_and_nobody_waits_for_ever(llm_server, tmp_path, monkeypatch):
    async def state(self, batch):
        raise RuntimeError("a bug")

    monkeypatch.setattr(BatchApi, "state", state)
    with pytest.raises(RuntimeError, match="a bug"):
        Run(tmp_path, llm_server().base_url).ask(questions(2))


def test_only_a_line_feed_ends_a_row():
    row = {"custom_id": "k", "text": "a\u2028b\u2029c\x85d\x0be"}
    data = json.dumps(row, ensure_ascii=False).encode() + b'\nno json\n{"custom_id": "l"}\n'
    assert list(_objects(data)) == [row, {"custom_id": "l"}]
