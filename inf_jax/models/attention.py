"""Attention inside the segments of packed rows: one function, its implementations by name."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from inf_jax.models.dropout import DropoutKey, attention_dropout


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


def visible(
    segments: Int[Array, "r t"],
    positions: Int[Array, "r t"],
    *,
    causal: bool,
    window: Array | int | None,
) -> Bool[Array, "r 1 t t"]:
    """Which tokens (last axis) a token sees: of its own segment, none later if `causal`, none
    beyond the window (see EncoderConfig).

    Each token sees itself, so no row is empty; those of empty slots (segment 0) see each other.
    """
    seen = segments[:, None, :, None] == segments[:, None, None, :]
    if not causal and window is None:
        return seen
    behind = positions[:, None, :, None] - positions[:, None, None, :]
    if causal:
        seen &= behind >= 0
    if window is not None:
        seen &= (behind < window) if causal else (jnp.abs(behind) <= window)
    return seen


def attention(
    q: Float[Array, "r h t k"],
    k: Float[Array, "r g t k"],
    v: Float[Array, "r g t k"],
    *,
    segments: Int[Array, "r t"],
    positions: Int[Array, "r t"],
    scale: float,
    causal: bool = False,
    window: Array | int | None = None,
    softcap: float | None = None,
    bias: Float[Array, "1 h t t"] | None = None,
    dropout_rate: float = 0.0,
    dropout_key: DropoutKey | None = None,
    site: Array | int = 0,
    first_head: Array | int = 0,
) -> Float[Array, "r h t k"]:
    """softmax(scale q k^T + bias) v among the tokens that `visible` names; weights in float32.

    Heads come before tokens: XLA on CPU then runs plain batched matmuls (twice as fast as with
    "rthk"). Each of the g heads of k and v serves h / g neighbouring heads of q. `softcap` bounds
    the scores before the bias. `first_head` is the number of the first of these heads, for dropout.
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
