"""How many requests may be under way at an endpoint, by what it answers."""

import asyncio
import contextlib
import heapq
import itertools
import time
from collections.abc import AsyncIterator

from data_pipeline.llm.client import Reply
from data_pipeline.llm.journal import ANSWER

FIRST_CONCURRENCY = 8


class Limiter:
    """How many requests may be under way, and who is next.

    Twice as many a round of successes until told to slow down for the first time, from then on one
    more a round.
    """

    def __init__(self, most: int):
        self._most = most
        self.limit = float(min(FIRST_CONCURRENCY, most))
        self.active = 0
        self.highest = 0
        self._resume_at, self._slowed_at = 0.0, -1.0
        self._waiting: list[tuple[int, int, asyncio.Future]] = []
        self._number = itertools.count()
        self._timer: asyncio.TimerHandle | None = None

    @contextlib.asynccontextmanager
    async def place(self, rank: int = 0) -> AsyncIterator[None]:
        """Waits until one more request may be sent; a lower rank goes first."""
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
        """Lets all go on that were told to wait."""
        self._resume_at = 0.0
        self._admit()

    def learn(self, reply: Reply, *, sent_at: float | None = None) -> None:
        """Adapts to what came back; `sent_at` is a time of `time.monotonic`, None for now."""
        now = time.monotonic()
        if reply.wait_s is not None:
            self._resume_at = max(self._resume_at, now + reply.wait_s)
        if reply.slow_down:
            # those that were under way at the last time are one event with it
            if (now if sent_at is None else sent_at) > self._slowed_at:
                self._slowed_at = now
                self.limit = max(1.0, self.limit * 0.7)
        elif reply.outcome == ANSWER:
            more = 1.0 if self._slowed_at < 0 else 1.0 / self.limit
            self.limit = min(float(self._most), self.limit + more)

    def _admit(self) -> None:
        pause, admits = self._resume_at - time.monotonic(), 0
        # two at once, since the limit may have grown by one; not all of them: after a pause the
        # first ones tell whether more can follow
        while self._waiting and pause <= 0 and admits < 2 and self.active < int(self.limit):
            *_, admitted = heapq.heappop(self._waiting)
            if not admitted.done():  # whoever waited was cancelled
                admits += 1
                self.active += 1
                self.highest = max(self.highest, self.active)
                admitted.set_result(None)
        if self._waiting and pause > 0 and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(min(pause, 0.25), self._look_again)

    def _look_again(self) -> None:
        self._timer = None
        self._admit()
