"""Adaptive limit of the number of concurrent requests, with priorities."""

import asyncio
import contextlib
import heapq
import itertools
import time
from collections.abc import AsyncIterator

from data_pipeline.llm.journal import ANSWER
from data_pipeline.llm.replies import Reply

FIRST_CONCURRENCY = 8


class Limiter:
    """Admits waiting requests up to an adaptive limit (slow start, then additive increase).

    The limit doubles per round of successes until the endpoint first asks to slow down; from then
    on it grows by one per round. Each request to slow down multiplies it by 0.7.

    Args:
      maximum: upper bound of the limit.
    """

    def __init__(self, maximum: int):
        self._maximum = maximum
        self.limit = float(min(FIRST_CONCURRENCY, maximum))
        self.active = 0  # requests admitted now
        self.highest = 0  # highest value of `active` so far
        self._resume_at, self._slowed_at = 0.0, -1.0
        self._waiting: list[tuple[int, int, asyncio.Future]] = []
        self._number = itertools.count()
        self._timer: asyncio.TimerHandle | None = None

    @contextlib.asynccontextmanager
    async def slot(self, rank: int = 0) -> AsyncIterator[None]:
        """Waits until a request may be sent and holds its slot; lower ranks are admitted first."""
        admitted = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (rank, next(self._number), admitted))
        self._admit()
        try:
            await admitted
            yield
        finally:
            if admitted.done() and not admitted.cancelled():
                self.active -= 1
                self._admit()

    def end_pause(self) -> None:
        """Ends a pause that the endpoint asked for."""
        self._resume_at = 0.0
        self._admit()

    def adapt(self, reply: Reply, *, sent_at: float | None = None) -> None:
        """Adapts limit and pause to a reply; `sent_at` is in `time.monotonic`, None for now."""
        now = time.monotonic()
        if reply.wait_s is not None:
            self._resume_at = max(self._resume_at, now + reply.wait_s)
        if reply.slow_down:
            # replies to requests sent before the last reduction count as one event with it
            if (now if sent_at is None else sent_at) > self._slowed_at:
                self._slowed_at = now
                self.limit = max(1.0, self.limit * 0.7)
        elif reply.outcome == ANSWER:
            more = 1.0 if self._slowed_at < 0 else 1.0 / self.limit
            self.limit = min(float(self._maximum), self.limit + more)

    def _admit(self) -> None:
        pause, admits = self._resume_at - time.monotonic(), 0
        # two at a time, since the limit may have grown by one; not all: after a pause the first
        # replies show whether more can follow
        while self._waiting and pause <= 0 and admits < 2 and self.active < int(self.limit):
            *_, admitted = heapq.heappop(self._waiting)
            if not admitted.done():  # not cancelled meanwhile
                admits += 1
                self.active += 1
                self.highest = max(self.highest, self.active)
                admitted.set_result(None)
        if self._waiting and pause > 0 and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(min(pause, 0.25), self._resume)

    def _resume(self) -> None:
        self._timer = None
        self._admit()
