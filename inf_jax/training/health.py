"""Measures the geometry of a batch's embeddings: alignment, uniformity, effective rank, scores.

Cheap enough for every step. Alignment, effective rank and positive scores use all rows; uniformity
and negative scores, quadratic in rows, use a sample. No [b, b] matrix is formed, and a sharded
batch stays sharded: only sums, [e, e] products and the sampled rows cross the mesh.

  alignment       mean_i ||q_i - p_i||^2                        Wang & Isola 2020, arXiv 2005.10242
  uniformity      log mean_{i != j} exp(-2 ||x_i - x_j||^2)     same; of each tower
  effective rank  (tr C)^2 / ||C||_F^2, C the covariance        the participation ratio, Gao et al.
                  of a tower's embeddings                       2017, bioRxiv 214262

The participation ratio is the exponential of the Renyi entropy of order 2 of C's normalised
eigenvalues; the effective rank of Roy & Vetterli 2007, of Shannon's, would need the eigenvalues,
O(e^3) per step. It lies between 1 and min(e, rows - 1) and grows with the rows: compare runs of one
batch size. Covariance, not second moment: the mean direction of all texts would hide the rest.
"""

import jax
import jax.numpy as jnp
import numpy as np

from inf_jax.core.batch import TextIds
from inf_jax.core.errors import UserError
from inf_jax.losses.blocks import BLOCKS
from inf_jax.losses.candidates import RowTexts, candidates, dots
from inf_jax.losses.terms import mean

BINS = 20  # of width 0.1
_SAMPLE = 512  # rows; 262,144 pairs
_GOLDEN = (5**0.5 - 1) / 2


def health(
    queries: jax.Array,
    passages: jax.Array,
    *,
    valid: jax.Array,
    ids: TextIds | None = None,
    mask: str = "identity",
    bins: int = BINS,
    sample: int = _SAMPLE,
) -> dict[str, jax.Array]:
    """Metrics of the global batch; pure, for use under jit, rows split over a mesh or not.

    Args:
      queries: [b, e] unit-norm embeddings of the instructed queries, any float dtype.
      passages: [b, e], their passages.
      valid: bool[b], False for an empty slot, which may hold any values (NaN included).
      ids: hashes of the pairs' texts, uint32[b, 2] each, for mask="identity".
      mask: "identity" or "faithful", which candidates of block P are negatives, see
        `contrastive_loss`. Static.
      bins: of the histograms. Static.
      sample: most rows for the metrics that are quadratic in rows. Static.

    Returns:
      float32 without gradient, finite for finite embeddings: scalars, 0 where there are too few
      rows; and "health/positive_scores" (all rows) and "health/negative_scores" (sampled rows),
      [bins]: shares of the cosines in equal bins over [-1, 1], values outside in the outer bins;
      they sum to 1, or to 0 where there are no scores.

    Raises:
      UserError: wrong shapes or options, or ids missing with mask="identity".
    """
    _check(queries, passages, valid, ids, mask, bins, sample)

    def clean(vectors: jax.Array) -> jax.Array:  # zeros in empty slots
        vectors = jax.lax.stop_gradient(vectors).astype(jnp.float32)
        return jnp.where(valid[:, None], vectors, 0)

    queries, passages = clean(queries), clean(passages)
    chosen = sample_rows(valid.shape[0], sample)
    picked = None
    if mask == "identity":
        picked = TextIds(*(hashes[chosen] for hashes in ids))
        picked = picked._replace(passage=picked.passage[:, None])
    rows = RowTexts(
        index=jnp.asarray(chosen),
        queries=queries[chosen],
        passages=passages[chosen][:, None],
        valid=valid[chosen],
        ids=picked,
    )
    negatives = candidates(BLOCKS["P"], rows, rows)
    counted = rows.valid[:, None] & negatives.eligible
    if negatives.known_positive is not None:
        counted = counted & ~negatives.known_positive
    return {
        "health/alignment": mean(jnp.sum((queries - passages) ** 2, axis=1), valid),
        "health/uniformity_query": _uniformity(rows.queries, rows.valid),
        "health/uniformity_passage": _uniformity(rows.passages[:, 0], rows.valid),
        "health/rank_query": _effective_rank(queries, valid),
        "health/rank_passage": _effective_rank(passages, valid),
        "health/positive_scores": _shares(jnp.sum(queries * passages, axis=1), valid, bins),
        "health/negative_scores": _shares(negatives.scores, counted, bins),
    }


