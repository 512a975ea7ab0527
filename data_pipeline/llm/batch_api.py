"""Calls of the Batch API: upload requests, create, find and poll batches, download results."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai

from data_pipeline.llm.client import Endpoint
from inf_jax.core.errors import UserError

ENDED = ("completed", "failed", "expired", "cancelled")
_LABEL = "inf_jax_batch"  # metadata key that holds our name of the batch
_RETRIES = 4  # of idempotent calls, with exponential backoff
_TRANSIENT = (openai.APIConnectionError, openai.InternalServerError, openai.RateLimitError)


@dataclasses.dataclass(frozen=True)
class BatchState:
    """The state of a batch at the endpoint."""

    id: str  # the endpoint's
    status: str  # final if in ENDED
    done: int = 0  # requests, of `total`
    total: int = 0
    output: str = ""  # id of the file of results, "" for none
    errors: str = ""  # the same, of failed requests
    problem: str = ""  # why the batch failed


class Unreachable(UserError):
    """The endpoint did not answer, or asks to try later: the call may be repeated."""


class BatchApi:
    """The Batch API of one endpoint.

    Every method raises UserError, without secrets, if the endpoint refuses, and Unreachable if it
    does not answer.
    """

    def __init__(self, endpoint: Endpoint):
        self._endpoint = endpoint
        self._client = endpoint.client.with_options(max_retries=_RETRIES)

    async def upload(self, path: Path) -> str:
        """Uploads a file of requests; returns its id."""
        with self._errors(f"upload {path.name}"):
            data = path.read_bytes()
            return (await self._client.files.create(file=(path.name, data), purpose="batch")).id

    async def create(self, file: str, name: str) -> str:
        """Submits a batch once and returns its id; after a lost reply use `find`.

        Raises:
          openai.APIConnectionError, openai.InternalServerError: the batch may or may not exist.
        """
        try:
            batch = await self._endpoint.client.batches.create(
                input_file_id=file,
                endpoint="/v1/chat/completions",
                completion_window="24h",
                metadata={_LABEL: name},
                extra_headers={"Idempotency-Key": name},
            )
        except openai.APIError as error:
            if isinstance(error, openai.APIConnectionError | openai.InternalServerError):
                raise
            raise self._refused(f"submit the batch {name}", error) from None  # it does not exist
        return batch.id

    async def find(self, name: str) -> str:
        """The id of the batch that was submitted under this name; "" if there is none."""
        with self._errors("list the batches"):
            async for batch in self._client.batches.list(limit=100):
                if (batch.metadata or {}).get(_LABEL) == name:
                    return batch.id
        return ""

    async def state(self, batch: str) -> BatchState:
        """The current state of a batch."""
        with self._errors(f"look up the batch {batch}"):
            reply = await self._client.batches.retrieve(batch)
        counts = reply.request_counts
        problems = (reply.errors.data or []) if reply.errors else []
        return BatchState(
            id=reply.id,
            status=reply.status,
            done=counts.completed + counts.failed if counts else 0,
            total=counts.total if counts else 0,
            output=reply.output_file_id or "",
            errors=reply.error_file_id or "",
            problem=self._endpoint.clean("; ".join(p.message or p.code or "" for p in problems)),
        )

    async def rows(self, file: str) -> list[dict[str, Any]]:
        """The rows of a result file; lines that are not JSON objects are skipped."""
        if not file:
            return []
        with self._errors(f"download the file {file}"):
            content = await self._client.files.content(file)
        return list(_objects(content.content))

    async def delete(self, file: str) -> None:
        """Deletes a file; failures are ignored."""
        with contextlib.suppress(openai.OpenAIError):
            await self._endpoint.client.files.delete(file)

    @contextlib.contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except openai.APIError as error:
            raise self._refused(what, error) from None

    def _refused(self, what: str, error: openai.APIError) -> UserError:
        remedy = "all answers are kept: run again to continue"
        if isinstance(error, openai.NotFoundError):
            remedy = (
                "check key and llm.base_url; an endpoint without the Batch API needs "
                "llm.mode=async; --forget-batches gives up batches that no longer exist"
            )
        elif isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            remedy = f"check {self._endpoint.key_hint}; {remedy}"
        reason = self._endpoint.clean(str(error.message))
        kind = Unreachable if isinstance(error, _TRANSIENT) else UserError
        return kind(f"{self._endpoint.name}: cannot {what}: {reason}; {remedy}")


def _objects(data: bytes) -> Iterator[dict[str, Any]]:
    for line in data.split(b"\n"):  # splitlines would split at U+2028 too
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict):
                yield row
