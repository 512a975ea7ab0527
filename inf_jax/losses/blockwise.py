"""The sweep: sums over all candidates of all rows, tile by tile, without the matrix of scores.

Each device keeps its rows and meets every column of the batch, a tile at a time. A tile of scores
is computed once and summed along its rows (block P) and along its columns (block IQ). Forward keeps
the sums alone; backward computes the tiles again, and their exact derivatives from the sums. So
memory is linear in the batch, at four products of b x b x e where a loss that holds the matrix
takes three.

| engine    | the columns                                                    |
|-----------|----------------------------------------------------------------|
| blockwise | are on the one device                                          |
| ring      | go round the devices, tile by tile, and their sums with them   |
| gather    | come from all devices at once, tile by tile                    |

In the ring neither waits for the other, the permutes or the tile in work: a tile's sums are merged
with what arrives once both are there.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from inf_jax.core.batch import TextIds
from inf_jax.losses.blocks import BLOCKS, Rows, texts_of
from inf_jax.losses.tiles import (
    Coefficients,
    Counts,
    Side,
    Sweep,
    Values,
    empty_partial,
    merge,
    sums_of,
    tile_gradients,
    tile_partials,
)

__all__ = ["Coefficients", "Counts", "Sweep", "sweep"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def sweep(
    plan: Sweep, rows: Rows, positive: jax.Array, coefficients: Coefficients
) -> tuple[Values, dict[str, Counts]]:
    """Sums and counts of each block for each row of the global batch.

    Args:
      plan: static.
      rows: [b], split over the mesh's axes; b a multiple of its size. Empty slots hold no NaN.
      positive: [b], <q_i, p_i>; for the counts alone, it gets no gradient.
      coefficients: scale above 0, and bias.

    Returns:
      ({"lse/P": [b], ...}, {"P": Counts, ...}) in the dtype of the scores; lse is -inf where a row
      has no negative.
    """
    return _on_mesh(plan, _forward, (rows, positive), coefficients)


def _keep_sums(plan, rows, positive, coefficients):
    found = sweep(plan, rows, positive, coefficients)
    return found, (rows, positive, coefficients, found[0])


def _differentiate(plan, kept, cotangents):
    rows, positive, coefficients, sums = kept
    texts, slopes = _on_mesh(plan, _backward, (rows, sums, cotangents[0]), coefficients)
    zeros = jax.tree.map(zero_cotangent, rows)
    # each device's part of the coefficients' derivatives is an entry of [devices]
    return zeros._replace(**texts), jnp.zeros_like(positive), jax.tree.map(jnp.sum, slopes)


sweep.defvjp(_keep_sums, _differentiate)


def _on_mesh(plan: Sweep, run: Callable, split, coefficients: Coefficients):
    """run(plan, *split, coefficients) on each device's rows."""
    if plan.engine == "blockwise":
        return run(plan, *split, coefficients)
    over = PartitionSpec(plan.mesh.axis_names)
    return jax.shard_map(
        lambda split, coefficients: run(plan, *split, coefficients),
        mesh=plan.mesh,
        in_specs=(over, PartitionSpec()),
        out_specs=over,
        check_vma=False,  # the derivative is written out: nothing is differentiated through this
    )(split, coefficients)


def _forward(plan: Sweep, rows: Rows, positive: jax.Array, coefficients: Coefficients):
    """This device's part of `sweep`."""
    size, scale = rows.index.shape[0], coefficients.scale
    left, right = sides(plan, rows, positive=positive)
    mine, theirs = (
        {
            t: empty_partial(plan, t, side.rows.index.shape, positive.dtype)
            for t in plan.blocks
            if BLOCKS[t].by_column == by_column
        }
        for side, by_column in ((left, False), (right, True))
    )

    def both(old: dict, new: dict) -> dict:
        return {t: merge(p, new[t], scale) for t, p in old.items()}

    def meet(partials: dict, columns: Side) -> tuple[dict, dict]:
        def tile(found: dict, x: tuple[Side, dict]) -> tuple[dict, dict]:
            new = tile_partials(plan, x[0], columns, coefficients)
            return both(found, new), both(x[1], new)

        width = columns.rows.index.shape
        start = {t: empty_partial(plan, t, width, positive.dtype) for t in theirs}
        found, partials = jax.lax.scan(tile, start, (left, partials))
        return partials, found

    mine, theirs = _go_round(plan, meet, mine, right, theirs, merge_parts=both)
    partials = jax.tree.map(lambda x: _join(x)[:size], mine | theirs)
    return sums_of(plan, partials, scale), {t: partials[t].counts for t in plan.blocks}


