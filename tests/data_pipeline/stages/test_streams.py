"""Streams of items: order, bounded concurrency, errors."""

import asyncio
import random

import pytest

from data_pipeline.items import Item
from data_pipeline.stages.streams import as_stream, mapped, ordered, tapped


def _items(count: int) -> list[Item]:
    return [Item(str(n), "q", "p") for n in range(count)]


async def _all(stream) -> list[Item]:
    return [item async for item in stream]


@pytest.mark.parametrize("window", [1, 3, 100])
def test_input_order_and_at_most_a_window_in_progress(window):
    rng, active, highest, full = random.Random(0), 0, 0, asyncio.Event()

    async def process(item: Item) -> Item:
        nonlocal active, highest
        active += 1
        highest = max(highest, active)
        if active == min(window, 40):
            full.set()
        await full.wait()
        await asyncio.sleep(rng.random() / 500)
        active -= 1
        item.scores["seen"] = 1.0
        return item

    items = _items(40)
    found = asyncio.run(_all(ordered(as_stream(items), process, window=window)))
    assert [item.id for item in found] == [str(n) for n in range(40)]
    assert all(item.scores for item in found)
    assert highest == min(window, 40)


def test_two_stages_overlap_and_dropped_items_pass_through():
    log = []

    async def first(item: Item) -> Item:
        log.append(("first", item.id))
        await asyncio.sleep(0)
        return item.drop("first", "odd") if int(item.id) % 2 else item

    async def second(item: Item) -> Item:
        log.append(("second", item.id))
        return item

    items = _items(20)
    stream = ordered(as_stream(items), first, window=2)
    stream = mapped(stream, lambda item: item.drop("rule", "four") if item.id == "4" else item)
    found = asyncio.run(_all(ordered(stream, second, window=2)))
    assert [item.id for item in found] == [str(n) for n in range(20)]
    assert [i for stage, i in log if stage == "second"] == [
        str(n) for n in range(0, 20, 2) if n != 4
    ]
    assert found[4].reasons == ["rule:four"] and found[5].reasons == ["first:odd"]
    # the second stage starts before the first has finished
    assert log.index(("second", "0")) < log.index(("first", "19"))


def test_the_input_is_read_lazily():
    read = []

    def source():
        for item in _items(100):
            read.append(item.id)
            yield item

    async def process(item: Item) -> Item:
        await asyncio.sleep(0)
        return item

    async def three() -> None:
        stream = ordered(as_stream(source()), process, window=5)
        for _ in range(3):
            await anext(stream)
        await stream.aclose()

    asyncio.run(three())
    assert len(read) <= 3 + 5 + 1


def test_an_error_ends_the_stream_and_cancels_the_rest():
    cancelled = []

    async def process(item: Item) -> Item:
        if item.id == "2":
            await asyncio.sleep(0.01)
            raise RuntimeError("broken")
        try:
            await asyncio.sleep(0 if int(item.id) < 2 else 60)
        except asyncio.CancelledError:
            cancelled.append(item.id)
            raise
        return item

    seen = []

    async def run() -> None:
        async for _ in tapped(ordered(as_stream(_items(10)), process, window=5), seen.append):
            pass

    with pytest.raises(RuntimeError, match="broken"):
        asyncio.run(run())
    assert [item.id for item in seen] == ["0", "1"]
    assert cancelled and set(cancelled) <= {"3", "4", "5", "6"}
