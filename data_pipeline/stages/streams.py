"""How items flow through stages that wait for answers: in order, a bounded number under way."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

from data_pipeline.items import Item


async def ordered(
    items: AsyncIterator[Item],
    process: Callable[[Item], Awaitable[Item]],
    *,
    window: int,
) -> AsyncIterator[Item]:
    """The processed items in the order of `items`; those that are dropped already pass through.

    Args:
      process: one item to one item; many at a time.
      window: most items under way: memory does not grow with their number.

    Raises:
      whatever `process` raises for the oldest item; those after it are cancelled.
    """
    under_way: deque[asyncio.Task | Item] = deque()

    async def oldest() -> Item:
        first = under_way[0]
        result = first if isinstance(first, Item) else await first
        under_way.popleft()
        return result

    try:
        async for item in items:
            under_way.append(asyncio.create_task(process(item)) if item.alive else item)
            # a task runs only while somebody waits; and a finished one need not be kept
            await asyncio.sleep(0)
            while under_way and (len(under_way) >= window or _finished(under_way[0])):
                yield await oldest()
        while under_way:
            yield await oldest()
    finally:
        for task in under_way:
            if not isinstance(task, Item):
                task.cancel()


def _finished(one: asyncio.Task | Item) -> bool:
    return isinstance(one, Item) or one.done()


async def each(items: Iterable[Item]) -> AsyncIterator[Item]:
    """Plain items as the beginning of a flow."""
    for item in items:
        yield item


async def tapped(items: AsyncIterator[Item], tap: Callable[[Item], None]) -> AsyncIterator[Item]:
    """The same items; `tap` sees each as it passes."""
    async for item in items:
        tap(item)
        yield item


async def one_by_one(
    items: AsyncIterator[Item], step: Callable[[Item], Item]
) -> AsyncIterator[Item]:
    """The items after a step that waits for nothing."""
    async for item in items:
        yield step(item) if item.alive else item
