"""Sends requests by the Batch API: half the price, answers within a day.

Requests are grouped into batches (see `batch_lifecycle`); rows that fail or are missing go into a
later batch.
"""

import asyncio
import contextlib
import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from data_pipeline.llm.ask import MAX_UNANSWERED, Forms, Rejections, Result, recorded_result
from data_pipeline.llm.batch_api import BatchState
from data_pipeline.llm.batch_lifecycle import UNSUBMITTED, BatchLifecycle
from data_pipeline.llm.budget import Budget, BudgetReached, Price
from data_pipeline.llm.client import Endpoint
from data_pipeline.llm.journal import PAID, REJECTED, UNKNOWN, UNPAID, Journal, Received, Sent
from data_pipeline.llm.replies import Reply
from data_pipeline.llm.request import Request
from inf_jax.core.errors import UserError

MAX_BYTES = 190_000_000  # of a batch's file; the API's limit is 200 MB
_LINE_BYTES = 200  # of a line without the body
_LINGER_S = 0.3  # a batch that is not full is sent after this time without a new request
# Batches in a row without any answer (not counting active ones) after which the run stops:
_MAX_FAILED = 5
_MAX_FAILED_LATER = 10  # if the endpoint has given answers before
_MAX_QUOTA_EXCEEDED = 30  # if they exceed the quota of enqueued tokens beside other batches


class _Pending(NamedTuple):
    request: Request
    future: asyncio.Future


