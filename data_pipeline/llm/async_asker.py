"""Sends requests concurrently through the journal: each is paid for once, within the cap."""

import asyncio
import contextlib
import dataclasses
import random
import time
from collections import Counter
from collections.abc import AsyncIterator

from data_pipeline.llm.ask import MAX_UNANSWERED, Forms, Rejections, Result, recorded_result
from data_pipeline.llm.budget import Budget, Price
from data_pipeline.llm.client import Endpoint
from data_pipeline.llm.journal import UNKNOWN, UNPAID, Journal, Received, Sent
from data_pipeline.llm.limiter import Limiter
from data_pipeline.llm.replies import Reply
from data_pipeline.llm.request import Request
from inf_jax.core.errors import UserError

# Later stages go first, so that a budget that runs out leaves complete examples.
_RANK = {"judge": 0, "generate": 1, "query": 2}
MAX_BACKOFF_S = 30.0
MAX_REFUSED_CONNECTIONS = 6  # in a row, before any was accepted: there is no such endpoint


class JournalWriter:
    """Groups the rows of many tasks into common transactions: one sync to disk for all of them."""

    def __init__(self, journal: Journal):
        self._journal = journal
        self._waiting: list[tuple[Sent | Received, asyncio.Future]] = []
        self._task: asyncio.Task | None = None

    async def write(self, row: Sent | Received) -> None:
        """Returns when the row is on disk; raises UserError if it cannot be written."""
        done = asyncio.get_running_loop().create_future()
        self._waiting.append((row, done))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._flush())
        await asyncio.shield(done)

    async def _flush(self) -> None:
        while self._waiting:
            rows, self._waiting = self._waiting, []
            began = time.monotonic()
            error = None
            try:
                self._journal.write(row for row, _ in rows)
            except Exception as raised:  # raised again in each waiting task
                error = raised
            for _, done in rows:
                if not done.done():
                    done.set_exception(error) if error else done.set_result(None)
            # rows that arrive meanwhile share the next transaction; half of the time for the disk
            await asyncio.sleep(max(0.002, time.monotonic() - began))


