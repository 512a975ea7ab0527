"""The contrastive loss of any objective: one entry point, `contrastive_loss`.

An engine sums each block over the negatives of each row; loss and metrics follow by autodiff.
`dense` holds all scores and is the reference; `losses.blockwise` uses memory linear in the batch.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from inf_jax.core.batch import TextIds
from inf_jax.losses import checks, terms
from inf_jax.losses.blocks import BLOCKS
from inf_jax.losses.blockwise import blockwise_sums
from inf_jax.losses.by_score import ByScore
from inf_jax.losses.candidates import RowTexts, known_instructions
from inf_jax.losses.dense import dense_sums
from inf_jax.losses.objective import TAUGHT, Objective, parse_objective
from inf_jax.losses.tiles import BlockwisePlan, Coefficients, Counts

DENSE_SCORES = 2**22  # up to so many scores a device (16 MiB) the auto engine keeps the matrix
TILES = {"cpu": (2048, 1024), "gpu": (8192, 8192), "tpu": (4096, 1024)}


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
    passage_valid: jax.Array | None = None,
    instruction_negative_ids: jax.Array | None = None,
    instruction_negative_valid: jax.Array | None = None,
    teacher_scores: jax.Array | None = None,
    queries_alone: jax.Array | None = None,
    sources: jax.Array | None = None,
    source_names: Sequence[str] = (),
    dims: Sequence[int] = (),
    dim_weights: Sequence[float] = (),
    mask_margin: float | None = None,
    mask_relative: bool = False,
    hardness: float = 0.0,
    hardness_of: str = "hard",
    spread: float = 0.0,
    engine: str = "auto",
    mesh: Mesh | None = None,
    tile: tuple[int, int] | None = None,
    tile_dtype: str | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of the global batch, and its metrics.

    With s the scale, pos_i = s <q_i, p_i>, t a teacher's scores, the blocks of `losses.blocks` and
    w_t their weights:

      uni(T)     = mean_i [ logsumexp(pos_i, s x + log w_t, all negatives x of T) - pos_i ]
      multi(T)   = sum over the blocks t of T of w_t uni(t)
      sigmoid(T) = mean_i [ softplus(-(pos_i + bias)) + sum_t w_t sum_x softplus(s x + bias) ]
      distil(P)  = mean_i KL( softmax_h(t_ih) || softmax_h(s <q_i, p_ih>) )
      margin(P)  = mean_i mean_h ( s <q_i, p_i> - s <q_i, p_ih> - (t_i - t_ih) )^2

    The positive is counted once (InF-IR, arXiv 2505.21439; the sigmoid loss is SigLIP's, arXiv
    2303.15343). An objective is a weighted sum of such terms. Under jit the rows may be sharded
    over any axes of a mesh: the mean is over the global batch.

    >>> import jax.numpy as jnp
    >>> queries = jnp.eye(2, 4)  # [b, e], unit norm
    >>> passages = jnp.array([[0.8, 0.6, 0, 0], [0, 1, 0, 0]])
    >>> loss, metrics = contrastive_loss(
    ...     queries, passages, objective="multi(P,IQ)", scale=10.0, mask="faithful"
    ... )
    >>> print(f"{loss:.3f} = {metrics['loss/P']:.3f} + {metrics['loss/IQ']:.3f}")
    0.073 = 0.009 + 0.063

    Args:
      queries: [b, e] unit-norm embeddings of the instructed queries; bf16, float32 or float64.
        Scores are accumulated in float32, or float64 for float64 inputs.
      passages: [b, e], or [b, 1 + h, e] with the positive first and h hard negatives.
      instruction_negatives: [b, m, e], n_ik, the row's query under other instructions; for block I.
        Pad a row of fewer with the hash of its own instruction: the identity mask removes it.
      objective: the notation, "multi(P,IQ)", or the parsed object. Static.
      scale, bias: of the logits, numbers or traced scalars; scale is the inverse temperature, above
        0, bias is for the sigmoid.
      ids: hashes of the pairs' texts, for mask="identity"; passage [b, 2] or [b, 1 + h, 2].
      mask: which candidates are not negatives. "identity": those that by their hashes are a
        positive of the row: for P, QQ, PP and IQ a pair with the row's passage or instructed query;
        for P a hard negative equal to the row's passage; for I an instruction with which a pair of
        the batch has the row's query and passage, as the row itself has.
        "faithful": the row's own positive only, by index, as in the paper's code. Static.
      valid: bool[b], False for an empty slot: neither row nor candidate, even if it holds NaN.
      passage_valid: bool[b, 1 + h], False where a row has no such hard negative, whatever it holds;
        None: all are there.
      instruction_negative_ids: uint32[b, m, 2], hashes of the instructions of n_ik, for "identity".
      instruction_negative_valid: bool[b, m], False where there is no n_ik; None: all are there.
      teacher_scores: [b, 1 + h], logits of a teacher for the row's own passages, for distil and
        margin; -inf for all of a row without: its part of the sum is 0.
      queries_alone: bool[b], rows without instruction, for "identity": every passage of a pair with
        the same query is their positive, and they of its passage. None: none is special.
      sources: int32[b], a number in `source_names` of each row, for metrics by source.
      source_names: of the sources. Static.
      dims, dim_weights: Matryoshka (arXiv 2205.13147): the weighted sum of the losses of prefixes
        of the embeddings, of these lengths and at unit norm; () is the whole embedding as it is,
        and weights of 1. Static.
      mask_margin: a candidate that scores (without scale) above the row's positive plus this is no
        negative, in all blocks but I: a false negative by the model itself. Qwen3-Embedding (arXiv
        2506.05176): 0.1; GISTEmbed (arXiv 2402.16829) with itself as guide: minus its margin.
        None: no such mask. Static.
      mask_relative: the margin is a share of the positive's score (NV-Retriever, arXiv 2407.15831:
        -0.05 for 95 percent). Static.
      hardness: alpha; in softmaxes a candidate of score x weighs exp(alpha x), without gradient:
        of the row's own hard negatives (hardness_of="hard"; EmbeddingGemma, arXiv 2509.20354: 5) or
        of all candidates ("all"; LLaVE, arXiv 2503.04812: 9). 0: all weigh 1. Static.
      spread: weight of the mean square of the inner products of two queries, and of two positives
        (EmbeddingGemma's regulariser). Static.
      engine: "dense" holds every score; "blockwise" (one device), "ring" and "gather" (all devices
        of `mesh`) go tile by tile; "auto" is dense for small batches (by
        the scores of a device), else ring on several devices, else blockwise. Static.
      mesh: its axes, of type Auto, all split the batch; ring and gather need it. Static.
      tile: (rows, columns) of a tile on a device; None takes the platform's default. Static.
      tile_dtype: "bfloat16" rounds the embeddings for the products; None keeps them. Static.

    Returns:
      (loss, metrics): a scalar (float32, or float64 for float64 inputs), for uni and multi 0 where
      no row has a negative; and float32 means over the valid rows, without gradient: "loss";
      "positive" and "hardest_negative" (cosines; the latter over rows with a negative, else 0); by
      block t "loss/t" (uni(t), or its part of the sigmoid loss), "negatives/t" (of a row),
      "masked/t" and "score_masked/t" (shares of candidates that the identity mask and the margin
      removed), "accuracy/t" (share of rows whose positive beats every negative),
      "false_negatives/t" (negatives of a row that score above its positive: suspects). A copy of a
      positive ties with it up to rounding: under "faithful" the last two depend on the engine.
      "spread" where it is in the loss. With `dims` these are of the longest prefix, and
      "loss/dim<d>" is the loss of each. Of the rows of each source n "pairs/n", their number,
      "loss/n" (without the spread), "accuracy/t/n" and "masked/t/n"; NaN where there are none.

    Raises:
      UserError: shapes, dtypes or options that do not fit, or missing arguments.
    """
    objective = parse_objective(objective)
    queries, passages = jnp.asarray(queries), jnp.asarray(passages)
    if passages.ndim == 2:
        passages = passages[:, None]
    if ids is not None and ids.passage.ndim == 2:
        ids = ids._replace(passage=ids.passage[:, None])
    engine = _choose(engine, passages.shape, mesh)
    rows = RowTexts(  # in global order: a row's number says which candidate is its own positive
        index=jnp.arange(queries.shape[0], dtype=jnp.int32),
        valid=valid,
        queries=queries,
        passages=passages,
        passage_valid=passage_valid,
        instruction_negatives=instruction_negatives,
        ids=ids,
        instruction_negative_ids=instruction_negative_ids,
        instruction_negative_valid=instruction_negative_valid,
        alone=queries_alone,
    )
    checks.check_texts(objective, rows)
    checks.check_mask(objective, rows, mask)
    checks.check_coefficients(scale, bias)
    by_score = ByScore(mask_margin, mask_relative, hardness, hardness_of)
    checks.check_by_score(by_score, spread)
    checks.check_teacher(objective, passages, teacher_scores)
    checks.check_sources(queries.shape[0], sources, source_names)
    checks.check_dims(queries.shape[1], dims, dim_weights)
    checks.check_engine(engine, mesh, tile, tile_dtype)
    rows = _only_needed(objective, rows, mask)
    plan = BlockwisePlan(
        lse=_blocks(objective, "uni", "multi"),
        softplus=_blocks(objective, "sigmoid"),
        engine=engine,
        tile=tile or TILES.get(_platform(mesh), TILES["cpu"]),
        mesh=mesh,
        by_score=by_score,
    )

    def loss_of(rows: RowTexts, coefficients: Coefficients, teacher, by_source):
        loss, metrics = _loss(objective, plan, rows, coefficients, teacher, by_source)
        if not spread:
            return loss, metrics
        more = terms.spread_out(rows)
        loss += spread * more
        return loss, metrics | {"loss": _metric(loss), "spread": _metric(more)}

    def body(rows: RowTexts, scale, bias, teacher, sources):
        rows = _zero_empty_slots(rows)
        if rows.instruction_negative_ids is not None:
            rows = rows._replace(instruction_negative_known=known_instructions(rows))
        if tile_dtype:
            rows = _map_embeddings(rows, lambda x: x.astype(tile_dtype))
        dtype = jnp.promote_types(jnp.result_type(rows.queries, rows.passages), jnp.float32)
        coefficients = Coefficients(jnp.asarray(scale, dtype), jnp.asarray(bias, dtype))
        by_source = functools.partial(terms.by_source, sources, source_names, rows.valid)
        if not dims:
            return loss_of(rows, coefficients, teacher, by_source)
        parts = {d: loss_of(_prefix(rows, d), coefficients, teacher, by_source) for d in dims}
        weights = dim_weights or (1.0,) * len(dims)
        weighted = list(zip(weights, parts.values(), strict=True))
        loss = sum(w * value for w, (value, _) in weighted)
        metrics = parts[max(dims)][1] | {"loss": _metric(loss)}
        for name in (f"loss/{source}" for source in source_names):
            metrics[name] = sum(w * m[name] for w, (_, m) in weighted)
        return loss, metrics | {f"loss/dim{d}": _metric(value) for d, (value, _) in parts.items()}

    context = jax.typeof(queries).sharding.mesh
    if AxisType.Explicit in context.axis_types:  # leave the partitioning to XLA there as well
        body = jax.sharding.auto_axes(body, out_sharding=NamedSharding(context, PartitionSpec()))
    return body(rows, scale, bias, teacher_scores, sources)


