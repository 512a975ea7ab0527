"""Pooling: token states of packed rows -> one vector a text. One function for train, eval and
export."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

POOLINGS = ("mean", "cls", "last", "weighted_mean")
PROJECTION = "projection"  # the key of the linear layer after pooling among a tower's parameters


def pooling_weights(
    segments: Int[Array, "r t"],
    positions: Int[Array, "r t"],
    *,
    texts_per_row: int,
    pooling: str,
) -> Float[Array, "r s t"]:
    """Weight of each token in its text's vector; all from segments and positions, no lengths
    travel.

    mean: 1 / length on each token of the text; cls: 1 on its first token; last: 1 on its last
    token; weighted_mean: 1 to n along a text of n tokens, over their sum (Muennighoff 2022, arXiv
    2202.08904). A place without a text has weight 0 everywhere.
    """
    places = jnp.arange(1, texts_per_row + 1)
    mine = segments[:, None, :] == places[None, :, None]
    if pooling == "mean":
        length = mine.sum(-1, keepdims=True)
        return mine / jnp.maximum(length, 1).astype(jnp.float32)
    if pooling == "weighted_mean":
        place = mine * (positions + 1)[:, None, :].astype(jnp.float32)
        return place / jnp.maximum(place.sum(-1, keepdims=True), 1.0)
    if pooling == "cls":
        return (mine & (positions == 0)[:, None, :]).astype(jnp.float32)
    if pooling == "last":
        last = jnp.where(mine, positions[:, None, :], -1).max(-1, keepdims=True)
        return (mine & (positions[:, None, :] == last)).astype(jnp.float32)
    raise ValueError(f"unknown pooling {pooling!r}: choose one of {POOLINGS}")


def pool(
    hidden: Float[Array, "r t d"],
    segments: Int[Array, "r t"],
    positions: Int[Array, "r t"],
    *,
    texts_per_row: int,
    pooling: str,
) -> Float[Array, "r s d"]:
    """Vector of each text of each packed row, in float32."""
    weights = pooling_weights(segments, positions, texts_per_row=texts_per_row, pooling=pooling)
    return jnp.einsum(
        "rst,rtd->rsd", weights, hidden.astype(jnp.float32), preferred_element_type=jnp.float32
    )


def normalise(x: Float[Array, "... e"]) -> Float[Array, "... e"]:
    """Unit length in float32; a zero vector (an absent text) stays zero, with a finite gradient."""
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * jnp.where(square > 0, 1.0, 0.0) / jnp.sqrt(jnp.where(square > 0, square, 1.0))


def init_projection(key: jax.Array, width: int, out: int, *, bias: bool) -> dict[str, jax.Array]:
    """{"kernel": float32[d, e], "bias": float32[e] where asked for}.

    The kernel is semi-orthogonal (Saxe et al. 2013, arXiv 1312.6120): with e = d it
    turns the vectors and changes no angle, and with fewer entries as few as it can.
    """
    made = {"kernel": jax.nn.initializers.orthogonal()(key, (width, out), jnp.float32)}
    return made | ({"bias": jnp.zeros((out,), jnp.float32)} if bias else {})


def project(x: Float[Array, "... d"], layer: Mapping[str, Array]) -> Float[Array, "... e"]:
    """x W + b in float32."""
    y = jnp.einsum("...d,de->...e", x, layer["kernel"], preferred_element_type=jnp.float32)
    bias = layer.get("bias")
    return y if bias is None else y + bias.reshape((1,) * (y.ndim - 1) + bias.shape)
