"""Attention by JAX's splash kernels for TPUs: no array of scores in memory.

The only module that uses `jax.experimental.pallas.ops.tpu.splash_attention`, which may change with
each JAX release (written for 0.10).

A kernel's mask is static and defined by columns of the row. That is equivalent to positions, since
the tokens of a text are contiguous. Segments are passed as data; no block is skipped for them.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as kernels
from jaxtyping import Array

from inf_jax.models.xla_attention import Keys, Queries, Rows, ScoreOptions

LANES = 128
MAX_BLOCK = 512  # tokens; a kernel holds the scores of block x block at once


def splash_attention(
    q: Queries,
    k: Keys,
    v: Keys,
    *,
    segments: Rows,
    positions: Rows,
    scores: ScoreOptions,
    interpret: bool = False,
) -> Queries:
    """See `attention.attention`; without bias and dropout. Rows of a length that is not a multiple
    of 128 are padded to one for the kernel. `interpret` runs Pallas's interpreter, on any device,
    slowly."""
    del positions
    heads, length = q.shape[1:3]
    tokens = -(-length // LANES) * LANES
    if tokens > length:
        rest = ((0, 0), (0, tokens - length))
        segments = jnp.pad(segments, rest)
        q, k, v = (jnp.pad(x, ((0, 0), *rest, (0, 0))) for x in (q, k, v))
    branches = [
        _kernel(size, scores, heads=heads, tokens=tokens, interpret=interpret)
        for size in scores.window.sizes
    ]
    operands = q * scores.scale, k, v, segments
    if scores.window.which is None:
        return branches[0](*operands)[:, :, :length]
    return jax.lax.switch(scores.window.which, branches, *operands)[:, :, :length]


def splash_limitation(
    q: jax.Array | jax.ShapeDtypeStruct, *, bias: bool, dropout: bool, softcap: float | None
) -> str:
    """Why the kernels cannot compute it; "" if they can."""
    del q, softcap
    if bias:
        return "the model adds a position bias to its attention scores"
    if dropout:
        return "model.attention_dropout drops attention weights"
    return ""


def _kernel(
    size: int | None, scores: ScoreOptions, *, heads: int, tokens: int, interpret: bool
) -> Callable[..., Array]:
    """The kernel for one window size, over rows: (q, k, v, segments) -> mixed values."""
    square = tokens, tokens
    mask = kernels.CausalMask(square) if scores.causal else kernels.FullMask(square)
    if size is not None:
        mask = kernels.LocalMask(square, (size - 1, 0) if scores.causal else (size, size), offset=0)
    block = _block(tokens, size if size is None or scores.causal else 2 * size + 1)
    whole = block == tokens
    names = ["block_q", "block_kv", "block_q_dkv", "block_kv_dkv"]
    names += [] if whole else ["block_q_dq", "block_kv_dq"]
    # With several blocks the fused backward kernel writes one gradient of q for each.
    sizes = kernels.BlockSizes(**dict.fromkeys(names, block), use_fused_bwd_kernel=whole)
    kernel = kernels.make_splash_mha(
        kernels.MultiHeadMask([mask] * heads),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=scores.softcap,
        interpret=interpret,
    )
    return jax.vmap(lambda q, k, v, ids: kernel(q, k, v, kernels.SegmentIds(ids, ids)))


def _block(tokens: int, span: int | None) -> int:
    """Tokens of a block: the whole row if it is short; else at most the span of the window, so
    that blocks outside the window can be skipped."""
    if tokens <= MAX_BLOCK:
        return tokens
    limit = MAX_BLOCK if span is None else max(LANES, 2 ** int(math.log2(span)))
    return max(n for n in (LANES, 2 * LANES, MAX_BLOCK) if n <= limit and tokens % n == 0)
