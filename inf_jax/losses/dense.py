"""The dense engine: a block's whole matrix of scores at once; the reference for the others."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from inf_jax.losses.blocks import BLOCKS
from inf_jax.losses.candidates import RowTexts, candidates
from inf_jax.losses.tiles import BlockwisePlan, Coefficients, Counts, Values, count_scores


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
            scores, eligible, known = candidates(BLOCKS[name], rows, rows)
            negative = eligible if known is None else eligible & ~known
            logits = coefficients.scale * scores
            if name in plan.lse:
                masked = jnp.where(negative, logits, -jnp.inf)
                sums[f"lse/{name}"] = jax.nn.logsumexp(masked, axis=1)
            if name in plan.softplus:
                parts = jax.nn.softplus(logits + coefficients.bias)
                sums[f"softplus/{name}"] = jnp.sum(jnp.where(negative, parts, 0), axis=1)
            fixed = jax.lax.stop_gradient(scores)
            counts[name] = count_scores(fixed, eligible, negative, positive, axis=1)
    return sums, counts
