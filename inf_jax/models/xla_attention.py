"""Attention as matrix products and a softmax: runs anywhere, holds all scores of a row."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from inf_jax.models.dropout import DropoutKey, attention_dropout
from inf_jax.models.visible import Window, visible


@jax.custom_vjp
def masked_softmax(
    scores: Float[Array, "r h t t"], seen: Bool[Array, "r 1 t t"]
) -> Float[Array, "r h t t"]:
    """softmax over the last axis among `seen`; backward keeps the result only (autodiff keeps
    four)."""
    return jax.nn.softmax(jnp.where(seen, scores, -1e30), axis=-1)


def _masked_softmax_forward(scores: Array, seen: Array) -> tuple[Array, Array]:
    weights = masked_softmax(scores, seen)
    return weights, weights


def _masked_softmax_backward(weights: Array, g: Array) -> tuple[Array, None]:
    # Where the mask is off the weight is 0, and so is the gradient.
    return weights * (g - (g * weights).sum(-1, keepdims=True)), None


masked_softmax.defvjp(_masked_softmax_forward, _masked_softmax_backward)


def xla_attention(
    q: Float[Array, "r h t k"],
    k: Float[Array, "r g t k"],
    v: Float[Array, "r g t k"],
    *,
    segments: Int[Array, "r t"],
    positions: Int[Array, "r t"],
    scale: float,
    causal: bool,
    window: Window,
    softcap: float | None = None,
    bias: Float[Array, "1 h t t"] | None = None,
    dropout_rate: float = 0.0,
    dropout_key: DropoutKey | None = None,
    site: Array | int = 0,
    first_head: Array | int = 0,
) -> Float[Array, "r h t k"]:
    """See `attention.attention`; weights in float32.

    Heads come before tokens: XLA on CPU then runs plain batched matmuls (twice as fast as with
    "rthk").
    """
    r, h, t, width = q.shape
    g = k.shape[1]
    # the queries of a group side by side: one product a group, no copies of k and v
    grouped = (q * scale).reshape(r, g, h // g * t, width)
    scores = jnp.einsum("rgqk,rgsk->rgqs", grouped, k, preferred_element_type=jnp.float32)
    scores = scores.reshape(r, h, t, t)
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias
    seen = visible(segments, positions, causal=causal, window=window)
    weights = masked_softmax(scores, seen)
    weights = attention_dropout(weights, dropout_rate, dropout_key, site, first_head)
    weights = weights.astype(v.dtype).reshape(r, g, h // g * t, t)
    mixed = jnp.einsum("rgqs,rgsk->rgqk", weights, v)
    return mixed.reshape(r, h, t, width)
