"""The interface and result type of the async and batch clients."""

import dataclasses
from collections import Counter
from typing import NamedTuple, Protocol

from data_pipeline.llm.journal import (
    ANSWER,
    REJECTED,
    REJECTIONS,
    UNPAID,
    UNUSABLE,
    Journal,
    Sent,
)
from data_pipeline.llm.replies import RESPONSE_FORMAT, TOKEN_LIMIT, Reply
from data_pipeline.llm.request import Request, form_of, in_form

MAX_UNANSWERED = 5  # failed attempts of a request while others are answered; then it has failed
MAX_REJECTED_OF_REQUEST = 3  # then the rejection is final, if other requests are answered
MAX_REJECTED_IN_A_ROW = 10  # different requests of a stage without an answer between them
MAX_DENIED_IN_A_ROW = 3  # the same for want of rights, before the first answer of the run
MAX_INVALID_OF_FORM = 3  # answers before the first valid one; then the next form is tried
_BYTES_OF_TOKEN = 4  # of English, to see from an answer's text whether a limit was heeded
_MARGIN = 2  # further answers may be longer than the longest so far


class Result(NamedTuple):
    """The final result of a request: the answer's JSON, or the reason for having none."""

    text: str = ""
    failure: str = ""


class AskFn(Protocol):
    """Resolves one request; many calls may be active at once."""

    async def __call__(self, request: Request) -> Result: ...


def recorded_result(journal: Journal, key: str, max_attempts: int) -> Result | None:
    """The final result of a request in the journal, or None if it still has to be sent."""
    rows = journal.outcomes(key)
    for outcome, text in rows:
        if outcome == ANSWER:
            return Result(text=text)
    failures = [outcome for outcome, _ in rows if outcome in UNUSABLE]
    if rejected := [outcome for outcome, _ in rows if outcome in REJECTIONS]:
        return Result(failure=rejected[-1])
    if len(failures) >= max_attempts:
        return Result(failure=failures[-1])
    return None


class Forms:
    """The form in which an endpoint takes each stage's requests, found by trying, once a run.

    A field that the endpoint does not take, or takes and ignores, is replaced by the next form of
    `Request.formats` and `Request.limits`. Also keeps how long answers are that go beyond their
    limit, since the cap on the cost must hold for these too.
    """

    def __init__(self):
        self._levels: dict[tuple[str, str], dict[str, int]] = {}
        self._longest: dict[tuple[str, str], int] = {}
        self._unlimited: set[tuple[str, str]] = set()
        self._valid: set[tuple[str, str]] = set()
        self._invalid: Counter[tuple[str, str]] = Counter()

    def apply(self, request: Request) -> Request:
        """The request as it is to be sent now."""
        level = self._level(request)
        formats, limits = request.formats, request.limits
        return in_form(request, formats[level[RESPONSE_FORMAT]], limits[level[TOKEN_LIMIT]])

    def most_tokens(self, request: Request) -> int:
        """Most tokens that an answer may have: its limit, or more if that is ignored."""
        return max(request.max_completion_tokens, self._longest.get(_kind(request), 0))

    def learn(self, sent: Request, reply: Reply) -> bool:
        """Adapts to the reply to a request as sent; returns whether to send it in another form."""
        kind, level, usage = _kind(sent), self._level(sent), reply.usage
        now = sent.formats[level[RESPONSE_FORMAT]], sent.limits[level[TOKEN_LIMIT]]
        current = form_of(sent) == now
        if reply.unsupported:  # or changed while it was on its way
            lower = [self._lower(sent, name, "take") for name in reply.unsupported if current]
            return not current or any(lower)
        if not reply.paid:
            return False
        tokens = usage.completion_tokens if usage.reported else reply.size // _BYTES_OF_TOKEN
        if tokens > sent.max_completion_tokens:
            most = tokens if usage.reported else reply.size
            self._longest[kind] = max(self._longest.get(kind, 0), _MARGIN * most)
            lower = current and self._lower(sent, TOKEN_LIMIT, "heed")
            if current and not lower and kind not in self._unlimited:
                self._unlimited.add(kind)
                print(f"{sent.stage} ({sent.model}): the endpoint heeds no limit of tokens")
        if reply.outcome == ANSWER:
            self._valid.add(kind)
        elif reply.outcome == "schema" and kind not in self._valid and current:
            self._invalid[kind] += 1
            if self._invalid[kind] % MAX_INVALID_OF_FORM == 0:
                self._lower(sent, RESPONSE_FORMAT, "heed")
        return False

    def _level(self, request: Request) -> dict[str, int]:
        return self._levels.setdefault(_kind(request), {RESPONSE_FORMAT: 0, TOKEN_LIMIT: 0})

    def _lower(self, request: Request, field: str, verb: str) -> bool:
        """Goes on to the next form of a field and says so; whether there is one."""
        level = self._level(request)
        forms = request.formats if field == RESPONSE_FORMAT else request.limits
        if level[field] + 1 == len(forms):
            return False
        level[field] += 1
        old, new = forms[level[field] - 1 : level[field] + 1]
        print(
            f"{request.stage} ({request.model}): the endpoint does not {verb} {field} {old}; "
            f"trying {new} (the stage's key {field} sets it)"
        )
        return True


