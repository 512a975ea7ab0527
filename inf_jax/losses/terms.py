"""Combines per-block sums into per-row losses, and reports the metrics of the loss."""

from collections.abc import Mapping, Sequence

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


def taught_losses(
    objective: Objective, rows: RowTexts, teacher: jax.Array, scale: jax.Array
) -> jax.Array:
    """[b], each row's losses by a teacher's scores of its passages: the KL from the teacher's
    distribution to ours, and the mean squared error of the margins of its negatives.

    Args:
      teacher: [b, 1 + h], the teacher's logits; -inf for a passage of no probability, and for all
        of a row that has no teacher.
    """
    there = jnp.broadcast_to(rows.valid[:, None], teacher.shape)
    if rows.passage_valid is not None:
        there = there & rows.passage_valid
    scores = scale * dots("be,bke->bk", rows.queries, rows.passages)
    theirs = jnp.where(there, teacher.astype(scale.dtype), -jnp.inf)  # may be NaN in empty slots
    scored = theirs > -jnp.inf

    # without -inf, of which a row without passages would make NaN
    ours = jax.nn.log_softmax(jnp.where(there, scores, jnp.finfo(scale.dtype).min / 4))
    wanted = jax.nn.log_softmax(jnp.where(jnp.any(scored, 1, keepdims=True), theirs, 0))
    kl = jnp.sum(jnp.where(scored, jnp.exp(wanted) * (wanted - ours), 0), axis=1)

    both = scored[:, :1] & scored[:, 1:]
    finite = jnp.where(scored, theirs, 0)
    errors = (scores[:, :1] - scores[:, 1:]) - (finite[:, :1] - finite[:, 1:])
    squares = jnp.sum(jnp.where(both, jnp.square(errors), 0), axis=1)
    margin = squares / jnp.maximum(jnp.sum(both, axis=1), 1)

    values = {"distil": kl, "margin": margin}
    terms = [term.weight * values[term.kind] for term in objective.terms if term.kind in values]
    return sum(terms)


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
        close = jnp.zeros_like(c.masked) if c.close is None else c.close
        negatives, masked, above, close = (
            mean(x.astype(jnp.float32), valid) for x in (c.negatives, c.masked, c.above, close)
        )
        candidates = jnp.maximum(negatives + masked + close, 1e-9)
        lse, softplus = (sums.get(f"{kind}/{t}") for kind in ("lse", "softplus"))
        values |= {
            f"loss/{t}": mean(softplus if lse is None else _uni(lse, scale * positive), valid),
            f"accuracy/{t}": mean((positive > c.hardest).astype(jnp.float32), valid),
            f"negatives/{t}": negatives,
            f"masked/{t}": masked / candidates,
            f"false_negatives/{t}": above,
        }
        if c.close is not None:
            values[f"score_masked/{t}"] = close / candidates
    return values


def spread_out(rows: RowTexts) -> jax.Array:
    """Mean square of the inner products of two queries, and of two positives (EmbeddingGemma,
    arXiv 2509.20354, equation 4; the second moment of arXiv 1708.06320).

    The sum over all pairs is the square of the Gram matrix of the entries, so that memory and time
    are linear in the batch. Empty slots hold zeros.
    """
    count = jnp.sum(rows.valid, dtype=jnp.float32)
    pairs = jnp.maximum(count * (count - 1), 1)

    def of(texts: jax.Array) -> jax.Array:
        gram = dots("be,bf->ef", texts, texts)
        own = jnp.square(dots("be,be->b", texts, texts))
        return (jnp.sum(jnp.square(gram)) - jnp.sum(own)) / pairs

    return of(rows.queries) + of(rows.passages[:, 0])


def by_source(
    sources: jax.Array | None,
    names: Sequence[str],
    valid: jax.Array,
    losses: jax.Array,
    positive: jax.Array,
    counts: Mapping[str, Counts],
) -> dict[str, jax.Array]:
    """The metrics of `contrastive_loss` by source; {} without sources.

    Args:
      sources, names: `sources` and `source_names` of `contrastive_loss`.
      losses, positive: [b], of each row.
    """
    if sources is None:
        return {}
    mine = (sources[:, None] == jnp.arange(len(names))[None]) & valid[:, None]  # [b, sources]
    total = lambda values: jnp.sum(jnp.where(mine, values[:, None], 0), axis=0)  # noqa: E731
    pairs = jnp.sum(mine, axis=0).astype(losses.dtype)
    parts = {"pairs": pairs, "loss": total(losses) / pairs}
    for t, c in counts.items():
        masked, rest = total(c.masked), total(c.negatives)
        rest += 0 if c.close is None else total(c.close)
        share = masked / jnp.maximum(rest + masked, 1)
        parts[f"accuracy/{t}"] = total((positive > c.hardest).astype(losses.dtype)) / pairs
        parts[f"masked/{t}"] = jnp.where(pairs > 0, share, jnp.nan)
    return {f"{kind}/{name}": x[n] for kind, x in parts.items() for n, name in enumerate(names)}


def _uni(lse: jax.Array, pos: jax.Array) -> jax.Array:
    """logsumexp(pos, negatives) - pos, without cancellation."""
    return jax.nn.softplus(lse - pos)


def mean(values: jax.Array, valid: jax.Array) -> jax.Array:
    """Mean of values [b] over the valid rows; 0 if there is none."""
    weights = valid.astype(values.dtype)
    return jnp.sum(weights * values) / jnp.maximum(jnp.sum(weights), 1)
