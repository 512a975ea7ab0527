"""The optimiser: schedule, decay mask, steps that are skipped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inf_jax.config.sections import LossConfig, OptimConfig
from inf_jax.core.trees import flatten
from inf_jax.optim.optimisers import decay_mask, make_optimizer
from inf_jax.optim.schedules import make_schedule
from inf_jax.training.forward import EncodingPlan
from inf_jax.training.step import TrainState, make_train_step
from tests.inf_jax.training.steps import encoder, make_batch, make_pairs


def test_nonfinite_gradients_change_nothing_and_are_counted(weights):
    optim = OptimConfig(lr=0.1, schedule="constant", weight_decay=0.1, b2=0.99)
    tx = make_optimizer(optim, make_schedule(optim, steps=10))
    loss = LossConfig(objective="uni(P)", scale=20.0)
    step = jax.jit(make_train_step(EncodingPlan(encoder().encode), loss, tx))
    broken = jax.tree.map(jnp.asarray, weights) | {"position": jnp.full((64, 32), jnp.nan)}
    batch = make_batch(make_pairs(6), chunks=1)
    state = TrainState(jnp.int32(0), {"shared": broken}, tx.init({"shared": broken}))
    for i in (1, 2):
        before = state.params
        state, metrics = step(state, batch)
        assert metrics["skipped_in_a_row"] == i
        assert metrics["skipped_total"] == i
        for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(state.params), strict=True):
            np.testing.assert_array_equal(a, b)
    healed = state._replace(params={"shared": jax.tree.map(jnp.asarray, weights)})
    state, metrics = step(healed, batch)
    assert metrics["skipped_in_a_row"] == 0
    assert metrics["skipped_total"] == 2
    assert np.abs(state.params["shared"]["word"] - weights["word"]).max() > 0


def test_schedules_against_hand_computed_values():
    for name, middle in {"linear": 0.5, "cosine": 0.5, "constant": 1.0}.items():
        s = make_schedule(OptimConfig(lr=1.0, warmup_steps=10, schedule=name), steps=110)
        assert s(0) == 0
        assert s(5) == pytest.approx(0.5)
        assert s(10) == pytest.approx(1.0)
        assert s(60) == pytest.approx(middle)
        assert s(110) == pytest.approx(1.0 if name == "constant" else 0.0, abs=1e-6)
    for name in ("linear", "cosine"):
        s = make_schedule(OptimConfig(lr=2.0, schedule=name, final_ratio=0.25), steps=100)
        assert s(50) == pytest.approx(1.25)
        assert s(100) == pytest.approx(0.5)


def test_weight_decay_excludes_biases_and_norms(weights):
    mask = flatten(decay_mask(weights))
    assert {name for name, decays in mask.items() if not decays} == {
        name for name in mask if name.endswith(("bias", "scale"))
    }
    assert sum(mask.values()) == 9  # three tables, six kernels
