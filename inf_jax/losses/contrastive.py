"""The contrastive loss of any objective: one entry point, `contrastive_loss`.

An engine gives each block's sums over the negatives of each row; the loss and the metrics follow
from those by plain autodiff. `dense` holds all scores and is the reference; the others are
`inf_jax.losses.blockwise`, whose memory is linear in the batch.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from inf_jax.core.batch import TextIds
from inf_jax.losses import one_pass as onepass
from inf_jax.losses import terms
from inf_jax.losses.blocks import BLOCKS, Rows
from inf_jax.losses.blockwise import Coefficients, Sweep, sweep
from inf_jax.losses.checks import ENGINES, check_ids, check_inputs
from inf_jax.losses.dense import dense_sums
from inf_jax.losses.objective import Objective, parse_objective

__all__ = ["ENGINES", "contrastive_loss"]

DENSE_SCORES = 2**22  # up to so many scores (16 MiB) the auto engine keeps the matrix
TILES = {"cpu": (2048, 1024), "gpu": (4096, 4096), "tpu": (4096, 1024)}


def contrastive_loss(
    queries: jax.Array,
    passages: jax.Array,
    instruction_negatives: jax.Array | None = None,
    *,
    objective: str | Objective,
    scale: float | jax.Array,
    bias: float | jax.Array = 0.0,
    ids: TextIds | None = None,
    mask: str = "identity",
    valid: jax.Array | None = None,
    instruction_negative_ids: jax.Array | None = None,
    instruction_negative_valid: jax.Array | None = None,
    teacher_scores: jax.Array | None = None,
    dims: Sequence[int] = (),
    dim_weights: Sequence[float] = (),
    engine: str = "auto",
    mesh: Mesh | None = None,
    tile: tuple[int, int] | None = None,
    tile_dtype: str | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of the global batch, and what to log of it.

    With s the scale, pos_i = s <q_i, p_i> and the blocks of `losses.blocks`, w_t their weights:

      uni(T)     = mean_i [ logsumexp(pos_i, s x + log w_t, all negatives x of T) - pos_i ]
      multi(T)   = sum over the blocks t of T of w_t uni(t)
      sigmoid(T) = mean_i [ softplus(-(pos_i + bias)) + sum_t w_t sum_x softplus(s x + bias) ]
      distil(P)  = mean_i KL( softmax_h(teacher_scores_ih) || softmax_h(s <q_i, p_ih>) )

    The positive is counted once (InF-IR, arXiv 2505.21439; the sigmoid loss is SigLIP's, arXiv
    2303.15343). An objective is a weighted sum of such terms. One global-view computation: under
    jit the rows may be sharded over any axes of a mesh, the mean is over the global batch and
    nothing is rescaled by a number of devices.

    Args:
      queries: [b, e] unit-norm embeddings of the instructed queries; bf16, float32 or float64.
        Scores are accumulated in float32, or float64 for float64 inputs.
      passages: [b, e], or [b, 1 + h, e] with the positive first and h hard negatives.
      instruction_negatives: [b, m, e], n_ik, the row's query under other instructions; for block I.
        A row with fewer than m fills up with its own instruction's hash: the identity mask takes
        those out.
      objective: the notation, "multi(P,IQ)", or the parsed object. Static.
      scale: inverse temperature, above 0; a number or a traced scalar (learnable).
      bias: of the sigmoid's logits; a number or a traced scalar.
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
      instruction_negative_valid: bool[b, m], False for an empty place; None: all are filled.
      teacher_scores: [b, 1 + h], logits of a teacher for the row's own passages, for distil.
      dims: Matryoshka (arXiv 2205.13147): the loss is summed over the embeddings' first so many
        entries, at unit length each. () is all of them, as they are. Static.
      dim_weights: factors of `dims`; () is 1 for all. Static.
      engine: "dense" holds every score; "blockwise" (one device), "ring" and "gather" (all devices
        of `mesh`) go tile by tile; "auto" is dense for small batches, else ring on a mesh of
        several devices, else blockwise. Static.
      mesh: whose axes, of type Auto, all split the batch; ring and gather need it. Static.
      tile: (rows, columns) of a tile on a device; None is what suits the platform. Static.
      tile_dtype: "bfloat16" rounds the embeddings for the products; None leaves them. Static.

    Returns:
      (loss, metrics): a scalar (float32, or float64 for float64 inputs), for uni and multi 0 where
      no row has a negative; and float32 scalars without gradient, means over the valid rows:
      "loss"; "positive" and "hardest_negative" (cosines; the latter over rows with a negative, 0 if
      there is none); and by block t "loss/t" (uni(t), or its part of the sigmoid loss),
      "negatives/t" (negatives of a row), "masked/t" (share of the candidates that the identity mask
      took out), "accuracy/t" (share of rows whose positive beats every negative),
      "false_negatives/t" (negatives of a row that score above its positive: suspects). A copy of a
      positive ties with it up to rounding: under "faithful" the last two depend on the engine where
      texts repeat. With `dims`, these are of the longest, and "loss/dim<d>" is a dimension's loss.

    Raises:
      UserError: shapes, dtypes or options that do not fit, ids missing under "identity", block I
        without instruction negatives.
    """
    objective = parse_objective(objective)
    queries, passages = jnp.asarray(queries), jnp.asarray(passages)
    if passages.ndim == 2:
        passages = passages[:, None]
    if ids is not None and ids.passage.ndim == 2:
        ids = ids._replace(passage=ids.passage[:, None])
    engine = _choose(engine, passages.shape, mesh)
    check_inputs(
        queries,
        passages,
        instruction_negatives,
        instruction_negative_valid,
        objective=objective,
        scale=scale,
        bias=bias,
        mask=mask,
        valid=valid,
        teacher_scores=teacher_scores,
        dims=dims,
        dim_weights=dim_weights,
        engine=engine,
        mesh=mesh,
        tile=tile,
        tile_dtype=tile_dtype,
    )
    if mask == "faithful" or not objective.blocks:
        ids = instruction_negative_ids = None
    else:
        check_ids(passages, instruction_negatives, objective, ids, instruction_negative_ids)
    if "I" not in objective.blocks:
        instruction_negatives = instruction_negative_ids = instruction_negative_valid = None
    rows = Rows(  # in global order: a row's number says which candidate is its own positive
        index=jnp.arange(queries.shape[0], dtype=jnp.int32),
        valid=jnp.ones(queries.shape[:1], bool) if valid is None else jnp.asarray(valid),
        queries=queries,
        passages=passages,
        instruction_negatives=instruction_negatives,
        ids=ids,
        instruction_negative_ids=instruction_negative_ids,
        instruction_negative_valid=instruction_negative_valid,
    )
    plan = Sweep(
        lse=_blocks(objective, "uni", "multi"),
        softplus=_blocks(objective, "sigmoid"),
        engine=engine,
        tile=tile or TILES.get(_platform(mesh), TILES["cpu"]),
        mesh=mesh,
    )

    def body(rows: Rows, scale, bias, teacher) -> tuple[jax.Array, dict[str, jax.Array]]:
        rows = _without_empty_slots(rows)
        if tile_dtype:
            rows = _cast(rows, tile_dtype)
        dtype = jnp.promote_types(jnp.result_type(rows.queries, rows.passages), jnp.float32)
        coefficients = Coefficients(jnp.asarray(scale, dtype), jnp.asarray(bias, dtype))
        if not dims:
            return _loss(objective, plan, rows, coefficients, teacher)
        found = [_loss(objective, plan, _truncated(rows, d), coefficients, teacher) for d in dims]
        weights = dim_weights or (1.0,) * len(dims)
        loss = sum(w * value for w, (value, _) in zip(weights, found, strict=True))
        metrics = dict(found[max(range(len(dims)), key=dims.__getitem__)][1], loss=_frozen(loss))
        parts = zip(dims, found, strict=True)
        return loss, metrics | {f"loss/dim{d}": _frozen(value) for d, (value, _) in parts}

    around = jax.typeof(queries).sharding.mesh
    if AxisType.Explicit in around.axis_types:  # leave the partitioning to XLA there as well
        body = jax.sharding.auto_axes(body, out_sharding=NamedSharding(around, PartitionSpec()))
    return body(rows, scale, bias, teacher_scores)


