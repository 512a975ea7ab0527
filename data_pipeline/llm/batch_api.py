"""The calls of the Batch API: files up, batches made and found again, results down."""

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
_LABEL = "inf_jax_batch"  # the batch's metadata that holds our name of it
_RETRIES = 4  # of calls that can be repeated; the client waits longer each time
_PASSING = (openai.APIConnectionError, openai.InternalServerError, openai.RateLimitError)


@dataclasses.dataclass(frozen=True)
class State:
    """A batch as the endpoint has it.

    Attributes:
      id: the endpoint's name of it.
      status: in ENDED once nothing more will come.
      done, total: requests.
      output, errors: file ids, "" for none.
      problem: why it failed.
    """

    id: str
    status: str
    done: int
    total: int
    output: str
    errors: str
    problem: str


class Unreachable(UserError):
    """The endpoint did not answer, or not now: the call may be repeated."""


class BatchApi:
    """The Batch API of one endpoint.

    Every method raises UserError, without secrets, where the endpoint refuses, and Unreachable
    where it does not answer.
    """

    def __init__(self, endpoint: Endpoint):
        self._endpoint = endpoint
        self._client = endpoint.client.with_options(max_retries=_RETRIES)

    async def upload(self, path: Path) -> str:
        """Uploads a batch's requests; returns the file's id."""
        with self._errors(f"upload {path.name}"):
            data = path.read_bytes()
            found = await self._client.files.create(file=(path.name, data), purpose="batch")
            return found.id

    async def create(self, file: str, name: str) -> str:
        """Submits a batch, once: a lost reply is no reason to submit again, see `find`.

        Raises:
          openai.APIConnectionError: nobody knows whether the batch exists.
          openai.InternalServerError: likewise.
        """
        try:
            found = await self._endpoint.client.batches.create(
                input_file_id=file,
                endpoint="/v1/chat/completions",
                completion_window="24h",
                metadata={_LABEL: name},
                extra_headers={"Idempotency-Key": name},
            )
        except (openai.APIConnectionError, openai.InternalServerError):
            raise
        except openai.APIError as error:  # of these the endpoint has said that there is no batch
            raise self._refused(f"submit the batch {name}", error) from None
        return found.id

    async def find(self, name: str) -> str:
        """The id of the batch that was submitted under our name; "" where there is none."""
        with self._errors("list the batches"):
            async for batch in self._client.batches.list(limit=100):
                if (batch.metadata or {}).get(_LABEL) == name:
                    return batch.id
        return ""

    async def state(self, batch: str) -> State:
        """How far a batch is."""
        with self._errors(f"look up the batch {batch}"):
            found = await self._client.batches.retrieve(batch)
        counts = found.request_counts
        problems = (found.errors.data or []) if found.errors else []
        return State(
            id=found.id,
            status=found.status,
            done=counts.completed + counts.failed if counts else 0,
            total=counts.total if counts else 0,
            output=found.output_file_id or "",
            errors=found.error_file_id or "",
            problem=self._endpoint.clean("; ".join(p.message or p.code or "" for p in problems)),
        )

    async def rows(self, file: str) -> list[dict[str, Any]]:
        """The rows of a result file; those that are no JSON objects are left out."""
        if not file:
            return []
        with self._errors(f"download the file {file}"):
            content = await self._client.files.content(file)
        return list(_objects(content.content))

    async def delete(self, file: str) -> None:
        """Deletes a file; a failure is of no consequence."""
        with contextlib.suppress(openai.OpenAIError):
            await self._endpoint.client.files.delete(file)

    @contextlib.contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except openai.APIError as error:
            raise self._refused(what, error) from None

    def _refused(self, what: str, error: openai.APIError) -> UserError:
        remedy = "all answers are kept: run again to go on"
        if isinstance(error, openai.NotFoundError):
            remedy = (
                "check key and llm.base_url; an endpoint without the Batch API needs "
                "llm.mode=async; a batch that is gone is given up by --forget-batches"
            )
        elif isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            remedy = "check the key; " + remedy
        reason = self._endpoint.clean(str(error.message))
        again = isinstance(error, _PASSING)
        kind = Unreachable if again else UserError
        return kind(f"{self._endpoint.name}: cannot {what}: {reason}; {remedy}")


def _objects(data: bytes) -> Iterator[dict[str, Any]]:
    for line in data.split(b"\n"):  # a text may hold other characters that end a line
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict):
                yield row
