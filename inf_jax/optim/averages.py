"""Averages of models: weighted means and spherical interpolation of parameter trees."""

import functools

import jax
import jax.numpy as jnp

from inf_jax.core.trees import path_name

_PARALLEL = 0.9995  # cosine above which an arc is a straight line in float32


@functools.partial(jax.jit, donate_argnums=0)
def add_scaled(total: dict, tree: dict, factor: float | jax.Array) -> dict:
    """total + factor * tree, leaf by leaf; the memory of `total` is used again."""
    return jax.tree.map(lambda t, x: t + jnp.asarray(factor, t.dtype) * x, total, tree)


@jax.jit
def slerp(one: dict, other: dict, share: float | jax.Array) -> dict:
    """Spherical interpolation of two trees, each matrix by itself; `share` is that of `other`.

    Shoemake (SIGGRAPH 1985) on the arc between the directions of the two, applied to the matrices
    as they are; where they are (nearly) parallel, as weights before and after a fine-tuning often
    are, or one is zero, the plain mean: the rule of mergekit (arXiv 2403.13257). Layers, stacked in
    one array, count separately.

    Args:
      one, other: trees of arrays with the same shapes.
      share: in [0, 1].
    """

    def leaf(path, a: jax.Array, b: jax.Array) -> jax.Array:
        axes = tuple(range(1 if "/blocks/" in path_name(path) else 0, a.ndim))
        total = functools.partial(jnp.sum, axis=axes, keepdims=True)
        norms = jnp.sqrt(total(a * a) * total(b * b))
        cosine = total(a * b) / jnp.where(norms > 0, norms, 1)
        straight = (norms == 0) | (jnp.abs(cosine) > _PARALLEL)
        angle = jnp.arccos(jnp.where(straight, 0, cosine))
        arc = jnp.sin((1 - share) * angle) / jnp.sin(angle), jnp.sin(share * angle) / jnp.sin(angle)
        first, second = (
            jnp.where(straight, s, x) for s, x in zip((1 - share, share), arc, strict=True)
        )
        return (first * a + second * b).astype(a.dtype)

    return jax.tree_util.tree_map_with_path(leaf, one, other)