class BatchAsker:
    """An `AskFn` that sends batches.

    Args:
      prices: by model.
      batch_requests: maximum number of requests in a batch.
      max_attempts: unusable answers after which a request has failed.

    Calls raise:
      UserError: the endpoint refuses, batches fail one after another, full disk.
      BudgetReached: the cap leaves no room.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        journal: Journal,
        budget: Budget,
        prices: dict[str, Price],
        *,
        lifecycle: BatchLifecycle,
        batch_requests: int,
        max_attempts: int,
    ):
        self._endpoint, self._journal, self._budget = endpoint, journal, budget
        self._prices, self._lifecycle = prices, lifecycle
        self._batch_requests, self._max_attempts = batch_requests, max_attempts
        self.window = 2 * batch_requests
        self.on_change: Callable[[], None] = lambda: None
        self.states: dict[str, BatchState] = {}  # active batches, by our name
        self._new: dict[str, _Pending] = {}
        self._submitted: dict[str, _Pending | None] = {}  # in an active batch
        self._arrived = asyncio.Event()
        self._stop: Exception | None = None
        self._failed_in_a_row = 0
        self._rejections, self._forms = Rejections(journal), Forms()
        self._sent: dict[str, Request] = {}  # by this run, as sent
        self._unanswered: Counter[str] = Counter()  # of requests, in completed batches
        self._tasks: set[asyncio.Task] = set()
        self._batcher: asyncio.Task | None = None
        for name, events in lifecycle.unfinished().items():
            self._submitted |= dict.fromkeys(journal.pending_in_batch(name))
            self._start(functools.partial(self._follow, name, events, earlier=True))

    async def __call__(self, request: Request) -> Result:
        if result := recorded_result(self._journal, request.key, self._max_attempts):
            return result
        if self._stop:
            raise self._stop
        pending = self._submitted.get(request.key) or self._new.get(request.key)
        if pending is None:
            pending = _Pending(request, asyncio.get_running_loop().create_future())
            if request.key in self._submitted:
                self._submitted[request.key] = pending
            else:
                self._queue(pending)
        return await asyncio.shield(pending.future)

    @property
    def active(self) -> int:
        """Number of active batches."""
        return len(self._tasks - {self._batcher})

    def status(self) -> str:
        """Short description of the active batches, for the progress bar."""
        done = sum(state.done for state in self.states.values())
        total = sum(state.total for state in self.states.values())
        return f"{self.active} active batches, {done:,} of {total:,} requests done"

    async def wait_for_batches(self) -> None:
        """Waits for the active batches, e.g. those of an earlier run."""
        while self.active:
            await asyncio.wait(self._tasks - {self._batcher})
        if self._stop:
            raise self._stop

    async def settle(self) -> None:
        """Ends the work of this process; batches go on at the endpoint for a later run."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def stop(self, error: Exception) -> None:
        """Submits nothing more and raises the error in all waiting calls."""
        self._stop = self._stop or error
        for pending in (*self._new.values(), *self._submitted.values()):
            if pending and not pending.future.done():
                pending.future.set_exception(self._stop)
                pending.future.exception()  # mark as retrieved: the caller may be cancelled
        self._new.clear()

    def _start(self, work: Callable[[], Awaitable[None]]) -> asyncio.Task:
        async def guarded() -> None:
            try:
                await work()
            except Exception as error:  # bugs too, or callers would wait for ever
                self.stop(error)

        task = asyncio.create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _queue(self, pending: _Pending) -> None:
        self._new[pending.request.key] = pending
        self._arrived.set()
        if self._batcher is None or self._batcher.done():
            self._batcher = self._start(self._form_batches)

    async def _form_batches(self) -> None:
        """Sends a batch when enough requests are waiting, or when no more arrive."""
        while self._new and not self._stop:
            self._arrived.clear()
            if len(self._new) < self._batch_requests:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._arrived.wait(), _LINGER_S)
                    continue
            planned = await self._next_batch()
            if self._stop:  # meanwhile: free the reservations
                for _, usd in planned:
                    self._budget.settle(usd, 0.0)
                return
            self._sent |= {request.key: request for request, _ in planned}
            name, events = self._lifecycle.plan(planned)
            for request, _ in planned:
                self._submitted[request.key] = self._new.pop(request.key)
            self._start(functools.partial(self._follow, name, events, earlier=False))

    async def _next_batch(self) -> list[tuple[Request, float]]:
        """(request as sent, reserved USD): the oldest waiting ones of one model that fit.

        They fit into a batch and under the cap.
        """
        model = next(iter(self._new.values())).request.model
        batch: list[tuple[Request, float]] = []
        size = 0
        for pending in [q for q in self._new.values() if q.request.model == model]:
            request = self._forms.apply(pending.request)
            size += len(json.dumps(request.body)) + _LINE_BYTES
            if batch and (len(batch) == self._batch_requests or size > MAX_BYTES):
                break
            usd = self._upper_bound(request)
            if batch and not self._budget.fits(usd):
                break  # the rest waits for what these leave of the cap
            await self._reserve(usd)
            batch.append((request, usd))
        return batch

    async def _reserve(self, usd: float) -> None:
        """As `Budget.reserve`; the end of an earlier run's batch may free some of it too."""
        while True:
            try:
                return await self._budget.reserve(usd)
            except BudgetReached:
                if not self.active:
                    raise
                following = self._tasks - {self._batcher}
                await asyncio.wait(following, return_when=asyncio.FIRST_COMPLETED)

    def _upper_bound(self, request: Request) -> float:
        most = self._forms.most_tokens(request)
        return self._prices[request.model].upper_bound(request, batch=True, most_tokens=most)

    async def _follow(self, name: str, events: dict[str, Any], *, earlier: bool) -> None:
        """Takes a batch to its end and hands out its results."""

        def on_state(state: BatchState) -> None:
            self.states[name] = state
            self.on_change()

        results = self._lifecycle.results(name, events, earlier=earlier, on_state=on_state)
        state, rows = await results
        sent, received = self._receive(name, state, rows, earlier=earlier)
        self._lifecycle.end(name, state, received)
        self.states.pop(name, None)
        self._count_failures(state, sent, received)
        if state.status == "failed":
            await self._lifecycle.pause()
        for one in sent:
            self._deliver(one.key)
        await self._lifecycle.delete_files(events, state)

    def _receive(
        self, name: str, state: BatchState, rows: list[dict[str, Any]], *, earlier: bool
    ) -> tuple[list[Sent], list[Received]]:
        """The batch's requests and their rows for the journal; settles their costs."""
        sent = self._journal.pending_in_batch(name)
        received, replies = [], {}
        for row in rows:
            key = row.get("custom_id")
            if key in sent and (key not in replies or replies[key].outcome == UNPAID):
                replies[key] = self._reply(sent[key], row)
        answered = set()
        for key, reply in replies.items():
            if reply.fatal:
                self.stop(UserError(f"{reply.fatal}; all answers are kept: run again to continue"))
            if reply.paid:
                self._rejections.answered(sent[key].stage)
                answered.add(sent[key].stage)
        # a row missing from a batch that ran may have been computed and billed all the same
        missing = Reply(
            UNPAID if state.status in ("failed", UNSUBMITTED) else UNKNOWN,
            f"not in the results of a batch that {_ended(state)}",
        )
        for key, one in sent.items():
            reply = replies.get(key, missing)
            others = one.stage in answered
            request = self._sent.pop(key, None)
            if request and self._forms.learn(request, reply):
                reply = dataclasses.replace(reply, outcome=UNPAID)
                self._failed_in_a_row = -1  # the next form may do better
            if earlier and reply.outcome == REJECTED:  # of another day: to be sent again
                reply = dataclasses.replace(reply, outcome=UNPAID)
            reply = self._rejections.settle(one, reply, others_answered=others)
            if state.status == "completed" and reply.outcome in (UNPAID, UNKNOWN):
                self._unanswered[key] += 1
            usd = one.reserved if reply.paid else 0.0
            if reply.paid and (price := self._prices.get(one.model)):  # it is still in the config
                beyond = reply.size - (request.max_completion_tokens if request else 0)
                usd = price.paid(reply.usage, one.reserved, batch=True, beyond=beyond)
            tokens = reply.usage.prompt_tokens, reply.usage.completion_tokens
            received.append(Received(one.id, reply.outcome, reply.text, *tokens, usd))
            unknown = reply.outcome == UNKNOWN
            self._budget.settle(one.reserved, usd, unknown=unknown, earlier=earlier)
        for stage, model in {(one.stage, one.model) for one in sent.values()}:
            of = self._endpoint.name, stage, model
            if reason := self._rejections.reason_to_stop(*of, others_active=self.active > 1):
                self.stop(UserError(reason))
        return list(sent.values()), received

    def _count_failures(self, state: BatchState, sent: list[Sent], received: list[Received]):
        """Stops the run after too many batches in a row without any answer."""
        quota_exceeded = state.status == "failed" and "limit" in state.problem
        if quota_exceeded:  # of enqueued tokens
            self._batch_requests = max(1, self._batch_requests // 2)
        useful = any(r.outcome in PAID for r in received)
        worked_before = any(self._rejections.ever_answered(one.stage, one.model) for one in sent)
        # a few requests that never get an answer end in `_deliver`
        only_stragglers = state.status == "completed" and worked_before
        if useful or only_stragglers or not received or state.status == UNSUBMITTED:
            self._failed_in_a_row = 0
        else:
            self._failed_in_a_row += 1
        # the end of other active batches may free some of the quota
        limit = _MAX_FAILED_LATER if worked_before else _MAX_FAILED
        limit = _MAX_QUOTA_EXCEEDED if quota_exceeded and self.active > 1 else limit
        # failing batches end before successful ones of the same age: wait for the active ones
        if self._failed_in_a_row >= limit + self.active - 1:
            last = f"{_ended(state)}: {state.problem or received[0].text}"
            count = f"{self._failed_in_a_row} batches in a row"
            self.stop(UserError(f"{count} gave no answer, the last {last}; all answers are kept"))

    def _deliver(self, key: str) -> None:
        """Resolves a request that has a final result; others go into the next batch."""
        pending = self._submitted.pop(key, None)
        if pending is None or pending.future.done():
            return
        if result := recorded_result(self._journal, key, self._max_attempts):
            pending.future.set_result(result)
        elif self._stop:
            pending.future.set_exception(self._stop)
            pending.future.exception()
        elif self._unanswered[key] >= MAX_UNANSWERED:
            pending.future.set_result(Result(failure="unanswered"))
        else:
            self._queue(pending)

    def _reply(self, sent: Sent, row: dict[str, Any]) -> Reply:
        """The reply in one row of an output or error file."""
        response, error = _dict(row.get("response")), _dict(row.get("error"))
        status, body = response.get("status_code"), _dict(response.get("body"))
        status = int(status) if str(status).isdecimal() else status
        if status == 200:
            return self._endpoint.answer(sent.stage, body, model=sent.model)
        if isinstance(status, int):
            whole = body if body else {"error": error}
            return self._endpoint.refusal(status, whole, model=sent.model)
        # e.g. batch_expired: it never ran
        problem = error or {"message": "neither a response nor an error"}
        text = f"{problem.get('code') or ''}: {problem.get('message') or ''}"
        return Reply(UNPAID if error else UNKNOWN, self._endpoint.clean(text))


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _ended(state: BatchState) -> str:
    return f"{'was ' if state.status == 'cancelled' else ''}{state.status}"
