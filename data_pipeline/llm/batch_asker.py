"""Asks by the Batch API: half the price, answers within a day, nothing submitted twice.

Questions are gathered into batches, see `batch_course`; rows that failed or are missing are asked
again, in another batch.
"""

import asyncio
import contextlib
import dataclasses
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from data_pipeline.llm.async_asker import OWN_FAULTS, Result, known
from data_pipeline.llm.batch_api import State
from data_pipeline.llm.batch_lifecycle import UNSUBMITTED, BatchCourse
from data_pipeline.llm.budget import Budget, BudgetReached, Price
from data_pipeline.llm.client import Endpoint, Reply, read_answer
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
from data_pipeline.llm.request import Request
from inf_jax.core.errors import UserError

MOST_BYTES = 190_000_000  # of a batch's file; the API takes 200 MB
_LINE_BYTES = 200  # of a line beside the body
_LINGER_S = 0.3  # without a new question: what has come together is sent
_FAILED_IN_A_ROW = 5  # batches without any answer, beside those under way: the run stops
_FAILED_LATER_IN_A_ROW = 10  # the same, where the endpoint has given answers before
_CROWDED_IN_A_ROW = 30  # the same, of batches for which there was no room beside others


@dataclasses.dataclass
class _Question:
    request: Request
    future: asyncio.Future


