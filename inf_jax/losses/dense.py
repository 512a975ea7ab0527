"""The reference engine: a block's whole matrix of scores; float64-capable."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from inf_jax.losses.blocks import BLOCKS, Rows, candidates
from inf_jax.losses.tiles import Coefficients, Counts, Sweep, Values


def dense_sums(
    plan: Sweep,
    blocks: Sequence[str],
    rows: Rows,
    positive: jax.Array,
    coefficients: Coefficients,
) -> tuple[Values, dict[str, Counts]]:
    """Sums and counts of these blocks for each row, in the form of `sweep.sweep`.

    Every score of a block at once, [b, candidates]; plain autodiff.
    """
    sums, counts = {}, {}
    for name in blocks:
        with jax.named_scope(f"loss_{name}"):
            scores, other, same = candidates(BLOCKS[name], rows, rows)
            negative = other if same is None else other & ~same
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
                masked=jnp.sum(other, axis=1, dtype=jnp.int32) - kept,
            )
    return sums, counts
