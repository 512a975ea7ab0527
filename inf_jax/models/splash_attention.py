"""Attention by JAX's splash kernels for TPUs: no array of scores in memory.

A kernel's mask is static. It goes by columns, which is the same as by positions: the tokens of a
text lie side by side. Segments come beside it, as data, and no block is skipped for them.
"""

import math

import jax
from jax.experimental.pallas.ops.tpu import splash_attention as kernels
from jaxtyping import Array, Float, Int

from inf_jax.models.xla_attention import Window

LANES = 128
BLOCK = 512  # tokens at the most; a kernel holds the scores of block x block at once


def splash_attention(
    q: Float[Array, "r h t k"],
    k: Float[Array, "r g t k"],
    v: Float[Array, "r g t k"],
    *,
    segments: Int[Array, "r t"],
    scale: float,
    causal: bool,
    window: Window,
    softcap: float | None = None,
    interpret: bool = False,
    **_: object,
) -> Float[Array, "r h t k"]:
    """See `attention.attention`, without bias and dropout, t a multiple of 128.

    Args:
      interpret: run the kernels' programs on any device, slowly.
    """
    branches = [
        _among(
            size,
            heads=q.shape[1],
            tokens=q.shape[2],
            causal=causal,
            softcap=softcap,
            interpret=interpret,
        )
        for size in window.sizes
    ]
    operands = q * scale, k, v, segments
    if window.which is None:
        return branches[0](*operands)
    return jax.lax.switch(window.which, branches, *operands)


def splash_refusal(
    q: jax.Array | jax.ShapeDtypeStruct, *, bias: bool, dropout: bool, softcap: float | None
) -> str:
    """Why the kernels cannot do it; "" where they can."""
    del softcap
    if bias:
        return "the model adds a bias by distance to its scores"
    if dropout:
        return "model.dropout drops attention weights"
    if q.shape[2] % LANES:
        return f"rows of {q.shape[2]} tokens, which is no multiple of {LANES}"
    return ""


def _among(
    size: int | None,
    *,
    heads: int,
    tokens: int,
    causal: bool,
    softcap: float | None,
    interpret: bool,
):
    """The kernel of one window, over rows: (q, k, v, segments) -> mixed values."""
    square = tokens, tokens
    if size is not None:
        sides = (size - 1, 0) if causal else (size, size)
        mask = kernels.LocalMask(square, sides, offset=0)
    else:
        mask = kernels.CausalMask(square) if causal else kernels.FullMask(square)
    block = _block(tokens, size if size is None or causal else 2 * size + 1)
    whole = block == tokens
    sizes = kernels.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_q_dq=None if whole else block,
        block_kv_dq=None if whole else block,
        use_fused_bwd_kernel=whole,  # with more blocks it writes the gradient of q once for each
    )
    kernel = kernels.make_splash_mha(
        kernels.MultiHeadMask([mask] * heads),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=softcap,
        interpret=interpret,
    )
    return jax.vmap(lambda q, k, v, ids: kernel(q, k, v, kernels.SegmentIds(ids, ids)))


def _block(tokens: int, span: int | None) -> int:
    """Tokens of a block: the whole row if it is short; else no more than the window spans, since
    blocks outside it are skipped."""
    if tokens <= BLOCK:
        return tokens
    most = BLOCK if span is None else max(LANES, 2 ** int(math.log2(span)))
    return max(n for n in (LANES, 2 * LANES, BLOCK) if n <= most and tokens % n == 0)
