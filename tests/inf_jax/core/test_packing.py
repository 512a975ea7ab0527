"""Packing: every token is somewhere, once; nothing overlaps; rows are few."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inf_jax.core import packing
from inf_jax.core.errors import UserError

LENGTHS = st.lists(st.integers(0, 32), min_size=1, max_size=60)


@settings(max_examples=200, deadline=None)
@given(LENGTHS, st.integers(1, 8))
def test_best_fit_overlaps_nothing_and_loses_nothing(lengths, texts_per_row):
    lengths = np.array(lengths)
    row, place, offset = packing.best_fit(lengths, 32, texts_per_row)
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
    if texts_per_row == 8:
        bound = max(-(-lengths.sum() // 32), -(-np.count_nonzero(lengths) // 8))
        assert len(used) <= 2 * bound


def test_best_fit_takes_the_fullest_row_with_room():
    # 20 and 15 open two rows; 10 fits the first (12 free) better than the second (17 free)
    row, _, offset = packing.best_fit(np.array([20, 15, 10]), 32, 8)
    assert row.tolist() == [0, 1, 0]
    assert offset.tolist() == [0, 0, 20]


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
    with pytest.raises(UserError, match="need 3 rows of 20, the grid has 2"):
        packing.pack_chunk(
            texts, np.arange(3, dtype=np.uint32), rows=2, row_tokens=20, texts_per_row=4
        )


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 100), min_size=8, max_size=64), st.sampled_from([1, 2, 4, 8]))
def test_assignment_is_an_even_partition(lengths, chunks):
    lengths = np.array(lengths[: len(lengths) // chunks * chunks])
    assigned = packing.assign_to_chunks(lengths, chunks)
    assert sorted(assigned.ravel().tolist()) == list(range(len(lengths)))
    sums = lengths[assigned].sum(1)
    # two neighbouring runs cancel: chunks differ by at most the longest text
    assert sums.max() - sums.min() <= lengths.max(initial=0)
