"""The local server behaves as the real API's documentation says, seen through OpenAI's client."""

import io
import json
import time

import openai
import pytest

from data_pipeline.llm.request import Prompt, RequestTemplate

QUERY = "what causes night blindness"
PASSAGE = "Night blindness comes from a lack of vitamin A. It can also be inherited. Eat carrots."


def template(stage, model="gpt-4o-mini"):
    return RequestTemplate(stage, model, Prompt.read(f"{stage}_v1"), 4000)


def generate(number=0, kind="audience"):
    payload = {"query": f"{QUERY} {number}", "passage": PASSAGE, "instruction_type": kind}
    return template("generate").request(payload).body


def rows_of(bodies):
    return "".join(
        json.dumps(
            {"custom_id": f"row-{n}", "method": "POST", "url": "/v1/chat/completions", "body": body}
        )
        + "\n"
        for n, body in enumerate(bodies)
    ).encode()


def submit(client, data, **more):
    file = client.files.create(file=("in.jsonl", io.BytesIO(data)), purpose="batch")
    assert file.bytes == len(data)
    return client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        **more,
    )


def finished(client, batch):
    """The batch at its end, and the states that it has passed."""
    while batch.status not in ("completed", "failed", "expired", "cancelled"):
        time.sleep(0.01)
        batch = client.batches.retrieve(batch.id)
    states = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelled")
    return batch, [state for state in states if getattr(batch, f"{state}_at")]


def lines(client, name):
    return [json.loads(li) for li in client.files.content(name).text.splitlines()] if name else []


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"model": "gpt-9"}, openai.NotFoundError, "does not exist"),
        ({"max_completion_tokens": 10**6}, openai.BadRequestError, "too large"),
        ({"temperature": 3}, openai.BadRequestError, "temperature"),
        ({"reasoning_effort": "low"}, openai.BadRequestError, "Unrecognized"),
        ({"model": "o3-mini", "temperature": 0.5}, openai.BadRequestError, "not supported"),
        ({"messages": []}, openai.BadRequestError, "messages"),
    ],
)
def test_refuses_what_openai_refuses(client_of, calm_server, change, error, says):
    """
    https://platform.openai.com/docs/guides/error-codes
    https://platform.openai.com/docs/guides/reasoning
    """
    with pytest.raises(error, match=says):
        client_of(calm_server).chat.completions.create(**generate() | change)


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "object", "properties": {}}, "additionalProperties"),
        (
            {"type": "object", "properties": {"a": {"type": "string"}}, "required": []}
            | {"additionalProperties": False},
            "required",
        ),
        (
            {"type": "object", "properties": {"a": {"type": "string", "minLength": 1}}}
            | {"required": ["a"], "additionalProperties": False},
            "minLength",
        ),
        ({"type": "array", "items": {"type": "string"}}, "type"),
    ],
)
def test_refuses_schemas_that_are_not_strict(client_of, calm_server, schema, says):
    """https://platform.openai.com/docs/guides/structured-outputs"""
    given = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}
    with pytest.raises(openai.BadRequestError, match=says):
        client_of(calm_server).chat.completions.create(**generate() | {"response_format": given})


def test_statuses_and_results_of_a_batch(client_of, llm_server):
    """https://platform.openai.com/docs/guides/batch"""
    server = llm_server()
    client = client_of(server)
    bodies = [generate(n) for n in range(250)]
    wrong = bodies[:1][0] | {"temperature": 9}
    batch = submit(client, rows_of([*bodies, wrong]), metadata={"ours": "key-1"})
    batch, seen = finished(client, batch)
    assert seen == ["in_progress", "finalizing", "completed"]
    assert batch.metadata == {"ours": "key-1"}
    assert vars(batch.request_counts) == {"total": 251, "completed": 250, "failed": 1}
    output, failed = lines(client, batch.output_file_id), lines(client, batch.error_file_id)
    assert [row["custom_id"] for row in output] == [f"row-{n}" for n in range(250)]
    for body, row in zip(bodies[:3], output, strict=False):
        alone = client.chat.completions.create(**body).to_dict()
        assert row["error"] is None and row["response"]["status_code"] == 200
        assert row["response"]["body"]["choices"] == alone["choices"]
    assert [row["response"]["status_code"] for row in failed] == [400]
    assert failed[0]["response"]["body"]["error"]["param"] == "temperature"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "empty_file"),
        (b"{}\n", "invalid_json_line"),
        (rows_of([generate()]) * 2, "duplicate_custom_id"),
        (rows_of([generate(), generate() | {"model": "gpt-4o"}]), "mismatched_model"),
        (rows_of([generate() | {"model": "gpt-9"}]), "model_not_found"),
    ],
)
def test_a_batch_fails_validation(client_of, calm_server, data, code):
    """https://platform.openai.com/docs/guides/batch"""
    client = client_of(calm_server)
    batch, seen = finished(client, submit(client, data))
    assert seen == ["failed"]
    assert code in [error.code for error in batch.errors.data]
    assert batch.output_file_id is None


def test_batches_are_listed_in_pages_and_cancelled(client_of, llm_server):
    """https://platform.openai.com/docs/api-reference/batch"""
    client = client_of(llm_server(batch_rows_per_s=1))
    made = [submit(client, rows_of([generate(n)])).id for n in range(5)]
    assert [batch.id for batch in client.batches.list(limit=2)] == made[::-1]  # the client pages
    batch = submit(client, rows_of([generate(n) for n in range(300)]))
    while client.batches.retrieve(batch.id).request_counts.completed < 100:
        time.sleep(0.01)
    assert client.batches.cancel(batch.id).status == "cancelling"
    batch, _ = finished(client, client.batches.retrieve(batch.id))
    assert batch.status == "cancelled"
    assert 0 < len(lines(client, batch.output_file_id)) < 300
    assert next(iter(client.files.list(purpose="batch"))).purpose == "batch"


def test_rate_limit_headers(client_of, llm_server):
    """https://platform.openai.com/docs/guides/rate-limits"""
    client, body = client_of(llm_server(rate=0.001, burst=2)), generate()
    first = client.chat.completions.with_raw_response.create(**body)
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    with pytest.raises(openai.RateLimitError) as caught:
        for _ in range(20):
            client.chat.completions.create(**body)
    headers = caught.value.response.headers
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert 0 < float(headers["retry-after-ms"]) <= 1_000_001
    assert caught.value.code == "rate_limit_exceeded"


def test_a_wrong_key_is_shown_in_part(client_of, llm_server):
    """https://platform.openai.com/docs/guides/error-codes"""
    server = llm_server(key="sk-right")
    client = client_of(server, "sk-abcdefghijklmnop")
    with pytest.raises(openai.AuthenticationError, match=r"sk-abcde\*+mnop"):
        client.models.list()
    models = client_of(server, "sk-right").models.list()
    assert "gpt-4o-mini" in [model.id for model in models]
