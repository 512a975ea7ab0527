"""The order of examples: each once an epoch, a pure function of (seed, step)."""

import numpy as np

from inf_jax.data.sampler import WINDOW_STEPS
from tests.inf_jax.data.batches import make


def test_every_example_once_an_epoch_and_epochs_differ(dataset):
    loader = make(dataset)
    count = dataset.num_examples
    steps = WINDOW_STEPS * 10  # windows end on an epoch: 960 = 16 * 60 examples
    stream = np.concatenate([loader.example_indices(s) for s in range(steps)])
    assert len(stream) == steps * 6
    seen = np.bincount(stream, minlength=count)
    assert seen.min() == seen.max() == len(stream) // count
    assert not np.array_equal(stream[:count], stream[count : 2 * count])
    other = make(dataset, seed=2)
    assert not np.array_equal(loader.example_indices(0), other.example_indices(0))


def test_order_is_a_pure_function(dataset):
    a, b = make(dataset), make(dataset, chunks=4, steps=3)
    for step in (37, 2, 100, 0):  # any order of asking, any chunking
        np.testing.assert_array_equal(a.example_indices(step), b.example_indices(step))


def test_the_order_of_examples_is_that_of_a_run_without_block_i(dataset):
    plain, sampled = make(dataset), make(dataset, instruction_negatives=3)
    for step in (0, 17):
        np.testing.assert_array_equal(plain.example_indices(step), sampled.example_indices(step))
