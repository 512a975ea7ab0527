"""The limiter: growth, reductions, bounds, priorities."""

import asyncio

from data_pipeline.llm import limiter as limiter_module
from data_pipeline.llm.client import Reply
from data_pipeline.llm.journal import ANSWER, UNPAID
from data_pipeline.llm.limiter import Limiter


class Clock:
    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(limiter_module.time, "monotonic", lambda: self.now)


def test_the_limit_grows_and_shrinks(monkeypatch):
    clock, limiter = Clock(monkeypatch), Limiter(100)
    good, slow = Reply(ANSWER, ""), Reply(UNPAID, "", slow_down=True)
    assert limiter.limit == 8
    for _ in range(8):
        limiter.adapt(good)
    assert limiter.limit == 16  # doubles per round
    for _ in range(200):
        limiter.adapt(good)
    assert limiter.limit == 100
    for _ in range(50):
        limiter.adapt(slow)
    assert limiter.limit == 70  # replies to concurrent requests are one event
    for _ in range(70):
        limiter.adapt(good)
    assert 70.9 < limiter.limit < 71  # from now on one per round
    for _ in range(50):
        clock.now += 1
        limiter.adapt(slow)
    assert limiter.limit == 1
    limiter.adapt(Reply("schema", ""))
    assert limiter.limit == 1
    assert Limiter(3).limit == 3


def test_never_above_the_limit_and_nobody_is_forgotten():
    async def entered():
        limiter, active, most, done = Limiter(50), 0, 0, 0

        async def one(number):
            nonlocal active, most, done
            async with limiter.slot(number % 3):
                active += 1
                most = max(most, active)
                assert active <= max(limiter.limit, 50 * 0.7**4)
                await asyncio.sleep(0.001 * (number % 3))
                kind = number % 40
                slow = kind == 0
                wait = 0.01 if kind in (0, 20) else None
                limiter.adapt(Reply(UNPAID if slow else ANSWER, "", wait_s=wait, slow_down=slow))
                active -= 1
                done += 1

        await asyncio.wait_for(asyncio.gather(*map(one, range(2000))), 600)
        return most, done, limiter

    most, done, limiter = asyncio.run(entered())
    assert done == 2000
    assert 8 < most <= limiter.highest <= 50 and limiter.active == 0  # highest: with those let in


def test_lower_ranks_first_and_cancelled_ones_free_their_slot():
    async def entered():
        limiter, order = Limiter(1), []

        async def one(rank):
            async with limiter.slot(rank):
                order.append(rank)
                await asyncio.sleep(0.001)

        tasks = [asyncio.create_task(one(rank)) for rank in (2, 2, 1, 0, 1, 0)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return order, limiter.active

    assert asyncio.run(entered()) == ([2, 0, 0, 1, 1], 0)
