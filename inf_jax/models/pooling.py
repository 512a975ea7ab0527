"""Token states of packed rows to one embedding per text: pooling, projection, unit length."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

PROJECTION = "projection"  # key of the linear layer after pooling among a tower's parameters


def _mean(own: Array, _positions: Array) -> Array:
    return own / jnp.maximum(own.sum(-1, keepdims=True), 1).astype(jnp.float32)


def _weighted_mean(own: Array, positions: Array) -> Array:
    weights = own * (positions + 1).astype(jnp.float32)
    return weights / jnp.maximum(weights.sum(-1, keepdims=True), 1.0)


def _cls(own: Array, positions: Array) -> Array:
    return (own & (positions == 0)).astype(jnp.float32)


def _last(own: Array, positions: Array) -> Array:
    last = jnp.where(own, positions, -1).max(-1, keepdims=True)
    return (own & (positions == last)).astype(jnp.float32)


# (own tokens bool[r, s, t], positions int32[r, 1, t]) -> weights float32[r, s, t]
POOLING_FUNCTIONS = {"mean": _mean, "cls": _cls, "last": _last, "weighted_mean": _weighted_mean}


def pooling_weights(
    segments: Int[Array, "r t"], positions: Int[Array, "r t"], *, texts_per_row: int, pooling: str
) -> Float[Array, "r s t"]:
    """Weight of each token in the embedding of each text of its row.

    mean: 1 / length on each token; cls, last: 1 on the first or last; weighted_mean: 1 to n along a
    text of n tokens, divided by their sum (Muennighoff 2022, arXiv 2202.08904). A place without a
    text has weight 0 everywhere.
    """
    if pooling not in POOLING_FUNCTIONS:
        known = ", ".join(POOLING_FUNCTIONS)
        raise ValueError(f"unknown pooling {pooling!r}; choose one of {known}")
    own = segments[:, None, :] == jnp.arange(1, texts_per_row + 1)[None, :, None]
    return POOLING_FUNCTIONS[pooling](own, positions[:, None, :])


def pool(
    hidden: Float[Array, "r t d"],
    segments: Int[Array, "r t"],
    positions: Int[Array, "r t"],
    *,
    texts_per_row: int,
    pooling: str,
) -> Float[Array, "r s d"]:
    """The pooled vector of each text of each packed row, float32; `pooling` names one."""
    weights = pooling_weights(segments, positions, texts_per_row=texts_per_row, pooling=pooling)
    return jnp.einsum(
        "rst,rtd->rsd", weights, hidden.astype(jnp.float32), preferred_element_type=jnp.float32
    )


def init_projection(key: jax.Array, width: int, out: int, *, bias: bool) -> dict[str, jax.Array]:
    """A random linear layer after pooling: {"kernel": float32[d, e]}, with `bias` also "bias",
    float32[e], zeros. The kernel is semi-orthogonal (Saxe et al. 2013, arXiv 1312.6120): with e = d
    it changes no angle, with e < d it changes angles as little as possible."""
    layer = {"kernel": jax.nn.initializers.orthogonal()(key, (width, out), jnp.float32)}
    return layer | ({"bias": jnp.zeros((out,), jnp.float32)} if bias else {})


def project(x: Float[Array, "... d"], layer: Mapping[str, Array]) -> Float[Array, "... e"]:
    """x W + b, float32; `layer` is as `init_projection` makes it."""
    y = jnp.einsum("...d,de->...e", x, layer["kernel"], preferred_element_type=jnp.float32)
    bias = layer.get("bias")
    return y if bias is None else y + bias.reshape((1,) * (y.ndim - 1) + bias.shape)


def normalise(x: Float[Array, "... e"]) -> Float[Array, "... e"]:
    """Scales to unit length; a zero vector (an absent text) stays zero, with a finite gradient."""
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * jnp.where(square > 0, 1.0, 0.0) / jnp.sqrt(jnp.where(square > 0, square, 1.0))
