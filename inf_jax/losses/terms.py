"""Combines per-block sums into per-row losses, and reports the metrics of the loss."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from inf_jax.losses.candidates import RowTexts, dots
from inf_jax.losses.objective import Objective
from inf_jax.losses.tiles import Coefficients, Counts, Values


def row_losses(
    objective: Objective, sums: Values, positive: jax.Array, coefficients: Coefficients
) -> jax.Array:
    """[r], the loss of each row without distil terms; its mean over the rows is the objective.

    Args:
      sums: "lse/P" or "softplus/P" -> [r], for all blocks of the objective.
      positive: [r], <q_i, p_i>.
    """
    pos = coefficients.scale * positive
    total = jnp.zeros_like(pos)
    for term in objective.terms:
        named = list(zip(term.weights, term.blocks, strict=True))
        if term.kind == "uni":
            parts = [jnp.log(jnp.asarray(w, pos.dtype)) + sums[f"lse/{t}"] for w, t in named]
            value = _uni(jax.nn.logsumexp(jnp.stack(parts), axis=0), pos)
        elif term.kind == "multi":
            value = sum(w * _uni(sums[f"lse/{t}"], pos) for w, t in named)
        elif term.kind == "sigmoid":
            value = jax.nn.softplus(-(pos + coefficients.bias))
            value += sum(w * sums[f"softplus/{t}"] for w, t in named)
        else:
            continue
        total += term.weight * value
    return total


def distil(
    objective: Objective, rows: RowTexts, teacher: jax.Array, scale: jax.Array, weights: jax.Array
) -> jax.Array:
    """Weighted sum of each row's KL from the teacher's distribution over its passages to ours.

    Args:
      teacher: [b, 1 + h], the teacher's logits; -inf for a missing passage.
      weights: [b], 0 for an empty slot.
    """
    ours = jax.nn.log_softmax(scale * dots("be,bke->bk", rows.queries, rows.passages))
    # empty slots may hold anything
    theirs = jnp.where(rows.valid[:, None], teacher.astype(scale.dtype), 0)
    theirs = jax.nn.log_softmax(theirs)
    factor = sum(term.weight for term in objective.terms if term.kind == "distil")
    parts = jnp.where(theirs > -jnp.inf, jnp.exp(theirs) * (theirs - ours), 0)
    return factor * jnp.sum(weights * jnp.sum(parts, axis=1))


def metrics(
    sums: Values,
    counts: Mapping[str, Counts],
    positive: jax.Array,
    scale: jax.Array,
    valid: jax.Array,
) -> dict[str, jax.Array]:
    """The metrics of `contrastive_loss`, except the loss itself."""
    values = {"positive": mean(positive, valid)}
    if counts:
        hardest = jnp.max(jnp.stack([c.hardest for c in counts.values()]), axis=0)
        has = hardest > -jnp.inf
        values["hardest_negative"] = mean(jnp.where(has, hardest, 0), valid & has)
    for t, c in counts.items():
        negatives, masked, above = (
            mean(x.astype(jnp.float32), valid) for x in (c.negatives, c.masked, c.above)
        )
        lse, softplus = (sums.get(f"{kind}/{t}") for kind in ("lse", "softplus"))
        values |= {
            f"loss/{t}": mean(softplus if lse is None else _uni(lse, scale * positive), valid),
            f"accuracy/{t}": mean((positive > c.hardest).astype(jnp.float32), valid),
            f"negatives/{t}": negatives,
            f"masked/{t}": masked / jnp.maximum(negatives + masked, 1e-9),
            f"false_negatives/{t}": above,
        }
    return values


def _uni(lse: jax.Array, pos: jax.Array) -> jax.Array:
    """logsumexp(pos, negatives) - pos, without cancellation."""
    return jax.nn.softplus(lse - pos)


def mean(values: jax.Array, valid: jax.Array) -> jax.Array:
    """Mean of values [b] over the valid rows; 0 if there is none."""
    weights = valid.astype(values.dtype)
    return jnp.sum(weights * values) / jnp.maximum(jnp.sum(weights), 1)
