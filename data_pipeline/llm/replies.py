"""Replies of endpoints: what a response means for its request and for the run.

OpenAI-compatible endpoints differ in how they wrap an answer (code fences, thoughts, content in
parts) and in how they report an error (as a status, or in the body of a response with status 200).
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from data_pipeline.llm.budget import Usage
from data_pipeline.llm.journal import (
    ANSWER,
    MODERATED,
    PAID,
    REJECTED,
    TOO_LONG,
    UNKNOWN,
    UNPAID,
)
from data_pipeline.llm.schemas import THOUGHTS, find_answer, message_texts, one_line

# Behind a gateway that timed out the model may go on, and what it computes is billed.
GATEWAY_TIMEOUTS = (504, 524)
RESPONSE_FORMAT, TOKEN_LIMIT = "response_format", "token_limit"  # of `Reply.unsupported`
_NO_USAGE = Usage(0, 0, 0)
_ACCOUNT = (
    *("insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "billing_error"),
    *("exceeded_current_quota_error", "insufficient_balance", "insufficient_credits"),
    "budget_exceeded",
)
# Codes and types of errors in responses with status 200, which name no status themselves.
_STATUS_OF = {
    **dict.fromkeys(("rate_limit_exceeded", "rate_limit_error", "too_many_requests"), 429),
    **dict.fromkeys(("invalid_api_key", "authentication_error", "unauthorized"), 401),
    **dict.fromkeys(("permission_error", "permission_denied", "forbidden"), 403),
    **dict.fromkeys(("model_not_found", "not_found_error", "not_found"), 404),
    **dict.fromkeys(("context_length_exceeded", "content_policy_violation", "content_filter"), 400),
    **dict.fromkeys(("server_error", "api_error", "internal_server_error", "internal"), 500),
    **dict.fromkeys(("overloaded_error", "overloaded", "service_unavailable", "unavailable"), 503),
    **dict.fromkeys(("invalid_request_error", "invalid_request", "bad_request_error"), 400),
    **dict.fromkeys(("invalid_argument", "failed_precondition"), 400),  # from here Google's
    "unauthenticated": 401,
    "resource_exhausted": 429,
    "deadline_exceeded": 504,
    "request_too_large": 413,
    "timeout_error": 504,  # Anthropic's
}
_MODERATED = re.compile(
    r"content[ _-]?(policy|filter|management)|moderation|flagged|responsible ?ai"
    r"|safety[ _](system|polic|check)|usage (polic|guideline)|data[ _]?inspection"
    r"|(sensitive|inappropriate|prohibited) content|敏感|违规",
    re.IGNORECASE,
)
_TOO_LONG = re.compile(
    r"context[ _]?(length|size|window)|maximum context|(prompt|input|message)s? (is|are) too long"
    r"|string_above_max_length|too many (input )?tokens|reduce the length|maximum model length"
    r"|token count.{0,40} exceed|max_new_tokens\W+must be <=|must have less than \d+ tokens",
    re.IGNORECASE,
)
_FORMAT_NAME = re.compile(
    r"response[_ -]?(format|schema)|json[_ ]schema|json_object|structured[_ ]output|guided_|grammar"
    r"|additionalProperties",
    re.IGNORECASE,
)
_LIMIT_NAME = re.compile(r"max_(completion_)?tokens", re.IGNORECASE)
_NOT_TAKEN = re.compile(
    r"un(known|recogni[sz]ed|supported|expected)|not? (supported|permitted|allowed|such)"
    r"|n['o]t support|extra|additional|deprecated|instead",
    re.IGNORECASE,
)
_BAD_KEY = re.compile(
    r"(incorrect|invalid) API key|API key (is )?(not valid|invalid)", re.IGNORECASE
)
# Values of finish_reason.
_FILTERED = re.compile(r"content_filter|safety|sensitive|prohibited|recitation|blocklist|spii")
_CUT = re.compile(r"length|max_tokens|context_window|truncat")
_BROKEN = ("error", "network_error", "abort", "cancelled", "insufficient_system_resource")
_STREAM = re.compile(rb"\s*(data|event|id|retry|):")


@dataclasses.dataclass(frozen=True)
class Reply:
    """The result of one attempt, or of one row of a batch."""

    outcome: str  # one of `data_pipeline.llm.journal`
    text: str  # the answer's JSON, or what went wrong, without secrets
    usage: Usage = _NO_USAGE
    size: int = 0  # UTF-8 bytes of the answer, thoughts included; bounds its tokens without usage
    model: str = ""  # the model that answered, by the endpoint's own account
    wait_s: float | None = None  # seconds before the next request, if the headers ask to wait
    slow_down: bool = False  # whether the number of concurrent requests should shrink
    fatal: str = ""  # error that would meet every further request too
    remedy: str = ""  # what to check if many requests are rejected like this
    denied: bool = False  # rejected for want of rights, unless it is the text after all
    unsupported: frozenset[str] = frozenset()  # RESPONSE_FORMAT, TOKEN_LIMIT: fields not taken
    reached: bool = True  # False if no connection was made

    @property
    def paid(self) -> bool:
        """Whether the model answered, validly or not."""
        return self.outcome in PAID


class EndpointError(NamedTuple):
    """An error object of any common form."""

    status: int  # as HTTP; 0 if unknown
    code: str
    kind: str
    param: str
    message: str
    flagged: bool  # whether it has a report of a moderation

    @property
    def words(self) -> str:
        """Code, kind and message, for the rules that read them."""
        return f"{self.code} {self.kind} {self.message}"


def error_of(body: Any, status: int = 0) -> EndpointError | None:
    """The error in a body; with a `status` any body is one, without it None if there is none."""
    body = _only(body)
    error = _only(body.get("error")) if isinstance(body, Mapping) else None
    if not error and isinstance(body, Mapping):
        choices = body.get("choices")
        first = choices[0] if isinstance(choices, list) and choices else None
        if isinstance(first, Mapping):
            error = first.get("error")
        elif body.get("object") == "error" or not choices:
            names = ("message", "msg", "detail", "errors", "base_resp")
            error = body if any(body.get(name) for name in names) else None
    if not error and not status:
        return None
    if isinstance(error, Mapping):
        given = error
    elif error and isinstance(body, Mapping):  # a text, or true, beside the other fields
        texts = [text for text in (error, body.get("message")) if isinstance(text, str)]
        given = {**body, "message": ": ".join(texts) or error}
    else:
        given = {"message": body}
    if isinstance(given.get("base_resp"), Mapping):
        given = {"message": given["base_resp"].get("status_msg")}
    code, kind = _text(given.get("code")), _text(given.get("type"))
    inner = given.get("innererror")
    metadata = given.get("metadata") if isinstance(given.get("metadata"), Mapping) else {}
    named = next((n for n in ("message", "msg", "detail", "errors") if given.get(n)), "")
    message = _text(given[named]) if named else str(dict(given))
    message += f" ({_text(metadata['raw'])})" if metadata.get("raw") else ""
    return EndpointError(
        status or _status(given, code, kind),
        code,
        kind + (f" {_text(inner.get('code'))}" if isinstance(inner, Mapping) else ""),
        _text(given.get("param")),
        message,
        "flagged_input" in metadata or "content_filter_result" in str(inner),
    )


def _status(error: Mapping[str, Any], code: str, kind: str) -> int:
    for value in (code, error.get("status"), error.get("status_code")):
        if re.fullmatch(r"[1-5]\d\d", str(value)):
            return int(str(value))
    names = (code.casefold(), kind.casefold(), str(error.get("status")).casefold())
    return next((_STATUS_OF[name] for name in names if name in _STATUS_OF), 0)


def _text(value: Any) -> str:
    """A value of an error as text; of a list of problems, where each is and what it is."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, Mapping) and ("loc" in value or "msg" in value):
        where = value.get("loc")
        where = ".".join(map(str, where)) if isinstance(where, list | tuple) else where or ""
        return f"{where}: {value.get('msg') or value.get('type') or ''}"
    if isinstance(value, Mapping) and (len(value) == 1 or value.get("message")):
        return _text(value.get("message") or next(iter(value.values())))
    if isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
        return "; ".join(map(_text, value))
    return str(value)