class BatchAsker:
    """`Ask` by batches.

    Args:
      endpoint, journal, budget: see there.
      prices: of each model.
      course: takes the batches to their ends.
      batch_requests: most requests of a batch.
      max_attempts: useless answers of a question after which it has failed.

    Raises (from calls):
      UserError: the endpoint refuses, batches fail one after another, full disk.
      BudgetReached: the cap.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        journal: Journal,
        budget: Budget,
        prices: dict[str, Price],
        *,
        course: BatchCourse,
        batch_requests: int,
        max_attempts: int,
    ):
        self._endpoint, self._journal, self._budget = endpoint, journal, budget
        self._prices, self._course = prices, course
        self._batch_requests, self._max_attempts = batch_requests, max_attempts
        self.window = 2 * batch_requests
        self.on_change: Callable[[], None] = lambda: None
        self.states: dict[str, State] = {}  # of the batches under way, by our name
        self._new: dict[str, _Question] = {}
        self._open: dict[str, _Question | None] = {}  # in a batch that is under way
        self._arrived = asyncio.Event()
        self._stop: Exception | None = None
        self._answerless = 0
        self._taken: set[str] = set()  # stages of which the endpoint has taken requests
        self._own_faults: Counter[str] = Counter()  # of questions, in batches that ran
        self._tasks: set[asyncio.Task] = set()
        self._collector: asyncio.Task | None = None
        for name, events in course.under_way().items():
            self._open |= dict.fromkeys(journal.open_in_batch(name))
            self._start(self._follow, name, events, earlier=True)

    async def __call__(self, request: Request) -> Result:
        result = known(self._journal, request.key, self._max_attempts)
        if result:
            return result
        if self._stop:
            raise self._stop
        question = self._open.get(request.key) or self._new.get(request.key)
        if question is None:
            question = _Question(request, asyncio.get_running_loop().create_future())
            if request.key in self._open:
                self._open[request.key] = question
            else:
                self._queue(question)
        return await asyncio.shield(question.future)

    @property
    def pending(self) -> int:
        """Batches under way."""
        return len(self._tasks - {self._collector})

    def status(self) -> str:
        """What is under way, in a few words."""
        done = sum(state.done for state in self.states.values())
        total = sum(state.total for state in self.states.values())
        return f"{self.pending} batches under way, {done:,} of {total:,} requests done"

    async def collect(self) -> None:
        """Waits for the batches under way, e.g. those of an earlier run."""
        while self.pending:
            await asyncio.wait(self._tasks - {self._collector})
        if self._stop:
            raise self._stop

    async def settle(self) -> None:
        """Ends the work of this process. Batches go on at the endpoint: a later run finds them."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def stop(self, error: Exception) -> None:
        """Submits nothing more, and all that wait get the error."""
        self._stop = self._stop or error
        for question in (*self._new.values(), *self._open.values()):
            if question and not question.future.done():
                question.future.set_exception(self._stop)
                question.future.exception()  # whoever waits has it; nobody may
        self._new.clear()

    def _start(self, work: Callable[..., Awaitable[None]], *args, **options) -> asyncio.Task:
        task = asyncio.create_task(self._guarded(work, *args, **options))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _guarded(self, work: Callable[..., Awaitable[None]], *args, **options) -> None:
        try:
            await work(*args, **options)
        except Exception as error:  # a bug of ours too: nobody may wait for ever
            self.stop(error)

    def _queue(self, question: _Question) -> None:
        self._new[question.request.key] = question
        self._arrived.set()
        if self._collector is None or self._collector.done():
            self._collector = self._start(self._collect_new)

    async def _collect_new(self) -> None:
        """Sends what has come together when it is enough, or when nothing more comes."""
        while self._new and not self._stop:
            self._arrived.clear()
            if len(self._new) < self._batch_requests:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._arrived.wait(), _LINGER_S)
                    continue
            batch = await self._next_batch()
            if self._stop:  # meanwhile; what was set aside is free again
                for question in batch:
                    self._budget.settle(self._most(question.request), 0.0)
                return
            planned = [(q.request, self._most(q.request)) for q in batch]
            name, events = self._course.plan(planned)
            for request, _ in planned:
                self._open[request.key] = self._new.pop(request.key)
            self._start(self._follow, name, events, earlier=False)

    async def _next_batch(self) -> list[_Question]:
        """The oldest questions of one model that fit into a batch and under the cap."""
        model = next(iter(self._new.values())).request.model
        batch: list[_Question] = []
        size = 0
        for question in [q for q in self._new.values() if q.request.model == model]:
            size += len(json.dumps(question.request.body)) + _LINE_BYTES
            if batch and (len(batch) == self._batch_requests or size > MOST_BYTES):
                break
            most = self._most(question.request)
            if batch and not self._budget.fits(most):
                break  # the rest waits for what these leave
            await self._reserve(most)
            batch.append(question)
        return batch

    async def _reserve(self, usd: float) -> None:
        """As the budget's; an earlier run's batches, when they end, may free some of it too."""
        while True:
            try:
                return await self._budget.reserve(usd)
            except BudgetReached:
                if not self.pending:
                    raise
                following = self._tasks - {self._collector}
                await asyncio.wait(following, return_when=asyncio.FIRST_COMPLETED)

    def _most(self, request: Request) -> float:
        return self._prices[request.model].most(request, batch=True)

    async def _follow(self, name: str, events: dict[str, Any], *, earlier: bool) -> None:
        """Brings a batch to its end."""

        def tell(state: State) -> None:
            self.states[name] = state
            self.on_change()

        state, rows = await self._course.results(name, events, earlier=earlier, tell=tell)
        sent, received = self._receive(name, state, rows, earlier=earlier)
        self._course.end(name, state, received)
        self.states.pop(name, None)
        self._count_failures(state, sent, received)
        if state.status == "failed":
            await self._course.pause()
        for one in sent:
            self._answer(one.key)
        await self._course.tidy(events, state)

    def _receive(
        self, name: str, state: State, rows: list[dict[str, Any]], *, earlier: bool
    ) -> tuple[list[Sent], list[Received]]:
        """What came of a batch's requests, their costs settled; rows for the journal."""
        sent = self._journal.open_in_batch(name)
        received, replies = [], {}
        for row in rows:
            key = row.get("custom_id")
            if key in sent and (key not in replies or replies[key].outcome == UNPAID):
                replies[key] = self._reply(sent[key], row)
        for reply in replies.values():
            if reply.fatal:
                self.stop(UserError(f"{reply.fatal}; all answers are kept: run again to go on"))
        self._taken |= {
            sent[key].stage for key, r in replies.items() if r.outcome in (ANSWER, *BAD)
        }
        # of a batch that ran, a row that is missing may have been computed and billed all the same
        lost = Reply(
            UNPAID if state.status in ("failed", UNSUBMITTED) else UNKNOWN,
            f"not in the results of a batch that {_ended(state)}",
        )
        settle = self._budget.settle_earlier if earlier else self._budget.settle
        for key, one in sent.items():
            reply = replies.get(key, lost)
            if reply.outcome == REJECTED and not self._takes(one):
                # for good only where the endpoint takes others: its own settings may be at fault
                reply = dataclasses.replace(reply, outcome=UNPAID)
            if state.status == "completed" and reply.outcome in (UNPAID, UNKNOWN):
                self._own_faults[key] += 1
            price = self._prices.get(one.model)  # None: the model is no longer in the config
            paid = reply.outcome == ANSWER or reply.outcome in BAD
            usd = price.paid(reply.usage, one.reserved, batch=True) if price else one.reserved
            usd = usd if paid else 0.0
            tokens = reply.usage.prompt_tokens, reply.usage.completion_tokens
            received.append(Received(one.id, reply.outcome, reply.text, *tokens, usd))
            settle(one.reserved, usd, unknown=reply.outcome == UNKNOWN)
        return list(sent.values()), received

    def _count_failures(self, state: State, sent: list[Sent], received: list[Received]) -> None:
        crowded = state.status == "failed" and "limit" in state.problem
        if crowded:  # more tokens enqueued than the account may have
            self._batch_requests = max(1, self._batch_requests // 2)
        useful = any(r.outcome in (ANSWER, *BAD) for r in received)
        worked = any(map(self._takes, sent))  # at some time
        # a few questions that never get an answer end by themselves, see `_answer`
        lonely = state.status == "completed" and worked
        if useful or lonely or not received or state.status == UNSUBMITTED:
            self._answerless = 0
        else:
            self._answerless += 1
        # while others are under way, there may be room when they have ended
        most = _FAILED_LATER_IN_A_ROW if worked else _FAILED_IN_A_ROW
        most = _CROWDED_IN_A_ROW if crowded and self.pending > 1 else most
        # of batches that began together, those that fail end first: the others have to end too
        if self._answerless >= most + self.pending - 1:
            reason = state.problem or received[0].text
            self.stop(
                UserError(
                    f"{self._answerless} batches in a row gave no answer, the last "
                    f"{_ended(state)}: {reason}; all answers are kept"
                )
            )

    def _answer(self, key: str) -> None:
        """Gives a question its result, or puts it into the next batch."""
        question = self._open.pop(key, None)
        if question is None or question.future.done():
            return
        result = known(self._journal, key, self._max_attempts)
        if result:
            question.future.set_result(result)
        elif self._stop:
            question.future.set_exception(self._stop)
            question.future.exception()
        elif self._own_faults[key] >= OWN_FAULTS:
            question.future.set_result(Result(failure="unanswered"))
        else:
            self._queue(question)

    def _takes(self, sent: Sent) -> bool:
        """Whether the endpoint was ever seen to take requests of this stage."""
        if sent.stage not in self._taken and self._journal.mean_tokens(sent.stage, sent.model):
            self._taken.add(sent.stage)  # in an earlier run
        return sent.stage in self._taken

    def _reply(self, sent: Sent, row: dict[str, Any]) -> Reply:
        """One row of an output or error file."""
        response, error = _dict(row.get("response")), _dict(row.get("error"))
        status, body = response.get("status_code"), _dict(response.get("body"))
        if status == 200:
            return read_answer(sent.stage, body)
        problem = _dict(body.get("error")) or error
        if not isinstance(status, int):  # of the error file, e.g. batch_expired: it never ran
            problem = problem or {"message": "neither a response nor an error"}
            text = f"{problem.get('code') or ''}: {problem.get('message') or ''}"
            return Reply(UNPAID if error else UNKNOWN, self._endpoint.clean(text))
        return self._endpoint.refusal(status, problem, model=sent.model)


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _ended(state: State) -> str:
    return f"{'was ' if state.status == 'cancelled' else ''}{state.status}"
