"""Asks by the Batch API: half the price, answers within a day, nothing submitted twice.

A batch's steps are events in the journal, each written when it is done:

    planned    requests written to `batches/<name>.jsonl` and, as sent, to the journal
    uploaded   the endpoint's id of the file
    submitted  the endpoint's id of the batch
    ended      all its requests have a row in `received`

A run that is killed goes on after the newest of them. Between uploaded and submitted the endpoint
is asked whether it knows a batch of this name: it is found again and never submitted twice. Rows
that failed or are missing are asked again, in another batch.
"""

import asyncio
import contextlib
import dataclasses
import json
import secrets
from collections.abc import Callable
from pathlib import Path

import openai

from data_pipeline.asking import Result, known
from data_pipeline.batch_api import ENDED, BatchApi, State
from data_pipeline.client import Endpoint, Reply, read_answer
from data_pipeline.journal import ANSWER, BAD, REJECTED, UNKNOWN, UNPAID, Journal, Received, Sent
from data_pipeline.llm import Request
from data_pipeline.money import Budget, Price
from inf_jax.atomic import atomic_file
from inf_jax.errors import UserError

MOST_BYTES = 190_000_000  # of a batch's file; the API takes 200 MB
_LINGER_S = 0.3  # without a new question: what has come together is sent
_FAILED_IN_A_ROW = 3  # batches without any answer, after which the run stops
_SUBMIT_TRIES = 6


@dataclasses.dataclass
class _Question:
    request: Request
    future: asyncio.Future


