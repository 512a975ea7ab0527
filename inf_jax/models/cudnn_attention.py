"""Attention by cuDNN's flash attention for NVIDIA GPUs, through `jax.nn.dot_product_attention`."""

import jax
import jax.numpy as jnp

from inf_jax.models.xla_attention import Keys, Queries, Rows, ScoreOptions, visible


def cudnn_attention(
    q: Queries,
    k: Keys,
    v: Keys,
    *,
    segments: Rows,
    positions: Rows,
    scores: ScoreOptions,
    implementation: str = "cudnn",
) -> Queries:
    """See `attention.attention`; without softcap, bias and dropout."""
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    mask = visible(segments, positions, causal=scores.causal, window=scores.window)
    mixed = jax.nn.dot_product_attention(
        q, k, v, mask=mask, scale=scores.scale, implementation=implementation
    )
    return mixed.swapaxes(1, 2)


def cudnn_limitation(
    q: jax.Array | jax.ShapeDtypeStruct, *, bias: bool, dropout: bool, softcap: float | None
) -> str:
    """Why cuDNN cannot compute it; "" if it can."""
    if bias:
        return "the model adds a position bias to its attention scores"
    if dropout:
        return "model.attention_dropout drops attention weights"
    if softcap is not None:
        return "the model caps its attention scores"
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"model.dtype is {q.dtype}, not bfloat16"
    if q.shape[3] > 128 or q.shape[3] % 8:
        return f"the head width is {q.shape[3]}, not a multiple of 8 up to 128"
    if q.shape[2] % 2:
        return f"rows have {q.shape[2]} tokens, an odd number"
    return ""