def _choose(engine: str, passages: tuple[int, ...], mesh: Mesh | None) -> str:
    if engine != "auto":
        return engine
    b, k, _ = passages
    if b * b * k <= DENSE_SCORES:
        return "dense"
    return "blockwise" if mesh is None or mesh.size == 1 else "ring"


def _platform(mesh: Mesh | None) -> str:
    """What is compiled for: ahead of time, the mesh's devices are not this machine's."""
    return jax.default_backend() if mesh is None else mesh.devices.flat[0].platform


def _blocks(objective: Objective, *kinds: str) -> tuple[str, ...]:
    named = {name for term in objective.terms if term.kind in kinds for name in term.blocks}
    return tuple(name for name in BLOCKS if name in named)


def _loss(
    objective: Objective,
    plan: Sweep,
    rows: Rows,
    coefficients: Coefficients,
    teacher: jax.Array | None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Loss and metrics of checked rows."""
    positive = _positive_scores(rows)
    weights = rows.valid / jnp.maximum(jnp.sum(rows.valid, dtype=positive.dtype), 1)
    row_losses = functools.partial(terms.row_losses, objective)
    frozen = jax.lax.stop_gradient(positive)
    whole = [t for t in plan.blocks if plan.engine == "dense" or BLOCKS[t].own]
    sums, counts = dense_sums(plan, whole, rows, frozen, coefficients)
    swept = dataclasses.replace(
        plan,
        lse=tuple(t for t in plan.lse if t not in whole),
        softplus=tuple(t for t in plan.softplus if t not in whole),
    )
    kept = rows._replace(
        instruction_negatives=None, instruction_negative_ids=None, instruction_negative_valid=None
    )
    with jax.named_scope(f"loss_{plan.engine}"):
        if onepass.applies(swept, kept):
            loss, more = onepass.one_pass(
                swept, row_losses, kept, positive, sums, coefficients, weights
            )
            sums, counts = sums | more[0], counts | more[1]
        else:
            more = _swept(swept, kept, frozen, coefficients) if swept.blocks else ({}, {})
            sums, counts = sums | more[0], counts | more[1]
            loss = jnp.sum(weights * row_losses(sums, positive, coefficients))
    if objective.has("distil"):
        loss += terms.distil(objective, rows, teacher, coefficients.scale, weights)
    counts = {t: counts[t] for t in BLOCKS if t in counts}
    metrics = terms.metrics(sums, counts, positive, coefficients.scale, rows.valid)
    return loss, {name: _frozen(value) for name, value in {"loss": loss, **metrics}.items()}


def _swept(plan: Sweep, rows: Rows, positive: jax.Array, coefficients: Coefficients):
    """`sweep`, with empty slots at the end where the mesh does not divide the batch."""
    b = rows.index.shape[0]
    padding = 0 if plan.engine == "blockwise" else -b % plan.mesh.size
    rows, positive = jax.tree.map(
        lambda x: jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1)), (rows, positive)
    )
    return jax.tree.map(lambda x: x[:b], sweep(plan, rows, positive, coefficients))


def _frozen(value: jax.Array) -> jax.Array:
    return jax.lax.stop_gradient(value).astype(jnp.float32)


def _positive_scores(rows: Rows) -> jax.Array:
    """<q_i, p_i>, [b]."""
    dtype = jnp.promote_types(jnp.result_type(rows.queries, rows.passages), jnp.float32)
    return jnp.sum(rows.queries.astype(dtype) * rows.passages[:, 0].astype(dtype), axis=1)


def _embeddings(rows: Rows, change) -> Rows:
    """The rows with all their embeddings changed."""
    names = ("queries", "passages", "instruction_negatives")
    values = {name: getattr(rows, name) for name in names}
    return rows._replace(**{n: change(x) for n, x in values.items() if x is not None})


def _cast(rows: Rows, dtype: str) -> Rows:
    return _embeddings(rows, lambda x: x.astype(dtype))


def _truncated(rows: Rows, dim: int) -> Rows:
    """The first `dim` entries, at unit length."""

    def cut(x: jax.Array) -> jax.Array:
        x = x[..., :dim]
        square = jnp.sum(jnp.square(x.astype(jnp.promote_types(x.dtype, jnp.float32))), -1)
        factor = jax.lax.rsqrt(jnp.where(square > 0, square, 1))
        return (x * factor[..., None]).astype(x.dtype)

    return _embeddings(rows, cut)


def _without_empty_slots(rows: Rows) -> Rows:
    """Zeros in empty slots: a NaN there would reach real rows through the products' gradients."""
    valid = rows.valid
    keep = lambda x: jnp.where(valid.reshape(valid.shape + (1,) * (x.ndim - 1)), x, 0)  # noqa: E731
    rows = _embeddings(rows, keep)
    filled = rows.instruction_negative_valid
    if filled is not None:
        kept = jnp.where(filled[:, :, None], rows.instruction_negatives, 0)
        rows = rows._replace(instruction_negatives=kept)
    return rows
