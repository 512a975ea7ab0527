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
from data_pipeline.llm.replies import Reply
from data_pipeline.llm.request import Request

MAX_UNANSWERED = 5  # failed attempts of a request while others are answered; then it has failed
MAX_REJECTED_OF_REQUEST = 3  # then the rejection is final, if other requests are answered
MAX_REJECTED_IN_A_ROW = 10  # different requests of a stage without an answer between them
MAX_DENIED_IN_A_ROW = 3  # the same for want of rights, before the first answer of the run


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
        self._of_request: Counter[str] = Counter()
        self._in_a_row: dict[str, dict[str, Reply]] = {}  # stage -> request -> first rejection

    def answered(self, stage: str) -> None:
        """Notes that the endpoint answered a request of the stage."""
        self._answering.add(stage)
        self._ever.add(stage)
        self._in_a_row.pop(stage, None)

    def ever_answered(self, stage: str, model: str) -> bool:
        """Whether a request of the stage was answered, in this run or in an earlier one."""
        if stage not in self._ever and self._journal.ever_answered(stage, model):
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
