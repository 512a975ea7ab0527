"""The sweep of one device in three products in place of four, for blocks by row alone.

A row's loss needs that row's own sums and no others'. So a few rows against all columns give their
sums, the loss's derivatives by these, and with the scores still at hand the rows' part of all
gradients: no score is computed twice. `sweep` cannot do that: where a block goes by column (IQ), or
columns are on other devices, sums are complete at the end of the round only.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from inf_jax.losses.blocks import BLOCKS, Rows, texts_of
from inf_jax.losses.blockwise import by_field, sides, texts_a_pair, zero_cotangent
from inf_jax.losses.tiles import (
    Coefficients,
    Counts,
    Sweep,
    Values,
    sums_of,
    tile_gradients,
    tile_partials,
)

LEAST_ROWS = 512
MOST_TILES = 8  # of scores at once


def applies(plan: Sweep, rows: Rows) -> bool:
    """Whether `one_pass` can do this sweep, and holds not much more at once than its tiles do."""
    by_row = not any(BLOCKS[name].by_column for name in plan.blocks)
    room = MOST_TILES * plan.tile[0] * plan.tile[1]
    fits = min(LEAST_ROWS, plan.tile[0]) * _scores_a_row(plan, rows) <= room
    return plan.engine == "blockwise" and bool(plan.blocks) and by_row and fits


def _scores_a_row(plan: Sweep, rows: Rows) -> int:
    """Scores of one row with all columns, in all matrices."""
    texts = sum(texts_a_pair(plan, rows, matrix[1]) for matrix in plan.matrices)
    return max(texts * rows.index.shape[0], 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def one_pass(
    plan: Sweep,
    row_losses: Callable,
    rows: Rows,
    positive: jax.Array,
    own: Values,
    coefficients: Coefficients,
    weights: jax.Array,
) -> tuple[jax.Array, tuple[Values, dict[str, Counts]]]:
    """sum_i weights_i row_losses_i, with gradients.

    Args:
      plan: blocks by row; a tile is as many rows against all columns as it has room for.
      row_losses: (sums, positive, coefficients) -> [r], the losses of r rows; static.
      rows, positive, coefficients: as for `sweep`; here positive gets a gradient.
      own: further sums that row_losses wants, [b] each.
      weights: [b], no gradient; 0 for an empty slot.

    Returns:
      (loss, (sums, counts)): as `sweep` gives them, without gradient.
    """
    return _scan(plan, row_losses, rows, positive, own, coefficients, weights, gradients=False)[0]


def _with_gradients(plan, row_losses, *arguments):
    return _scan(plan, row_losses, *arguments, gradients=True)


def _scaled(plan, row_losses, gradients, cotangents):
    slope = cotangents[0]

    def times(x: jax.Array) -> jax.Array:
        return x if x.dtype == jax.dtypes.float0 else (slope * x).astype(x.dtype)

    return jax.tree.map(times, gradients)


one_pass.defvjp(_with_gradients, _scaled)


def _scan(plan, row_losses, rows, positive, own, coefficients, weights, *, gradients):
    """(result, gradients by all arguments), the latter None where not wanted."""
    size, width = rows.queries.shape
    # As many rows as a tile has room for with all columns, but not so few that adding to the
    # columns' gradients, once for each of these tiles, takes longer than the products.
    room = plan.tile[0] * plan.tile[1] // _scores_a_row(plan, rows)
    height = min(max(room, LEAST_ROWS), plan.tile[0])
    whole = Sweep(plan.lse, plan.softplus, plan.engine, (height, max(size, height)))
    left, right = sides(whole, rows, positive=positive)
    columns = jax.tree.map(lambda x: x[0], right)
    # Plain matrices outside the loop: texts with an axis of size 1 are laid out in another way
    # there, and the loop would get a copy of all of them.
    shapes = jax.eval_shape(lambda: columns)
    flat = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]) if x.ndim == 3 else x, columns)
    padding = left.rows.index.size - size
    split = lambda x: jnp.pad(x, (0, padding)).reshape(left.rows.index.shape)  # noqa: E731
    own, weights = jax.tree.map(split, (own, weights))
    zero = jnp.zeros((), positive.dtype)
    rights = dict.fromkeys(matrix[1] for matrix in plan.matrices)
    by_right = {
        name: jnp.zeros(
            (len(columns.rows.index), texts_a_pair(plan, rows, name), width), zero.dtype
        )
        for name in rights
    }

    def tile(carry, x):
        loss, by_right, slopes_of = carry
        mine, own, weights = x
        columns = jax.tree.map(lambda x, own: x.reshape(own.shape), flat, shapes)
        partials = tile_partials(whole, mine, columns, coefficients)
        sums = sums_of(whole, partials, coefficients.scale)
        counts = {t: p.counts for t, p in partials.items()}

        def of(sums, positive, own, coefficients):
            return jnp.sum(weights * row_losses(sums | own, positive, coefficients))

        if not gradients:
            part = of(sums, mine.positive, own, coefficients)
            return (loss + part, by_right, slopes_of), (sums, counts)
        part, slopes = jax.value_and_grad(of, (0, 1, 2, 3))(sums, mine.positive, own, coefficients)
        # the same scores and exponentials as above: compiled once
        hardest = {t: c.hardest for t, c in counts.items()}
        owner = mine._replace(sums=sums, slopes=slopes[0], hardest=hardest)
        new = tile_gradients(whole, owner, columns, coefficients)
        scale = sum(jnp.sum(v * texts_of(mine.rows, name)[:, 0]) for name, v in new.left.items())
        slopes_of = jax.tree.map(jnp.add, slopes_of, slopes[3])
        slopes_of = Coefficients(
            slopes_of.scale + scale / coefficients.scale, slopes_of.bias + new.bias
        )
        carry = loss + part, jax.tree.map(jnp.add, by_right, new.right), slopes_of
        return carry, (sums, counts, new.left, slopes[1], slopes[2])

    start = zero, by_right if gradients else {}, Coefficients(zero, zero)
    (loss, by_right, by_coefficient), found = jax.lax.scan(tile, start, (left, own, weights))
    found = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:size], found)
    result = loss, found[:2]
    if not gradients:
        return result, None
    _, _, by_left, by_positive, by_own = found
    texts = by_field(rows, by_left, {name: x[:size] for name, x in by_right.items()})
    by_rows = jax.tree.map(zero_cotangent, rows)._replace(**texts)
    by_weight = jnp.zeros_like(weights).reshape(-1)[:size]
    return result, (by_rows, by_positive, by_own, by_coefficient, by_weight)
