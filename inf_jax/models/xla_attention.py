"""Attention as matrix products and a softmax: runs anywhere, holds all scores of a row."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from inf_jax.models.dropout import DropoutKey, attention_dropout


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Window:
    """How far a layer sees, see `EncoderConfig.windows`.

    Attributes:
      sizes: the different windows of the layers that share a program; None sees the whole text.
      which: the place in `sizes` of this layer's, an int32 scalar; None where there is but one.
    """

    sizes: tuple[int | None, ...] = dataclasses.field(default=(None,), metadata={"static": True})
    which: Array | None = None

    def size(self) -> Array | int | None:
        """This layer's tokens; None where no layer has a window."""
        if self.which is None or set(self.sizes) == {None}:
            return self.sizes[0]
        everything = np.iinfo(np.int32).max
        sizes = [everything if size is None else size for size in self.sizes]
        return jnp.asarray(sizes, jnp.int32)[self.which]


def visible(
    segments: Int[Array, "r t"],
    positions: Int[Array, "r t"],
    *,
    causal: bool,
    window: Window,
) -> Bool[Array, "r 1 t t"]:
    """Which tokens (last axis) a token sees: of its own segment, none later if `causal`, none
    beyond the window.

    Each token sees itself, so no row is empty; those of empty slots (segment 0) see each other.
    """
    seen = segments[:, None, :, None] == segments[:, None, None, :]
    size = window.size()
    if not causal and size is None:
        return seen
    behind = positions[:, None, :, None] - positions[:, None, None, :]
    if causal:
        seen &= behind >= 0
    if size is not None:
        seen &= (behind < size) if causal else (jnp.abs(behind) <= size)
    return seen


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