def _backward(plan: Sweep, rows: Rows, sums: Values, slopes: Values, coefficients: Coefficients):
    """({field: derivative by this device's texts}, derivatives by the coefficients, [1] each)."""
    size, width, dtype = *rows.queries.shape, coefficients.scale.dtype
    left, right = sides(plan, rows, sums=sums, slopes=slopes)
    lefts, rights = (tuple(dict.fromkeys(m[i] for m in plan.matrices)) for i in (0, 1))

    def nothing(shape: tuple[int, ...]) -> dict[str, jax.Array]:
        return {
            name: jnp.zeros((*shape, texts_a_pair(plan, rows, name), width), dtype)
            for name in rights
        }

    def meet(mine: tuple, columns: Side) -> tuple[tuple, dict]:
        def tile(carry, number):
            by_left, bias, found = carry
            row = jax.tree.map(lambda x: x[number], left)
            new = tile_gradients(plan, row, columns, coefficients)
            by_left = {t: x.at[number].add(new.left[t]) for t, x in by_left.items()}
            return (by_left, bias + new.bias, both(found, new.right)), None

        start = (*mine, nothing(columns.rows.index.shape))
        (*mine, found), _ = jax.lax.scan(tile, start, jnp.arange(left.rows.index.shape[0]))
        return tuple(mine), found

    def both(old: dict, new: dict) -> dict:
        return jax.tree.map(jnp.add, old, new)

    by_left = {t: jnp.zeros((*left.rows.index.shape, width), dtype) for t in lefts}
    start = (by_left, jnp.zeros((), dtype))
    theirs = nothing(right.rows.index.shape)
    (by_left, bias), by_right = _go_round(plan, meet, start, right, theirs, merge_parts=both)

    by_left, by_right = ({t: _join(x)[:size] for t, x in d.items()} for d in (by_left, by_right))
    # a score is linear in its left text: the scale's derivative is there without another sweep
    scale = sum(jnp.sum(x * texts_of(rows, t)[:, 0]) for t, x in by_left.items())
    scale = scale / coefficients.scale
    return by_field(rows, by_left, by_right), Coefficients(scale[None], bias[None])


def by_field(rows: Rows, by_left: Values, by_right: Values) -> dict[str, jax.Array]:
    """Derivatives by each field of the rows, in its shape and dtype.

    Args:
      by_left: field -> [b, e], by the first texts as the left of a matrix.
      by_right: field -> [b, k, e], by the first k texts as the right of one.
    """
    found = {}
    for name in dict.fromkeys((*by_left, *by_right)):
        values = getattr(rows, name)
        dtype = (by_left | by_right)[name].dtype
        total = jnp.zeros(texts_of(rows, name, every=True).shape, dtype)
        if name in by_right:
            total = total.at[:, : by_right[name].shape[1]].add(by_right[name])
        if name in by_left:
            total = total.at[:, 0].add(by_left[name])
        found[name] = total.reshape(values.shape).astype(values.dtype)
    return found


