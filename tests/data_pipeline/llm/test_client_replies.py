"""What the client reads from bodies and headers of replies."""

import email.utils
import itertools
import json
import time

import pytest

from data_pipeline.llm.client import _parse_seconds, _rate_limit_wait, _retry_after
from data_pipeline.llm.journal import ANSWER, MODERATED, REJECTED, TOO_LONG, UNKNOWN, UNPAID
from data_pipeline.llm.replies import (
    RESPONSE_FORMAT,
    TOKEN_LIMIT,
    error_of,
    read_answer,
    read_error,
)

JSON = '{"reason": "a", "relevant": true}'
OTHER = '{"reason": "b", "relevant": false}'
USAGE = {"prompt_tokens": 1, "completion_tokens": 2}


def completion(content, finish="stop", **more):
    message = {"content": content} | more
    return {"choices": [{"message": message, "finish_reason": finish}], "usage": {}}


def called(arguments):
    return {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}


def stream(*deltas, more=(), end="data: [DONE]\n\n"):
    """The body of a stream of events, with a chunk for each delta."""
    choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    chunks = [{"choices": [choice]} for choice in choices] + list(more)
    events = (f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
    return (": keep-alive\n\n" + "".join(events) + end).encode()


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        ([], UNKNOWN),
        ([completion(JSON)], ANSWER),
        ({"choices": []}, UNKNOWN),
        ({"choices": [None]}, UNKNOWN),
        ({"choices": [{"message": None}]}, UNKNOWN),
        (completion("x") | {"usage": [1]}, "schema"),
        (completion(JSON) | {"usage": [1]}, ANSWER),
        (completion(JSON) | {"usage": None}, ANSWER),
        (completion(JSON, reasoning_content="hm"), ANSWER),
        (completion('{"reason":"a","relevant":"yes it is"}'), "schema"),
        (completion(None, refusal="no"), "refusal"),
        (completion("", "content_filter"), "content_filter"),
        (completion(JSON) | {"usage": {"prompt_tokens": float("inf")}}, ANSWER),
        ({"choices": [], "usage": USAGE}, "schema"),
        ({"choices": None, "usage": USAGE}, "schema"),
        (7, UNKNOWN),
        (completion(None), "schema"),
        (completion([{"type": "text", "text": "x"}]), "schema"),
        (completion([{"type": "refusal", "refusal": "no"}]), "refusal"),
        (completion(JSON, "refusal"), "refusal"),
        (completion(JSON, "max_tokens"), "truncated"),
        (completion("", "SAFETY"), "content_filter"),
        (completion("", "error"), UNKNOWN),
        (completion("", reasoning_content="So it is relevant."), "schema"),
        (completion("", reasoning_content=f"Perhaps {OTHER}"), "schema"),
        (completion("{" * 200_000), "schema"),
        (completion('{"a":' * 100_000), "schema"),
        (completion('{"reason":"\ud800","relevant":true}'), "schema"),
        (completion('{"reason":"\\ud800","relevant":true}'), "schema"),
        (completion('{"reason":"  ","relevant":true}'), "schema"),
        (completion('{"reason":"x","relevant":true,"more":1}'), "schema"),
        (completion('{"reason":"x"}'), "schema"),
        (completion('{"reason":"x","relevant":true,"relevant":false}'), "schema"),
        (completion('```\n{"reason":"x","relevant":true,"relevant":false}\n```\n.'), "schema"),
        (completion(JSON[:9], "model_context_window_exceeded"), "truncated"),
        (completion("", "RECITATION"), "content_filter"),
        (completion(None, "content_filter: PROHIBITED_CONTENT"), "content_filter"),
        (completion(None, "abort"), UNKNOWN),
        (completion(None, tool_calls=[{}, {}]), "schema"),
        (completion(None, tool_calls=[called(JSON), called(OTHER)]), "schema"),
        (completion(None, tool_calls="none", function_call=3), "schema"),
        (completion('{"reason":"x","relevant":true}', "length"), "truncated"),
        (completion('{"reason":"x","relevant":true}', refusal="No \ud800."), "refusal"),
        (completion('{"reason":"x","relevant":true}', None), ANSWER),
    ],
    ids=itertools.count(),
)
def test_outcome_of_bodies(body, outcome):
    reply = read_answer("judge", body)
    assert reply.outcome == outcome
    reply.text.encode()


