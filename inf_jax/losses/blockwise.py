"""The blockwise engines: sums over all candidates, tile by tile, without the matrix of scores.

Each device keeps its rows and processes every column of the batch, a tile at a time. A tile of
scores is computed once and summed along its rows (block P) and along its columns (block IQ). The
forward pass keeps only the sums; the backward pass recomputes the tiles and takes their exact
derivatives from the sums. So memory is linear in the batch, at four products of b x b x e where a
loss that holds the matrix takes three. The columns are on the one device ("blockwise"), rotate
around the devices tile by tile with their sums ("ring"; neither the permutes nor the current tile
wait for each other), or come from all devices at once, tile by tile ("gather").
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from inf_jax.losses.blocks import BLOCKS
from inf_jax.losses.candidates import RowTexts, texts_of
from inf_jax.losses.tiles import (
    BlockwisePlan,
    Coefficients,
    Counts,
    Side,
    Values,
    empty_partial,
    merge,
    sums_of,
    tile_gradients,
    tile_partials,
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def blockwise_sums(
    plan: BlockwisePlan, rows: RowTexts, positive: jax.Array, coefficients: Coefficients
) -> tuple[Values, dict[str, Counts]]:
    """Sums and counts of each block for each row of the global batch.

    Args:
      plan: static.
      rows: [b], split over the mesh's axes; b a multiple of its size. Empty slots hold no NaN.
      positive: [b], <q_i, p_i>; used for counts and score masks, it gets no gradient.

    Returns:
      ({"lse/P": [b], ...}, {"P": Counts, ...}) in the dtype of the scores; lse is -inf where a row
      has no negative.
    """
    return _on_mesh(plan, _forward, (rows, positive), coefficients)


def _keep_sums(plan, rows, positive, coefficients):
    result = blockwise_sums(plan, rows, positive, coefficients)
    return result, (rows, positive, coefficients, result[0])


def _differentiate(plan, residuals, cotangents):
    rows, positive, coefficients, sums = residuals
    needed = None if plan.by_score.margin is None else positive
    split = rows, needed, sums, cotangents[0]
    texts, slopes = _on_mesh(plan, _backward, split, coefficients)
    zeros = jax.tree.map(_zero_cotangent, rows)
    # each device's part of the coefficients' derivatives is an entry of [devices]
    return zeros._replace(**texts), jnp.zeros_like(positive), jax.tree.map(jnp.sum, slopes)


blockwise_sums.defvjp(_keep_sums, _differentiate)


def _on_mesh(plan: BlockwisePlan, run: Callable, split, coefficients: Coefficients):
    """run(plan, *split, coefficients) on each device's rows."""
    if plan.engine == "blockwise":
        return run(plan, *split, coefficients)
    over = PartitionSpec(plan.mesh.axis_names)
    return jax.shard_map(
        lambda split, coefficients: run(plan, *split, coefficients),
        mesh=plan.mesh,
        in_specs=(over, PartitionSpec()),
        out_specs=over,
        check_vma=False,  # the derivative is written out: JAX differentiates nothing in here
    )(split, coefficients)


def _forward(plan: BlockwisePlan, rows: RowTexts, positive: jax.Array, coefficients: Coefficients):
    """This device's part of `blockwise_sums`."""
    size, scale = rows.index.shape[0], coefficients.scale
    left, right = _sides(plan, rows, positive, {}, {})
    row_acc, col_acc = (
        {
            t: empty_partial(plan, t, side.rows.index.shape, positive.dtype)
            for t in plan.blocks
            if BLOCKS[t].by_column == by_column
        }
        for side, by_column in ((left, False), (right, True))
    )

    def merge_all(old: dict, new: dict) -> dict:
        return {t: merge(p, new[t], scale) for t, p in old.items()}

    def process_tile(row_acc: dict, columns: Side) -> tuple[dict, dict]:
        def one_row_tile(col_part: dict, x: tuple[Side, dict]) -> tuple[dict, dict]:
            new = tile_partials(plan, x[0], columns, coefficients)
            return merge_all(col_part, new), merge_all(x[1], new)

        width = columns.rows.index.shape
        start = {t: empty_partial(plan, t, width, positive.dtype) for t in col_acc}
        col_part, row_acc = jax.lax.scan(one_row_tile, start, (left, row_acc))
        return row_acc, col_part

    row_acc, col_acc = _rotate_columns(plan, process_tile, row_acc, right, col_acc, merge_all)
    partials = jax.tree.map(lambda x: _join(x)[:size], row_acc | col_acc)
    return sums_of(plan, partials, scale), {t: partials[t].counts for t in plan.blocks}


