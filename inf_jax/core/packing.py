"""Packs texts of many lengths into a fixed grid of rows, so that few token slots are wasted.

The unit is the chunk: a fixed number of texts in a fixed grid of rows. A row holds several texts,
separated by segment ids; attention and pooling stay inside a segment. Pure numpy; nothing here
depends on the order of examples or on the model.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from inf_jax.core.errors import UserError


class Packed(NamedTuple):
    """A grid of packed rows; c chunks, r rows a chunk, t tokens a row, s texts a row, k texts a
    chunk.

    Attributes:
      tokens: int32[c, r, t], token ids; 0 where empty.
      segments: int32[c, r, t], 1 + the text's place in its row; 0 where empty.
      positions: int32[c, r, t], position inside the text, from 0.
      text_ids: uint32[c, r, s], global id of each text of a row (the seed of its dropout).
      slots: int32[c, k], row * s + place of each text of the chunk, in the caller's order; an
        absent text points at slot 0 of its chunk, and the loss masks it.
    """

    tokens: np.ndarray
    segments: np.ndarray
    positions: np.ndarray
    text_ids: np.ndarray
    slots: np.ndarray


class TooFewRowsError(UserError):
    """The texts of a chunk need more rows than its grid has."""


def best_fit(
    lengths: np.ndarray, row_tokens: int, texts_per_row: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Best-fit decreasing: each text goes to the fullest row that still has room.

    Args:
      lengths: int[k], tokens of each text; 0 marks an absent text, which is not placed.

    Returns:
      (row, place, offset), int32[k] each: the row, the place in the row and the first token; -1
      where absent.

    Raises:
      UserError: a text longer than a row.
    """
    lengths = np.asarray(lengths)
    check_longest(lengths, row_tokens)
    row, place_in_row, offset = np.full((3, lengths.size), -1, np.int32)
    order = np.argsort(-lengths, kind="stable")[: np.count_nonzero(lengths)]
    falling = lengths[order]
    first = np.flatnonzero(np.diff(falling, prepend=-1))
    runs = zip(falling[first].tolist(), np.diff(first, append=len(order)).tolist(), strict=True)
    # Open rows by free tokens, and a bit set of the non-empty entries: the smallest free space that
    # is large enough is one shift and one lowest set bit away. It stays the smallest for further
    # texts of that length, so a row takes all of them that it can at once. An entry is a row's
    # number and, in the lowest bits, its texts.
    open_rows: list[list[int]] = [[] for _ in range(row_tokens + 1)]
    has_free, bits = 0, int(texts_per_row).bit_length()
    one_row, texts, next_row = 1 << bits, (1 << bits) - 1, 0
    entries, left, taken = [], [], []  # of each time that a row takes texts
    for length, count in runs:
        while count:
            fitting = has_free >> length
            if fitting:
                free = length + (fitting & -fitting).bit_length() - 1
                stack = open_rows[free]
                entry = stack.pop()
                if not stack:
                    has_free ^= 1 << free
            else:
                free, entry, next_row = row_tokens, next_row, next_row + one_row
            takes = free // length
            if takes > count:
                takes = count
            if takes > 1 and takes > texts_per_row - (entry & texts):
                takes = texts_per_row - (entry & texts)
            entries.append(entry)
            left.append(free)
            taken.append(takes)
            count -= takes
            free -= takes * length
            entry += takes
            if free and entry & texts < texts_per_row:
                open_rows[free].append(entry)
                has_free |= 1 << free
    taken = np.array(taken, np.int64)
    entry, free = (np.repeat(np.array(x, np.int64), taken) for x in (entries, left))
    inside = np.arange(len(order)) - np.repeat(np.cumsum(taken) - taken, taken)
    row[order], place_in_row[order] = entry >> bits, (entry & texts) + inside
    offset[order] = row_tokens - free + inside * falling
    return row, place_in_row, offset


