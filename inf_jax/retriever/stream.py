"""Reads texts to encode as a stream, prepares them one window ahead, and gathers the vectors."""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from inf_jax.core.errors import UserError
from inf_jax.text.checks import check_text

_Item, _Prepared = TypeVar("_Item"), TypeVar("_Prepared")


class TextStream:
    """Strings that are checked as they are read; those of a list or tuple at once.

    Args:
      texts: any iterable of strings, or one string; read once.
      name: what they are, for error messages.

    Attributes:
      count: their number; None where it is known only at the end.

    Raises:
      UserError: not strings.
    """

    def __init__(self, texts: str | Iterable[str], name: str):
        # the order of a set, and what of a mapping is meant, are not known
        if isinstance(texts, bytes | Set | Mapping) or not isinstance(texts, Iterable):
            raise UserError(f"{name} must be a string or strings, not a {type(texts).__name__}")
        self._texts = [texts] if isinstance(texts, str) else texts
        self._name = name
        self.count: int | None = None
        with contextlib.suppress(TypeError):  # also of loaders whose len() depends on their data
            self.count = len(self._texts)
        if isinstance(self._texts, list | tuple):
            for _ in self:  # before anything is encoded
                pass

    def __iter__(self) -> Iterator[str]:
        for n, text in enumerate(self._texts):
            check_text(text, f"{self._name}[{n}]")
            yield text


def pair_stream(queries: TextStream, instructions: TextStream) -> Iterator[tuple[str, str]]:
    """(query, instruction) pairs; UserError where one of the two ends before the other."""
    remedy = "give one each, or a single string for all"
    known = None not in (queries.count, instructions.count)
    if known and queries.count != instructions.count:
        raise UserError(f"{queries.count} queries but {instructions.count} instructions: {remedy}")

    def pairs() -> Iterator[tuple[str, str]]:
        both = itertools.zip_longest(queries, instructions)
        for n, (query, instruction) in enumerate(both):
            if query is None or instruction is None:
                short = "queries" if query is None else "instructions"
                raise UserError(f"the {short} end after {n}, the others go on: {remedy}")
            yield query, instruction

    return pairs()


def one_ahead(
    prepare: Callable[[_Item], _Prepared], items: Iterable[_Item]
) -> Iterator[tuple[_Prepared, bool]]:
    """prepare(item) of each item, and whether it is the last.

    While the caller works on one, the next is prepared in a thread. Items are read in the caller's
    own thread: one that is yielded, and at most one more, have been read.
    """
    with ThreadPoolExecutor(1) as pool:
        ready = None
        for item in items:
            coming = pool.submit(prepare, item)
            if ready is not None:
                yield ready.result(), False
            ready = coming
        if ready is not None:
            yield ready.result(), True


def gather(
    blocks: Iterable[np.ndarray], *, count: int | None, width: int, out: np.ndarray | None = None
) -> np.ndarray:
    """The rows of all blocks: float32[n, width], or `out`.

    Args:
      blocks: float32[..., width] each.
      count: n if it is known.
      out: floating-point array [n, width] that is filled and returned; None: a new one.

    Raises:
      UserError: `out` is read-only or of another shape or dtype; at once if n is known.
    """
    if out is not None:
        _check_out(out, count, width)
    vectors = np.empty((count or 0, width), np.float32) if out is None else out
    done = 0
    for block in blocks:
        end = done + len(block)
        if end > len(vectors):
            if out is not None:
                raise UserError(
                    f"out has {len(out)} rows, all are filled, and there are more texts"
                )
            # in place: no second copy of everything; by an eighth more, so that this is seldom
            vectors.resize((max(end, len(vectors) * 9 // 8), width), refcheck=False)
        vectors[done:end] = block
        done = end
    if done < len(vectors):
        if out is not None:
            raise UserError(f"out has {len(out)} rows, but there were {done} texts: all are filled")
        vectors.resize((done, width), refcheck=False)
    return vectors


def _check_out(out: np.ndarray, count: int | None, width: int) -> None:
    """UserError if `out` cannot hold float32[count, width]; count None: not yet known."""
    shape, dtype = getattr(out, "shape", ()), getattr(out, "dtype", None)
    if len(shape) != 2 or dtype is None or not np.can_cast(np.float32, dtype, "same_kind"):
        raise UserError("out must be an array [texts, entries] of a floating-point dtype")
    if isinstance(out, np.ndarray) and not out.flags.writeable:
        raise UserError('out is read-only; open a memmap with mode "r+" or "w+"')
    rows = shape[0] if count is None else count
    if tuple(shape) != (rows, width):
        raise UserError(f"out has the shape {tuple(shape)}, the vectors have {(rows, width)}")