def _backward(
    plan: BlockwisePlan,
    rows: RowTexts,
    positive: jax.Array | None,
    sums: Values,
    slopes: Values,
    coefficients: Coefficients,
):
    """({field: derivative by this device's texts}, derivatives by the coefficients, [1] each)."""
    size, width, dtype = *rows.queries.shape, coefficients.scale.dtype
    left, right = _sides(plan, rows, positive, sums, slopes)
    lefts, rights = (tuple(dict.fromkeys(m[i] for m in plan.matrices)) for i in (0, 1))

    def zeros(shape: tuple[int, ...]) -> dict[str, jax.Array]:
        texts = {name: _texts_a_pair(plan, rows, name) for name in rights}
        return {name: jnp.zeros((*shape, k, width), dtype) for name, k in texts.items()}

    def add_all(old: dict, new: dict) -> dict:
        return jax.tree.map(jnp.add, old, new)

    def process_tile(row_acc: tuple, columns: Side) -> tuple[tuple, dict]:
        def one_row_tile(carry, number):
            by_left, bias, by_right = carry
            row = jax.tree.map(lambda x: x[number], left)
            new = tile_gradients(plan, row, columns, coefficients)
            by_left = {t: x.at[number].add(new.left[t]) for t, x in by_left.items()}
            return (by_left, bias + new.bias, add_all(by_right, new.right)), None

        start = (*row_acc, zeros(columns.rows.index.shape))
        numbers = jnp.arange(left.rows.index.shape[0])
        (*row_acc, by_right), _ = jax.lax.scan(one_row_tile, start, numbers)
        return tuple(row_acc), by_right

    by_left = {t: jnp.zeros((*left.rows.index.shape, width), dtype) for t in lefts}
    row_acc, col_acc = (by_left, jnp.zeros((), dtype)), zeros(right.rows.index.shape)
    row_acc, by_right = _rotate_columns(plan, process_tile, row_acc, right, col_acc, add_all)
    by_left, bias = row_acc
    by_left, by_right = ({t: _join(x)[:size] for t, x in d.items()} for d in (by_left, by_right))
    # a score is linear in its left text: the scale's derivative needs no further pass
    scale = sum(jnp.sum(x * texts_of(rows, t)[:, 0]) for t, x in by_left.items())
    scale = scale / coefficients.scale
    return _by_field(rows, by_left, by_right), Coefficients(scale[None], bias[None])


def _by_field(rows: RowTexts, by_left: Values, by_right: Values) -> dict[str, jax.Array]:
    """Derivatives by each field of the rows, in its shape and dtype.

    Sums `by_left` [b, e], by the first texts as the left of a matrix, and `by_right` [b, k, e], by
    the first k texts as the right of one.
    """
    gradients = {}
    parts = [*by_right.items(), *((name, x[:, None]) for name, x in by_left.items())]
    for name in dict.fromkeys(name for name, _ in parts):
        values = getattr(rows, name)
        texts = texts_of(rows, name, all_texts=True).shape[1]
        total = sum(
            # not total.at[:, :k].add(x): where k is all, its indices have no elements, of which
            # jaxlib 0.11's partitioner dies inside shard_map
            jnp.pad(x, [(0, 0), (0, texts - x.shape[1]), (0, 0)])
            for part, x in parts
            if part == name
        )
        gradients[name] = total.reshape(values.shape).astype(values.dtype)
    return gradients


def _rotate_columns(
    plan: BlockwisePlan,
    process_tile: Callable,
    row_acc,
    columns: Side,
    col_acc: dict,
    merge_parts: Callable[[dict, dict], dict],
):
    """Processes all columns of the batch, those of this device first.

    Args:
      process_tile: (row_acc, a tile of columns) -> (row_acc, that tile's part of col_acc).
      row_acc: accumulates what belongs to this device's rows.
      columns, col_acc: this device's own columns and what belongs to them, [tiles, size].
      merge_parts: merges the parts of two devices for the same columns.

    Returns:
      (row_acc, col_acc), the latter for this device's own columns, from all devices.
    """
    if plan.engine == "blockwise" or (plan.engine == "ring" and plan.mesh.size == 1):
        return jax.lax.scan(process_tile, row_acc, columns)
    if plan.engine == "gather":
        return _gather(plan, process_tile, row_acc, columns, merge_parts)
    tiles, devices = columns.rows.index.shape[0], plan.mesh.size

    def pass_on(tree):
        to = [(d, (d - 1) % devices) for d in range(devices)]
        return jax.tree.map(lambda x: jax.lax.ppermute(x, plan.mesh.axis_names, to), tree)

    def visit(carry, number):
        row_acc, columns, col_acc = carry
        at = functools.partial(jax.tree.map, lambda x: x[number % tiles])
        put = functools.partial(jax.tree.map, lambda x, v: x.at[number % tiles].set(v))
        column = at(columns)
        arriving, following = pass_on(at(col_acc)), pass_on(column)
        row_acc, col_part = process_tile(row_acc, column)
        merged = merge_parts(arriving, col_part)
        return (row_acc, put(columns, following), put(col_acc, merged)), None

    start = (row_acc, columns, col_acc)
    (row_acc, _, col_acc), _ = jax.lax.scan(visit, start, jnp.arange(devices * tiles))
    return row_acc, pass_on(col_acc)