def read_error(error: EndpointError, *, wait_s: float | None = None) -> Reply:
    """The reply for an error; its `fatal` and `remedy` have {key} and {model} to fill in."""
    status, words = error.status, error.words
    text = f"{status or 'error'} {error.code}: {error.message}"
    if {error.code, error.kind} & {*_ACCOUNT}:
        return Reply(UNPAID, text, fatal="check the account")
    if fields := _unsupported(error):
        remedy = "name what the endpoint takes by the stage's response_format and token_limit"
        return Reply(REJECTED, text, unsupported=fields, remedy=remedy)
    about_text = status in (0, 400, 403, 413, 422, 451)
    if about_text and (error.flagged or status == 451 or _MODERATED.search(words)):
        return Reply(MODERATED, text, remedy="check the endpoint's content filter")
    if about_text and (status == 413 or _TOO_LONG.search(words)):
        return Reply(TOO_LONG, text, remedy="check the model {model}: its context is too small")
    if status in GATEWAY_TIMEOUTS:
        return Reply(UNKNOWN, text, wait_s=wait_s, slow_down=True)
    if status in (0, 408, 409, 425, 429) or status >= 500:
        return Reply(UNPAID, text, wait_s=wait_s, slow_down=status in (429, 503))
    if status == 400 and _BAD_KEY.search(words):
        status = 401
    remedies = {  # of statuses that every further request would get too: the run stops
        401: "check {key}",
        402: "check the account",
        404: "check the model {model} and llm.base_url",
        405: "check llm.base_url",
    }
    if status in remedies:
        return Reply(UNPAID, text, fatal=remedies[status])
    if status == 403:
        return Reply(REJECTED, text, denied=True, remedy="check {key} and what it may use")
    return Reply(REJECTED, text, remedy="check the model {model} and the stage's options")