@pytest.mark.parametrize(
    "content",
    [
        JSON,
        f"{JSON}\n",
        f"\ufeff{JSON}",
        f"```json\n{JSON}\n```",
        f"```\n{JSON}\n```\n",
        f"Sure:\n\n```json\n{JSON}\n```\nI hope this helps {{smile}}.",
        f"{JSON}\n\nNote: see [1] and {{2}}.",
        f"<think>\n\n</think>\n{JSON}",
        f"<think>Is it {OTHER}? No.</think>\n```json\n{JSON}\n```",
        f"It may be {OTHER}.\n</think>\n\n{JSON}",
        f"<think>The form is {{reason, relevant}}. {JSON}",
        f"<think>{JSON}</think>",
        f"[THINK]hm[/THINK]{JSON}",
        f"<seed:think>{OTHER}</seed:think>{JSON}",
        f"<|channel>thought\n{OTHER}<channel|>{JSON}",
        f"analysis{OTHER}assistantfinal{JSON}",
        f"<|channel|>analysis<|message|>hm<|end|><|channel|>final<|message|>{JSON}<|return|>",
        f"{JSON}\n{JSON}",
        f"[{JSON}]",
        json.dumps(JSON),
        [{"type": "text", "text": JSON}],
        [{"type": "text", "text": JSON[:9]}, {"type": "text", "text": JSON[9:]}],
        [{"type": "output_text", "text": JSON}],
        [{"type": "text", "text": {"value": JSON}}],
        [{"type": "thinking", "thinking": [{"text": OTHER}]}, {"type": "text", "text": JSON}],
        [JSON],
        {"reason": "a", "relevant": True},
    ],
    ids=itertools.count(),
)
def test_an_answer_is_found_in_what_surrounds_it(content):
    reply = read_answer("judge", completion(content) | {"usage": USAGE})
    assert (reply.outcome, json.loads(reply.text)) == (ANSWER, json.loads(JSON))
    whole = json.dumps(completion(content)).encode()
    for data in (whole, b"\xef\xbb\xbf" + whole, b"\n \n" + whole):
        assert read_answer("judge", data).text == reply.text


@pytest.mark.parametrize(
    "message",
    [
        {"tool_calls": [called(JSON)]},
        {"tool_calls": [called(json.loads(JSON))]},
        {"tool_calls": None, "function_call": {"name": "f", "arguments": JSON}},
        {"tool_calls": [], "function_call": {"name": "f", "arguments": JSON}},
    ],
    ids=itertools.count(),
)
def test_an_answer_in_a_tool_call(message):
    for content in (None, "", []):
        reply = read_answer("judge", completion(content, "tool_calls", **message))
        assert (reply.outcome, reply.size) == (ANSWER, len(JSON))
        assert json.loads(reply.text) == json.loads(JSON)
    beside = read_answer("judge", completion(OTHER, **message))
    assert json.loads(beside.text) == json.loads(OTHER)


def test_an_answer_in_a_stream_of_events():
    parts = {"role": "assistant", "content": ""}, {"content": JSON[:9]}, {"content": JSON[9:]}
    stop = {"choices": [{"delta": {}, "finish_reason": "stop"}]}
    usage = {"choices": [], "usage": USAGE, "model": "m"}
    reply = read_answer("judge", stream(*parts, more=[stop, usage]))
    assert (reply.outcome, reply.text, reply.model) == (ANSWER, JSON, "m")
    assert reply.usage.completion_tokens == 2
    assert read_answer("judge", stream({"reasoning_content": "hm"}, *parts, end="")).text == JSON
    cut = {"choices": [{"delta": {}, "finish_reason": "length"}]}
    assert read_answer("judge", stream(*parts[:2], more=[cut])).outcome == "truncated"
    error = {"error": {"code": 429, "message": "Provider returned error"}}
    assert read_answer("judge", stream(*parts[:2], more=[error])).outcome == UNPAID
    for chunk in (5, {"choices": [3]}, {"choices": 3}, {"choices": [{"delta": [1]}]}):
        assert read_answer("judge", stream(more=[chunk])).outcome == UNKNOWN
    assert read_answer("judge", b"data: {").outcome == UNKNOWN


