"""Counts the rows that packing opens in many chunks at once, for the shape of a step."""

import numpy as np

from inf_jax.core.packing import check_longest, rows_needed

_BITS = np.uint64(1) << np.arange(64, dtype=np.uint64)
_FEW_CHUNKS = 64  # up to here `rows_needed` of one chunk after another is faster
_MOST_TOKENS = 63 * 64  # a bit set of bit sets
_MOST_TEXTS = 2**15 - 1  # of a chunk, counted in 16 bits
_COUNTED_BEFORE = 2  # lengths above those of which a row may have too many
_LENGTHS_PER_TEXT = 100  # `_rows_by_length` takes as long as `_OpenRows` with so many


def rows_of_chunks(lengths: np.ndarray, row_tokens: int, texts_per_row: int) -> np.ndarray:
    """`rows_needed` of many chunks at once.

    Args:
      lengths: int[c, k], tokens of the texts of each chunk; 0 marks an absent text.

    Returns:
      int64[c].

    Raises:
      UserError: a text longer than a row.
    """
    check_longest(lengths, row_tokens)
    texts = lengths.shape[1]
    short = row_tokens**2 < _LENGTHS_PER_TEXT * texts
    if short and texts <= _MOST_TEXTS and len(lengths) >= _FEW_CHUNKS and texts_per_row > 1:
        rows, unsure = _rows_by_length(lengths, row_tokens, texts_per_row)
        if unsure.any():
            rows[unsure] = _rows_by_text(lengths[unsure], row_tokens, texts_per_row)
        return rows
    return _rows_by_text(lengths, row_tokens, texts_per_row)


