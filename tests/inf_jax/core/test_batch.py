"""Hashes of texts as two halves."""

import numpy as np

from inf_jax.core.batch import split_hashes


def test_split_hashes_keeps_both_halves():
    halves = split_hashes(np.array([[0x0123456789ABCDEF]], np.uint64))
    assert halves.dtype == np.uint32 and halves.tolist() == [[[0x89ABCDEF, 0x01234567]]]
