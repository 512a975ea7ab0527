"""Runs of a BatchAsker, for its tests and those of the batches' life."""

import asyncio
import contextlib
import sqlite3
from pathlib import Path

from data_pipeline.llm.batch_asker import BatchAsker
from data_pipeline.llm.batch_lifecycle import BatchLifecycle
from data_pipeline.llm.budget import Budget, price_of
from data_pipeline.llm.client import Endpoint
from data_pipeline.llm.journal import Journal
from data_pipeline.llm.request import Prompt, Request, RequestTemplate

MODEL = "gpt-4o-mini"


TEMPLATE = RequestTemplate("judge", MODEL, Prompt.read("judge_v1"), 200)


def questions(count: int) -> list[Request]:
    """Distinct requests."""
    return [
        TEMPLATE.request({"instruction": "i", "query": f"query {n}", "passage": "a passage"})
        for n in range(count)
    ]


class Run:
    """What one process does; another one on the same directory is the next run."""

    def __init__(self, directory: Path, base_url: str, *, size=10, max_usd=None, give_up_s=600.0):
        self.directory, self._base_url = directory, base_url
        self._size, self._max_usd, self._give_up_s = size, max_usd, give_up_s

    @contextlib.asynccontextmanager
    async def asker(self):
        """The asker; everything is closed afterwards, as at the end of a process."""
        journal = Journal(self.directory / "journal.sqlite")
        endpoint = Endpoint(base_url=self._base_url, key_env="NO_SUCH_KEY", timeout_s=60.0)
        lifecycle = BatchLifecycle(
            endpoint,
            journal,
            self.directory / "batches",
            poll_s=0.05,
            give_up_s=self._give_up_s,
        )
        self.budget = Budget(journal, self._max_usd)
        asker = BatchAsker(
            endpoint,
            journal,
            self.budget,
            {MODEL: price_of(MODEL)},
            lifecycle=lifecycle,
            batch_requests=self._size,
            max_attempts=3,
        )
        try:
            yield asker
        finally:
            await asker.settle()
            await endpoint.close()
            self.spent = journal.spent()
            journal.close()

    def ask(self, requests: list[Request]) -> list[str]:
        """The answers or failures; raises the first error."""

        async def run():
            async with self.asker() as asker:
                return await asyncio.gather(*map(asker, requests))

        return [result.text or result.failure for result in asyncio.run(run())]

    def ask_until(self, requests: list[Request], condition) -> None:
        """Asks, and stops like a killed process as soon as the condition holds."""

        async def run():
            async with self.asker() as asker:
                tasks = [asyncio.create_task(asker(request)) for request in requests]
                while not await asyncio.to_thread(condition):
                    await asyncio.sleep(0.01)
                for task in tasks:
                    task.cancel()

        asyncio.run(run())


def batches(server) -> list[dict]:
    """The server's batches, by its own count."""
    return server.stats(requests=False)["batches"]


def submitted(directory: Path) -> int:
    """Number of batches that the journal has as submitted."""
    journal = directory / "journal.sqlite"
    with contextlib.closing(sqlite3.connect(f"file:{journal}?mode=ro", uri=True)) as db:
        query = "SELECT count(*) FROM batch_events WHERE event = 'submitted'"
        return db.execute(query).fetchone()[0]


def names(server) -> list[str]:
    """Our names of the server's batches; distinct if none was submitted twice."""
    return [batch["metadata"]["inf_jax_batch"] for batch in batches(server)]