def surely_fit(
    lengths: np.ndarray, row_tokens: int, texts_per_row: int, *, rows: int
) -> np.ndarray:
    """bool[c], chunks of which it is known without packing that `rows_needed` is at most `rows`.

    Where a text of n tokens opens a row, each row before it has less than n tokens free or is full
    of texts, none of them shorter. So it does not, if all texts before it have too few tokens.

    Args:
      lengths: as of `rows_of_chunks`.
    """
    chunks, texts = lengths.shape
    sure = np.zeros(chunks, bool)
    if chunks < _FEW_CHUNKS or row_tokens**2 < _LENGTHS_PER_TEXT * texts:
        return sure  # packing takes less time
    if chunks > 4 * _FEW_CHUNKS:  # where rows are so full that it is known of none, a few say so
        some = lengths[:: chunks // _FEW_CHUNKS]
        if not surely_fit(some, row_tokens, texts_per_row, rows=rows).any():
            return sure
    sure[:] = lengths.max(initial=0) <= row_tokens < 1 << 16
    falling = np.sort(lengths.astype(np.uint16), axis=1)[:, ::-1].T.astype(np.int32)
    before = np.zeros((texts + 1, chunks), np.int32)  # tokens of the texts before each
    np.cumsum(falling, axis=0, out=before[1:])
    for number in range(rows, texts):  # the first ones have a row each
        length = falling[number]
        least = row_tokens + 1 - length  # tokens of a row without room
        full = min(rows, number // texts_per_row)  # rows, at most, with as many texts as they take
        needed = (rows - full) * least
        if full:
            fewest = before[number] - before[number - texts_per_row]  # tokens of so many texts
            needed += full * np.minimum(least, fewest)
        sure &= (before[number] < needed) | (length == 0)
    return sure


def _rows_by_length(
    lengths: np.ndarray, row_tokens: int, texts_per_row: int
) -> tuple[np.ndarray, np.ndarray]:
    """As `rows_of_chunks`, by the numbers of texts of each length and of rows by free tokens.

    Texts of one length fill the fullest rows first, each with as many as it takes. Of rows with
    equally many free tokens only the least and the most texts are known: the second result,
    bool[c], says where that was not enough, so that the number is not to be trusted.
    """
    chunks, texts = lengths.shape
    at = lengths.T.astype(np.int32) * chunks + np.arange(chunks, dtype=np.int32)
    counts = np.bincount(at.ravel(), minlength=(row_tokens + 1) * chunks)
    counts = counts.astype(np.int16).reshape(-1, chunks)
    half = row_tokens // 2
    rows = np.zeros((row_tokens + 1, chunks), np.int16)  # open rows by free tokens
    rows[: row_tokens - half] = counts[:half:-1]  # no two of these texts fit one row
    alone = rows.sum(0, dtype=np.int64)
    rows[row_tokens] = texts  # those that are not opened yet
    # As many texts as a row may have, each this long or longer, fill it: no need to count them.
    limited = min(half, -(-row_tokens // texts_per_row) + _COUNTED_BEFORE)
    full, whole = np.empty((2, chunks), np.int16)
    every = [*rows]
    for length in range(half, limited, -1):
        left = counts[length]
        for free in range(length, row_tokens + 1):
            if free % 4 == 0 and not left.any():
                break
            count, there = free // length, every[free]  # full rows take so many texts
            if count == 1:
                np.minimum(left, there, out=full)
                np.subtract(left, full, out=left)
            else:
                np.floor_divide(left, count, out=whole)
                np.minimum(whole, there, out=full)
                np.multiply(full, count, out=whole)
                np.subtract(left, whole, out=left)
            np.subtract(there, full, out=there)
            after = every[free - count * length]
            np.add(after, full, out=after)
            if count > 1:
                [last] = np.nonzero(np.logical_and(left, there))  # a row takes the rest
                if last.size:
                    there[last] -= 1
                    rows[free - left[last].astype(np.int64) * length, last] += 1
                    left[last] = 0
    unsure = _place_short(counts[: limited + 1], rows, texts_per_row)
    return alone + texts - rows[row_tokens], unsure


def _place_short(counts: np.ndarray, rows: np.ndarray, texts_per_row: int) -> np.ndarray:
    """Places the texts of the shortest lengths, where rows may be full of texts before they are
    full of tokens; bool[c], where it is not known.

    Args:
      counts: int16[lengths, c], texts of each length; used up.
      rows: int16[1 + row_tokens, c], rows by free tokens; changed.
    """
    row_tokens, chunks = len(rows) - 1, rows.shape[1]
    most = np.empty_like(rows)  # texts of the rows
    most[:] = (row_tokens - np.arange(row_tokens + 1))[:, None] // len(counts)
    least = np.minimum(most, 1)
    unsure = np.zeros(chunks, bool)

    def move(chunk: np.ndarray, free: np.ndarray, count: np.ndarray, length: int) -> None:
        """Counts the texts of rows that have got `count` texts, before they are counted."""
        now = free - count * length
        alone = rows[now, chunk] == 0
        for texts, bound in ((most, np.maximum), (least, np.minimum)):
            moved = texts[free, chunk] + count
            texts[now, chunk] = np.where(alone, moved, bound(texts[now, chunk], moved))

    for length in range(len(counts) - 1, 0, -1):
        left = counts[length]
        for free in range(length, row_tokens + 1):
            [chunk] = np.nonzero(np.logical_and(left, rows[free]))
            if not chunk.size:
                if not left.any():
                    break
                continue
            takes = np.minimum(free // length, texts_per_row - most[free, chunk])
            closes = takes < free // length
            unsure[chunk] |= closes & (least[free, chunk] < most[free, chunk])
            there = rows[free, chunk]
            full = np.minimum(left[chunk] // np.maximum(takes, 1), there)
            full[takes < 1] = there[takes < 1]  # have been full of texts
            rows[free, chunk] -= full
            left[chunk] -= full * takes
            some = np.flatnonzero((full > 0) & ~closes)
            move(chunk[some], free, takes[some], length)
            rows[free - takes[some] * length, chunk[some]] += full[some]
            some = np.flatnonzero((left[chunk] > 0) & (there > full))
            rest = left[chunk[some]]
            move(chunk[some], free, rest, length)
            rows[free, chunk[some]] -= 1
            rows[free - rest * length, chunk[some]] += 1
            left[chunk[some]] = 0
    return unsure


def _rows_by_text(lengths: np.ndarray, row_tokens: int, texts_per_row: int) -> np.ndarray:
    if len(lengths) < _FEW_CHUNKS or row_tokens >= _MOST_TOKENS:
        return np.array([rows_needed(c, row_tokens, texts_per_row) for c in lengths], np.int64)
    ordered = np.sort(lengths.astype(np.uint16), axis=1)[:, ::-1].T.astype(np.int64)
    # No two texts of more than half a row fit one row: each opens its own.
    alone = int((2 * ordered > row_tokens).sum(0).min()) if texts_per_row > 1 else 0
    rows = _OpenRows(ordered[:alone], row_tokens, texts_per_row, texts=len(ordered))
    every = np.arange(len(lengths))
    for texts in ordered[alone:]:
        chunks = every if texts.all() else np.flatnonzero(texts)
        rows.place(chunks, texts[chunks])
    return rows.opened


class _OpenRows:
    """The open rows of c chunks, as in `best_fit`; each step places a text in each chunk.

    Of each number of free tokens there is a stack of rows: `_top` holds the last one and `_below`,
    of each row, the one under it, as entries of the row's number and, in the lowest bits, its
    texts; -1 for none. Bit sets say which stacks hold a row. A row that is not opened yet counts as
    one with all tokens free. All arrays are flat, [..., c].

    Args:
      alone: int64[k, c], falling: the first texts of each chunk, of which each opens a row.
      texts: most rows of a chunk.
    """

    def __init__(self, alone: np.ndarray, row_tokens: int, texts_per_row: int, *, texts: int):
        count, self._chunks = alone.shape
        self._row_tokens, self._most = row_tokens, texts_per_row
        self._bits = texts_per_row.bit_length()
        self.opened = np.full(self._chunks, count)
        free, entries = row_tokens - alone, (np.arange(count)[:, None] << self._bits) + 1
        below = np.full((texts, self._chunks), -1)
        below[:count][1:] = np.where(free[1:] == free[:-1], entries[:-1], -1)
        top = np.full((row_tokens + 1, self._chunks), -1)
        top[free, np.arange(self._chunks)] = entries  # of several in one place the last one stays
        top[0] = -1
        stacks = np.zeros((row_tokens // 64 + 1, 64, self._chunks), bool)
        stacks.reshape(-1, self._chunks)[: row_tokens + 1] = top >= 0
        stacks.reshape(-1, self._chunks)[row_tokens] = True
        sets = np.packbits(stacks, axis=1, bitorder="little")  # [words, 8, c]
        sets = np.ascontiguousarray(sets.swapaxes(1, 2)).view(np.uint64)[..., 0]
        self._words = ((sets != 0) * _BITS[: len(sets), None]).sum(0, dtype=np.uint64)
        self._sets = sets.ravel()
        self._top, self._below = (x.astype(np.int32).ravel() for x in (top, below))

    def place(self, chunks: np.ndarray, lengths: np.ndarray) -> None:
        """Places a text of int64[k] tokens in each of k chunks."""
        sets, size = self._sets, self._chunks
        # the smallest free space that is large enough, often in the same word of the bit set
        word = lengths >> 6
        found = sets[word * size + chunks] >> (lengths & 63).astype(np.uint64)
        free = lengths + _lowest_bit(found)
        if (further := np.flatnonzero(found == 0)).size:
            chunk, word = chunks[further], word[further] + 1
            word += _lowest_bit(self._words[chunk] >> word.astype(np.uint64))
            free[further] = (word << 6) + _lowest_bit(sets[word * size + chunk])
        # pop its last row, or open one
        entry = self._top[stack := free * size + chunks]
        new = np.flatnonzero(free == self._row_tokens)
        entry[new] = self.opened[chunks[new]] << self._bits
        self.opened[chunks[new]] += 1
        at = (entry >> self._bits) * size + chunks
        below = self._below[at]
        below[new] = 0  # there is always another new row
        self._top[stack] = below
        if (emptied := np.flatnonzero(below < 0)).size:
            self._flip(chunks[emptied], free[emptied])
        # push it with what is left, if it takes more texts
        entry += 1
        free -= lengths
        open_ = np.flatnonzero((free > 0) & (entry & ((1 << self._bits) - 1) < self._most))
        chunks, free = chunks[open_], free[open_]
        stack = free * size + chunks
        self._below[at[open_]] = below = self._top[stack]
        self._top[stack] = entry[open_]
        if (first := np.flatnonzero(below < 0)).size:
            self._flip(chunks[first], free[first])

    def _flip(self, chunks: np.ndarray, free: np.ndarray) -> None:
        """Flips the bits of stacks that have got their first row or lost their last one."""
        word = free >> 6
        at = word * self._chunks + chunks
        before = self._sets[at]
        self._sets[at] = after = before ^ _BITS[free & 63]
        flipped = np.flatnonzero((before == 0) | (after == 0))
        self._words[chunks[flipped]] ^= _BITS[word[flipped]]


def _lowest_bit(sets: np.ndarray) -> np.ndarray:
    """uint8, the number of the lowest bit of uint64; 64 of none."""
    return np.bitwise_count((sets & -sets) - _BITS[0])
