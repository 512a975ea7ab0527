"""Packs texts of many lengths into a fixed grid of rows, so that few token slots are wasted.

The unit is the chunk: a fixed number of texts in a fixed grid of rows. A row holds several texts,
separated by segment ids; attention and pooling stay inside a segment. Pure numpy; nothing here
depends on the order of examples or on the model.
"""

from collections import defaultdict
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
    # Open rows by free tokens, and a bit set of the non-empty entries: the smallest free space that
    # is large enough is one shift and one lowest set bit away.
    open_rows: dict[int, list[int]] = defaultdict(list)
    has_free = 0
    used: list[int] = []  # texts of each row
    rows, places, left = [], [], []
    order = np.argsort(-lengths, kind="stable")[: np.count_nonzero(lengths)]
    for length in lengths[order].tolist():
        fitting = has_free >> length
        if fitting:
            free = length + (fitting & -fitting).bit_length() - 1
            stack = open_rows[free]
            target = stack.pop()
            place = used[target]
            if not stack:
                has_free ^= 1 << free
        else:
            free, target, place = row_tokens, len(used), 0
            used.append(0)
        rows.append(target)
        places.append(place)
        left.append(free)
        used[target] = place = place + 1
        free -= length
        if free and place < texts_per_row:
            open_rows[free].append(target)
            has_free |= 1 << free
    row[order], place_in_row[order], offset[order] = rows, places, row_tokens - np.array(left, int)
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
    return pack_texts(tokens, lengths, text_ids, **shape)


def pack_texts(
    ids_of_all: np.ndarray,
    lengths: np.ndarray,
    text_ids: np.ndarray,
    *,
    rows: int,
    row_tokens: int,
    texts_per_row: int,
) -> Packed:
    """As `pack_chunk`, of the texts' token ids one after another, int32[sum(lengths)]."""
    row, place_in_row, offset = fit(lengths, row_tokens, texts_per_row, rows=rows)
    needed = int(row.max(initial=-1)) + 1
    if needed > rows:
        raise TooFewRowsError(
            f"the texts of a chunk need {needed} rows of {row_tokens}, the grid has {rows}"
        )
    tokens, segments, positions = (np.zeros((rows, row_tokens), np.int32) for _ in range(3))
    ids = np.zeros((rows, texts_per_row), np.uint32)
    present = lengths > 0
    if present.any():
        count = lengths[present]  # token j of a text goes to row * t + offset + j
        inside = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        start = row[present].astype(np.int64) * row_tokens + offset[present]
        flat = np.repeat(start, count) + inside
        tokens.ravel()[flat] = ids_of_all
        segments.ravel()[flat] = np.repeat(place_in_row[present] + 1, count)
        positions.ravel()[flat] = inside
        ids[row[present], place_in_row[present]] = np.asarray(text_ids)[present]
    slots = np.where(present, row * texts_per_row + place_in_row, 0).astype(np.int32)
    return Packed(tokens, segments, positions, ids, slots)


def stack_chunks(chunks: Sequence[Packed]) -> Packed:
    """Packed chunks of one grid, stacked on a leading chunk axis."""
    return Packed(*(np.stack(field) for field in zip(*chunks, strict=True)))
