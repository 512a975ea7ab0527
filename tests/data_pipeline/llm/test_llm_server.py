"""The local server itself, seen through the openai client: what the other tests rest on."""

import io
import json
import time

import openai
import pytest

from data_pipeline.llm.request import Asker, Prompt

QUERY = "what causes night blindness"
PASSAGE = "Night blindness comes from a lack of vitamin A. It can also be inherited. Eat carrots."


def asker(stage, model="gpt-4o-mini"):
    return Asker(stage, model, Prompt.read(f"{stage}_v1"), 4000)


def generate(number=0, kind="audience"):
    payload = {"query": f"{QUERY} {number}", "passage": PASSAGE, "instruction_type": kind}
    return asker("generate").request(payload).body


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
    seen = [batch.status]
    while batch.status not in ("completed", "failed", "expired", "cancelled"):
        time.sleep(0.01)
        batch = client.batches.retrieve(batch.id)
        if batch.status != seen[-1]:
            seen.append(batch.status)
    return batch, seen


def lines(client, name):
    return [json.loads(li) for li in client.files.content(name).text.splitlines()] if name else []


def test_answers_are_the_same_each_time_and_hold_together(client_of, calm_server):
    client = client_of(calm_server)
    with_problem = 0
    for number in range(30):
        kind = ("audience", "format", "length", "exclusion", "negation")[number % 5]
        body = generate(number, kind)
        raw = [client.chat.completions.create(**body) for _ in range(2)]
        assert raw[0].choices[0].message.content == raw[1].choices[0].message.content
        used = raw[0].usage
        assert used.prompt_tokens >= used.prompt_tokens_details.cached_tokens > 0
        assert used.total_tokens == used.prompt_tokens + used.completion_tokens
        made = json.loads(raw[0].choices[0].message.content)
        query, plus = f"{QUERY} {number}", made["instruction_positive"]
        table = []
        asked = (plus, query), (made["instruction_negative"], query), (plus, made["query_negative"])
        passages = [made["document_positive"] or PASSAGE]
        passages += [made["hard_negative_document_1"], made["hard_negative_document_2"]]
        for instruction, text in asked:
            for passage in passages:
                payload = {"instruction": instruction, "query": text, "passage": passage}
                answer = client.chat.completions.create(
                    **asker("judge", "o3-mini").request(payload).body
                )
                table.append(json.loads(answer.choices[0].message.content)["relevant"])
        with_problem += table != [True, False, False, False, True, False, False, False, True]
    assert 0 < with_problem < 15  # numbers in the query break "leave out all numbers"


def test_second_judge_differs_a_little(client_of, calm_server):
    client, differ = client_of(calm_server), 0
    for number in range(100):
        payload = {
            "instruction": "Statistics only.",
            "query": f"query {number}",
            "passage": "Nothing.",
        }
        both = [
            json.loads(
                client.chat.completions.create(**asker("judge", model).request(payload).body)
                .choices[0]
                .message.content
            )["relevant"]
            for model in ("o3-mini", "gpt-4o")
        ]
        differ += both[0] != both[1]
    assert 0 < differ < 20


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
    given = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}
    with pytest.raises(openai.BadRequestError, match=says):
        client_of(calm_server).chat.completions.create(**generate() | {"response_format": given})


def test_streams_the_same_answer(client_of, calm_server):
    client, body = client_of(calm_server), generate()
    whole = client.chat.completions.create(**body)
    text, usage = "", None
    options = {"stream": True, "stream_options": {"include_usage": True}}
    for chunk in client.chat.completions.create(**body, **options):
        usage = chunk.usage or usage
        text += chunk.choices[0].delta.content or "" if chunk.choices else ""
    assert text == whole.choices[0].message.content
    assert usage.completion_tokens == whole.usage.completion_tokens


def test_faults_strike_as_scripted_and_end(client_of, llm_server):
    rules = [{"kind": "500", "times": 2}, {"kind": "drop", "times": 1}, {"kind": "refusal"}]
    server = llm_server(rules)
    client, body, seen = client_of(server), generate(), []
    for _ in range(6):
        try:
            seen.append(client.chat.completions.create(**body).choices[0].message.refusal)
        except openai.OpenAIError as error:
            seen.append(type(error).__name__)
    no = "I'm sorry, I can't assist with that request."
    assert seen == ["InternalServerError"] * 2 + ["APIConnectionError", no, no, None]
    counts = server.stats()["requests"][server.hash_of(body)]
    assert (counts["received"], counts["billed"]) == (6, 4)
    assert (counts["written"], counts["answered"]) == (5, 1)
    assert counts["stage"] == "generate"


