"""Rows of many chunks at once are those that best fit opens in each."""

import numpy as np
import pytest

from inf_jax.core.errors import UserError
from inf_jax.core.packing import rows_needed
from inf_jax.data import row_counts
from inf_jax.data.row_counts import rows_of_chunks, surely_fit


def drawn(rng, *, row_tokens, texts, absent, chunks=70):
    """Lengths of chunks up to a longest one, with an empty chunk and a text that fills a row."""
    longest = int(rng.integers(1, row_tokens + 1))
    lengths = rng.integers(0, longest + 1, (chunks, texts))
    lengths[rng.random(lengths.shape) < absent] = 0
    lengths[3], lengths[5, 0] = 0, row_tokens
    return lengths


def needed(lengths, *row):
    return [rows_needed(chunk, *row) for chunk in lengths]


# row_tokens: within a word of a bit set, at its edge, some words, the most, and beyond
@pytest.mark.parametrize("row_tokens", [20, 63, 64, 130, 4031, 5000])
@pytest.mark.parametrize("absent", [0, 0.3])
def test_rows_of_few_texts(row_tokens, absent):
    rng = np.random.default_rng(row_tokens)
    for texts_per_row in (1, 2, 3, 8):
        texts = int(rng.integers(1, 12))
        lengths = drawn(rng, row_tokens=row_tokens, texts=texts, absent=absent)
        expected = needed(lengths, row_tokens, texts_per_row)
        assert rows_of_chunks(lengths, row_tokens, texts_per_row).tolist() == expected
        few = rows_of_chunks(lengths[:3], row_tokens, texts_per_row)
        assert few.tolist() == expected[:3]
    with pytest.raises(UserError, match="does not fit a row"):
        rows_of_chunks(lengths, row_tokens - 1, 8)


@pytest.mark.parametrize("texts_per_row", [1, 2, 4, 9, 40])
@pytest.mark.parametrize("absent", [0, 0.5])
def test_rows_of_many_texts(texts_per_row, absent, monkeypatch):
    """Those that are counted by length alone are right wherever they are said to be known."""
    counted = []

    def by_length(lengths, *row):
        rows, unsure = by_length_alone(lengths, *row)
        assert rows[~unsure].tolist() == needed(lengths[~unsure], *row)
        counted.append(np.count_nonzero(~unsure))
        return rows, unsure

    by_length_alone = row_counts._rows_by_length
    monkeypatch.setattr(row_counts, "_rows_by_length", by_length)
    rng = np.random.default_rng(texts_per_row)
    for row_tokens in (9, 16, 30):
        row = row_tokens, texts_per_row
        lengths = drawn(rng, row_tokens=row_tokens, texts=40, absent=absent)
        assert rows_of_chunks(lengths, *row).tolist() == needed(lengths, *row)
    assert len(counted) == 3 * (texts_per_row > 1)
    assert texts_per_row < 9 or min(counted) > 60  # where rows are full of tokens before texts


@pytest.mark.parametrize("texts_per_row", [1, 2, 4, 9, 40])
@pytest.mark.parametrize("row_tokens", [9, 30, 200])
def test_chunks_that_surely_fit_do(texts_per_row, row_tokens, monkeypatch):
    monkeypatch.setattr(row_counts, "_LENGTHS_PER_TEXT", 0)
    monkeypatch.setattr(row_counts, "_FEW_CHUNKS", 32)
    rng, row = np.random.default_rng(row_tokens), (row_tokens, texts_per_row)
    for longest in (row_tokens, row_tokens // 3):
        lengths = rng.integers(0, longest + 1, (200, 40))
        needed = rows_of_chunks(lengths, *row)
        for rows in range(needed.min(), 41):
            sure = surely_fit(lengths, *row, rows=rows)
            assert (needed[sure] <= rows).all()
            if texts_per_row > 4 and rows == needed.max() + 1:
                assert sure.mean() > 0.5
        assert sure.all()
    assert not surely_fit(lengths + row_tokens, *row, rows=40).any()  # texts longer than a row
    assert not surely_fit(lengths[:3], *row, rows=40).any()  # packing them takes less time