def sample_rows(rows: int, sample: int) -> np.ndarray:
    """int32[min(rows, sample)]: one row of each of as many equal strides, in order; its place
    follows the golden ratio, as the first could always be the same of an example's three pairs."""
    places = np.arange(min(rows, sample))
    return np.floor((places + places * _GOLDEN % 1) * (rows / len(places))).astype(np.int32)


def _uniformity(vectors: jax.Array, valid: jax.Array) -> jax.Array:
    """log mean exp(-2 ||x - y||^2) over the pairs of two valid rows of [s, e]."""
    squares = jnp.sum(vectors**2, axis=1)
    distances = squares[:, None] + squares[None] - 2 * dots("se,re->sr", vectors, vectors)
    pairs = valid[:, None] & valid[None] & ~jnp.eye(len(valid), dtype=bool)
    exponents = jnp.where(pairs, -2 * jnp.maximum(distances, 0), -jnp.inf)
    count = jnp.sum(pairs, dtype=jnp.float32)
    # without pairs the logarithm is -inf
    return jnp.where(count > 0, jax.nn.logsumexp(exponents) - jnp.log(jnp.maximum(count, 1)), 0)


def _effective_rank(vectors: jax.Array, valid: jax.Array) -> jax.Array:
    """Participation ratio of the covariance of the valid rows of [b, e]; 0 without variance."""
    centre = jnp.sum(vectors, axis=0) / jnp.maximum(jnp.sum(valid, dtype=jnp.float32), 1)
    # centred first: E[xx'] - mean mean' of a nearly collapsed space would be rounding error
    centred = jnp.where(valid[:, None], vectors - centre[None], 0)
    scatter = dots("be,bf->ef", centred, centred)
    trace = jnp.trace(scatter)
    scaled = scatter / jnp.where(trace > 0, trace, 1)  # its square could underflow
    return jnp.where(trace > 0, 1 / jnp.maximum(jnp.sum(scaled**2), 1e-30), 0)


def _shares(scores: jax.Array, counted: jax.Array, bins: int) -> jax.Array:
    """float32[bins]: the share of the counted scores in each of equal bins over [-1, 1]."""
    edges = np.linspace(-1, 1, bins + 1, dtype=np.float32)[1:-1]
    total = jnp.sum(counted, dtype=jnp.int32)
    # counts of scores at or above each inner edge: sums over the mesh, no scatter
    above = (scores[..., None] >= edges.reshape((1,) * scores.ndim + (-1,))) & counted[..., None]
    above = jnp.sum(above, axis=tuple(range(scores.ndim)), dtype=jnp.int32)
    steps = jnp.concatenate([total[None], above, jnp.zeros(1, jnp.int32)])
    return (steps[:-1] - steps[1:]).astype(jnp.float32) / jnp.maximum(total, 1)


def _check(queries, passages, valid, ids, mask, bins, sample) -> None:
    if queries.ndim != 2 or queries.shape != passages.shape:
        raise UserError(f"queries {queries.shape} and passages {passages.shape}: expected [b, e]")
    if valid.shape != queries.shape[:1] or valid.dtype != bool:
        raise UserError(f"valid is {valid.dtype}{valid.shape}: expected bool{queries.shape[:1]}")
    if mask not in ("identity", "faithful"):
        raise UserError(f"mask={mask!r}; choose one of identity, faithful")
    if mask == "identity" and ids is None:
        raise UserError('mask="identity" needs ids, the hashes of the texts; or mask="faithful"')
    if bins < 1 or sample < 1:
        raise UserError(f"bins={bins}, sample={sample}: must be 1 or more")