def exact_fit(
    lengths: np.ndarray, row_tokens: int, texts_per_row: int, *, attempt: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fills one row after another: its longest text, then texts that together fill it exactly.

    A row first takes so many short ones that it will hold as many texts as the mean of those to
    come. Often fewer rows than `best_fit` opens, sometimes more. All but `attempt` is as there;
    each prefers other pairs of texts.
    """
    check_longest(lengths, row_tokens)
    row, place_in_row, offset = np.full((3, lengths.size), -1, np.int32)
    order = np.argsort(-lengths, kind="stable")[: np.count_nonzero(lengths)].tolist()
    of_length: list[list[int]] = [[] for _ in range(row_tokens + 1)]
    for text in reversed(order):
        of_length[lengths[text]].append(text)
    # bit sets: the lengths that are left, and what each leaves free in an empty row
    held = sum(1 << n for n, texts in enumerate(of_length) if texts)
    rest = sum(1 << row_tokens - n for n, texts in enumerate(of_length) if texts)
    left, tokens, number, chosen = len(order), int(lengths.sum()), 0, attempt
    while left:
        mean = left / -(-tokens // row_tokens)  # texts of a row
        free, count, next_ = row_tokens, 0, [held.bit_length() - 1]
        while next_:
            for length in next_:
                text = of_length[length].pop()
                if not of_length[length]:
                    held ^= 1 << length
                    rest ^= 1 << row_tokens - length
                row[text], place_in_row[text], offset[text] = number, count, row_tokens - free
                free, count, left, tokens = free - length, count + 1, left - 1, tokens - length
            fitting = held & (1 << free + 1) - 1
            if not fitting or count == texts_per_row:
                break
            next_ = [fitting.bit_length() - 1]
            if count + 1 == texts_per_row or (next_ == [free] and count + 1 >= mean - 0.5):
                continue
            if count + 2 < mean - 0.5:
                next_ = [(held & -held).bit_length() - 1]
                continue
            half = (free + 1) // 2  # lengths of that and more, whose complement is there as well
            pairs = (held & rest >> row_tokens - free) >> half
            if free == 2 * half and len(of_length[half]) < 2:
                pairs &= -2
            if pairs:
                if attempt:
                    chosen = (1103515245 * chosen + 12345) % 2**31
                    at = (chosen >> 8) % (free // 2 + 1)
                    pairs = pairs >> at << at or 1 << pairs.bit_length() - 1
                longer = half + (pairs & -pairs).bit_length() - 1
                next_ = [longer, free - longer]
        number += 1
    return row, place_in_row, offset


def fit(
    lengths: np.ndarray, row_tokens: int, texts_per_row: int, *, rows: int, attempts: int = 16
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`best_fit` or, if it needs more than `rows`, the best of it and some of `exact_fit`."""
    found = best_fit(lengths, row_tokens, texts_per_row)
    for attempt in range(attempts):
        if found[0].max(initial=-1) < rows:
            break
        other = exact_fit(lengths, row_tokens, texts_per_row, attempt=attempt)
        found = min(found, other, key=lambda fitted: fitted[0].max(initial=-1))
    return found


def rows_needed(lengths: np.ndarray, row_tokens: int, texts_per_row: int) -> int:
    """Rows that `best_fit` opens for these texts."""
    row, _, _ = best_fit(lengths, row_tokens, texts_per_row)
    return int(row.max(initial=-1)) + 1


def check_longest(lengths: np.ndarray, row_tokens: int) -> None:
    """Raises UserError where a text is longer than a row."""
    if lengths.size and lengths.max() > row_tokens:
        raise UserError(
            f"a text of {lengths.max()} tokens does not fit a row of {row_tokens}: raise "
            "data.row_tokens or lower the maximum text lengths"
        )


def pack_chunk(
    texts: Sequence[np.ndarray],
    text_ids: np.ndarray,
    *,
    rows: int,
    row_tokens: int,
    texts_per_row: int,
) -> Packed:
    """Packs one chunk: Packed without the leading chunk axis.

    Args:
      texts: k arrays int32[length] of token ids; an empty one is an absent text.
      text_ids: uint32[k], global id of each text.

    Raises:
      TooFewRowsError: the texts need more rows than the grid has.
    """
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    tokens = np.concatenate([np.empty(0, np.int32), *texts])
    shape = {"rows": rows, "row_tokens": row_tokens, "texts_per_row": texts_per_row}
    [packed] = split_chunks(empty_chunks(1, len(texts), **shape))
    pack_texts(tokens, np.cumsum(lengths) - lengths, lengths, text_ids, into=packed)
    return packed


def empty_chunks(
    chunks: int, texts: int, *, rows: int, row_tokens: int, texts_per_row: int
) -> Packed:
    """Grids of so many chunks of so many texts, for `pack_texts` to fill; their values are any."""
    grids = (np.empty((chunks, rows, row_tokens), np.int32) for _ in range(3))
    ids = np.empty((chunks, rows, texts_per_row), np.uint32)
    return Packed(*grids, ids, np.empty((chunks, texts), np.int32))


def pack_texts(
    source: np.ndarray,
    starts: np.ndarray,
    lengths: np.ndarray,
    text_ids: np.ndarray,
    *,
    into: Packed,
) -> None:
    """As `pack_chunk`, of texts in one array.

    Args:
      source: int32[...], which holds the tokens of text i from `starts`[i] on.
      starts, lengths: int64[k].
      into: filled; of one chunk, without its axis.
    """
    rows, row_tokens = into.tokens.shape
    texts_per_row = into.text_ids.shape[1]
    row, place_in_row, _ = fit(lengths, row_tokens, texts_per_row, rows=rows)
    needed = int(row.max(initial=-1)) + 1
    if needed > rows:
        raise TooFewRowsError(
            f"the texts of a chunk need {needed} rows of {row_tokens}, the grid has {rows}"
        )
    present = lengths > 0
    at = row[present], place_in_row[present]
    # The grid is one stretch of tokens: in each row its texts, and a last one of what is empty.
    counts, first = np.zeros((2, rows, texts_per_row + 1), np.int64)
    counts[at], first[at] = lengths[present], starts[present]
    counts[:, -1] = row_tokens - counts.sum(1)
    counts, first = counts.ravel(), first.ravel()
    begin = np.cumsum(counts) - counts
    segments = np.resize(np.append(np.arange(1, texts_per_row + 1, dtype=np.int32), 0), len(counts))
    into.segments.ravel()[:] = np.repeat(segments, counts)
    filled = into.segments > 0
    every = np.arange(rows * row_tokens)
    positions = every.astype(np.int32) - np.repeat(begin.astype(np.int32), counts)
    np.multiply(positions.reshape(filled.shape), filled, out=into.positions)
    if source.size:
        tokens = source.take(every + np.repeat(first - begin, counts), mode="clip")
    else:
        tokens = np.zeros(len(every), np.int32)
    np.multiply(tokens.reshape(filled.shape), filled, out=into.tokens)
    into.text_ids[:] = 0
    into.text_ids[at] = np.asarray(text_ids)[present]
    into.slots[:] = np.where(present, row * texts_per_row + place_in_row, 0)


def split_chunks(chunks: Packed) -> list[Packed]:
    """Each chunk without its axis, as views."""
    return [Packed(*fields) for fields in zip(*chunks, strict=True)]


def stack_chunks(chunks: Sequence[Packed]) -> Packed:
    """Packed chunks of one grid, stacked on a leading chunk axis."""
    return Packed(*(np.stack(field) for field in zip(*chunks, strict=True)))
