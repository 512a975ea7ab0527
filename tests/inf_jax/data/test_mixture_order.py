"""The order of mixtures: exact weights, whole epochs, pure in (seed, step)."""

import itertools
import math

import numpy as np
import pytest

from inf_jax.core.errors import UserError
from inf_jax.data.mixture.order import Mixing, MixtureOrder
from inf_jax.data.mixture.shares import Shares

NAMES = ("medquad", "pubmedqa", "nevir")
SIZES, PAIRS = (700, 900, 400), (3, 1, 2)  # examples, and pairs of each
TOKENS = [np.random.default_rng(i).integers(5, 90, n) for i, n in enumerate(SIZES)]


def make_order(weights=(4, 2, 1), *, units=8, seed=3, **mixing):
    return MixtureOrder(Mixing(NAMES, weights, **mixing), TOKENS, PAIRS, units=units, seed=seed)


def by_source(examples):
    """The examples of each source in a step, numbered in their source."""
    flat, starts = examples[examples >= 0], np.cumsum([0, *SIZES])
    return [flat[(a <= flat) & (flat < b)] - a for a, b in itertools.pairwise(starts)]


@pytest.mark.parametrize(
    "weights", [(1,), (1, 1), (4, 2, 1), (1, 99), (1, 1, 1, 97), (13, 7, 5, 3, 2, 1), (499, 1, 1)]
)
def test_shares_are_never_a_slot_off(weights):
    shares, total = Shares(weights), sum(weights)
    for slots in [*range(2 * total + 1), 10**12 + 7]:
        counts = [shares.count(i, slots) for i in range(len(weights))]
        assert sum(counts) == slots
        for count, weight in zip(counts, weights, strict=True):
            assert abs(count * total - weight * slots) < total
    taken = [shares.source(slot) for slot in range(total)]
    assert np.bincount(taken).tolist() == [*weights]


@pytest.mark.parametrize("homogeneous", [False, True])
@pytest.mark.parametrize("weights", [(4, 2, 1), (1, 1, 1), (90, 9, 1)])
def test_weights_are_exact_over_a_thousand_steps(weights, homogeneous):
    order, units, unit = make_order(weights, homogeneous=homogeneous), 8, 6
    assert order.unit == math.lcm(*PAIRS) == unit
    counts, seen = np.zeros(3, int), [np.zeros(n, int) for n in SIZES]
    for step in range(1000):
        examples = order.examples(step)
        assert examples.shape == (units, 6)
        parts = by_source(examples)
        pairs = [k * len(part) for k, part in zip(PAIRS, parts, strict=True)]
        assert sum(pairs) == units * unit
        assert np.count_nonzero(pairs) == 1 or not homogeneous
        counts += pairs
        assert order.pairs_before(step + 1) == counts.tolist()
        # never a unit, or a step, off the weights
        slot = unit * (units if homogeneous else 1)
        exact = (step + 1) * units * unit * np.array(weights) / sum(weights)
        assert (np.abs(counts - exact) < slot).all()
        for times, part in zip(seen, parts, strict=True):
            assert len(set(part.tolist())) == len(part)  # no copies in a step
            np.add.at(times, part, 1)
            assert times.max() - times.min() <= 1  # whole epochs
    expected = 1000 * units * unit * np.array(weights) / sum(weights)
    assert ((counts - expected) ** 2 / expected).sum() < 1  # chi-square: 6 at its 95 % quantile


@pytest.mark.parametrize("homogeneous", [False, True])
def test_a_step_is_the_same_without_those_before(homogeneous):
    orders = [make_order(homogeneous=homogeneous) for _ in range(2)]
    steps = [*range(5000, 5040)]
    forwards = [orders[0].examples(step) for step in steps]
    for step, examples in zip(reversed(steps), reversed(forwards), strict=True):
        np.testing.assert_array_equal(orders[1].examples(step), examples)
    other = make_order(homogeneous=homogeneous, seed=4)
    assert any((other.examples(s) != e).any() for s, e in zip(steps, forwards, strict=True))