@pytest.mark.parametrize("content", [None, "", " \n"])
@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
@pytest.mark.parametrize("thoughts", [JSON, f"```json\n{JSON}\n```"])
def test_a_server_that_takes_the_answer_for_thoughts(content, field, thoughts):
    assert json.loads(read_answer("judge", completion(content, **{field: thoughts})).text)


def test_thoughts_are_no_answer_beside_one():
    assert json.loads(read_answer("judge", completion(JSON, reasoning_content=OTHER)).text) == (
        json.loads(JSON)
    )
    assert read_answer("judge", completion("no JSON", reasoning_content=JSON)).outcome == "schema"


def test_a_text_with_the_marks_of_a_wrapping_stays_as_it_is():
    answer = {"reason": "It says </think> and ```json {} ```.", "relevant": True}
    text = json.dumps(answer)
    for content in (text, f"<think>hm</think>{text}", f"```\n{text}\n```"):
        assert json.loads(read_answer("judge", completion(content)).text) == answer


def test_two_different_answers_are_none():
    for content in (f"{OTHER}\nNo, wait:\n{JSON}", f"<think>{OTHER} {JSON}"):
        reply = read_answer("judge", completion(content))
        assert (reply.outcome, reply.text) == ("schema", "content: 2 different answers")


def test_line_breaks_inside_strings():
    reply = read_answer("judge", completion('```\n{"reason": "a\nb", "relevant": true}\n```'))
    assert json.loads(reply.text)["reason"] == "a\nb"


@pytest.mark.parametrize(
    ("body", "outcome", "fatal"),
    [
        ({"error": {"code": 429, "message": "Provider returned error"}}, UNPAID, ""),
        ({"error": {"code": "502", "message": "flagged by an upstream"}}, UNPAID, ""),
        ({"error": {"code": 504, "message": "late"}}, UNKNOWN, ""),
        ({"error": "overloaded"}, UNPAID, ""),
        ({"error": ["overloaded"]}, UNPAID, ""),
        ([{"error": {"code": 429, "status": "RESOURCE_EXHAUSTED"}}], UNPAID, ""),
        ({"error": {"status": "INVALID_ARGUMENT", "message": "x"}}, REJECTED, ""),
        ({"error": {"status": "UNAUTHENTICATED", "message": "x"}}, UNPAID, "check {key}"),
        ({"error": {"status": "DEADLINE_EXCEEDED", "message": "x"}}, UNKNOWN, ""),
        ({"type": "error", "error": {"type": "request_too_large", "message": "x"}}, TOO_LONG, ""),
        ({"type": "error", "error": {"type": "billing_error", "message": "x"}}, UNPAID, "account"),
        ({"error": "Unauthorized", "status": 401, "message": "No key"}, UNPAID, "check {key}"),
        ({"error": True, "code": "model_not_found"}, UNPAID, "the model {model}"),
        ({"error": {"type": "overloaded_error", "message": "x"}, "choices": None}, UNPAID, ""),
        ({"error": {"code": 401, "message": "no"}}, UNPAID, "check {key}"),
        ({"error": {"type": "invalid_request_error", "code": "invalid_api_key"}}, UNPAID, "key"),
        ({"error": {"code": "insufficient_quota", "message": "x"}}, UNPAID, "the account"),
        ({"error": {"code": 402, "message": "x"}}, UNPAID, "the account"),
        ({"error": {"code": "model_not_found", "message": "x"}}, UNPAID, "the model {model}"),
        ({"error": {"code": 400, "message": "Provider returned error"}}, REJECTED, ""),
        (
            {"error": {"code": 403, "message": "x", "metadata": {"flagged_input": "y"}}},
            MODERATED,
            "",
        ),
        ({"error": {"code": "content_filter", "message": "x"}}, MODERATED, ""),
        (
            {"object": "error", "message": "This model's maximum context length is 9", "code": 400},
            TOO_LONG,
            "",
        ),
        ({"detail": "Internal error"}, UNPAID, ""),
        ({"message": "try again", "code": 1305}, UNPAID, ""),
        ({"choices": None, "base_resp": {"status_code": 1002, "status_msg": "limit"}}, UNPAID, ""),
        (
            {"choices": [{"error": {"code": 502, "message": "x"}, "finish_reason": "error"}]},
            UNPAID,
            "",
        ),
        ({"error": {"code": 500}, "usage": USAGE}, UNKNOWN, ""),
        (completion(JSON) | {"error": None}, ANSWER, ""),
        (completion(JSON) | {"error": {}, "message": "ok"}, ANSWER, ""),
    ],
    ids=itertools.count(),
)
def test_errors_in_responses_with_status_200(body, outcome, fatal):
    reply = read_answer("judge", json.dumps(body).encode())
    assert reply.outcome == outcome, reply
    assert fatal in reply.fatal and bool(fatal) == bool(reply.fatal)


