"""The order of examples: each once an epoch, no copies in a step, pure in (seed, step)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inf_jax.core.errors import UserError
from inf_jax.data.example_order import (
    ORDERS,
    WINDOW_EXAMPLES,
    WINDOW_STEPS,
    Cuts,
    ExampleOrder,
    StraddlingOrder,
    window_steps,
)
from inf_jax.data.layout import BatchLayout
from inf_jax.data.loader import Loader
from inf_jax.data.sampler import assign_to_chunks, balance_chunks, even_chunks
from tests.inf_jax.data.batches import make


def lengths(count):
    return np.random.default_rng(0).integers(5, 90, count)


# whole windows; a window and a bit; less than a window; 2 and 3 steps an epoch; more than half of
# the data (1, 2, half of it are left out); all of it; more; several times; one example
@pytest.mark.parametrize(
    ("count", "batch_size"),
    [
        *[(1920, 60), (1999, 60), (331, 64), (128, 64), (200, 64), (1000, 512), (997, 700)],
        *[(60, 59), (60, 58), (60, 31), (60, 30), (60, 60), (60, 61), (60, 119), (7, 64), (1, 3)],
    ],
)
def test_a_step_holds_no_copies_and_an_epoch_each_example_once(count, batch_size):
    order, seen = ExampleOrder(lengths(count), seed=3, batch_size=batch_size), np.zeros(count, int)
    for step in range(max(40, 3 * count // batch_size)):
        times = np.bincount(order.examples(step), minlength=count)
        assert times.sum() == batch_size
        assert times.min() >= batch_size // count
        assert times.max() <= -(-batch_size // count)
        seen += times
        # a cut of the stream anywhere: all epochs before it are whole, the open one has no copy
        assert seen.min() == (step + 1) * batch_size // count
        assert seen.max() == -(-(step + 1) * batch_size // count)


@pytest.mark.parametrize(("count", "batch_size"), [(38_000, 21_845), (1_000, 512), (1_000, 384)])
def test_steps_hold_nearly_as_many_tokens(count, batch_size):
    tokens = np.minimum(np.random.default_rng(0).lognormal(4.5, 0.6, count), 256).astype(int)
    order = ExampleOrder(tokens, seed=0, batch_size=batch_size)
    sums = np.array([tokens[order.examples(step)].sum() for step in range(30)])
    np.testing.assert_allclose(sums, batch_size * tokens.mean(), rtol=0.015)


@pytest.mark.parametrize("batch_size", [6, 31, 48, 60, 150])
def test_a_step_far_into_a_run_is_the_same_without_those_before(batch_size):
    orders = [ExampleOrder(lengths(60), seed=3, batch_size=batch_size) for _ in range(2)]
    steps = [*range(10**7, 10**7 + 30)]
    forwards = [orders[0].examples(step) for step in steps]
    for step, examples in zip(reversed(steps), reversed(forwards), strict=True):
        np.testing.assert_array_equal(orders[1].examples(step), examples)


# sizes 9 and 10; 0 and 1; 1 to 5; more than half of the data; more than all of it
@pytest.mark.parametrize(
    ("count", "rate", "least", "most"),
    [(1999, 9.5, 9, 10), (40, 0.3, 0, 1), (100, 3.3, 1, 5), (60, 41.5, 41, 42), (7, 16.4, 16, 17)],
)
def test_steps_of_several_sizes(count, rate, least, most):
    wobble = (lambda step: step % 3) if most - least > 1 else (lambda step: 0)
    before = lambda step: int(step * rate) + (wobble(step) if step else 0)  # noqa: E731
    sizes = [before(step + 1) - before(step) for step in range(400)]
    assert (min(sizes), max(sizes)) == (least, most)
    tokens = lengths(count)
    order, again = (
        ExampleOrder(tokens, seed=3, batch_size=Cuts(before, least, most)) for _ in range(2)
    )
    steps, seen, sums = [order.examples(step) for step in range(400)], np.zeros(count, int), []
    for step, examples in enumerate(steps):
        times = np.bincount(examples, minlength=count)
        assert times.sum() == sizes[step]
        if most <= count:
            assert times.max(initial=0) <= 1
        seen += times
        assert seen.min() == before(step + 1) // count
        assert seen.max() == -(-before(step + 1) // count)
        sums.append(tokens[examples].mean() if sizes[step] else 0)
    for step in (399, 7, 123):
        np.testing.assert_array_equal(again.examples(step), steps[step])
    if 9 <= most <= count:  # by length as even as steps of one size, but for the seams
        assert np.std(sums) < 0.4 * tokens.std() / most**0.5


@pytest.mark.parametrize("batch_size", [60, 150])
def test_steps_of_all_examples_differ_in_their_order(batch_size):
    orders = [ExampleOrder(lengths(60), seed=seed, batch_size=batch_size) for seed in (1, 2)]
    steps = [order.examples(step).tolist() for order in orders for step in (0, 1, 2)]
    assert len(set(map(tuple, steps))) == 6


@pytest.mark.parametrize("batch_size", [6, 20, 31, 54])
def test_an_example_meets_others_in_every_epoch(batch_size):
    """Also where lengths all differ and the data are one window: no fixed companions by length."""
    order, steps = ExampleOrder(np.arange(60), seed=1, batch_size=batch_size), 600
    together = np.zeros((60, 60), int)
    for step in range(steps):
        together[np.ix_(*[order.examples(step)] * 2)] += 1
    np.fill_diagonal(together, 0)
    assert np.count_nonzero(together, axis=1).min() >= 49
    mean = steps * batch_size * (batch_size - 1) / (60 * 59)
    assert together.max() < mean + 8 * mean**0.5


def test_a_run_of_an_older_version_keeps_its_order():
    """What version 0.1.0 gave, with its copies."""
    old = ORDERS[1](np.arange(20) % 7, seed=1, batch_size=6)
    assert isinstance(old, StraddlingOrder)
    found = [old.examples(step).tolist() for step in (0, 2, WINDOW_STEPS)]
    assert found == [[6, 11, 11, 2, 7, 2], [8, 6, 18, 16, 4, 0], [6, 4, 18, 2, 9, 7]]


def test_the_order_before_the_last_window_of_the_first_epoch_is_that_of_older_versions():
    old, new = (ORDERS[n](lengths(1999), seed=1, batch_size=20) for n in (1, 2))
    for step in range(80):  # 99 whole steps in 6 windows, the last one of 19
        np.testing.assert_array_equal(new.examples(step), old.examples(step))


def test_windows_of_small_steps_hold_as_many_examples_as_those_of_larger_ones():
    """Steps of 16 examples hold nearly as many tokens throughout an epoch; a run of order 5 keeps
    its windows of 16 steps, which differ. Steps of 64 examples are the same in both."""
    tokens = np.minimum(np.random.default_rng(0).lognormal(5.5, 0.6, 9_700), 450).astype(int)
    old, new = (ORDERS[n](tokens, seed=1, batch_size=16) for n in (5, 7))
    spread = [
        np.std([tokens[order.examples(step)].sum() for step in range(600)]) for order in (old, new)
    ]
    assert spread[1] < 0.6 * spread[0]
    old, new = (ORDERS[n](tokens, seed=1, batch_size=64) for n in (5, 7))
    for step in (0, 70, 149, 151, 400):
        np.testing.assert_array_equal(new.examples(step), old.examples(step))


# fewer than two windows of 16 steps; half of the steps, also where few are whole; 1,024 examples
@pytest.mark.parametrize(
    ("count", "size", "steps"),
    [(60, 6, 16), (1998, 3, 333), (1999, 3, 332), (9728, 16, 64), (9728, 10, 103), (9728, 64, 16)],
)
def test_steps_of_a_window(count, size, steps):
    cuts = Cuts.even(size)
    whole = range(cuts.first(count), cuts.first(2 * count + 1) - 1)  # of the second epoch
    assert window_steps(cuts, whole, WINDOW_EXAMPLES) == steps
    assert window_steps(cuts, whole, 0) == WINDOW_STEPS


@pytest.mark.parametrize(
    ("count", "size", "short"),
    # small steps; large ones; few steps; nearly all of the data, drawn by what they leave out;
    # more than the data, whose few examples beyond whole copies are drawn; whole copies alone
    [
        (9728, 16, True),
        (9728, 64, False),
        (500, 16, False),
        (5000, 4990, True),
        (1000, 2010, True),
        (1000, 4000, False),
    ],
)
def test_orders_differ_where_an_old_one_has_short_windows(count, size, short):
    old, new = (ORDERS[n](lengths(count), seed=1, batch_size=size) for n in (5, 7))
    assert (old.short_windows, new.short_windows) == (short, False)
    steps = range(200)
    assert short == any(not np.array_equal(old.examples(n), new.examples(n)) for n in steps)


def test_windows_of_steps_that_mostly_have_no_example():
    """1,024 steps, not so many that they have as many examples, but those of a tail in any case."""
    cuts = Cuts(lambda step: 3 * (step // 2000), 0, 3)
    whole = range(1000, 601_000)
    assert window_steps(cuts, whole, WINDOW_EXAMPLES) == 1024
    cuts = Cuts(lambda step: 3 * (step // 3000), 0, 3)
    assert window_steps(cuts, whole, WINDOW_EXAMPLES) == 2000


def test_an_unknown_order_is_refused(dataset):
    layout = BatchLayout(batch_size=6, chunks=2, row_tokens=64, texts_per_row=8)
    with pytest.raises(UserError, match=r"began with order 6 .* knows 1, 2, 3, 4, 5, 7"):
        Loader(dataset, layout, seed=1, steps=2, order=6)


def test_order_is_a_pure_function(dataset):
    a, b = make(dataset), make(dataset, chunks=4, steps=3)
    for step in (37, 2, 100, 0):  # any order of asking, any chunking
        np.testing.assert_array_equal(a.example_indices(step), b.example_indices(step))


def test_the_order_of_examples_is_that_of_a_run_without_block_i(dataset):
    plain, sampled = make(dataset), make(dataset, instruction_negatives=3)
    for step in (0, 17):
        np.testing.assert_array_equal(plain.example_indices(step), sampled.example_indices(step))


@pytest.mark.parametrize("longest", [1, 100, 70_000])  # 16 bits are sorted in another way
def test_the_snake_is_that_of_older_versions(longest):
    """The order of a run may never change."""
    lengths = np.random.default_rng(0).integers(0, longest + 1, 6 * 35)
    runs = np.argsort(-lengths, kind="stable").reshape(-1, 6)
    runs[1::2] = runs[1::2, ::-1].copy()
    np.testing.assert_array_equal(assign_to_chunks(lengths, 6), np.sort(runs.T, axis=1))


@pytest.mark.parametrize("assign", [assign_to_chunks, balance_chunks, even_chunks])
@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 100), min_size=8, max_size=64), st.sampled_from([1, 2, 4, 8]))
def test_assignment_is_an_even_partition(assign, lengths, chunks):
    lengths = np.array(lengths[: len(lengths) // chunks * chunks])
    assigned = assign(lengths, chunks)
    assert assigned.shape == (chunks, len(lengths) // chunks)
    assert (np.diff(assigned, axis=1) > 0).all()
    assert sorted(assigned.ravel().tolist()) == list(range(len(lengths)))


@pytest.mark.parametrize("pairs", [64, 600])  # more than the runs that are balanced
def test_chunks_hold_nearly_as_many_tokens(pairs):
    lengths = np.minimum(np.random.default_rng(0).lognormal(4.3, 0.5, 64 * pairs), 270).astype(int)
    tokens = lengths[balance_chunks(lengths, 64)].sum(1)
    assert tokens.max() < 1.001 * tokens.mean()
    snake = lengths[assign_to_chunks(lengths, 64)].sum(1)
    assert np.ptp(tokens) < 0.5 * np.ptp(snake)


@pytest.mark.parametrize(("chunks", "pairs"), [(512, 8), (256, 16), (64, 34), (3, 12), (2, 1)])
def test_chunks_of_few_pairs_are_evened_out(chunks, pairs):
    random = np.random.default_rng(0)
    lengths = np.minimum(random.lognormal(4.3, 0.5, chunks * pairs), 270).astype(int)
    lengths[: chunks // 2] = 0  # empty slots
    before, after = (lengths[f(lengths, chunks)].sum(1) for f in (balance_chunks, even_chunks))
    assert after.max() <= max(1.0025 * after.mean(), before.max() * (pairs == 1))
    assert after.sum() == before.sum()
    many = lengths[: 2 * (len(lengths) // 2)]
    if chunks > 100:
        assert before.max() > 1.008 * before.mean()
        np.testing.assert_array_equal(even_chunks(many, 2), balance_chunks(many, 2))


def test_groups_are_evened_out_each_for_itself():
    lengths = np.random.default_rng(0).lognormal(4.3, 0.5, (12, 8 * 6)).astype(int).clip(5, 270)
    lengths[3, :20] = 0  # empty slots
    each = [even_chunks(group, 8) for group in lengths]
    np.testing.assert_array_equal(even_chunks(lengths, 8), each)
    assert not np.array_equal(each[0], balance_chunks(lengths[0], 8))  # pairs are exchanged


def test_a_run_of_order_3_keeps_its_chunks(dataset):
    """The order of a run may never change."""
    lengths = np.array([9, 40, 7, 31, 12, 22, 5, 18, 3, 11, 6, 27])
    expected = [[0, 1, 8], [3, 6, 9], [2, 4, 11], [5, 7, 10]]
    assert balance_chunks(lengths, 4).tolist() == expected
    for order, assign in ((2, assign_to_chunks), (3, balance_chunks), (4, even_chunks)):
        step = make(dataset, order=order, chunks=6).assignment(5)
        [present] = np.nonzero(step.lengths[:, 1])
        places = np.append(present, np.full(-len(present) % 6, -1))
        tokens = np.append(step.lengths.sum(1), 0)[places]
        np.testing.assert_array_equal(step.chunks, places[assign(tokens, 6)])
