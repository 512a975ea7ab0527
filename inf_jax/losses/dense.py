"""The dense engine: a block's whole matrix of scores at once; the reference for the others."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from inf_jax.losses.blocks import BLOCKS
from inf_jax.losses.candidates import RowTexts, candidates
from inf_jax.losses.tiles import BlockwisePlan, Coefficients, Counts, Values


def dense_sums(
    plan: BlockwisePlan,
    blocks: Sequence[str],
    rows: RowTexts,
    positive: jax.Array,
    coefficients: Coefficients,
) -> tuple[Values, dict[str, Counts]]:
    """Sums and counts of these blocks for each row, in the form of `blockwise.blockwise_sums`.

    Every score of a block at once, [b, candidates]; plain autodiff, float64 for float64 inputs.
    """
    sums, counts = {}, {}
    for name in blocks:
        with jax.named_scope(f"loss_{name}"):
            scores, eligible, known = candidates(BLOCKS[name], rows, rows)
            negative = eligible if known is None else eligible & ~known
            logits = coefficients.scale * scores
            if name in plan.lse:
                sums[f"lse/{name}"] = jax.nn.logsumexp(
                    jnp.where(negative, logits, -jnp.inf), axis=1
                )
            if name in plan.softplus:
                parts = jax.nn.softplus(logits + coefficients.bias)
                sums[f"softplus/{name}"] = jnp.sum(jnp.where(negative, parts, 0), axis=1)
            scores = jax.lax.stop_gradient(scores)
            kept = jnp.sum(negative, axis=1, dtype=jnp.int32)
            counts[name] = Counts(
                hardest=jnp.max(jnp.where(negative, scores, -jnp.inf), axis=1),
                above=jnp.sum(negative & (scores > positive[:, None]), axis=1, dtype=jnp.int32),
                negatives=kept,
                masked=jnp.sum(eligible, axis=1, dtype=jnp.int32) - kept,
            )
    return sums, counts
