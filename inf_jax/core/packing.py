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
    if lengths.size and lengths.max() > row_tokens:
        raise UserError(
            f"a text of {lengths.max()} tokens does not fit a row of {row_tokens}: raise "
            "data.row_tokens or lower the maximum text lengths"
        )
    row, place_in_row, offset = np.full((3, lengths.size), -1, np.int32)
    # Open rows by free tokens, and a bit set of the non-empty entries: the smallest free space that
    # is large enough is one shift and one lowest set bit away.
    open_rows: list[list[int]] = [[] for _ in range(row_tokens + 1)]
    has_free = 0
    used: list[int] = []  # texts of each row
    for text in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[text])
        if length == 0:
            break
        fitting = has_free >> length
        if fitting:
            free = length + (fitting & -fitting).bit_length() - 1
            target = open_rows[free].pop()
            if not open_rows[free]:
                has_free ^= 1 << free
        else:
            free, target = row_tokens, len(used)
            used.append(0)
        row[text], place_in_row[text], offset[text] = target, used[target], row_tokens - free
        used[target] += 1
        free -= length
        if free and used[target] < texts_per_row:
            open_rows[free].append(target)
            has_free |= 1 << free
    return row, place_in_row, offset


def assign_to_chunks(lengths: np.ndarray, chunks: int) -> np.ndarray:
    """Assigns pairs to chunks in snake order: equal in number and near equal in tokens.

    Sorted by length, each run of `chunks` pairs is assigned forwards and the next one backwards.

    Args:
      lengths: int[b], tokens of each pair; b a multiple of `chunks`.

    Returns:
      int64[chunks, b // chunks], the pairs of each chunk, in rising order.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    runs = order.reshape(-1, chunks).copy()
    runs[1::2] = runs[1::2, ::-1]
    return np.sort(runs.T, axis=1)


def rows_needed(lengths: np.ndarray, row_tokens: int, texts_per_row: int) -> int:
    """Rows that `best_fit` opens for these texts."""
    row, _, _ = best_fit(lengths, row_tokens, texts_per_row)
    return int(row.max(initial=-1)) + 1


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
      UserError: the texts need more rows than the grid has.
    """
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    row, place_in_row, offset = best_fit(lengths, row_tokens, texts_per_row)
    needed = int(row.max(initial=-1)) + 1
    if needed > rows:
        raise UserError(
            f"the texts of a chunk need {needed} rows of {row_tokens}, the grid has {rows}"
        )
    tokens, segments, positions = (np.zeros((rows, row_tokens), np.int32) for _ in range(3))
    ids = np.zeros((rows, texts_per_row), np.uint32)
    present = lengths > 0
    if present.any():
        # One flat scatter for all texts: token j of a text goes to row * t + offset + j.
        count = lengths[present]
        inside = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        start = row[present].astype(np.int64) * row_tokens + offset[present]
        flat = np.repeat(start, count) + inside
        tokens.ravel()[flat] = np.concatenate([t for t in texts if len(t)])
        segments.ravel()[flat] = np.repeat(place_in_row[present] + 1, count)
        positions.ravel()[flat] = inside
        ids[row[present], place_in_row[present]] = np.asarray(text_ids)[present]
    slots = np.where(present, row * texts_per_row + place_in_row, 0).astype(np.int32)
    return Packed(tokens, segments, positions, ids, slots)


def stack_chunks(chunks: Sequence[Packed]) -> Packed:
    """Packed chunks of one grid, stacked on a leading chunk axis."""
    return Packed(*(np.stack(field) for field in zip(*chunks, strict=True)))
