"""Asks an endpoint through the journal: each question once, many at a time, within the cap."""

import asyncio
import dataclasses
import random
import time
from collections import Counter
from typing import Protocol

from data_pipeline.llm.budget import Budget, Price
from data_pipeline.llm.client import Endpoint, Reply
from data_pipeline.llm.journal import (
    ANSWER,
    BAD,
    REJECTED,
    UNKNOWN,
    UNPAID,
    Journal,
    Received,
    Sent,
)
from data_pipeline.llm.limiter import Limiter
from data_pipeline.llm.request import Request
from inf_jax.core.errors import UserError

# What ends an example goes first: a budget that runs out leaves whole ones.
_RANK = {"judge": 0, "generate": 1, "query": 2}
MOST_BACKOFF_S = 30.0
REFUSED_CONNECTIONS = 6  # in a row and with nothing reached before: there is no such endpoint
# Rejections with no request of the stage ever taken: the requests are wrong, not the texts.
REJECTED_AT_START = 10
REJECTED_ALONE = 3  # of one question
OWN_FAULTS = 5  # attempts without an answer, while others get theirs, after which a question fails


class Result:
    """The end of a question: the answer's JSON, or why there is none."""

    __slots__ = ("failure", "text")

    def __init__(self, text: str = "", failure: str = ""):
        self.text, self.failure = text, failure


class Ask(Protocol):
    """Asks one question; many may be under way."""

    async def __call__(self, request: Request) -> Result: ...


def known(journal: Journal, key: str, max_attempts: int) -> Result | None:
    """What the journal knows of a question: its result, or None where it is to be asked."""
    rows = journal.outcomes(key)
    for outcome, text in rows:
        if outcome == ANSWER:
            return Result(text=text)
    failures = [outcome for outcome, _ in rows if outcome in BAD]
    if any(outcome == REJECTED for outcome, _ in rows):
        return Result(failure="rejected")
    if len(failures) >= max_attempts:
        return Result(failure=failures[-1])
    return None


class Writer:
    """Writes rows of many tasks in common transactions: one sync to disk for all that wait."""

    def __init__(self, journal: Journal):
        self._journal = journal
        self._waiting: list[tuple[Sent | Received, asyncio.Future]] = []
        self._task: asyncio.Task | None = None

    async def write(self, row: Sent | Received) -> None:
        """Returns when the row is on disk; raises UserError where it cannot be written."""
        done = asyncio.get_running_loop().create_future()
        self._waiting.append((row, done))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._flush())
        await asyncio.shield(done)

    async def _flush(self) -> None:
        while self._waiting:
            rows, self._waiting = self._waiting, []
            began = time.monotonic()
            try:
                self._journal.write(row for row, _ in rows)
                error = None
            except Exception as raised:  # whoever waits for a row gets it
                error = raised
            for _, done in rows:
                if not done.done():
                    done.set_exception(error) if error else done.set_result(None)
            # what arrives meanwhile shares the next transaction; a slow disk has half of the time
            await asyncio.sleep(max(0.002, time.monotonic() - began))