def detail(*names):
    return [{"type": "extra_forbidden", "loc": ["body", n], "msg": "Extra inputs"} for n in names]


@pytest.mark.parametrize(
    ("status", "body", "fields"),
    [
        (400, "Unrecognized request argument supplied: response_format", "f"),
        (400, "Unknown parameter: 'max_completion_tokens'.", "t"),
        (400, "This response_format type is unavailable now", "f"),
        (400, "This model does not support response format `json_schema`.", "f"),
        (400, "'response_format.type' must be 'json_schema' or 'text'", "f"),
        (400, {"message": "Unsupported parameter", "param": "max_tokens"}, "t"),
        (400, {"message": "Invalid schema", "param": "response_format.json_schema"}, "f"),
        (422, {"detail": detail("max_completion_tokens")}, "t"),
        (422, {"object": "error", "message": {"detail": detail("max_completion_tokens")}}, "t"),
        (422, {"detail": detail("response_format", "max_completion_tokens")}, "ft"),
        (
            400,
            "'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
            "t",
        ),
        (400, {"message": "max_tokens is too large: 9", "param": "max_tokens"}, ""),
        (400, "This model's maximum context length is 9; reduce max_completion_tokens instead", ""),
        (400, {"message": "response_format? bad seed", "param": "seed"}, ""),
        (400, "Bad Request", ""),
        (500, "response_format crashed", ""),
        (400, "Unknown name \"additionalProperties\" at 'generation_config.response_schema'", "f"),
    ],
    ids=itertools.count(),
)
def test_fields_that_an_endpoint_does_not_take(status, body, fields):
    names = {"f": RESPONSE_FORMAT, "t": TOKEN_LIMIT}
    wanted = {names[letter] for letter in fields}
    assert read_error(error_of({"error": body}, status)).unsupported == wanted
    if status == 400:
        body = {"error": {"code": 400} | (body if isinstance(body, dict) else {"message": body})}
        assert read_answer("judge", body).unsupported == wanted


@pytest.mark.parametrize(
    ("status", "body", "outcome"),
    [
        (400, {"code": "content_policy_violation", "message": "x"}, MODERATED),
        (
            400,
            {"code": "content_filter", "innererror": {"code": "ResponsibleAIPolicyViolation"}},
            MODERATED,
        ),
        (403, "Your input was flagged", MODERATED),
        (451, "no", MODERATED),
        (403, "<html>403 Forbidden</html>", REJECTED),
        (413, "", TOO_LONG),
        (400, {"code": "context_length_exceeded", "message": "x"}, TOO_LONG),
        (400, "the request exceeds the available context size", TOO_LONG),
        (400, "", REJECTED),
        (503, "content policy service is down", UNPAID),
        (403, "Content violates usage guidelines. Failed check: SAFETY_CHECK_TYPE_BIO", MODERATED),
        (
            400,
            {
                "code": "1301",
                "message": "\u8f93\u5165\u53ef\u80fd\u5305\u542b\u654f\u611f\u5185\u5bb9",
            },
            MODERATED,
        ),
        (422, "`inputs` tokens + `max_new_tokens` must be <= 4096. Given: 4000 `inputs`", TOO_LONG),
        (422, "`inputs` must have less than 1024 tokens. Given: 2000", TOO_LONG),
        (400, "litellm.ContextWindowExceededError: VertexAIException", TOO_LONG),
        (400, "The input token count (200000) exceeds the maximum number of tokens", TOO_LONG),
        (400, "The decoder prompt is longer than the maximum model length of 4096", TOO_LONG),
        (400, "max_tokens: 64001 > 64000, the maximum allowed number of tokens", REJECTED),
        (400, "Incorrect API key provided: xa***.", UNPAID),
        (405, "Method Not Allowed", UNPAID),
    ],
    ids=itertools.count(),
)
def test_what_a_rejection_is_for(status, body, outcome):
    reply = read_error(error_of({"error": body}, status))
    assert reply.outcome == outcome and reply.denied == (status == 403 and outcome == REJECTED)


