"""The optimiser: an optax chain of clipping, AdamW with its schedule, and a non-finite guard."""

import jax
import jax.numpy as jnp
import optax

from inf_jax.config.sections import OptimConfig
from inf_jax.core.trees import path_name


def decay_mask(params) -> dict:
    """True where weight decay applies: matrices and embedding tables, neither biases nor norms."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not path_name(path).endswith(("bias", "scale")), params
    )


def without_layers(tree, count: int):
    """Gradients or updates with 0 in the first `count` layers. All layers are one array, so this
    freezes weights without saving memory or time."""

    def leaf(path, x: jax.Array) -> jax.Array:
        return x.at[:count].set(0) if "/blocks/" in path_name(path) else x

    return jax.tree_util.tree_map_with_path(leaf, tree) if count else tree


def make_optimizer(optim: OptimConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2017) after clipping by global norm.

    A step whose gradients are not finite changes nothing and is counted. How many in a row are too
    many the train loop decides, so the limit here is never reached.
    """
    numbers = {"b1": optim.b1, "b2": optim.b2, "eps": optim.eps, "weight_decay": optim.weight_decay}
    adamw = optax.adamw(schedule, **numbers, mask=decay_mask)
    chain = optax.chain(optax.clip_by_global_norm(optim.clip_norm), adamw)
    return optax.apply_if_finite(chain, max_consecutive_errors=jnp.iinfo(jnp.int32).max)
