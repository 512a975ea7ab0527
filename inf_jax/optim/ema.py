"""An exponential moving average of the parameters, kept beside them while they are trained."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp


def average_of(params: dict) -> dict:
    """The average at the start of a run: a copy of the towers' trained parameters, without
    `params["loss"]`."""
    return jax.tree.map(jnp.copy, {name: tree for name, tree in params.items() if name != "loss"})


def with_ema(step: Callable, decay: float) -> Callable:
    """A train step that also updates `state.ema`, the mean of the parameters after each step so
    far, those of n steps ago weighted by decay^n.

    That is Adam's bias-corrected moment (arXiv 1412.6980, section 3): what a run began with, of
    which a plain moving average would keep decay^steps, has no part in it. A step whose gradients
    are not finite has none either.

    Args:
      step: (state, batch) -> (state, metrics), as of `make_train_step`.
      decay: in (0, 1).
    """

    def averaged(state, batch):
        state, metrics = step(state, batch)
        done = state.step - metrics["skipped_total"]  # float32, exact up to 2^24 steps
        share = (1 - decay) / -jnp.expm1(jnp.maximum(done, 1) * math.log(decay))
        share = jnp.where(metrics["skipped_in_a_row"] > 0, 0, share)
        towers = {name: state.params[name] for name in state.ema}
        ema = jax.tree.map(lambda mean, x: mean + share * (x - mean), state.ema, towers)
        return state._replace(ema=ema), metrics

    return averaged