def _gather(plan: BlockwisePlan, process_tile: Callable, row_acc, columns: Side, merge_parts):
    """`_rotate_columns` where a tile holds the columns of all devices."""
    axes, devices = plan.mesh.axis_names, plan.mesh.size

    def visit(row_acc, column: Side):
        gathered = jax.tree.map(lambda x: jax.lax.all_gather(x, axes, tiled=True), column)
        row_acc, col_part = process_tile(row_acc, gathered)
        parts = jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), col_part)
        parts = jax.tree.map(lambda x: jax.lax.all_to_all(x, axes, 0, 0), parts)
        first, rest = (jax.tree.map(lambda x, i=i: x[i], parts) for i in (0, slice(1, None)))
        add = lambda total, part: (merge_parts(total, part), None)  # noqa: E731
        return row_acc, jax.lax.scan(add, first, rest, length=devices - 1)[0]

    return jax.lax.scan(visit, row_acc, columns)


def _sides(
    plan: BlockwisePlan, rows: RowTexts, positive: jax.Array | None, sums: Values, slopes: Values
) -> tuple[Side, Side]:
    """This device's rows as [row tiles, size] and as columns [column tiles, size]."""
    lefts, rights = ({m[i] for m in plan.matrices} for i in (0, 1))
    texts = _texts_a_pair(plan, rows, "passages")

    def side(fields: set[str], k: int, *, by_column: bool) -> Side:
        ids, present = rows.ids, rows.passage_valid is not None and "passages" in fields
        if ids is not None:
            ids = ids._replace(passage=ids.passage[:, :k])
        own = lambda values: {  # noqa: E731
            t: x for t, x in values.items() if BLOCKS[t.split("/")[1]].by_column == by_column
        }
        needed = rows._replace(
            queries=rows.queries if "queries" in fields else None,
            passages=rows.passages[:, :k] if "passages" in fields else None,
            passage_valid=rows.passage_valid[:, :k] if present and k > 1 else None,
            ids=ids,
        )
        return Side(needed, positive, own(sums), own(slopes))

    both = side(lefts, 1, by_column=False), side(rights, texts, by_column=True)
    sizes = _tile_sizes(plan, rows.index.shape[0])
    return tuple(
        jax.tree.map(functools.partial(_split, count=count, size=size), tree)
        for tree, (count, size) in zip(both, sizes, strict=True)
    )


def _texts_a_pair(plan: BlockwisePlan, rows: RowTexts, name: str) -> int:
    """k of a field on the right: all its texts where a block has them as candidates, else 1."""
    return texts_of(rows, name, all_texts=plan.all_texts(name)).shape[1]


def _tile_sizes(plan: BlockwisePlan, rows: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """(count, size) of this device's row tiles and column tiles; both cover the same, >= rows.

    Sizes are even, so that little is padded; one size divides the other or equals it.
    """
    most_rows, most_columns = plan.tile
    if plan.engine == "gather":  # a tile holds the columns of all devices
        most_columns = -(-most_columns // plan.mesh.size)
    smaller, larger = sorted((most_rows, most_columns))
    count = -(-rows // larger)
    parts = -(-rows // (count * smaller))
    size = -(-rows // (count * parts))
    size += -size % 8 if size > 8 else 0
    tiles = {smaller: (count * parts, size), larger: (count, parts * size)}
    return tiles[most_rows], tiles[most_columns]


def _split(x: jax.Array, *, count: int, size: int) -> jax.Array:
    """[rows, ...] -> [count, size, ...]; zeros, so not valid, at the end."""
    padding = [(0, count * size - x.shape[0])] + [(0, 0)] * (x.ndim - 1)
    return jnp.pad(x, padding).reshape(count, size, *x.shape[1:])


def _join(x: jax.Array) -> jax.Array:
    """[count, size, ...] -> [rows, ...]."""
    return x.reshape(-1, *x.shape[2:])


def _zero_cotangent(x: jax.Array):
    """A zero derivative by x, in the type that JAX wants for x's dtype."""
    if jnp.issubdtype(x.dtype, jnp.floating):
        return jnp.zeros_like(x)
    return np.zeros(x.shape, jax.dtypes.float0)