class AsyncAsker:
    """An `AskFn` that sends single requests.

    Args:
      prices: by model.
      concurrency: maximum of concurrent requests.
      max_attempts: unusable answers after which a request has failed.
      give_up_s: seconds without any success after which the run stops.

    Calls raise:
      UserError: bad key, unknown model, endpoint not reached, no answer for too long, full disk.
      BudgetReached: the cap leaves no room.
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
        self._endpoint, self._journal = endpoint, journal
        self._budget, self._prices = budget, prices
        self.window = 4 * concurrency  # items in progress
        self._max_attempts, self._give_up_s = max_attempts, give_up_s
        self._writer, self.limiter = JournalWriter(journal), Limiter(concurrency)
        self._stop: UserError | None = None
        self._success = time.monotonic()
        self._refused_in_a_row = 0
        self._ever_reached = False
        self._rejections, self._forms = Rejections(journal), Forms()
        # Until a model's first answer shows that it heeds the limit of tokens, a cap on the cost
        # lets one request of a stage through at a time.
        self._gates: dict[tuple[str, str], asyncio.Lock] = {}
        self._measured: set[tuple[str, str]] = set()
        self._sent: Counter[str] = Counter()  # stage -> requests without a reply yet
        self._active: dict[str, asyncio.Task] = {}

    async def __call__(self, request: Request) -> Result:
        if result := recorded_result(self._journal, request.key, self._max_attempts):
            return result
        # equal requests of two records are sent once
        task = self._active.get(request.key)
        if task is None:
            task = self._active[request.key] = asyncio.create_task(self._resolve(request))
            task.add_done_callback(lambda done: self._ended(request.key, done))
        return await asyncio.shield(task)

    def _ended(self, key: str, task: asyncio.Task) -> None:
        self._active.pop(key, None)
        if not task.cancelled():
            task.exception()  # mark as retrieved: the caller may be cancelled

    async def settle(self) -> None:
        """Stops sending and waits for active requests, so that no paid answer is lost."""
        self.stop(UserError("the run has ended"))
        await asyncio.gather(*self._active.values(), return_exceptions=True)

    def status(self) -> str:
        """Short description of the active requests, for the progress bar."""
        return f"{self.limiter.active} active requests"

    def stop(self, error: UserError) -> None:
        """Stops sending; active requests go on."""
        self._stop = self._stop or error
        self.limiter.end_pause()

    async def _resolve(self, request: Request) -> Result:
        attempt = unanswered = 0
        began = time.monotonic()
        while True:
            async with self._gate(request), self.limiter.slot(_RANK[request.stage]):
                reply = await self._attempt(request)
            if result := recorded_result(self._journal, request.key, self._max_attempts):
                return result
            attempt += 1
            # being told to wait or not reaching the endpoint has nothing to do with this request
            unanswered += not reply.paid and reply.wait_s is None and reply.reached
            overdue = time.monotonic() - began > self._give_up_s
            # if no other request is answered either, the run stops instead
            if unanswered >= MAX_UNANSWERED and overdue and self._success > began:
                return Result(failure="unanswered")
            if not reply.paid and reply.wait_s is None:
                await self._sleep(min(MAX_BACKOFF_S, 0.25 * 2**attempt) * random.uniform(0.5, 1))

    @contextlib.asynccontextmanager
    async def _gate(self, request: Request) -> AsyncIterator[None]:
        kind = request.stage, request.model
        if self._budget.max_usd is None or kind in self._measured:
            yield
            return
        gate = self._gates.setdefault(kind, asyncio.Lock())
        async with contextlib.AsyncExitStack() as held:
            await held.enter_async_context(gate)
            if kind in self._measured:
                await held.aclose()
            yield

    async def _sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while self._stop is None and (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, 0.5))

    async def _attempt(self, request: Request) -> Reply:
        if self._stop:
            raise self._stop
        price, request = self._prices[request.model], self._forms.apply(request)
        most = self._forms.most_tokens(request)
        reserved = price.upper_bound(request, batch=False, most_tokens=most)
        try:
            await self._budget.reserve(reserved)
        except UserError as error:
            self.stop(error)
            raise
        cost: float | None = 0.0  # None: unknown
        try:
            if self._stop:
                raise self._stop
            sent = Sent(self._journal.new_id(), request.key, request.stage, request.model, reserved)
            await self._write(sent)
            cost, sent_at = None, time.monotonic()
            self._sent[request.stage] += 1
            try:
                reply = await self._endpoint.ask(request)
            finally:
                self._sent[request.stage] -= 1
            reply = self._classify(request, reply, sent_at)
            beyond = reply.size - most
            usd = price.paid(reply.usage, reserved, batch=False, beyond=beyond)
            usd = usd if reply.paid else 0.0
            tokens = reply.usage.prompt_tokens, reply.usage.completion_tokens
            await self._write(Received(sent.id, reply.outcome, reply.text, *tokens, usd))
            if reply.outcome != UNKNOWN:
                cost = usd
        finally:
            self._budget.settle(reserved, cost or 0.0, unknown=cost is None)
        if self._stop and not recorded_result(self._journal, request.key, self._max_attempts):
            raise self._stop
        return reply

    async def _write(self, row: Sent | Received) -> None:
        try:
            await self._writer.write(row)
        except UserError as error:
            self.stop(error)
            raise

    def _classify(self, request: Request, reply: Reply, sent_at: float) -> Reply:
        """Adapts to a reply; returns it with the outcome for the journal."""
        if self._forms.learn(request, reply):
            return dataclasses.replace(reply, outcome=UNPAID, wait_s=0.0)
        self.limiter.adapt(reply, sent_at=sent_at)
        now = time.monotonic()
        self._ever_reached |= reply.reached
        self._refused_in_a_row = 0 if reply.reached else self._refused_in_a_row + 1
        if reply.paid:
            self._success = now
            self._rejections.answered(request.stage)
            self._measured.add((request.stage, request.model))
        reply = self._rejections.settle(request, reply)
        if reason := self._reason_to_stop(request, reply, now):
            self.stop(UserError(reason))
        return reply

    def _reason_to_stop(self, request: Request, reply: Reply, now: float) -> str:
        name, kept = self._endpoint.name, "all answers are kept: run again to continue"
        if reply.fatal:
            return f"{reply.fatal}; {kept}"
        if not self._ever_reached and self._refused_in_a_row >= MAX_REFUSED_CONNECTIONS:
            return f"{name} cannot be reached ({reply.text}); check llm.base_url"
        if (reply.wait_s or 0.0) > self._give_up_s:
            return (
                f"{name} asks to wait {reply.wait_s:.0f} s, longer than llm.give_up_s: a limit is "
                f"used up; {kept}"
            )
        if now - self._success > self._give_up_s:
            return f"{name}: no answer for {self._give_up_s:.0f} s, last: {reply.text}; {kept}"
        others = self._sent[request.stage] > 0
        return self._rejections.reason_to_stop(
            name, request.stage, request.model, others_active=others
        )
