"""Batches of requests: grouping, retries of failed rows, quota, cap, errors."""

import pytest

from data_pipeline.llm import batch_asker
from data_pipeline.llm.batch_api import BatchApi
from data_pipeline.llm.budget import price_of
from inf_jax.core.errors import UserError
from tests.data_pipeline.llm.batch_runs import MODEL, Run, batches, questions


@pytest.fixture(autouse=True)
def no_linger(monkeypatch):
    """All requests of a test arrive at once."""
    monkeypatch.setattr(batch_asker, "_LINGER_S", 0.02)


def test_batch_size_and_equal_requests(llm_server, tmp_path):
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


def test_only_failed_and_missing_rows_are_sent_again(llm_server, tmp_path):
    rules = [{"kind": kind, "rate": 0.3, "times": 1} for kind in ("row_500", "row_missing")]
    server = llm_server(rules)
    answers = Run(tmp_path, server.base_url).ask(questions(20))
    assert all('"relevant"' in text for text in answers)
    counts = [batch["request_counts"]["total"] for batch in batches(server)]
    assert counts[:2] == [10, 10] and 20 < sum(counts) < 40
    answered = [each["answered"] for each in server.stats()["requests"].values()]
    assert len(answered) == 20


def test_failing_batches_end_the_run(llm_server, tmp_path):
    server = llm_server([{"kind": "batch_failed", "times": 10**6}])
    with pytest.raises(UserError, match=r"batches in a row gave no answer.*failed"):
        Run(tmp_path, server.base_url).ask(questions(4))
    assert 3 <= len(batches(server)) <= 60


def test_failures_before_the_first_answers_do_not_end_the_run(llm_server, tmp_path):
    server = llm_server([{"kind": "batch_expired", "times": 1, "rate": 0.4, "fraction": 0}])
    answers = Run(tmp_path, server.base_url, size=1).ask(questions(40))
    assert all('"relevant"' in text for text in answers)
    expired = [batch for batch in batches(server) if batch["status"] == "expired"]
    assert len(expired) > 10


def test_a_quota_of_enqueued_tokens_makes_smaller_batches(llm_server, tmp_path):
    server = llm_server(batch_tokens=3000)
    answers = Run(tmp_path, server.base_url, size=32).ask(questions(32))
    assert all('"relevant"' in text for text in answers)
    counts = [b["request_counts"]["total"] for b in batches(server) if b["status"] == "completed"]
    assert sum(counts) == 32 and max(counts) < 32


def test_the_cap_holds_and_an_earlier_batch_frees_some_of_it(llm_server, tmp_path):
    server = llm_server([{"kind": "batch_stuck"}])
    most = price_of(MODEL).upper_bound(questions(1)[0], batch=True)
    cap = 12 * most
    first = Run(tmp_path, server.base_url, max_usd=cap)
    first.ask_until(questions(10), lambda: len(batches(server)) == 1)
    # ten of twelve are reserved for the active batch; its end makes room for all
    server.set_faults("")
    second = Run(tmp_path, server.base_url, max_usd=cap)
    answers = second.ask(questions(30))
    assert all('"relevant"' in text for text in answers)
    assert sum(second.spent) <= cap
    third = Run(tmp_path / "third", server.base_url, max_usd=0.5 * most)
    with pytest.raises(UserError, match="the cap of"):
        third.ask(questions(2))


def test_a_request_without_answers_fails_and_others_do_not(llm_server, tmp_path, monkeypatch):
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
    assert Run(tmp_path, server.base_url).ask([doomed]) == ["unanswered"]  # also alone


def altered(monkeypatch, change, *, always=False) -> None:
    """Changes the rows of the first result file, or of all, as they arrive."""
    rows_of, seen = BatchApi.rows, []

    async def rows(self, file):
        found = await rows_of(self, file)
        if file and (always or not seen):
            seen.append(file)
            found = [change(row) for row in found]
        return found

    monkeypatch.setattr(BatchApi, "rows", rows)


@pytest.mark.parametrize("response", ["abc", None, {"status_code": 200, "body": "x"}, {"x": []}])
def test_a_malformed_row_is_sent_again(llm_server, tmp_path, monkeypatch, response):
    altered(monkeypatch, lambda row: row | {"response": response})
    run = Run(tmp_path, llm_server().base_url)
    assert all('"relevant"' in text for text in run.ask(questions(4)))
    assert run.spent[1] > 0  # the first is possibly billed


def test_a_status_as_text(llm_server, tmp_path, monkeypatch):
    altered(monkeypatch, lambda row: row | {"response": row["response"] | {"status_code": "200"}})
    run = Run(tmp_path, llm_server().base_url)
    assert all('"relevant"' in text for text in run.ask(questions(4)))
    assert run.spent[1] == 0


def test_a_fatal_error_in_rows_stops_the_run_and_the_next_goes_on(
    llm_server, tmp_path, monkeypatch
):
    error = {"code": "billing_hard_limit_reached", "message": "limit"}
    response = {"status_code": 400, "body": {"error": error}}
    server = llm_server()
    with monkeypatch.context() as patch:
        altered(patch, lambda row: row | {"response": response})
        with pytest.raises(UserError, match="check the account"):
            Run(tmp_path, server.base_url).ask(questions(4))
    assert all('"relevant"' in text for text in Run(tmp_path, server.base_url).ask(questions(4)))


ALWAYS = {"times": 10**6}


def test_batches_of_rejections_stop_the_run_and_lose_nothing(llm_server, tmp_path):
    server = llm_server()
    first, later = questions(30)[:10], questions(30)[10:]
    Run(tmp_path, server.base_url).ask(first)
    server.set_faults([{"kind": "bad_request"} | ALWAYS])
    with pytest.raises(UserError, match=r"rejects [12]\d requests of the stage judge in a row"):
        Run(tmp_path, server.base_url).ask(later)
    server.set_faults("")
    answers = Run(tmp_path, server.base_url).ask(first + later)
    assert all('"relevant"' in text for text in answers)


@pytest.mark.parametrize("kind", ["moderated", "forbidden", "bad_request"])
def test_a_rejected_row_does_not_stop_the_others(llm_server, tmp_path, kind):
    server = llm_server([{"kind": kind, "contains": "query 3"} | ALWAYS])
    answers = Run(tmp_path, server.base_url).ask(questions(10))
    assert answers.pop(3) == ("moderated" if kind == "moderated" else "rejected")
    assert all('"relevant"' in text for text in answers)
    assert len(batches(server)) == 1


@pytest.mark.parametrize("kind", ["fence", "think", "parts", "bom", "prose", "as_thoughts"])
def test_wrapped_answers_in_rows(llm_server, tmp_path, kind):
    server = llm_server([{"kind": kind} | ALWAYS])
    assert all('"relevant"' in text for text in Run(tmp_path, server.base_url).ask(questions(3)))


def test_a_bug_reaches_the_callers(llm_server, tmp_path, monkeypatch):
    async def state(self, batch):
        raise RuntimeError("a bug")

    monkeypatch.setattr(BatchApi, "state", state)
    with pytest.raises(RuntimeError, match="a bug"):
        Run(tmp_path, llm_server().base_url).ask(questions(2))
