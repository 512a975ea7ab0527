"""The optimiser as one optax chain: clip, AdamW with decay mask and schedule, non-finite guard."""

import jax
import jax.numpy as jnp
import optax

from inf_jax.core.trees import path_name


def make_schedule(
    *, lr: float, steps: int, warmup_steps: int, schedule: str, final_ratio: float = 0.0
) -> optax.Schedule:
    """Linear warm-up from 0 to `lr`, then linear or cosine decay to `final_ratio * lr` at `steps`.

    `schedule="constant"` stays at `lr` after the warm-up.
    """
    left = max(steps - warmup_steps, 1)
    after = {
        "linear": lambda: optax.linear_schedule(lr, final_ratio * lr, left),
        "cosine": lambda: optax.cosine_decay_schedule(lr, left, alpha=final_ratio),
        "constant": lambda: optax.constant_schedule(lr),
    }[schedule]()
    if not warmup_steps:
        return after
    return optax.join_schedules(
        [optax.linear_schedule(0.0, lr, warmup_steps), after], [warmup_steps]
    )


def decay_mask(params) -> dict:
    """True where weight decay applies: matrices and tables, no bias, no norm."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not path_name(path).endswith(("bias", "scale")), params
    )


def without_layers(tree, count: int):
    """Gradients or updates, 0 in the first `count` layers.

    Layers are one array: the first ones' gradients are computed all the same and their moments
    stay, as zeros. Neither memory nor time is saved; the weights are.
    """

    def leaf(path, x: jax.Array) -> jax.Array:
        return x.at[:count].set(0) if "/blocks/" in path_name(path) else x

    return jax.tree_util.tree_map_with_path(leaf, tree) if count else tree


def make_optimizer(
    schedule: optax.Schedule,
    *,
    weight_decay: float,
    b1: float,
    b2: float,
    eps: float,
    clip_norm: float,
) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2017) after clipping by global norm.

    A step whose gradients are not finite changes nothing and is counted (`nonfinite_counts`); the
    limit on such steps in a row is the train loop's, which stops the run, so it is out of reach in
    here.
    """
    chain = optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.adamw(schedule, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=decay_mask),
    )
    return optax.apply_if_finite(chain, max_consecutive_errors=jnp.iinfo(jnp.int32).max)


def nonfinite_counts(opt_state: optax.ApplyIfFiniteState) -> dict[str, jax.Array]:
    """Steps skipped for non-finite gradients: `skipped_in_a_row` and `skipped_total`."""
    return {
        "skipped_in_a_row": opt_state.notfinite_count,
        "skipped_total": opt_state.total_notfinite,
    }
