"""Streams of items through asynchronous stages: in order, with bounded concurrency."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

from data_pipeline.items import Item


async def ordered(
    items: AsyncIterator[Item], process: Callable[[Item], Awaitable[Item]], *, window: int
) -> AsyncIterator[Item]:
    """Processes items concurrently and yields them in input order; dropped items pass through.

    Args:
      items: the input, read as needed.
      process: maps one item to one item; called for many at a time.
      window: maximum number of items in progress, which bounds memory.

    Raises:
      whatever `process` raises for the oldest item; later ones are cancelled.
    """
    active: deque[asyncio.Task | Item] = deque()

    async def oldest() -> Item:
        first = active[0]
        result = first if isinstance(first, Item) else await first
        active.popleft()
        return result

    try:
        async for item in items:
            active.append(asyncio.create_task(process(item)) if item.alive else item)
            # let the tasks run, so that finished ones are not kept
            await asyncio.sleep(0)
            while active and (len(active) >= window or _finished(active[0])):
                yield await oldest()
        while active:
            yield await oldest()
    finally:
        for task in active:
            if not isinstance(task, Item):
                task.cancel()


def _finished(one: asyncio.Task | Item) -> bool:
    return isinstance(one, Item) or one.done()


async def as_stream(items: Iterable[Item]) -> AsyncIterator[Item]:
    """An iterable as a stream."""
    for item in items:
        yield item


async def tapped(items: AsyncIterator[Item], tap: Callable[[Item], None]) -> AsyncIterator[Item]:
    """The same items; `tap` is called with each as it passes."""
    async for item in items:
        tap(item)
        yield item


async def mapped(items: AsyncIterator[Item], step: Callable[[Item], Item]) -> AsyncIterator[Item]:
    """The items after a synchronous step; dropped items pass through."""
    async for item in items:
        yield step(item) if item.alive else item