def _choose(engine: str, passages: tuple[int, ...], mesh: Mesh | None) -> str:
    if engine != "auto":
        return engine
    b, k, _ = passages
    devices = 1 if mesh is None else mesh.size
    if b * b * k <= DENSE_SCORES * devices:  # a ring would wait for its hops
        return "dense"
    return "blockwise" if devices == 1 else "ring"


def _platform(mesh: Mesh | None) -> str:
    """Platform to compile for; ahead of time the mesh's devices are not this machine's."""
    return jax.default_backend() if mesh is None else mesh.devices.flat[0].platform


def _blocks(objective: Objective, *kinds: str) -> tuple[str, ...]:
    named = {name for term in objective.terms if term.kind in kinds for name in term.blocks}
    return tuple(name for name in BLOCKS if name in named)


def _only_needed(objective: Objective, rows: RowTexts, mask: str) -> RowTexts:
    """Checked rows without what mask and objective do not use."""
    valid = jnp.ones(rows.index.shape, bool) if rows.valid is None else jnp.asarray(rows.valid)
    rows = rows._replace(valid=valid)
    if mask == "faithful" or not objective.blocks:
        rows = rows._replace(ids=None, instruction_negative_ids=None, alone=None)
    return rows if "I" in objective.blocks else _without_instruction_negatives(rows)