def _kind(request: Request) -> tuple[str, str]:
    return request.stage, request.model


class Rejections:
    """Tells texts that an endpoint rejects from an endpoint that rejects everything.

    A rejection is final for its request if the endpoint explains it by the text (its content, its
    length), or after several of them while other requests are answered. Before the stage's first
    answer none is: model, key or options may be wrong. Many in a row stop the run.
    """

    def __init__(self, journal: Journal):
        self._journal = journal
        self._answering: set[str] = set()  # stages that had answers in this run
        self._ever: set[str] = set()  # and in any run
        self._looked_up: set[tuple[str, str]] = set()
        self._of_request: Counter[str] = Counter()
        self._in_a_row: dict[str, dict[str, Reply]] = {}  # stage -> request -> first rejection

    def answered(self, stage: str) -> None:
        """Notes that the endpoint answered a request of the stage."""
        self._answering.add(stage)
        self._ever.add(stage)
        self._in_a_row.pop(stage, None)

    def ever_answered(self, stage: str, model: str) -> bool:
        """Whether a request of the stage was answered, in this run or in an earlier one."""
        if stage not in self._ever and (stage, model) not in self._looked_up:
            self._looked_up.add((stage, model))  # a scan of the journal
            if self._journal.ever_answered(stage, model):
                self._ever.add(stage)
        return stage in self._ever

    def settle(self, sent: Sent | Request, reply: Reply, *, others_answered: bool = False) -> Reply:
        """The reply with the outcome for the journal: UNPAID if the request is to be sent again.

        Args:
          others_answered: the same batch has answers to other requests of the stage.
        """
        if reply.outcome not in REJECTIONS:
            return reply
        if self.ever_answered(sent.stage, sent.model):
            explained = reply.outcome != REJECTED
            if explained or others_answered or self._journal.rejected_before(sent.key):
                return reply
        self._of_request[sent.key] += 1
        self._in_a_row.setdefault(sent.stage, {}).setdefault(sent.key, reply)
        enough = self._of_request[sent.key] >= MAX_REJECTED_OF_REQUEST
        if enough and self.ever_answered(sent.stage, sent.model):
            return reply
        return dataclasses.replace(reply, outcome=UNPAID)

    def reason_to_stop(self, name: str, stage: str, model: str, *, others_active: bool) -> str:
        """Why the run must stop, "" if it need not.

        Args:
          name: the endpoint's.
          others_active: whether other requests of the stage are waiting for their replies, which
            may be slower than rejections.
        """
        rejected = self._in_a_row.get(stage)
        if not rejected:
            return ""
        last = next(reversed(rejected.values()))
        denied = last.denied and stage not in self._answering
        many = len(rejected) >= (MAX_DENIED_IN_A_ROW if denied else MAX_REJECTED_IN_A_ROW)
        ever = self.ever_answered(stage, model)
        tries = max(self._of_request[key] for key in rejected)
        if not many and (ever or others_active or tries < MAX_REJECTED_OF_REQUEST):
            return ""
        what = f"rejects {len(rejected)} requests of the stage {stage} in a row"
        what = what if ever else f"accepts no request of the stage {stage}"
        return f"{name} {what}: {last.text}; {last.remedy}; all answers are kept: run again"
