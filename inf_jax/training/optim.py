"""Builds the optimiser: an optax chain of clipping, AdamW with its schedule, non-finite guard."""

import jax
import jax.numpy as jnp
import optax

from inf_jax.config.sections import OptimConfig
from inf_jax.core.trees import path_name


def make_schedule(optim: OptimConfig, *, steps: int) -> optax.Schedule:
    """Linear warm-up from 0 to `lr`, then decay to `final_ratio * lr` at `steps`; the schedule
    "constant" stays at `lr`."""
    lr, end, left = optim.lr, optim.final_ratio, max(steps - optim.warmup_steps, 1)
    decay = {
        "linear": lambda: optax.linear_schedule(lr, end * lr, left),
        "cosine": lambda: optax.cosine_decay_schedule(lr, left, alpha=end),
        "constant": lambda: optax.constant_schedule(lr),
    }[optim.schedule]()
    if not optim.warmup_steps:
        return decay
    warmup = optax.linear_schedule(0.0, lr, optim.warmup_steps)
    return optax.join_schedules([warmup, decay], [optim.warmup_steps])


def decay_mask(params) -> dict:
    """True where weight decay applies: matrices and embedding tables, neither biases nor norms."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not path_name(path).endswith(("bias", "scale")), params
    )


def without_layers(tree, count: int):
    """Gradients or updates with 0 in the first `count` layers.

    All layers are one array, so gradients and (zero) moments of the first ones exist nevertheless:
    this freezes weights without saving memory or time.
    """

    def leaf(path, x: jax.Array) -> jax.Array:
        return x.at[:count].set(0) if "/blocks/" in path_name(path) else x

    return jax.tree_util.tree_map_with_path(leaf, tree) if count else tree


def make_optimizer(optim: OptimConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2017) after clipping by global norm.

    A step whose gradients are not finite changes nothing and is counted (`nonfinite_counts`). How
    many in a row are too many is for the train loop to decide, which can stop the run; so the limit
    here is never reached.
    """
    chain = optax.chain(
        optax.clip_by_global_norm(optim.clip_norm),
        optax.adamw(
            schedule,
            b1=optim.b1,
            b2=optim.b2,
            eps=optim.eps,
            weight_decay=optim.weight_decay,
            mask=decay_mask,
        ),
    )
    return optax.apply_if_finite(chain, max_consecutive_errors=jnp.iinfo(jnp.int32).max)


def nonfinite_counts(opt_state: optax.ApplyIfFiniteState) -> dict[str, jax.Array]:
    """Steps skipped for non-finite gradients: `skipped_in_a_row` and `skipped_total`."""
    return {
        "skipped_in_a_row": opt_state.notfinite_count,
        "skipped_total": opt_state.total_notfinite,
    }
