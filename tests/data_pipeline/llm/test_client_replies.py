"""What the client reads from bodies and headers of replies."""

import email.utils
import time

import pytest

from data_pipeline.llm.client import (
    _parse_seconds,
    _rate_limit_wait,
    _retry_after,
    read_answer,
)
from data_pipeline.llm.journal import ANSWER, UNKNOWN


def completion(content, finish="stop", **more):
    message = {"content": content} | more
    return {"choices": [{"message": message, "finish_reason": finish}], "usage": {}}


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        ([], UNKNOWN),
        ({"choices": []}, UNKNOWN),
        ({"choices": [None]}, UNKNOWN),
        ({"choices": [{"message": None}]}, UNKNOWN),
        (completion("x") | {"usage": [1]}, UNKNOWN),
        (completion("x") | {"usage": {"prompt_tokens": float("inf")}}, UNKNOWN),
        (completion(None), "schema"),
        (completion([{"type": "text", "text": "x"}]), "schema"),
        (completion('{"reason":"\ud800","relevant":true}'), "schema"),
        (completion('{"reason":"\\ud800","relevant":true}'), "schema"),
        (completion('{"reason":"  ","relevant":true}'), "schema"),
        (completion('{"reason":"x","relevant":true,"more":1}'), "schema"),
        (completion('{"reason":"x"}'), "schema"),
        (completion('{"reason":"x","relevant":true}', "length"), "truncated"),
        (completion('{"reason":"x","relevant":true}', refusal="No \ud800."), "refusal"),
        (completion('{"reason":"x","relevant":true}', None), ANSWER),
    ],
    ids=range(16),
)
def test_outcome_of_bodies(body, outcome):
    reply = read_answer("judge", body)
    assert reply.outcome == outcome
    reply.text.encode()


def test_impossible_usage_is_clipped():
    usage = {"prompt_tokens": 10**30, "completion_tokens": -5}
    reply = read_answer("judge", completion('{"reason":"x","relevant":true}') | {"usage": usage})
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (10**9, 0)
    usage = {"prompt_tokens": 10, "prompt_tokens_details": {"cached_tokens": 90}}
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


def test_exhausted_rate_limits():
    used = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "2s"}
    assert _rate_limit_wait(used) == 2
    used |= {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "6m0s"}
    assert _rate_limit_wait(used) == 360
    assert _rate_limit_wait({"x-ratelimit-remaining-tokens": "0"}) == 1
    assert _rate_limit_wait({"x-ratelimit-remaining-tokens": "1"}) is None
    assert _rate_limit_wait({}) is None