def test_an_answer_whose_usage_lacks_its_own_tokens_counts_as_not_reported():
    usage = {"prompt_tokens": 5, "completion_tokens": 0}
    reply = read_answer("judge", completion(JSON) | {"usage": usage})
    assert not reply.usage.reported and reply.size == len(JSON)
    usage = {"input_tokens": 5, "output_tokens": 3}
    assert read_answer("judge", completion(JSON) | {"usage": usage}).usage.completion_tokens == 3


def test_thoughts_that_only_the_total_of_the_usage_has():
    """As xAI and Gemini report them: they are billed as an answer's tokens."""
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 107}
    assert read_answer("judge", completion(JSON) | {"usage": usage}).usage.completion_tokens == 102
    usage["total_tokens"] = 7
    assert read_answer("judge", completion(JSON) | {"usage": usage}).usage.completion_tokens == 2


def test_impossible_usage_is_clipped():
    usage = {"prompt_tokens": 10**30, "completion_tokens": 10**30}
    reply = read_answer("judge", completion('{"reason":"x","relevant":true}') | {"usage": usage})
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (10**9, 10**9)
    usage = {"prompt_tokens": -5, "completion_tokens": -5}
    reply = read_answer("judge", completion('{"reason":"x","relevant":true}') | {"usage": usage})
    assert not reply.usage.reported
    usage = USAGE | {"prompt_tokens": 10, "prompt_tokens_details": {"cached_tokens": 90}}
    reply = read_answer("judge", completion('{"reason":"x","relevant":true}') | {"usage": usage})
    assert reply.usage.cached_tokens == 10


def test_retry_after():
    assert _retry_after({"retry-after": "2"}) == 2
    assert _retry_after({"retry-after": "0.05"}) == 0.05
    assert _retry_after({"retry-after": "9", "retry-after-ms": "120"}) == 0.12
    assert _retry_after({"retry-after-ms": "soon", "retry-after": "3"}) == 3
    date = email.utils.formatdate(time.time() + 30, usegmt=True)
    assert 0 < _retry_after({"retry-after": date}) <= 30
    assert _retry_after({"retry-after": email.utils.formatdate(0, usegmt=True)}) == 0
    for nothing in ({}, *({"retry-after": text} for text in ("", "soon", "nan", "inf", "1e999"))):
        assert _retry_after(nothing) is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("6m0s", 360), ("1s", 1), ("120ms", 0.12), ("1h0m2s", 3602), ("1d2h", 93600)),
        *(("1.5", 1.5), ("0", 0), ("-3", 0), ("17.123s", 17.123)),
        *(("", 1), ("soon", 1), ("1.2.3", 1), ("nan", 1), ("inf", 1)),
    ],
)
def test_durations(text, seconds):
    assert _parse_seconds(text) == pytest.approx(seconds)


def test_a_reset_given_as_a_time():
    assert 0 < _parse_seconds(f"{time.time() + 60:.0f}") <= 61
    assert 0 < _parse_seconds(f"{1000 * (time.time() + 60):.0f}") <= 61


def test_exhausted_rate_limits():
    used = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "2s"}
    assert _rate_limit_wait(used) == 2
    used |= {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "6m0s"}
    assert _rate_limit_wait(used) == 360
    assert _rate_limit_wait({"x-ratelimit-remaining-tokens": "0"}) == 1
    assert _rate_limit_wait({"x-ratelimit-remaining-tokens": "1"}) is None
    assert _rate_limit_wait({}) is None
