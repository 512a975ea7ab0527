"""The dense engine: a block's whole matrix of scores at once; the reference for the others."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from inf_jax.losses.blocks import BLOCKS
from inf_jax.losses.candidates import RowTexts, candidates
from inf_jax.losses.tiles import (
    BlockwisePlan,
    Coefficients,
    Counts,
    Masks,
    Values,
    count_scores,
)


def dense_sums(
    plan: BlockwisePlan,
    blocks: Sequence[str],
    rows: RowTexts,
    positive: jax.Array,
    coefficients: Coefficients,
) -> tuple[Values, dict[str, Counts]]:
    """Sums and counts of these blocks for each row, as `blockwise.blockwise_sums` gives them."""
    sums, counts = {}, {}
    for name in blocks:
        with jax.named_scope(f"loss_{name}"):
            block, by_score = BLOCKS[name], plan.by_score
            scores, eligible, known = candidates(block, rows, rows)
            distinct = negative = eligible if known is None else eligible & ~known
            if by_score.masks(block):
                negative = distinct & by_score.kept(scores, positive[:, None])
            logits = coefficients.scale * scores
            if name in plan.lse:
                extra = by_score.added(scores, block, rows, rows)
                hard = logits if extra is None else logits + extra
                masked = jnp.where(negative, hard, -jnp.inf)
                sums[f"lse/{name}"] = jax.nn.logsumexp(masked, axis=1)
            if name in plan.softplus:
                parts = jax.nn.softplus(logits + coefficients.bias)
                sums[f"softplus/{name}"] = jnp.sum(jnp.where(negative, parts, 0), axis=1)
            fixed = jax.lax.stop_gradient(scores)
            masks, closer = Masks(eligible, distinct, negative), by_score.masks(block)
            counts[name] = count_scores(fixed, masks, positive, axis=1, by_score=closer)
    return sums, counts