def _go_round(
    plan: Sweep,
    meet: Callable,
    mine,
    columns: Side,
    theirs: dict,
    *,
    merge_parts: Callable[[dict, dict], dict],
):
    """Meets all columns of the batch.

    Args:
      meet: (mine, a tile of columns) -> (mine, what the tile's columns came to).
      mine: what stays with this device's rows.
      columns: this device's own columns, [tiles, size].
      theirs: what the columns have come to so far, [tiles, size]: nothing.
      merge_parts: what two devices found for the same columns.

    Returns:
      (mine, theirs), the latter for this device's own columns, from all devices.
    """
    if plan.engine == "blockwise" or (plan.engine == "ring" and plan.mesh.size == 1):
        return jax.lax.scan(meet, mine, columns)
    if plan.engine == "gather":
        return _gather(plan, meet, mine, columns, merge_parts=merge_parts)
    tiles, devices = columns.rows.index.shape[0], plan.mesh.size

    def pass_on(tree):
        to = [(d, (d - 1) % devices) for d in range(devices)]
        return jax.tree.map(lambda x: jax.lax.ppermute(x, plan.mesh.axis_names, to), tree)

    def visit(carry, number):
        mine, columns, theirs = carry
        at = functools.partial(jax.tree.map, lambda x: x[number % tiles])
        put = functools.partial(jax.tree.map, lambda x, v: x.at[number % tiles].set(v))
        column = at(columns)
        arriving, following = pass_on(at(theirs)), pass_on(column)
        mine, found = meet(mine, column)
        return (mine, put(columns, following), put(theirs, merge_parts(arriving, found))), None

    start = (mine, columns, theirs)
    (mine, _, theirs), _ = jax.lax.scan(visit, start, jnp.arange(devices * tiles))
    return mine, pass_on(theirs)


def _gather(plan: Sweep, meet: Callable, mine, columns: Side, *, merge_parts: Callable):
    """`_go_round` where a tile is the columns of all devices."""
    axes, devices = plan.mesh.axis_names, plan.mesh.size

    def visit(mine, column: Side):
        everyone = jax.tree.map(lambda x: jax.lax.all_gather(x, axes, tiled=True), column)
        mine, found = meet(mine, everyone)
        parts = jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), found)
        parts = jax.tree.map(lambda x: jax.lax.all_to_all(x, axes, 0, 0), parts)
        first, rest = (jax.tree.map(lambda x, i=i: x[i], parts) for i in (0, slice(1, None)))
        add = lambda total, part: (merge_parts(total, part), None)  # noqa: E731
        return mine, jax.lax.scan(add, first, rest, length=devices - 1)[0]

    return jax.lax.scan(visit, mine, columns)


def sides(
    plan: Sweep,
    rows: Rows,
    *,
    positive: jax.Array | None = None,
    sums: Values | None = None,
    slopes: Values | None = None,
) -> tuple[Side, Side]:
    """This device's rows as [row tiles, size] and as columns [column tiles, size]."""
    lefts, rights = ({m[i] for m in plan.matrices} for i in (0, 1))
    texts = texts_a_pair(plan, rows, "passages")

    def side(fields: set[str], k: int, *, by_column: bool) -> Side:
        ids = rows.ids
        if ids is not None:
            ids = TextIds(ids.instruction, ids.query, ids.passage[:, :k])
        own = lambda values: {  # noqa: E731
            name: x
            for name, x in (values or {}).items()
            if BLOCKS[name.split("/")[1]].by_column == by_column
        }
        kept = rows._replace(
            queries=rows.queries if "queries" in fields else None,
            passages=rows.passages[:, :k] if "passages" in fields else None,
            ids=ids,
        )
        return Side(kept, positive, own(sums), own(slopes))

    both = side(lefts, 1, by_column=False), side(rights, texts, by_column=True)
    left, right = (
        jax.tree.map(functools.partial(_split, count=count, size=size), tree)
        for tree, (count, size) in zip(both, _tile_sizes(plan, rows.index.shape[0]), strict=True)
    )
    return left, right


def texts_a_pair(plan: Sweep, rows: Rows, name: str) -> int:
    """k of a field on the right: all its texts where a block has them as candidates, else 1."""
    return texts_of(rows, name, every=plan.every(name)).shape[1]


def _tile_sizes(plan: Sweep, rows: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """(count, size) of this device's row tiles and column tiles; both cover the same, >= rows.

    Sizes are even, so that little is padded; one size divides the other or is the same.
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


def zero_cotangent(x: jax.Array):
    """No derivative by x, in the type that jax wants for x's dtype."""
    if jnp.issubdtype(x.dtype, jnp.floating):
        return jnp.zeros_like(x)
    return np.zeros(x.shape, jax.dtypes.float0)
