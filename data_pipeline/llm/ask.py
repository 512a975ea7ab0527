"""The interface and result type of the async and batch clients."""

from typing import NamedTuple, Protocol

from data_pipeline.llm.journal import ANSWER, REJECTIONS, UNUSABLE, Journal
from data_pipeline.llm.request import Request

MAX_UNANSWERED = 5  # failed attempts of a request while others are answered; then it has failed


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


class AcceptedStages:
    """The stages whose requests the endpoint has accepted, in this run or in an earlier one.

    Only then is a rejection a request's own fault; before, model or options may be wrong.
    """

    def __init__(self, journal: Journal):
        self._journal = journal
        self._stages: set[str] = set()

    def add(self, stage: str) -> None:
        """Notes that a request of the stage was accepted."""
        self._stages.add(stage)

    def has(self, stage: str, model: str) -> bool:
        """Whether a request of the stage was accepted."""
        if stage not in self._stages and self._journal.mean_tokens(stage, model):
            self._stages.add(stage)
        return stage in self._stages
