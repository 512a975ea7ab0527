"""Attention inside the segments of packed rows: one function, its implementations by name."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from inf_jax.models.dropout import DropoutKey, attention_dropout


@jax.custom_vjp
def masked_softmax(
    scores: Float[Array, "r h t t"], same: Bool[Array, "r 1 t t"]
) -> Float[Array, "r h t t"]:
    """softmax over the last axis among `same`; backward keeps the result only (autodiff keeps
    four)."""
    return jax.nn.softmax(jnp.where(same, scores, -1e30), axis=-1)


def _masked_softmax_forward(scores: Array, same: Array) -> tuple[Array, Array]:
    weights = masked_softmax(scores, same)
    return weights, weights


def _masked_softmax_backward(weights: Array, g: Array) -> tuple[Array, None]:
    # Where the mask is off the weight is 0, and so is the gradient.
    return weights * (g - (g * weights).sum(-1, keepdims=True)), None


masked_softmax.defvjp(_masked_softmax_forward, _masked_softmax_backward)


def attention(
    q: Float[Array, "r h t k"],
    k: Float[Array, "r h t k"],
    v: Float[Array, "r h t k"],
    *,
    segments: Int[Array, "r t"],
    dropout_rate: float = 0.0,
    dropout_key: DropoutKey | None = None,
    site: Array | int = 0,
    first_head: Array | int = 0,
) -> Float[Array, "r h t k"]:
    """softmax(q k^T / sqrt(k)) v among the tokens of one segment; weights in float32.

    Heads come before tokens: XLA on CPU then runs plain batched matmuls (twice as fast as with
    "rthk"). Empty slots (segment 0) attend among themselves, so no row of the softmax is empty;
    nothing reads them. `first_head` is the number of the first of these heads, for dropout.
    """
    scores = jnp.einsum(
        "rhtk,rhsk->rhts", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32
    )
    same = segments[:, None, :, None] == segments[:, None, None, :]
    weights = masked_softmax(scores, same)
    weights = attention_dropout(weights, dropout_rate, dropout_key, site, first_head)
    return jnp.einsum("rhts,rhsk->rhtk", weights.astype(v.dtype), v)