def _unsupported(error: EndpointError) -> frozenset[str]:
    """The fields of the request that the endpoint does not take, as far as the error names them."""
    if error.status not in (0, 400, 404, 415, 422, 501):
        return frozenset()
    if error.param:  # e.g. response_format.json_schema
        names = error.param
        if not _LIMIT_NAME.search(names) and not _FORMAT_NAME.search(names):
            return frozenset()
    else:
        names = error.message
    found = set()
    if _FORMAT_NAME.search(names):
        found.add(RESPONSE_FORMAT)
    # a limit that is too large for a text or a model is no unknown field
    too_large = _TOO_LONG.search(error.words) or "too large" in error.message
    if _LIMIT_NAME.search(names) and _NOT_TAKEN.search(error.words) and not too_large:
        found.add(TOKEN_LIMIT)
    return frozenset(found)


def read_answer(stage: str, data: bytes | dict[str, Any]) -> Reply:
    """Classifies the body of a chat completion and validates its content for the stage."""
    try:
        body = _only(_parsed(data) if isinstance(data, bytes) else data)
    except (AttributeError, TypeError, ValueError, RecursionError) as error:
        # the answer may have been computed and billed all the same
        reason = "nested too deeply" if isinstance(error, RecursionError) else type(error).__name__
        return Reply(UNKNOWN, f"not a chat completion ({reason}): {data[:80]!r}")
    if not isinstance(body, dict):
        return Reply(UNKNOWN, f"not a chat completion: {type(body).__name__}")
    usage = _usage(body)
    if error := error_of(body):
        reply = read_error(error)
        # what the endpoint has counted it may bill
        return dataclasses.replace(reply, outcome=UNKNOWN) if usage.completion_tokens else reply
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        # with usage it is paid, and so are further attempts
        outcome = "schema" if usage.reported else UNKNOWN
        return Reply(outcome, "not a chat completion: no message", usage)
    content, refusal, thoughts = message_texts(message)
    size = len("".join([content, refusal, *thoughts]).encode("utf-8", "replace"))
    if size and not usage.completion_tokens:
        usage = _NO_USAGE  # what it reports cannot be all
    model = body.get("model")
    common = Reply(
        ANSWER, "", usage=usage, size=size, model=model if isinstance(model, str) else ""
    )
    finish = str(choice.get("finish_reason") or "").casefold()
    if refusal or finish == "refusal":
        return dataclasses.replace(common, outcome="refusal", text=one_line(refusal))
    if _CUT.search(finish):
        text = "cut at max_completion_tokens"
        return dataclasses.replace(common, outcome="truncated", text=text)
    if _FILTERED.search(finish):
        text = "stopped by the endpoint's content filter"
        return dataclasses.replace(common, outcome="content_filter", text=text)
    if finish in _BROKEN and not content:
        return dataclasses.replace(common, outcome=UNKNOWN, text=f"finish_reason {finish}")
    found, problem = find_answer(stage, content, thoughts)
    if problem:
        return dataclasses.replace(common, outcome="schema", text=problem)
    return dataclasses.replace(common, text=found)


def _parsed(data: bytes) -> Any:
    """The JSON of a body; of a stream of events, which some gateways always send, their sum."""
    if not _STREAM.match(data):
        return json.loads(data)
    lines = [line[5:].strip() for line in data.split(b"\n") if line.startswith(b"data:")]
    message: dict[str, str] = {}
    choice: dict[str, Any] = {"message": message}
    whole: dict[str, Any] = {"choices": [choice]}
    for chunk in (json.loads(line) for line in lines if line not in (b"", b"[DONE]")):
        if not chunk.get("choices") and error_of(chunk):
            return chunk
        whole |= {name: chunk[name] for name in ("model", "usage") if chunk.get(name)}
        for part in chunk.get("choices") or ():
            delta = part.get("delta") or part.get("message") or {}
            for name in ("content", "refusal", *THOUGHTS):
                if isinstance(delta.get(name), str):
                    message[name] = message.get(name, "") + delta[name]
            choice["finish_reason"] = part.get("finish_reason") or choice.get("finish_reason")
    return whole


def _only(value: Any) -> Any:
    """The only object of a list, as Google wraps its errors; everything else as it is."""
    one = isinstance(value, list) and len(value) == 1 and isinstance(value[0], Mapping)
    return value[0] if one else value


def _usage(body: dict[str, Any]) -> Usage:
    try:
        return Usage.parse(body.get("usage"))
    except (AttributeError, TypeError, ValueError, OverflowError):
        return _NO_USAGE  # the answer is there all the same, and counts as not reported
