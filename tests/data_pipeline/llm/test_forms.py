"""Endpoints that take fewer fields than OpenAI's: the form of requests is found once a run."""

import asyncio

import pytest

from data_pipeline.llm.async_asker import AsyncAsker
from data_pipeline.llm.budget import Budget, BudgetReached, Price
from data_pipeline.llm.client import Endpoint
from data_pipeline.llm.journal import Journal
from data_pipeline.llm.request import FORMATS, LIMITS, Prompt, RequestTemplate, form_of, in_form
from tests.data_pipeline.llm import batch_runs

PROMPT, PRICE = Prompt.read("judge_v1"), Price(1.0, 1.0, 10.0)
FORMS = [(f, t) for f in FORMATS for t in LIMITS]


def template(**changes):
    return RequestTemplate("judge", "local", PROMPT, 200, **changes)


def questions(count, **changes):
    payload = {"instruction": "Statistics only.", "passage": "."}
    return [template(**changes).request(payload | {"query": f"q {n}"}) for n in range(count)]


def run(path, server, requests, *, max_usd=None):
    """(results or errors, USD possibly spent) of a run that asks all at once."""

    async def asked():
        journal = Journal(path)
        budget = Budget(journal, max_usd)
        endpoint = Endpoint(base_url=server.base_url, key_env="", timeout_s=60.0)
        options = {"concurrency": 16, "max_attempts": 3, "give_up_s": 60.0}
        asker = AsyncAsker(endpoint, journal, budget, {"local": PRICE}, **options)
        results = await asyncio.gather(*map(asker, requests), return_exceptions=True)
        await asker.settle()
        await endpoint.close()
        journal.close()
        return results, budget.worst_case

    return asyncio.run(asked())


def received(server):
    return server.stats(requests=False)["totals"]["received"]


@pytest.mark.parametrize("form", FORMS)
def test_the_form_is_found_and_said_once(llm_server, tmp_path, capsys, form):
    server = llm_server(formats=form[0], limits=form[1])
    requests = questions(30)
    results, _ = run(tmp_path / "j", server, requests)
    assert all(one.text for one in results)
    said = capsys.readouterr().out
    steps = FORMATS.index(form[0]) + LIMITS.index(form[1])
    assert said.count("the endpoint does not take") == steps == said.count("\n")
    assert received(server) <= 30 + 8 * steps  # the first requests find it
    before = received(server)
    assert run(tmp_path / "j", server, requests)[0] == results  # the keys are the same
    assert received(server) == before


def test_a_form_given_by_the_stage_is_not_tried(llm_server, tmp_path, capsys):
    server = llm_server(formats="json_object", limits="max_tokens")
    given = {"response_format": "json_object", "token_limit": "max_tokens"}
    results, _ = run(tmp_path / "j", server, questions(9, **given))
    assert all(one.text for one in results)
    assert received(server) == 9 and not capsys.readouterr().out
    results, _ = run(tmp_path / "k", server, questions(9, response_format="json_schema"))
    assert "accepts no request of the stage judge" in str(results[0])
    assert "by the stage's response_format and token_limit" in str(results[0])


def test_the_key_is_that_of_the_whole_request():
    whole = questions(1)[0]
    for form in FORMS:
        given = dict(zip(("response_format", "token_limit"), form, strict=True))
        request = questions(1, **given)[0]
        sent = in_form(request, *form)
        assert request.key == sent.key == whole.key and request.body == whole.body
        assert form_of(sent) == form and sent.max_completion_tokens == 200
        assert sent.bytes >= whole.bytes
        assert ("relevant" in sent.body["messages"][0]["content"].split("Schema: ")[-1]) or (
            form[0] == "json_schema"
        )
    assert template().settings() == template(response_format="none").settings()


def test_a_format_that_is_taken_and_ignored(llm_server, tmp_path, capsys):
    server = llm_server(ignores_format=1)
    results, _ = run(tmp_path / "j", server, questions(20))
    assert all(one.text for one in results)
    assert "does not heed response_format json_schema" in capsys.readouterr().out


@pytest.mark.parametrize("heeds", ["max_tokens", "none"])
def test_the_cap_holds_where_a_limit_is_ignored(llm_server, tmp_path, capsys, heeds):
    """Answers of 5,000 tokens where 200 are allowed, at 0.05 USD each."""
    server = llm_server(heeds=heeds, thoughts=5000)
    results, worst = run(tmp_path / "j", server, questions(40), max_usd=0.5)
    billed = server.stats(requests=False)["totals"]
    usd = (billed["prompt"] * PRICE.input + billed["completion"] * PRICE.output) / 1e6
    assert 0.05 < usd <= worst + 1e-9 <= 0.5
    said = capsys.readouterr().out
    assert "does not heed token_limit max_completion_tokens; trying max_tokens" in said
    assert ("heeds no limit of tokens" in said) == (heeds == "none")
    assert any(isinstance(one, BudgetReached) for one in results) == (heeds == "none")
    assert heeds == "none" or all(one.text for one in results)


def test_long_answers_without_usage_count_by_their_bytes(llm_server, tmp_path):
    """20,000 bytes where 200 tokens are allowed."""
    server = llm_server([{"kind": "long", "times": 10**6}])
    results, worst = run(tmp_path / "j", server, questions(40), max_usd=1.0)
    assert any(isinstance(one, BudgetReached) for one in results)
    answered = sum(not isinstance(one, Exception) for one in results)
    assert answered >= 1 and answered * 20_000 * PRICE.output / 1e6 <= worst <= 1.0


@pytest.mark.parametrize("form", [("none", "max_tokens"), ("json_object", "max_completion_tokens")])
def test_batches_find_the_form(llm_server, tmp_path, monkeypatch, form):
    monkeypatch.setattr("data_pipeline.llm.batch_asker._LINGER_S", 0.02)
    server = llm_server(formats=form[0], limits=form[1])
    answers = batch_runs.Run(tmp_path, server.base_url).ask(batch_runs.questions(12))
    assert all('"relevant"' in text for text in answers)
