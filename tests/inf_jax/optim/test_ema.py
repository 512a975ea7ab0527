"""The moving average of the parameters, against optax's."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from inf_jax.optim.ema import average_of, with_ema


class State(NamedTuple):
    step: jnp.ndarray
    params: dict
    ema: dict


@pytest.mark.parametrize("decay", [0.5, 0.999])
def test_it_is_optax_s(decay):
    """Of five steps, of which the first and the fourth are skipped."""
    rng = np.random.default_rng(0)
    seen = [{"shared": {"w": rng.normal(size=4).astype(np.float32)}} for _ in range(3)]
    skipped = [True, False, False, True, False]
    start = {"shared": {"w": np.ones(4, np.float32)}, "loss": {"log_scale": np.float32(3)}}

    def step(state, batch):
        params, bad, total = batch
        counts = {"skipped_in_a_row": jnp.float32(bad), "skipped_total": jnp.float32(total)}
        return state._replace(step=state.step + 1, params=params | {"loss": {}}), counts

    state = State(jnp.int32(0), start, average_of(start))
    assert state.ema.keys() == {"shared"}
    averaged, rest, params = with_ema(step, decay), iter(seen), start
    for n, bad in enumerate(skipped):
        params = params if bad else next(rest)
        state, _ = averaged(state, (params, bad, sum(skipped[: n + 1])))
        if n == 0:
            np.testing.assert_array_equal(state.ema["shared"]["w"], start["shared"]["w"])
    found = state.ema["shared"]["w"]
    oracle = optax.ema(decay, debias=True)
    memory = oracle.init(seen[0])
    for params in seen:
        expected, memory = oracle.update(params, memory)
    rounding = 1e-6 + 1e-7 / (1 - decay)  # of optax's 1 - decay^n in float32
    np.testing.assert_allclose(found, expected["shared"]["w"], rtol=rounding)
    shares = decay ** np.arange(3.0)[::-1]
    exact = np.average([each["shared"]["w"] for each in seen], axis=0, weights=shares)
    np.testing.assert_allclose(found, exact, rtol=1e-6)
