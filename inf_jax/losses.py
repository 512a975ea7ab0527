"""The contrastive loss of any objective: one entry point, `contrastive_loss`.

An engine goes over rows and columns and returns `RowStats` for each block; the loss and the metrics
follow from those, so that engines that never hold the whole matrix (blockwise, ring) come in beside
`_dense`.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from inf_jax.errors import UserError
from inf_jax.objective import BLOCKS, Objective, Rows, TextIds, count_negatives, parse_objective

__all__ = ["RowStats", "contrastive_loss", "count_negatives"]

MASKS = ("identity", "faithful")


class RowStats(NamedTuple):
    """What a block's candidates come to for each row.

    Attributes:
      lse: [b], logsumexp of the scaled scores of the negatives; -inf where there is none.
      hardest: [b], the largest score (not scaled) of a negative; -inf where there is none. No
        gradient.
      negatives: int32[b], candidates left after the identity mask.
      masked: int32[b], candidates that the identity mask took out.
    """

    lse: jax.Array
    hardest: jax.Array
    negatives: jax.Array
    masked: jax.Array


def contrastive_loss(
    queries: jax.Array,
    passages: jax.Array,
    instruction_negatives: jax.Array | None = None,
    *,
    objective: str | Objective,
    scale: float | jax.Array,
    ids: TextIds | None = None,
    mask: str = "identity",
    valid: jax.Array | None = None,
    instruction_negative_ids: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of the global batch, and what to log of it.

    With s the scale, pos_i = s <q_i, p_i> and the blocks of `inf_jax.objective`:

      uni(T)   = mean_i [ logsumexp(pos_i, s * all candidates of row i in all blocks of T) - pos_i ]
      multi(T) = sum over the blocks t of T of uni(t)

    The positive is counted once (InF-IR, arXiv 2505.21439). One global-view computation: under jit
    the rows may be sharded over any axes of a mesh, the mean is over the global batch and nothing
    is rescaled by a number of devices.

    Args:
      queries: [b, e] unit-norm embeddings of the instructed queries; bf16, float32 or float64.
        Scores are accumulated in float32, or float64 for float64 inputs.
      passages: [b, e], or [b, 1 + h, e] with the positive first and h hard negatives.
      instruction_negatives: [b, m, e], n_ik, the row's query under other instructions; for block I.
        A row with fewer than m fills up with its own instruction's hash: the identity mask takes
        those out.
      objective: the notation, "multi(P,IQ)", or the parsed object. Static.
      scale: inverse temperature, above 0; a number or a traced scalar (learnable).
      ids: hashes of the pairs' texts, for mask="identity"; passage [b, 2], or [b, 1 + h, 2] with
        hard negatives.
      mask: which candidates are no negatives. "identity": those whose text hashes make them a
        positive of the row: for P, QQ, PP and IQ a pair with the row's passage or the row's
        instructed query; for P a hard negative equal to the row's passage; for I an instruction
        equal to the row's. "faithful": only the row's own positive, by index, as the paper's code
        does; ids are not looked at. Static.
      valid: bool[b], False for an empty slot: neither a row nor a candidate, whatever it holds (NaN
        included).
      instruction_negative_ids: uint32[b, m, 2], hashes of the instructions of n_ik, for block I
        under "identity".

    Returns:
      (loss, metrics): a scalar (float32, or float64 for float64 inputs), 0 where no row has a
      negative; and float32 scalars without gradient, means over the valid rows: "loss"; "positive"
      and "hardest_negative" (cosines; the latter over rows with a negative, 0 if there is none);
      and by block t "loss/t" (uni(t)), "accuracy/t" (share of rows whose positive beats every
      negative), "negatives/t" (negatives of a row), "masked/t" (share of the candidates that the
      identity mask took out).

    Raises:
      UserError: shapes, dtypes or options that do not fit, ids missing under "identity", block I
        without instruction negatives.
    """
    objective = parse_objective(objective)
    if mask not in MASKS:
        raise UserError(f"mask={mask!r}; choose one of {', '.join(MASKS)}")
    queries, passages = jnp.asarray(queries), jnp.asarray(passages)
    if passages.ndim == 2:
        passages = passages[:, None]
    if ids is not None and ids.passage.ndim == 2:
        ids = ids._replace(passage=ids.passage[:, None])
    _check(queries, passages, instruction_negatives, objective, scale, valid)
    if mask == "faithful":
        ids = instruction_negative_ids = None
    else:
        _check_ids(passages, instruction_negatives, objective, ids, instruction_negative_ids)
    if "I" not in objective.blocks:
        instruction_negatives = instruction_negative_ids = None
    rows = Rows(  # in global order: a row's number says which candidate is its own positive
        index=jnp.arange(queries.shape[0], dtype=jnp.int32),
        queries=queries,
        passages=passages,
        valid=jnp.ones(queries.shape[:1], bool) if valid is None else valid,
        instruction_negatives=instruction_negatives,
        ids=ids,
        instruction_negative_ids=instruction_negative_ids,
    )

    def body(rows: Rows, scale: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        rows = _without_empty_slots(rows)
        positive = _positive_scores(rows)
        scale = jnp.asarray(scale, positive.dtype)
        stats = _dense(rows, blocks=objective.blocks, scale=scale)
        return _combine(objective, stats, positive=positive, scale=scale, valid=rows.valid)

    mesh = jax.typeof(queries).sharding.mesh
    if AxisType.Explicit in mesh.axis_types:  # leave the partitioning to XLA there as well
        body = jax.sharding.auto_axes(body, out_sharding=NamedSharding(mesh, PartitionSpec()))
    return body(rows, scale)


def _dense(rows: Rows, *, blocks: tuple[str, ...], scale: jax.Array) -> dict[str, RowStats]:
    """The reference engine: every score of a block at once, [b, candidates]; float64-capable."""
    stats = {}
    for name in blocks:
        with jax.named_scope(f"loss_{name}"):
            scores, other, same = BLOCKS[name].candidates(rows, rows)
            negative = other if same is None else other & ~same
            frozen = jax.lax.stop_gradient(scores)
            negatives = jnp.sum(negative, axis=1, dtype=jnp.int32)
            stats[name] = RowStats(
                lse=jax.nn.logsumexp(jnp.where(negative, scale * scores, -jnp.inf), axis=1),
                hardest=jnp.max(jnp.where(negative, frozen, -jnp.inf), axis=1),
                negatives=negatives,
                masked=jnp.sum(other, axis=1, dtype=jnp.int32) - negatives,
            )
    return stats


def _combine(
    objective: Objective,
    stats: Mapping[str, RowStats],
    *,
    positive: jax.Array,
    scale: jax.Array,
    valid: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Loss and metrics from any engine's RowStats; positive is <q_i, p_i> [b], not scaled."""
    pos = scale * positive
    single = {t: _mean(_softplus(s.lse - pos), valid) for t, s in stats.items()}
    if objective.kind == "multi":
        loss = sum(single.values())
    else:
        union = jax.nn.logsumexp(jnp.stack([s.lse for s in stats.values()]), axis=0)
        loss = _mean(_softplus(union - pos), valid)

    hardest = jnp.max(jnp.stack([s.hardest for s in stats.values()]), axis=0)
    has_negative = hardest > -jnp.inf
    metrics = {
        "loss": loss,
        "positive": _mean(positive, valid),
        "hardest_negative": _mean(jnp.where(has_negative, hardest, 0), valid & has_negative),
    }
    for t, s in stats.items():
        negatives = _mean(s.negatives.astype(jnp.float32), valid)
        masked = _mean(s.masked.astype(jnp.float32), valid)
        metrics |= {
            f"loss/{t}": single[t],
            f"accuracy/{t}": _mean((positive > s.hardest).astype(jnp.float32), valid),
            f"negatives/{t}": negatives,
            f"masked/{t}": masked / jnp.maximum(negatives + masked, 1e-9),
        }
    return loss, {
        name: jax.lax.stop_gradient(value).astype(jnp.float32) for name, value in metrics.items()
    }


def _softplus(x: jax.Array) -> jax.Array:
    """log(1 + exp(x)): at x = lse - pos it is logsumexp(pos, negatives) - pos, not cancelled."""
    return jnp.logaddexp(x, 0.0)


def _mean(values: jax.Array, valid: jax.Array) -> jax.Array:
    """Mean of values [b] over the valid rows; 0 if there is none."""
    weights = valid.astype(values.dtype)
    return jnp.sum(weights * values) / jnp.maximum(jnp.sum(weights), 1)


def _positive_scores(rows: Rows) -> jax.Array:
    """<q_i, p_i>, [b]."""
    dtype = jnp.promote_types(jnp.result_type(rows.queries, rows.passages), jnp.float32)
    return jnp.sum(rows.queries.astype(dtype) * rows.passages[:, 0].astype(dtype), axis=1)


def _without_empty_slots(rows: Rows) -> Rows:
    """Zeros in empty slots: a NaN there would reach real rows through the products' gradients."""

    def keep(values: jax.Array | None) -> jax.Array | None:
        if values is None:
            return None
        valid = rows.valid.reshape(rows.valid.shape + (1,) * (values.ndim - 1))
        return jnp.where(valid, values, 0)

    return rows._replace(
        queries=keep(rows.queries),
        passages=keep(rows.passages),
        instruction_negatives=keep(rows.instruction_negatives),
    )


def _check(queries, passages, instruction_negatives, objective, scale, valid) -> None:
    if queries.ndim != 2 or passages.ndim != 3 or queries.shape != passages[:, 0].shape:
        raise UserError(
            f"queries {queries.shape} and passages {passages.shape}: expected [b, e] and [b, e] or "
            "[b, 1 + h, e]"
        )
    if not all(jnp.issubdtype(x.dtype, jnp.floating) for x in (queries, passages)):
        raise UserError(f"embeddings of {queries.dtype} and {passages.dtype}: expected floats")
    if jnp.ndim(scale) or (isinstance(scale, int | float) and not scale > 0):
        raise UserError(f"scale={scale}: expected one number above 0")
    if valid is not None and (valid.shape != queries.shape[:1] or valid.dtype != bool):
        raise UserError(f"valid is {valid.dtype}{valid.shape}: expected bool{queries.shape[:1]}")
    if "I" in objective.blocks:
        if instruction_negatives is None:
            raise UserError(
                f"objective {objective} has block I: give instruction_negatives [b, m, e]"
            )
        b, e = queries.shape
        shape = instruction_negatives.shape
        if len(shape) != 3 or (shape[0], shape[2]) != (b, e) or not shape[1]:
            raise UserError(f"instruction_negatives {shape}: expected [{b}, m, {e}] with m above 0")


def _check_ids(passages, instruction_negatives, objective, ids, instruction_negative_ids) -> None:
    if ids is None:
        raise UserError(
            'mask="identity" needs the hashes of the texts: give ids=TextIds(...), or '
            'mask="faithful" to tell negatives by index (a copy of a positive then is a negative)'
        )
    b, n = passages.shape[:2]
    expected = {"instruction": (b, 2), "query": (b, 2), "passage": (b, n, 2)}
    found = {f"ids.{name}": (getattr(ids, name), shape) for name, shape in expected.items()}
    if "I" in objective.blocks:
        if instruction_negative_ids is None:
            raise UserError(
                f'objective {objective} with mask="identity" needs instruction_negative_ids, '
                "the hashes of the instructions of instruction_negatives, uint32[b, m, 2]"
            )
        shape = (*instruction_negatives.shape[:2], 2)
        found["instruction_negative_ids"] = (instruction_negative_ids, shape)
    for name, (array, shape) in found.items():
        if array.shape != shape or array.dtype != jnp.uint32:
            raise UserError(f"{name} is {array.dtype}{array.shape}: expected uint32{shape}")
