"""The linear layer after pooling and before unit length: sentence-transformers' Dense, without an
activation."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

NAME = "projection"  # among a tower's parameters


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
