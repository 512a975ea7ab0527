"""Loss spikes: planted ones are found, healthy noise is let alone."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inf_jax.config import defaults
from inf_jax.core.errors import UserError
from inf_jax.monitoring.loss_guard import LossGuard

TRAIN = defaults().train


def ends_at(losses, *, max_spike=TRAIN.max_spike, steps=TRAIN.spike_steps, known=0, checkpoints=()):
    """(step, message) at which the guard ends a run, or None; it starts after `known` of them."""
    guard = LossGuard(max_spike=max_spike, steps=steps, losses=losses[:known])
    for step, loss in enumerate(losses[known:], known):
        try:
            guard.check(step, float(loss), checkpoints=lambda: checkpoints)
        except UserError as error:
            return step, str(error)
    return None


def healthy(seed, count=600, *, noise=0.1, shape="normal"):
    """A loss that falls from 3 to 0.5, with noise in proportion."""
    rng = np.random.default_rng(seed)
    level = 0.5 + 2.5 * np.exp(-np.arange(count) / 150)
    draw = {
        "normal": lambda: rng.normal(size=count),
        "heavy": lambda: rng.standard_t(2.5, size=count),
        "skewed": lambda: rng.exponential(size=count) - 1,
        "slow": lambda: np.convolve(rng.normal(size=count + 29), np.ones(30) / 30**0.5, "valid"),
    }[shape]
    return level * (1 + noise * draw())


@given(
    seed=st.integers(0, 2**32 - 1),
    noise=st.sampled_from([0.0, 1e-4, 0.02, 0.1, 0.3]),
    shape=st.sampled_from(["normal", "heavy", "skewed", "slow"]),
)
@settings(max_examples=30, deadline=None)
def test_no_alarm_on_healthy_noise(seed, noise, shape):
    assert ends_at(healthy(seed, noise=noise, shape=shape)) is None


@given(seed=st.integers(0, 2**32 - 1), shape=st.sampled_from(["normal", "heavy", "skewed"]))
@settings(max_examples=20, deadline=None)
def test_a_divergence_ends_the_run_in_its_first_steps(seed, shape):
    losses = healthy(seed, noise=0.05, shape=shape)
    losses[400:] = 4.0 + 0.1 * np.random.default_rng(seed).normal(size=200)
    assert ends_at(losses)[0] == 400 + TRAIN.spike_steps - 1


def test_the_message():
    losses = np.where(np.arange(300) % 2, 1.1, 0.9)
    losses[250:] = 9.0
    step, message = ends_at(losses, checkpoints=(200, 240, 260))
    assert step == 269
    assert message.startswith(
        "step 269: the loss is 9 and has been above 2.483 since step 250; before that it was 1 +- "
        "0.15. Checkpoint 240 is the newest one from before the rise. Lower optim.lr"
    )
    assert "No checkpoint is from before the rise" in ends_at(losses, checkpoints=(255,))[1]
    assert "Checkpoint 250 is" in ends_at(losses, checkpoints=(250,))[1]  # before step 250


def test_passing_spikes_are_let_alone():
    losses = healthy(0)
    losses[300:319] = 50.0  # one step too short
    losses[400::15] = 50.0  # now and then
    assert ends_at(losses) is None
    losses[300:320] = 50.0
    assert ends_at(losses)[0] == 319


def test_losses_that_are_not_finite_are_above_and_never_usual():
    losses = healthy(0)
    losses[100:300:7] = math.nan
    assert ends_at(losses) is None
    losses[400:410], losses[410:420] = math.nan, math.inf
    assert ends_at(losses)[0] == 419


def test_a_loss_near_zero_may_wobble():
    losses = np.r_[np.full(200, 3e-4), np.full(100, 0.09)]
    assert ends_at(losses) is None
    losses[200:] = 0.11
    assert ends_at(losses)[0] == 219


def test_zero_is_off_and_few_losses_are_no_measure():
    losses = np.r_[np.ones(100), np.full(100, 9.0)]
    assert ends_at(losses, max_spike=0) is None
    assert ends_at(losses[80:]) is None
    assert ends_at(losses[50:])[0] == 69


@pytest.mark.parametrize("known", [1, 300, 405, 419])
def test_a_resumed_run_decides_as_an_undisturbed_one(known):
    losses = healthy(3)
    losses[400:] += 3
    straight = ends_at(losses)
    assert straight[0] == 419
    assert ends_at(losses, known=known) == straight
    few = LossGuard.memory(TRAIN.spike_steps)  # of a long run only so many need be read
    guard = LossGuard(max_spike=10, steps=20, losses=losses[:419][-few:])
    with pytest.raises(UserError) as error:
        guard.check(419, float(losses[419]), checkpoints=lambda: ())
    assert str(error.value) == straight[1]
