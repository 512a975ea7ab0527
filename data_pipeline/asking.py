"""Asks an endpoint through the journal: each question once, many at a time, within the cap."""

import asyncio
import random
import time
from collections import Counter
from typing import Protocol

from data_pipeline.client import Endpoint, Reply
from data_pipeline.journal import ANSWER, BAD, REJECTED, UNKNOWN, Journal, Received, Sent
from data_pipeline.llm import Request
from data_pipeline.money import Budget, Price
from inf_jax.errors import UserError

FIRST_CONCURRENCY = 8
MOST_BACKOFF_S = 30.0
REFUSED_CONNECTIONS = 6  # in a row and with nothing reached before: there is no such endpoint
REJECTED_AT_START = 10  # requests in a row, with none taken: the requests are wrong, not the texts


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
            except UserError as raised:
                error = raised
            for _, done in rows:
                if not done.done():
                    done.set_exception(error) if error else done.set_result(None)
            # what arrives meanwhile shares the next transaction; a slow disk has half of the time
            await asyncio.sleep(max(0.002, time.monotonic() - began))


class Limiter:
    """How many requests may be under way.

    Twice as many a round of successes until told to slow down for the first time, from then on one
    more a round.
    """

    def __init__(self, most: int):
        self._most = most
        self.limit = float(min(FIRST_CONCURRENCY, most))
        self.active = 0
        self.highest = 0
        self._resume_at, self._slowed_at = 0.0, -1.0
        self._freed = asyncio.Condition()

    async def __aenter__(self) -> None:
        while True:
            async with self._freed:
                await self._freed.wait_for(lambda: self.active < int(self.limit))
                pause = self._resume_at - time.monotonic()
                if pause <= 0:
                    self.active += 1
                    self.highest = max(self.highest, self.active)
                    return
            await asyncio.sleep(pause)

    async def __aexit__(self, *_) -> None:
        async with self._freed:
            self.active -= 1
            self._freed.notify(2)  # the limit may have grown by one

    def learn(self, reply: Reply) -> None:
        """Adapts to what came back."""
        now = time.monotonic()
        if reply.wait_s is not None:
            self._resume_at = max(self._resume_at, now + reply.wait_s)
        if reply.slow_down:
            if now - self._slowed_at > 0.5:  # those under way together are one event
                self._slowed_at = now
                self.limit = max(1.0, self.limit * 0.7)
        elif reply.outcome == ANSWER:
            more = 1.0 if self._slowed_at < 0 else 1.0 / self.limit
            self.limit = min(float(self._most), self.limit + more)


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
        self._rejections, self._taken = Counter(), Counter()
        self._asked: dict[str, asyncio.Task] = {}

    async def __call__(self, request: Request) -> Result:
        result = known(self._journal, request.key, self._max_attempts)
        if result:
            return result
        # the same question of two records is one question
        task = self._asked.get(request.key)
        if task is None:
            task = self._asked[request.key] = asyncio.create_task(self._answered(request))
            task.add_done_callback(lambda _: self._asked.pop(request.key, None))
        return await asyncio.shield(task)

    async def settle(self) -> None:
        """Waits for all that is under way, so that no answer that is paid for is lost."""
        await asyncio.gather(*self._asked.values(), return_exceptions=True)

    def status(self) -> str:
        """What is under way, in a few words."""
        return f"{self.limiter.active} requests under way"

    def stop(self, error: UserError) -> None:
        """Sends nothing more; what is under way may end."""
        self._stop = self._stop or error

    async def _answered(self, request: Request) -> Result:
        attempt = 0
        while True:
            async with self.limiter:
                reply = await self._attempt(request)
            result = known(self._journal, request.key, self._max_attempts)
            if result:
                return result
            attempt += 1
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
        ended = False
        try:
            if self._stop:
                raise self._stop
            sent = Sent(self._journal.new_id(), request.key, request.stage, request.model, most)
            await self._write(sent)
            reply = await self._endpoint.ask(request)
            self._learn(request, reply)
            usd = price.usd(reply.usage, batch=False)
            usage = reply.usage
            row = (sent.id, reply.outcome, reply.text, usage.prompt_tokens, usage.completion_tokens)
            await self._write(Received(*row, usd))
            self._budget.settle(most, usd, unknown=reply.outcome == UNKNOWN)
            ended = True
        finally:
            if not ended:  # nothing is known of its cost
                self._budget.settle(most, 0.0, unknown=True)
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

    def _learn(self, request: Request, reply: Reply) -> None:
        self.limiter.learn(reply)
        now = time.monotonic()
        self._any_reached |= reply.reached
        self._refused = 0 if reply.reached else self._refused + 1
        if reply.outcome == ANSWER or reply.outcome in BAD:
            self._success = now
            self._taken[request.stage] += 1
        elif reply.wait_s:  # told to wait: that is no failure
            self._success = max(self._success, now + reply.wait_s)
        if reply.outcome == REJECTED:
            self._rejections[request.stage] += 1
        name, kept = self._endpoint.name, "all answers are kept: run again to go on"
        if reply.fatal:
            self.stop(UserError(f"{reply.fatal}; {kept}"))
        elif not self._any_reached and self._refused >= REFUSED_CONNECTIONS:
            self.stop(UserError(f"{name} cannot be reached ({reply.text}); check llm.base_url"))
        elif now - self._success > self._give_up_s:
            self.stop(
                UserError(
                    f"{name}: no answer for {self._give_up_s:.0f} s, last: {reply.text}; {kept}"
                )
            )
        elif self._rejections[request.stage] >= REJECTED_AT_START and not self._taken.get(
            request.stage
        ):
            self.stop(
                UserError(
                    f"{name} takes no request of the stage {request.stage}: {reply.text}; check "
                    f"the model {request.model!r} and the stage's options"
                )
            )
