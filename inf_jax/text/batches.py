"""Splits a stream of texts into batches of bounded size."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

_Text = TypeVar("_Text")


def text_batches(
    texts: Iterable[_Text], *, count: int, characters: int, length: Callable[[_Text], int] = len
) -> Iterator[list[_Text]]:
    """The texts in order, in lists that end with the text that makes them full.

    No more is read than the list that is yielded.

    Args:
      count: most texts of a list.
      characters: a list with that many is full.
      length: characters of a text.
    """
    batch, total = [], 0
    for text in texts:
        batch.append(text)
        total += length(text)
        if len(batch) == count or total >= characters:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch
