"""One batch at the endpoint, from its requests to its results, a step at a time.

Its steps are events in the journal, each written when it is done:

    planned    requests written to `batches/<name>.jsonl` and, as sent, to the journal
    uploaded   the endpoint's id of the file
    submitted  the endpoint's id of the batch
    ended      all its requests have a row in `received`

A later run goes on with what was submitted. Of an earlier run's batch that the journal has as
uploaded only, the endpoint is asked by name: it is found again and never submitted twice. What was
not submitted never is: its questions are asked anew, if they are still wanted and the cap allows.
"""

import asyncio
import json
import secrets
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import openai

from data_pipeline.llm.batch_api import ENDED, BatchApi, State, Unreachable
from data_pipeline.llm.client import Endpoint
from data_pipeline.llm.journal import UNKNOWN, Journal, Received, Sent
from data_pipeline.llm.request import Request
from inf_jax.core.errors import UserError
from inf_jax.io.atomic import atomic_file

T = TypeVar("T")
UNSUBMITTED = "unsubmitted"
_SUBMIT_TRIES = 6


class BatchCourse:
    """Takes batches through their steps.

    Args:
      endpoint, journal: see there.
      directory: for the batches' files.
      poll_s: seconds between two looks at a batch.
      give_up_s: seconds without a word from the endpoint after which UserError is raised.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        journal: Journal,
        directory: Path,
        *,
        poll_s: float,
        give_up_s: float,
    ):
        self._endpoint, self._api = endpoint, BatchApi(endpoint)
        self._journal, self._directory = journal, directory
        self._poll_s, self._give_up_s = poll_s, give_up_s

    def under_way(self) -> dict[str, dict[str, Any]]:
        """Name -> events, of batches that have not ended; files of all others are deleted."""
        found = {n: e for n, e in self._journal.batches().items() if "ended" not in e}
        wanted = {self._path(name) for name in found}
        for path in self._directory.glob("*.jsonl*"):
            if (
                path not in wanted
            ):  # of a run that was killed just before or after, or in writing it
                path.unlink(missing_ok=True)
        return found

    def forget(self) -> int:
        """Gives up all batches under way, whatever they may have cost; returns their number."""
        found = self.under_way()
        for name in found:
            text = "given up by --forget-batches"
            rows = self._journal.open_in_batch(name).values()
            lost = [Received(sent.id, UNKNOWN, text) for sent in rows]
            self._journal.write(lost, event=(name, "ended", "forgotten"))
        return len(found)

    def plan(self, requests: list[tuple[Request, float]]) -> tuple[str, dict[str, Any]]:
        """Begins a batch of requests, each with what it can cost at the most: name and events.

        Raises:
          UserError: the disk is full.
        """
        name, journal = secrets.token_hex(8), self._journal
        with atomic_file(self._path(name)) as file:
            for request, _ in requests:
                line = {"custom_id": request.key, "method": "POST", "body": request.body}
                line["url"] = "/v1/chat/completions"
                file.write(json.dumps(line).encode() + b"\n")
        rows = [Sent(journal.new_id(), r.key, r.stage, r.model, most, name) for r, most in requests]
        journal.write(rows, event=(name, "planned", len(rows)))
        return name, {"planned": len(rows)}

    async def results(
        self,
        name: str,
        events: dict[str, Any],
        *,
        earlier: bool,
        tell: Callable[[State], None],
    ) -> tuple[State, list[dict[str, Any]]]:
        """Waits for a batch from its newest event on: its last state and all rows of its results.

        Args:
          earlier: begun by an earlier run.
          tell: gets each state.

        Returns:
          With the status "unsubmitted" where an earlier run did not come so far.
        """
        file, batch = events.get("uploaded", ""), events.get("submitted", "")
        if earlier and file and not batch:  # killed while it submitted, perhaps
            batch = await self._patiently(lambda: self._api.find(name))
            if batch:
                self._journal.batch_event(name, "submitted", batch)
        if earlier and not batch:
            return State("", UNSUBMITTED, 0, 0, "", "", ""), []
        if not batch:
            file = events["uploaded"] = await self._upload(name)
            batch = await self._submit(name, file)
        while True:
            state = await self._patiently(lambda: self._api.state(batch))
            tell(state)
            if state.status in ENDED:
                break
            await asyncio.sleep(self._poll_s)
        rows = []
        for results in (state.output, state.errors):
            rows += await self._patiently(lambda results=results: self._api.rows(results))
        return state, rows

    def end(self, name: str, state: State, received: list[Received]) -> None:
        """Writes what came of a batch's requests."""
        self._journal.write(received, event=(name, "ended", state.status))
        self._path(name).unlink(missing_ok=True)

    async def pause(self) -> None:
        """As long as between two looks at a batch."""
        await asyncio.sleep(self._poll_s)

    async def tidy(self, events: dict[str, Any], state: State) -> None:
        """Deletes a batch's files at the endpoint."""
        for file in (events.get("uploaded"), state.output, state.errors):
            if file:
                await self._api.delete(file)

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}.jsonl"

    async def _upload(self, name: str) -> str:
        path = self._path(name)
        file = await self._patiently(lambda: self._api.upload(path))
        self._journal.batch_event(name, "uploaded", file)
        return file

    async def _submit(self, name: str, file: str) -> str:
        asked_before, reason = False, ""
        for attempt in range(_SUBMIT_TRIES):
            batch = ""
            if asked_before:
                batch = await self._patiently(lambda: self._api.find(name))
            if not batch:
                asked_before = True
                try:
                    batch = await self._api.create(file, name)
                except (
                    openai.APIConnectionError,
                    openai.InternalServerError,
                    Unreachable,
                ) as error:
                    reason = self._endpoint.clean(str(error))
                    await asyncio.sleep(min(self._poll_s, 0.5 * 2**attempt))
                    continue
            self._journal.batch_event(name, "submitted", batch)
            return batch
        raise UserError(
            f"a batch could not be submitted in {_SUBMIT_TRIES} tries ({reason}); run again to "
            "go on"
        )

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """Repeats a call as long as the endpoint does not answer, up to give_up_s."""
        until = time.monotonic() + self._give_up_s
        while True:
            try:
                return await call()
            except Unreachable:
                if time.monotonic() > until:
                    raise
            await asyncio.sleep(self._poll_s)
