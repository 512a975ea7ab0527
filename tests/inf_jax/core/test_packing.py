"""Packing: every token is somewhere, once; nothing overlaps; rows are few."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inf_jax.core import packing
from inf_jax.core.errors import UserError

LENGTHS = st.lists(st.integers(0, 32), min_size=1, max_size=60)


def exact_fit(attempt):
    return lambda *args: packing.exact_fit(*args, attempt=attempt)


@pytest.mark.parametrize("pack", [packing.best_fit, exact_fit(0), exact_fit(5)])
@settings(max_examples=100, deadline=None)
@given(LENGTHS, st.integers(1, 8))
def test_rows_overlap_nothing_and_lose_nothing(pack, lengths, texts_per_row):
    lengths = np.array(lengths)
    row, place, offset = pack(lengths, 32, texts_per_row)
    used = np.zeros((row.max(initial=-1) + 1, 32), int)
    for i, length in enumerate(lengths):
        if length == 0:
            assert row[i] == place[i] == offset[i] == -1
        else:
            used[row[i], offset[i] : offset[i] + length] += 1
            assert offset[i] + length <= 32
    assert used.max(initial=0) <= 1
    assert used.sum() == lengths.sum()
    for r in range(len(used)):
        assert sorted(place[row == r]) == list(range((row == r).sum()))
        assert 1 <= (row == r).sum() <= texts_per_row
    # best-fit decreasing opens a row only if no open row has room: under 2x the lower bound
    if texts_per_row == 8 and pack is packing.best_fit:
        bound = max(-(-lengths.sum() // 32), -(-np.count_nonzero(lengths) // 8))
        assert len(used) <= 2 * bound


def test_best_fit_takes_the_fullest_row_with_room():
    # 20 and 15 open two rows; 10 fits the first (12 free) better than the second (17 free)
    row, _, offset = packing.best_fit(np.array([20, 15, 10]), 32, 8)
    assert row.tolist() == [0, 1, 0]
    assert offset.tolist() == [0, 0, 20]


@settings(max_examples=100, deadline=None)
@given(LENGTHS, st.integers(1, 8))
def test_best_fit_places_one_text_after_another(lengths, texts_per_row):
    rows = []  # [free tokens, texts, when it took the last one]
    expected = np.full((3, len(lengths)), -1)
    for turn, text in enumerate(np.argsort(-np.array(lengths), kind="stable").tolist()):
        length = lengths[text]
        room = [r for r in rows if r[0] >= length and r[1] < texts_per_row]
        if not length:
            break
        if not room:
            rows.append([32, 0, turn])
            room = rows[-1:]
        row = min(room, key=lambda r: (r[0], -r[2]))  # of the fullest the last one to be changed
        number = next(n for n, r in enumerate(rows) if r is row)
        expected[:, text] = number, row[1], 32 - row[0]
        row[:] = row[0] - length, row[1] + 1, turn
    np.testing.assert_array_equal(packing.best_fit(np.array(lengths), 32, texts_per_row), expected)


def test_fit_fills_rows_where_best_fit_leaves_holes():
    lengths, rows = np.array([23, 9, 5, 8, 8, 11, 17, 6, 9]), 3
    assert packing.rows_needed(lengths, 32, 8) == rows + 1
    row, _, _ = packing.fit(lengths, 32, 8, rows=rows)
    assert np.bincount(row, lengths).tolist() == [32] * rows
    # The shortest texts are mixed among the others: of the best fit a row holds nothing else.
    lengths = np.repeat([20, 14, 4, 3], [6, 6, 18, 12])
    assert packing.rows_needed(lengths, 32, 4) == 12
    row, _, _ = packing.fit(lengths, 32, 4, rows=11)
    assert row.max() + 1 == 11 == -(-lengths.size // 4)
    # What fits is left as it is.
    for found, best in zip(
        packing.fit(lengths, 32, 4, rows=12), packing.best_fit(lengths, 32, 4), strict=True
    ):
        np.testing.assert_array_equal(found, best)


def test_a_text_longer_than_a_row_is_refused():
    with pytest.raises(UserError, match="33 tokens does not fit a row of 32"):
        packing.best_fit(np.array([5, 33]), 32, 8)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=30), st.integers(1, 6))
def test_pack_chunk_round_trip(lengths, texts_per_row):
    rng = np.random.default_rng(0)
    texts = [rng.integers(1, 99, n).astype(np.int32) for n in lengths]
    ids = np.arange(len(texts), dtype=np.uint32) + 7
    rows = packing.rows_needed(np.array(lengths), 20, texts_per_row) + 1
    packed = packing.pack_chunk(texts, ids, rows=rows, row_tokens=20, texts_per_row=texts_per_row)
    for i, text in enumerate(texts):
        row, place = divmod(int(packed.slots[i]), texts_per_row)
        if len(text):
            mine = packed.segments[row] == place + 1
            np.testing.assert_array_equal(packed.tokens[row][mine], text)
            np.testing.assert_array_equal(packed.positions[row][mine], np.arange(len(text)))
            assert packed.text_ids[row, place] == ids[i]
    assert (packed.segments > 0).sum() == sum(lengths)


def test_pack_chunk_refuses_too_small_a_grid():
    texts = [np.ones(20, np.int32)] * 3
    with pytest.raises(packing.TooFewRowsError, match="need 3 rows of 20, the grid has 2"):
        packing.pack_chunk(
            texts, np.arange(3, dtype=np.uint32), rows=2, row_tokens=20, texts_per_row=4
        )