def test_a_batch_lives_as_it_does_at_openai(client_of, llm_server):
    server = llm_server(batch_rows_per_s=500)
    client = client_of(server)
    bodies = [generate(n) for n in range(250)]
    wrong = bodies[:1][0] | {"temperature": 9}
    batch = submit(client, rows_of([*bodies, wrong]), metadata={"ours": "key-1"})
    batch, seen = finished(client, batch)
    assert seen == ["validating", "in_progress", "finalizing", "completed"]
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
def test_a_batch_fails_its_validation(client_of, calm_server, data, code):
    client = client_of(calm_server)
    batch, seen = finished(client, submit(client, data))
    assert seen == ["validating", "failed"]
    assert code in [error.code for error in batch.errors.data]
    assert batch.output_file_id is None


def test_batch_faults(client_of, llm_server):
    rules = [
        {"kind": "row_500", "rate": 0.2},
        {"kind": "row_error", "rate": 0.2},
        {"kind": "row_missing", "rate": 0.2},
        {"kind": "wrong_schema", "rate": 0.2},
        {"kind": "batch_failed", "times": 1},
        {"kind": "batch_expired", "times": 1},
        {"kind": "upload_500", "times": 1},
        {"kind": "batch_create_lost", "times": 1},
    ]
    client = client_of(llm_server(rules))
    data = rows_of([generate(n) for n in range(100)])
    with pytest.raises(openai.InternalServerError):
        submit(client, data)
    with pytest.raises(openai.APIConnectionError):
        submit(client, data)
    [lost] = client.batches.list().data  # made all the same
    assert finished(client, lost)[0].errors.data[0].code == "token_limit_exceeded"
    batch, seen = finished(client, submit(client, data))
    assert seen == ["validating", "in_progress", "expired"]
    output, failed = lines(client, batch.output_file_id), lines(client, batch.error_file_id)
    late = [row for row in failed if (row["error"] or {}).get("code") == "batch_expired"]
    assert [row["custom_id"] for row in late] == [f"row-{n}" for n in range(50, 100)]
    statuses = [row["response"]["status_code"] for row in output]
    missing = 100 - len(output) - len(failed)
    assert statuses.count(500) > 3 and len(failed) - len(late) > 3 and missing > 3
    contents = [
        row["response"]["body"]["choices"][0]["message"]["content"]
        for row in output
        if row["response"]["status_code"] == 200
    ]
    assert 3 < sum("as you like" in text for text in contents) < 25


def test_batches_are_listed_in_pages_and_cancelled(client_of, llm_server):
    client = client_of(llm_server(batch_rows_per_s=100))
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


def test_no_file_has_the_id_of_a_deleted_one(client_of, calm_server):
    client, data = client_of(calm_server), rows_of([generate()])
    first, second, third = (submit(client, data).input_file_id for _ in range(3))
    client.files.delete(second)
    assert submit(client, data).input_file_id not in (first, second, third)


def test_a_restarted_server_knows_what_it_knew(client_of, llm_server, tmp_path):
    server = llm_server([{"kind": "500", "times": 1}], state=tmp_path, batch_step_s=0.3)
    client, body = client_of(server), generate()
    with pytest.raises(openai.InternalServerError):
        client.chat.completions.create(**body)
    batch = submit(client, rows_of([generate(n) for n in range(3)]))
    server.restart()
    client.chat.completions.create(**body)  # its one fault has been
    batch, _ = finished(client, client.batches.retrieve(batch.id))
    assert batch.status == "completed" and len(lines(client, batch.output_file_id)) == 3
    server.restart()
    stats = server.stats()
    assert stats["requests"][server.hash_of(body)]["received"] == 3
    assert stats["requests"][server.hash_of(body)]["answered"] == 2
    assert [made["status"] for made in stats["batches"]] == ["completed"]


def test_rate_limit_tells_when_to_come_again(client_of, llm_server):
    client, body = client_of(llm_server(rate=1, burst=2)), generate()
    first = client.chat.completions.with_raw_response.create(**body)
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    with pytest.raises(openai.RateLimitError) as caught:
        for _ in range(20):
            client.chat.completions.create(**body)
    headers = caught.value.response.headers
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert 0 < float(headers["retry-after-ms"]) <= 1001
    assert caught.value.code == "rate_limit_exceeded"


def test_a_wrong_key_is_shown_in_part_as_openai_does(client_of, llm_server):
    server = llm_server(key="sk-right")
    client = client_of(server, "sk-abcdefghijklmnop")
    with pytest.raises(openai.AuthenticationError, match=r"sk-abcde\*+mnop"):
        client.models.list()
    models = client_of(server, "sk-right").models.list()
    assert "gpt-4o-mini" in [model.id for model in models]
