"""The life of one batch at the endpoint, from its requests to its results, safe against kills.

Each step is an event in the journal, written after the step is done:

    planned    requests written to `batches/<name>.jsonl` and to the journal as sent
    uploaded   the endpoint's id of the file
    submitted  the endpoint's id of the batch
    ended      all its requests have a row in `received`

A later run continues submitted batches. A batch that an earlier run uploaded but has no record of
submitting is looked up by name at the endpoint, so none is submitted twice. If it was not
submitted, it never is: its requests are sent anew if still needed and within the cap.
"""

import asyncio
import json
import secrets
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import openai

from data_pipeline.llm.batch_api import ENDED, BatchApi, BatchState, Unreachable
from data_pipeline.llm.client import Endpoint
from data_pipeline.llm.journal import UNKNOWN, Journal, Received, Sent
from data_pipeline.llm.request import Request
from inf_jax.core.errors import UserError
from inf_jax.io.atomic import atomic_file

T = TypeVar("T")
UNSUBMITTED = "unsubmitted"
_SUBMIT_TRIES = 6


class BatchLifecycle:
    """Takes batches through their steps.

    Args:
      directory: holds the files of requests until their batch has ended.
      poll_s: seconds between two polls of a batch.
      give_up_s: seconds without a reply from the endpoint after which UserError is raised.
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

    def unfinished(self) -> dict[str, dict[str, Any]]:
        """Name -> events of batches that have not ended; deletes the files of all others."""
        batches = {n: e for n, e in self._journal.batches().items() if "ended" not in e}
        paths = {self._path(name) for name in batches}
        for path in self._directory.glob("*.jsonl*"):
            if path not in paths:  # left by a kill
                path.unlink(missing_ok=True)
        return batches

    def forget(self) -> int:
        """Gives up all unfinished batches, which stay possibly billed; returns their number."""
        batches = self.unfinished()
        for name in batches:
            rows = self._journal.pending_in_batch(name).values()
            lost = [Received(sent.id, UNKNOWN, "given up by --forget-batches") for sent in rows]
            self._journal.write(lost, event=(name, "ended", "forgotten"))
        return len(batches)

    def plan(self, requests: list[tuple[Request, float]]) -> tuple[str, dict[str, Any]]:
        """Starts a batch of (request, upper bound of its cost in USD); returns name and events.

        Raises:
          UserError: the disk is full.
        """
        name, journal = secrets.token_hex(8), self._journal
        with atomic_file(self._path(name)) as file:
            for request, _ in requests:
                line = {"custom_id": request.key, "method": "POST", "body": request.body}
                line["url"] = "/v1/chat/completions"
                file.write(json.dumps(line).encode() + b"\n")
        rows = [Sent(journal.new_id(), r.key, r.stage, r.model, usd, name) for r, usd in requests]
        journal.write(rows, event=(name, "planned", len(rows)))
        return name, {"planned": len(rows)}

    async def results(
        self,
        name: str,
        events: dict[str, Any],
        *,
        earlier: bool,
        on_state: Callable[[BatchState], None],
    ) -> tuple[BatchState, list[dict[str, Any]]]:
        """Takes a batch from its last event to its end.

        Args:
          earlier: whether an earlier run started it.
          on_state: called with each polled state.

        Returns:
          Final state, rows of the result files; UNSUBMITTED and no rows if an earlier run was
          killed before it submitted the batch.
        """
        file, batch = events.get("uploaded", ""), events.get("submitted", "")
        if earlier and file and not batch:  # perhaps killed while submitting
            batch = await self._with_retries(lambda: self._api.find(name))
            if batch:
                self._journal.batch_event(name, "submitted", batch)
        if earlier and not batch:
            return BatchState("", UNSUBMITTED), []
        if not batch:
            file = events["uploaded"] = await self._upload(name)
            batch = await self._submit(name, file)
        while True:
            state = await self._with_retries(lambda: self._api.state(batch))
            on_state(state)
            if state.status in ENDED:
                break
            await asyncio.sleep(self._poll_s)
        rows = await self._with_retries(lambda: self._api.rows(state.output))
        return state, rows + await self._with_retries(lambda: self._api.rows(state.errors))

    def end(self, name: str, state: BatchState, received: list[Received]) -> None:
        """Records the replies to a batch's requests."""
        self._journal.write(received, event=(name, "ended", state.status))
        self._path(name).unlink(missing_ok=True)

    async def pause(self) -> None:
        """Waits as long as between two polls."""
        await asyncio.sleep(self._poll_s)

    async def delete_files(self, events: dict[str, Any], state: BatchState) -> None:
        """Deletes a batch's files at the endpoint."""
        for file in (events.get("uploaded"), state.output, state.errors):
            if file:
                await self._api.delete(file)

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}.jsonl"

    async def _upload(self, name: str) -> str:
        file = await self._with_retries(lambda: self._api.upload(self._path(name)))
        self._journal.batch_event(name, "uploaded", file)
        return file

    async def _submit(self, name: str, file: str) -> str:
        maybe_submitted, reason = False, ""
        for attempt in range(_SUBMIT_TRIES):
            batch = ""
            if maybe_submitted:
                batch = await self._with_retries(lambda: self._api.find(name))
            if not batch:
                maybe_submitted = True
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
        tries = f"{_SUBMIT_TRIES} tries ({reason})"
        raise UserError(f"a batch could not be submitted in {tries}; run again to continue")

    async def _with_retries(self, call: Callable[[], Awaitable[T]]) -> T:
        """Repeats a call while the endpoint does not answer, for up to give_up_s."""
        until = time.monotonic() + self._give_up_s
        while True:
            try:
                return await call()
            except Unreachable:
                if time.monotonic() > until:
                    raise
            await asyncio.sleep(self._poll_s)