def _without_instruction_negatives(rows: RowTexts) -> RowTexts:
    names = [name for name in RowTexts._fields if name.startswith("instruction_negative")]
    return rows._replace(**dict.fromkeys(names))


def _loss(
    objective: Objective,
    plan: BlockwisePlan,
    rows: RowTexts,
    coefficients: Coefficients,
    teacher: jax.Array | None,
    by_source: Callable[[jax.Array, jax.Array, Mapping[str, Counts]], dict[str, jax.Array]],
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Loss and metrics of checked rows."""
    dtype = coefficients.scale.dtype
    positive = jnp.sum(rows.queries.astype(dtype) * rows.passages[:, 0].astype(dtype), axis=1)
    weights = rows.valid / jnp.maximum(jnp.sum(rows.valid, dtype=positive.dtype), 1)
    fixed = jax.lax.stop_gradient(positive)
    dense = [t for t in plan.blocks if plan.engine == "dense" or BLOCKS[t].per_row]
    sums, counts = dense_sums(plan, dense, rows, fixed, coefficients)
    lse, softplus = (tuple(t for t in ts if t not in dense) for ts in (plan.lse, plan.softplus))
    rest = dataclasses.replace(plan, lse=lse, softplus=softplus)
    with jax.named_scope(f"loss_{plan.engine}"):
        if rest.blocks:
            kept = _without_instruction_negatives(rows)
            more = _padded_sums(rest, kept, fixed, coefficients)
            sums, counts = sums | more[0], counts | more[1]
        each = terms.row_losses(objective, sums, positive, coefficients)
        loss = jnp.sum(weights * each)
    if objective.has(*TAUGHT):
        taught = terms.taught_losses(objective, rows, teacher, coefficients.scale)
        loss, each = loss + jnp.sum(weights * taught), each + taught
    counts = {t: counts[t] for t in BLOCKS if t in counts}
    metrics = terms.metrics(sums, counts, positive, coefficients.scale, rows.valid)
    values = {"loss": loss, **metrics, **by_source(each, positive, counts)}
    return loss, {name: _metric(value) for name, value in values.items()}


def _padded_sums(
    plan: BlockwisePlan, rows: RowTexts, positive: jax.Array, coefficients: Coefficients
):
    """`blockwise_sums`, with empty slots at the end where the mesh does not divide the batch."""
    b = rows.index.shape[0]
    padding = 0 if plan.engine == "blockwise" else -b % plan.mesh.size
    rows, positive = jax.tree.map(
        lambda x: jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1)), (rows, positive)
    )
    return jax.tree.map(lambda x: x[:b], blockwise_sums(plan, rows, positive, coefficients))


def _metric(value: jax.Array) -> jax.Array:
    return jax.lax.stop_gradient(value).astype(jnp.float32)


def _map_embeddings(rows: RowTexts, change) -> RowTexts:
    names = ("queries", "passages", "instruction_negatives")
    present = [name for name in names if getattr(rows, name) is not None]
    return rows._replace(**{name: change(getattr(rows, name)) for name in present})


def _prefix(rows: RowTexts, dim: int) -> RowTexts:
    """The first `dim` entries of each embedding, at unit norm."""

    def cut(x: jax.Array) -> jax.Array:
        x = x[..., :dim]
        square = jnp.sum(jnp.square(x.astype(jnp.promote_types(x.dtype, jnp.float32))), -1)
        factor = jax.lax.rsqrt(jnp.where(square > 0, square, 1))
        return (x * factor[..., None]).astype(x.dtype)

    return _map_embeddings(rows, cut)


def _zero_empty_slots(rows: RowTexts) -> RowTexts:
    """Zeros in empty slots: a NaN there would reach real rows through the products' gradients."""
    rows = _map_embeddings(
        rows, lambda x: jnp.where(jnp.expand_dims(rows.valid, tuple(range(1, x.ndim))), x, 0)
    )
    if rows.passage_valid is not None:
        rows = rows._replace(passages=jnp.where(rows.passage_valid[:, :, None], rows.passages, 0))
    filled = rows.instruction_negative_valid
    if filled is not None:
        kept = jnp.where(filled[:, :, None], rows.instruction_negatives, 0)
        rows = rows._replace(instruction_negatives=kept)
    return rows