def test_units_hold_whole_examples_of_one_source_in_their_order():
    examples, starts = make_order().examples(0), np.cumsum(SIZES)
    sources = np.searchsorted(starts, examples, side="right")
    for row, source in zip(examples, sources[:, 0], strict=True):
        assert (np.count_nonzero(row >= 0)) == 6 // PAIRS[source]
        assert (sources[0][row >= 0] >= 0).all() and (row[6 // PAIRS[source] :] == -1).all()
    assert (np.diff(sources[:, 0]) >= 0).all()


@pytest.mark.parametrize("homogeneous", [False, True])
def test_an_exhausted_source_leaves_the_mixture(homogeneous):
    limits = {"max_epochs": 2.0, "leave": True, "homogeneous": homogeneous}
    order, again = (make_order((1, 1, 1), **limits) for _ in range(2))
    ends, seen, present = order.ends, [np.zeros(n, int) for n in SIZES], []
    order.check(ends)
    for step in range(ends):
        parts = by_source(order.examples(step))
        present.append([len(part) > 0 for part in parts])
        assert sum(k * len(part) for k, part in zip(PAIRS, parts, strict=True)) == 48
        for times, part in zip(seen, parts, strict=True):
            np.add.at(times, part, 1)
    for times, n, k in zip(seen, SIZES, PAIRS, strict=True):
        assert times.max() <= 2
        assert 2 * n * k - 48 < times.sum() * k <= 2 * n * k  # but for less than a step
    left = dict(order.leaving(ends + 1))
    assert sorted(left) == sorted(NAMES) and max(left.values()) == ends
    for name, last in left.items():
        there = np.array(present)[:, NAMES.index(name)]
        assert not there[last:].any() and there[max(0, last - 3) : last].any()
    np.testing.assert_array_equal(again.examples(ends - 2), order.examples(ends - 2))
    message = rf"all sources are exhausted after {ends} of {ends + 1} steps"
    with pytest.raises(UserError, match=message):
        order.check(ends + 1)


def test_a_source_that_is_read_too_often_is_refused():
    order = make_order((1, 1, 1), max_epochs=1.5)
    order.check(60)
    assert order.leaving(60) == []
    with pytest.raises(UserError, match=r"100 steps would read pubmedqa 1\.78 times, nevir 2\.00"):
        order.check(100)


def test_steps_larger_than_a_source_are_named():
    assert not make_order(units=8).larger()
    order = make_order(units=1200)
    assert "a step takes 1,372 examples of medquad, which has 700; lower its" in order.larger()
    for step in (0, 5):  # and can be taken
        assert order.examples(step).shape == (1200, 6)


@pytest.mark.parametrize("size", [*range(5, 15)])
def test_steps_of_about_half_of_a_source(size):
    """Of one or two of its units, three or six of its examples."""
    mixing, tokens = Mixing(("inf_ir", "few"), (7, 1)), [np.arange(300), np.arange(size)]
    make = lambda: MixtureOrder(mixing, tokens, (3, 1), units=10, seed=5)  # noqa: E731
    order, seen, taken = make(), np.zeros(size, int), 0
    steps = [order.examples(step) for step in range(80)]
    for step, examples in enumerate(steps):
        assert examples.shape == (10, 3)
        few = examples[examples >= 300] - 300
        taken += len(few)
        assert order.pairs_before(step + 1)[1] == taken
        seen += np.bincount(few, minlength=size)
        assert seen.min() >= taken // size - 1
        assert seen.max() <= -(-taken // size)
    for step in (79, 3, 41):
        np.testing.assert_array_equal(make().examples(step), steps[step])


def test_an_epoch_holds_every_example_of_a_source_that_few_steps_have():
    """Sixteen steps may have one example of 11 here, which the tail before it has taken: orders up
    to 5 then have no example for the head."""
    mixing, sizes, pairs = Mixing(("a", "b", "c"), (50, 2, 1)), (40, 11, 13), (6, 2, 3)
    tokens = [np.random.default_rng(i).integers(5, 90, n) for i, n in enumerate(sizes)]
    for seed in range(4):
        order = MixtureOrder(mixing, tokens, pairs, units=1, seed=seed)
        found = np.concatenate([order.examples(step).ravel() for step in range(1500)])
        for first, size in zip(np.cumsum([0, *sizes]), sizes, strict=False):
            own = found[(found >= first) & (found < first + size)]
            epochs = own[: len(own) // size * size].reshape(-1, size)
            assert len(epochs) > 3
            assert (np.sort(epochs, axis=1) == first + np.arange(size)).all()


def test_a_run_of_an_older_version_keeps_its_short_windows():
    old, new = (
        MixtureOrder(Mixing(NAMES, (4, 2, 1)), TOKENS, PAIRS, units=2, seed=3, order=n)
        for n in (5, 7)
    )
    assert (old.short_windows, new.short_windows) == (True, False)
    assert any((old.examples(n) != new.examples(n)).any() for n in range(50))