class BatchAsker:
    """`Ask` by batches.

    Args:
      endpoint, journal, budget: see there.
      prices: of each model.
      directory: for the batches' files.
      batch_requests: most requests of a batch.
      max_attempts: useless answers of a question after which it has failed.
      poll_s: seconds between two looks at a batch.

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
        directory: Path,
        batch_requests: int,
        max_attempts: int,
        poll_s: float,
    ):
        self._endpoint, self._journal, self._budget = endpoint, journal, budget
        self._api = BatchApi(endpoint)
        self._prices, self._directory = prices, directory
        self._batch_requests, self._max_attempts, self._poll_s = (
            batch_requests,
            max_attempts,
            poll_s,
        )
        self.window = 2 * batch_requests
        self.on_change: Callable[[], None] = lambda: None
        self.states: dict[str, State] = {}  # of the batches under way, by our name
        self._new: dict[str, _Question] = {}
        self._open: dict[str, _Question | None] = {}  # in a batch that is under way
        self._arrived = asyncio.Event()
        self._stop: UserError | None = None
        self._answerless = 0
        self._tasks: set[asyncio.Task] = set()
        self._collector: asyncio.Task | None = None
        for name, events in journal.batches().items():
            if "ended" not in events:
                self._open |= dict.fromkeys(journal.open_in_batch(name))
                self._start(self._follow(name, events, earlier=True))

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

    def stop(self, error: UserError) -> None:
        """Submits nothing more, and all that wait get the error."""
        self._stop = self._stop or error
        for question in (*self._new.values(), *self._open.values()):
            if question and not question.future.done():
                question.future.set_exception(self._stop)
                question.future.exception()  # whoever waits has it; nobody may
        self._new.clear()

    def _start(self, work) -> asyncio.Task:
        task = asyncio.create_task(self._guarded(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _guarded(self, work) -> None:
        try:
            await work
        except UserError as error:
            self.stop(error)

    def _queue(self, question: _Question) -> None:
        self._new[question.request.key] = question
        self._arrived.set()
        if self._collector is None or self._collector.done():
            self._collector = self._start(self._collect_new())

    async def _collect_new(self) -> None:
        """Sends what has come together when it is enough, or when nothing more comes."""
        while self._new and not self._stop:
            self._arrived.clear()
            if len(self._new) < self._batch_requests:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._arrived.wait(), _LINGER_S)
                    continue
            batch = await self._next_batch()
            name = self._plan(batch)
            self._start(self._follow(name, {"planned": len(batch)}, earlier=False))

    async def _next_batch(self) -> list[_Question]:
        """The oldest questions of one model that fit into a batch and under the cap."""
        model = next(iter(self._new.values())).request.model
        batch: list[_Question] = []
        size = 0
        for question in [q for q in self._new.values() if q.request.model == model]:
            size += 2 * question.request.bytes  # JSON may escape what is not ASCII
            if batch and (len(batch) == self._batch_requests or size > MOST_BYTES):
                break
            most = self._most(question.request)
            if batch and not self._budget.fits(most):
                break  # the rest waits for what these leave
            await self._budget.reserve(most)
            batch.append(question)
        return batch

    def _plan(self, batch: list[_Question]) -> str:
        name = secrets.token_hex(8)
        lines = [
            {
                "custom_id": q.request.key,
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": q.request.body,
            }
            for q in batch
        ]
        with atomic_file(self._directory / f"{name}.jsonl") as file:
            file.writelines(json.dumps(line).encode() + b"\n" for line in lines)
        journal = self._journal
        rows = [
            Sent(journal.new_id(), r.key, r.stage, r.model, self._most(r), name)
            for r in (q.request for q in batch)
        ]
        journal.write(rows, event=(name, "planned", len(rows)))
        for question in batch:
            self._open[question.request.key] = self._new.pop(question.request.key)
        return name

    def _most(self, request: Request) -> float:
        return self._prices[request.model].most(request, batch=True)

    async def _follow(self, name: str, events: dict, *, earlier: bool) -> None:
        """Brings a batch from its newest event to its end."""
        file = events.get("uploaded") or await self._upload(name)
        batch = events.get("submitted") or await self._submit(name, file, earlier=earlier)
        while True:
            state = await self._api.state(batch)
            self.states[name] = state
            self.on_change()
            if state.status in ENDED:
                break
            await asyncio.sleep(self._poll_s)
        rows = [*await self._api.rows(state.output), *await self._api.rows(state.errors)]
        self._receive(name, state, rows, earlier=earlier)
        for each in (file, state.output, state.errors):
            if each:
                await self._api.delete(each)

    async def _upload(self, name: str) -> str:
        path = self._directory / f"{name}.jsonl"
        if not path.exists():
            raise UserError(
                f"{path} is missing: the journal has a batch that was never uploaded; put the file "
                "back, or give a new out_dir"
            )
        file = await self._api.upload(path)
        self._journal.batch_event(name, "uploaded", file)
        return file

    async def _submit(self, name: str, file: str, *, earlier: bool) -> str:
        asked_before, reason = earlier, ""
        for attempt in range(_SUBMIT_TRIES):
            batch = await self._api.find(name) if asked_before else ""
            if not batch:
                asked_before = True
                try:
                    batch = await self._api.create(file, name)
                except (openai.APIConnectionError, openai.InternalServerError) as error:
                    reason = str(error)
                    await asyncio.sleep(min(self._poll_s, 0.5 * 2**attempt))
                    continue
            self._journal.batch_event(name, "submitted", batch)
            return batch
        raise UserError(
            f"a batch could not be submitted in {_SUBMIT_TRIES} tries ({reason}); run again to "
            "go on"
        )

    def _receive(self, name: str, state: State, rows: list[dict], *, earlier: bool) -> None:
        sent = self._journal.open_in_batch(name)
        received, replies = [], {}
        for row in rows:
            key = row.get("custom_id")
            if key in sent and (key not in replies or replies[key].outcome == UNPAID):
                replies[key] = self._reply(sent[key].stage, row)
        # of a batch that ran, a row that is missing may have been computed and billed all the same
        lost = Reply(
            UNPAID if state.status == "failed" else UNKNOWN,
            f"not in the results of a batch that {_ended(state)}",
        )
        settle = self._budget.settle_earlier if earlier else self._budget.settle
        for key, one in sent.items():
            reply = replies.get(key, lost)
            price = self._prices.get(one.model)  # None: the model is no longer in the config
            paid = reply.outcome == ANSWER or reply.outcome in BAD
            usd = price.paid(reply.usage, one.reserved, batch=True) if price else one.reserved
            usd = usd if paid else 0.0
            tokens = reply.usage.prompt_tokens, reply.usage.completion_tokens
            received.append(Received(one.id, reply.outcome, reply.text, *tokens, usd))
            settle(one.reserved, usd, unknown=reply.outcome == UNKNOWN)
        self._journal.write(received, event=(name, "ended", state.status))
        self.states.pop(name, None)
        (self._directory / f"{name}.jsonl").unlink(missing_ok=True)
        useful = any(r.outcome == ANSWER or r.outcome in BAD for r in received)
        self._answerless = 0 if useful or not received else self._answerless + 1
        if self._answerless >= _FAILED_IN_A_ROW:
            first = next(r.text for r in received)
            self.stop(
                UserError(
                    f"{_FAILED_IN_A_ROW} batches in a row gave no answer, the last "
                    f"{_ended(state)}: {state.problem or first}; all answers are kept"
                )
            )
        for key in sent:
            self._answer(key)

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
        else:
            self._queue(question)

    def _reply(self, stage: str, row: dict) -> Reply:
        """One row of an output or error file."""
        response, error = row.get("response") or {}, row.get("error") or {}
        status, body = response.get("status_code"), response.get("body") or {}
        if status == 200:
            return read_answer(stage, body)
        problem = (body.get("error") if isinstance(body, dict) else None) or error or {}
        text = f"{status or ''} {problem.get('code') or ''}: {problem.get('message') or ''}"
        outcome = REJECTED if status in (400, 413, 422) else UNPAID
        return Reply(outcome, self._endpoint.clean(text))


def _ended(state: State) -> str:
    return f"{'was ' if state.status == 'cancelled' else ''}{state.status}"
