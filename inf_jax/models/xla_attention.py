"""Attention as matrix products and a softmax on any device, and the mask that all kinds share.

It holds all scores of a row. Letters: r rows, t tokens, k head width, h query
heads, g key and value heads.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from inf_jax.models.dropout import AttentionDropout, attention_dropout

Queries = Float[Array, "r h t k"]
Keys = Float[Array, "r g t k"]  # and values
Rows = Int[Array, "r t"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Window:
    """The attention window of a layer, see `EncoderConfig.windows`.

    Attributes:
      sizes: distinct windows, in tokens, of the layers that share a program; None: the whole text.
      which: int32 scalar, the index of this layer's window; None if there is only one.
    """

    sizes: tuple[int | None, ...] = dataclasses.field(default=(None,), metadata={"static": True})
    which: Array | None = None

    def size(self) -> Array | int | None:
        """This layer's window in tokens; None if no layer has one."""
        if self.which is None or set(self.sizes) == {None}:
            return self.sizes[0]
        unlimited = np.iinfo(np.int32).max
        sizes = [unlimited if size is None else size for size in self.sizes]
        return jnp.asarray(sizes, jnp.int32)[self.which]


class ScoreOptions(NamedTuple):
    """How attention scores are computed and masked, see also `EncoderConfig`.

    Attributes:
      scale: factor of q k^T.
      softcap: scores become softcap * tanh(scores / softcap), before the bias; None leaves them.
      bias: added to the scores, float32.
      dropout: of the weights.
    """

    scale: float
    causal: bool = False
    window: Window = Window()
    softcap: float | None = None
    bias: Float[Array, "1 h t t"] | None = None
    dropout: AttentionDropout | None = None


def visible(
    segments: Rows, positions: Rows, *, causal: bool, window: Window
) -> Bool[Array, "r 1 t t"]:
    """The attention mask of packed rows: True where a query (axis 2) sees a key (axis 3).

    A token sees its own segment, nothing later than itself if `causal`, nothing outside the window.
    No row of the mask is empty: each token sees itself, and empty slots (segment 0) each other.
    """
    mask = segments[:, None, :, None] == segments[:, None, None, :]
    size = window.size()
    if not causal and size is None:
        return mask
    distance = positions[:, None, :, None] - positions[:, None, None, :]
    if causal:
        mask &= distance >= 0
    if size is not None:
        mask &= (distance < size) if causal else (jnp.abs(distance) <= size)
    return mask


@jax.custom_vjp
def masked_softmax(
    scores: Float[Array, "r h t t"], mask: Bool[Array, "r 1 t t"]
) -> Float[Array, "r h t t"]:
    """softmax over the last axis where `mask` is True; keeps the result only for the backward pass,
    for which autodiff would keep four arrays."""
    return jax.nn.softmax(jnp.where(mask, scores, -1e30), axis=-1)


def _masked_softmax_forward(scores: Array, mask: Array) -> tuple[Array, Array]:
    weights = masked_softmax(scores, mask)
    return weights, weights


def _masked_softmax_backward(weights: Array, g: Array) -> tuple[Array, None]:
    # Where the mask is False the weight is 0, and so is the gradient.
    return weights * (g - (g * weights).sum(-1, keepdims=True)), None


masked_softmax.defvjp(_masked_softmax_forward, _masked_softmax_backward)


def xla_attention(
    q: Queries, k: Keys, v: Keys, *, segments: Rows, positions: Rows, scores: ScoreOptions
) -> Queries:
    """See `attention.attention`; the weights are float32. Heads come before tokens: XLA on CPU then
    runs plain batched matmuls, twice as fast as with the layout "rthk"."""
    r, h, t, width = q.shape
    g = k.shape[1]
    # The queries of a group side by side: one product per group, no copies of k and v.
    grouped = (q * scores.scale).reshape(r, g, h // g * t, width)
    x = jnp.einsum("rgqk,rgsk->rgqs", grouped, k, preferred_element_type=jnp.float32)
    x = x.reshape(r, h, t, t)
    if scores.softcap is not None:
        x = scores.softcap * jnp.tanh(x / scores.softcap)
    if scores.bias is not None:
        x = x + scores.bias
    mask = visible(segments, positions, causal=scores.causal, window=scores.window)
    weights = attention_dropout(masked_softmax(x, mask), scores.dropout)
    weights = weights.astype(v.dtype).reshape(r, g, h // g * t, t)
    return jnp.einsum("rgqs,rgsk->rgqk", weights, v).reshape(r, h, t, width)