class AsyncAsker:
    """`Ask` by single requests.

    Args:
      endpoint, journal, budget: see there.
      prices: of each model.
      concurrency: most requests under way.
      max_attempts: paid attempts of a question; after as many useless answers it has failed.
      give_up_s: seconds without any success after which the run stops.

    Raises (from calls):
      UserError: bad key, unknown model, endpoint not reached, no answer for too long, full disk.
      BudgetReached: the cap.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        journal: Journal,
        budget: Budget,
        prices: dict[str, Price],
        *,
        concurrency: int,
        max_attempts: int,
        give_up_s: float,
    ):
        self._endpoint, self._journal, self._budget, self._prices = (
            endpoint,
            journal,
            budget,
            prices,
        )
        self.window = 4 * concurrency  # records under way
        self._max_attempts, self._give_up_s = max_attempts, give_up_s
        self._writer, self.limiter = Writer(journal), Limiter(concurrency)
        self._stop: UserError | None = None
        self._success = time.monotonic()
        self._refused = 0
        self._any_reached = False
        self._rejections: Counter[str] = Counter()
        self._taken: set[str] = set()
        self._asked: dict[str, asyncio.Task] = {}

    async def __call__(self, request: Request) -> Result:
        result = known(self._journal, request.key, self._max_attempts)
        if result:
            return result
        # the same question of two records is one question
        task = self._asked.get(request.key)
        if task is None:
            task = self._asked[request.key] = asyncio.create_task(self._answered(request))
            task.add_done_callback(lambda done: self._ended(request.key, done))
        return await asyncio.shield(task)

    def _ended(self, key: str, task: asyncio.Task) -> None:
        self._asked.pop(key, None)
        if not task.cancelled():
            task.exception()  # whoever asked has it; nobody may be left

    async def settle(self) -> None:
        """Sends nothing more and waits for what is under way: nothing that is paid for is lost."""
        self.stop(UserError("the run has ended"))
        await asyncio.gather(*self._asked.values(), return_exceptions=True)

    def status(self) -> str:
        """What is under way, in a few words."""
        return f"{self.limiter.active} requests under way"

    def stop(self, error: UserError) -> None:
        """Sends nothing more; what is under way may end."""
        self._stop = self._stop or error
        self.limiter.end_pause()

    async def _answered(self, request: Request) -> Result:
        attempt = own_faults = 0
        began = time.monotonic()
        while True:
            async with self.limiter.place(_RANK[request.stage]):
                reply = await self._attempt(request)
            result = known(self._journal, request.key, self._max_attempts)
            if result:
                return result
            attempt += 1
            # told to wait, or not reached: that is not for what the question asks
            own_faults += reply.outcome not in BAD and reply.wait_s is None and reply.reached
            # others have got theirs meanwhile: where nobody does, the run stops
            long = time.monotonic() - began > self._give_up_s and self._success > began
            if own_faults >= OWN_FAULTS and long:
                return Result(failure="unanswered")
            if reply.outcome not in BAD and reply.wait_s is None:
                await self._sleep(min(MOST_BACKOFF_S, 0.25 * 2**attempt) * random.uniform(0.5, 1))

    async def _sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while self._stop is None and (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, 0.5))

    async def _attempt(self, request: Request) -> Reply:
        if self._stop:
            raise self._stop
        price = self._prices[request.model]
        most = price.most(request, batch=False)
        try:
            await self._budget.reserve(most)
        except UserError as error:
            self.stop(error)
            raise
        cost: float | None = 0.0  # None: nobody knows
        try:
            if self._stop:
                raise self._stop
            sent = Sent(self._journal.new_id(), request.key, request.stage, request.model, most)
            await self._write(sent)
            cost, sent_at = None, time.monotonic()
            reply = await self._endpoint.ask(request)
            reply = self._learn(request, reply, sent_at)
            paid = reply.outcome == ANSWER or reply.outcome in BAD
            usd = price.paid(reply.usage, most, batch=False) if paid else 0.0
            tokens = reply.usage.prompt_tokens, reply.usage.completion_tokens
            await self._write(Received(sent.id, reply.outcome, reply.text, *tokens, usd))
            if reply.outcome != UNKNOWN:
                cost = usd
        finally:
            self._budget.settle(most, cost or 0.0, unknown=cost is None)
        if self._stop:
            self._raise_unless_known(request)
        return reply

    def _raise_unless_known(self, request: Request) -> None:
        if self._stop and not known(self._journal, request.key, self._max_attempts):
            raise self._stop

    async def _write(self, row: Sent | Received) -> None:
        try:
            await self._writer.write(row)
        except UserError as error:
            self.stop(error)
            raise

    def _learn(self, request: Request, reply: Reply, sent_at: float) -> Reply:
        """Adapts to a reply; returns it as it is to be written."""
        self.limiter.learn(reply, sent_at=sent_at)
        now, stage = time.monotonic(), request.stage
        self._any_reached |= reply.reached
        self._refused = 0 if reply.reached else self._refused + 1
        if reply.outcome == ANSWER or reply.outcome in BAD:
            self._success = now
            self._taken.add(stage)
        if reply.outcome == REJECTED and not self._takes(request):
            self._rejections.update((stage, request.key))
            # for good only where the endpoint takes others: its own settings may be at fault
            reply = dataclasses.replace(reply, outcome=UNPAID)
        if reason := self._reason_to_stop(request, reply, now):
            self.stop(UserError(reason))
        return reply

    def _takes(self, request: Request) -> bool:
        """Whether the endpoint was ever seen to take requests of this stage."""
        stage = request.stage
        if stage not in self._taken and self._journal.mean_tokens(stage, request.model):
            self._taken.add(stage)  # in an earlier run
        return stage in self._taken

    def _reason_to_stop(self, request: Request, reply: Reply, now: float) -> str:
        name, kept = self._endpoint.name, "all answers are kept: run again to go on"
        if reply.fatal:
            return f"{reply.fatal}; {kept}"
        if not self._any_reached and self._refused >= REFUSED_CONNECTIONS:
            return f"{name} cannot be reached ({reply.text}); check llm.base_url"
        if (reply.wait_s or 0.0) > self._give_up_s:
            return (
                f"{name} asks to wait {reply.wait_s:.0f} s, longer than llm.give_up_s: a limit is "
                f"used up; {kept}"
            )
        if now - self._success > self._give_up_s:
            return f"{name}: no answer for {self._give_up_s:.0f} s, last: {reply.text}; {kept}"
        in_stage, alone = self._rejections[request.stage], self._rejections[request.key]
        if (
            in_stage >= REJECTED_AT_START or alone >= REJECTED_ALONE
        ) and request.stage not in self._taken:
            return (
                f"{name} takes no request of the stage {request.stage}: {reply.text}; check the "
                f"model {request.model!r} and the stage's options"
            )
        return ""
