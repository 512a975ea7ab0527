"""A tile of scores, some rows against some columns: its sums, and its part of the gradients."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from inf_jax.blocks import BLOCKS, Rows, dots, same_texts, texts_of

Values = dict[str, jax.Array]  # "lse/P" or "softplus/P" -> [b]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What to sum and how; static.

    Attributes:
      lse, softplus: blocks whose logsumexp(scale x), whose sum of softplus(scale x + bias) over the
        negatives x is wanted.
      engine: blockwise, ring or gather.
      tile: (rows, columns) of a tile at the most, on a device.
      mesh: all its axes split the batch; None for blockwise.
    """

    lse: tuple[str, ...]
    softplus: tuple[str, ...]
    engine: str
    tile: tuple[int, int]
    mesh: Mesh | None = None

    @property
    def blocks(self) -> tuple[str, ...]:
        """All blocks of the sweep, in the order of `BLOCKS`."""
        return tuple(name for name in BLOCKS if name in self.lse + self.softplus)

    @property
    def matrices(self) -> dict[tuple[str, str], list[str]]:
        """(left, right) -> the blocks that are rows or columns of this matrix."""
        found: dict[tuple[str, str], list[str]] = {}
        for name in self.blocks:
            found.setdefault(BLOCKS[name].matrix, []).append(name)
        return found

    def every(self, right: str) -> bool:
        """Whether a block has all texts of this field as candidates."""
        return any(BLOCKS[t].every for t in self.blocks if BLOCKS[t].right == right)


class Coefficients(NamedTuple):
    """scale and bias of the logits: scalars of the scores' dtype."""

    scale: jax.Array
    bias: jax.Array


class Counts(NamedTuple):
    """What a block's negatives are like for each row; no gradient.

    Attributes:
      hardest: [b], the largest score (not scaled) of a negative; -inf where there is none.
      above: int32[b], negatives that score above the row's positive.
      negatives: int32[b], candidates left after the identity mask.
      masked: int32[b], candidates that the identity mask took out.
    """

    hardest: jax.Array
    above: jax.Array
    negatives: jax.Array
    masked: jax.Array


class Partial(NamedTuple):
    """Counts and sums of a block over some of its candidates; None where not wanted.

    Attributes:
      counts: see Counts.
      exponentials: [b], sum of exp(scale * (x - hardest)).
      softplus: [b], sum of softplus(scale * x + bias).
    """

    counts: Counts
    exponentials: jax.Array | None
    softplus: jax.Array | None


class Side(NamedTuple):
    """The rows or the columns of a tile.

    Attributes:
      rows: texts and ids; a field that this side does not need is None.
      positive: [b], <q_i, p_i>; None in the backward pass.
      sums, slopes: in the backward pass, the sums that this side's blocks came to and the loss's
        derivatives by them; else empty.
    """

    rows: Rows
    positive: jax.Array | None
    sums: Values
    slopes: Values


def empty_partial(plan: Sweep, name: str, shape: Sequence[int], dtype) -> Partial:
    """The sums over no candidates."""
    none = jnp.zeros(shape, jnp.int32)
    zeros = jnp.zeros(shape, dtype)
    return Partial(
        Counts(jnp.full(shape, -jnp.inf, dtype), none, none, none),
        zeros if name in plan.lse else None,
        zeros if name in plan.softplus else None,
    )


def merge(old: Partial, new: Partial, scale: jax.Array) -> Partial:
    """The sums over both sets of candidates."""
    hardest = jnp.maximum(old.counts.hardest, new.counts.hardest)

    def rebased(part: Partial) -> jax.Array:
        # the same maximum, -inf at that, is left as it is: inf - inf is no number
        same = part.counts.hardest == hardest
        difference = jnp.where(same, 0, part.counts.hardest - jnp.where(same, 0, hardest))
        return part.exponentials * jnp.exp(scale * difference)

    added = jax.tree.map(
        jnp.add,
        old._replace(exponentials=None),
        new._replace(exponentials=None),
    )
    return added._replace(
        counts=added.counts._replace(hardest=hardest),
        exponentials=None if old.exponentials is None else rebased(old) + rebased(new),
    )


def tile_partials(
    plan: Sweep, rows: Side, columns: Side, coefficients: Coefficients
) -> dict[str, Partial]:
    """Each block's sums over one tile: for its rows, or by column for its columns."""
    found = {}
    masks = _Masks(rows.rows, columns.rows)
    for matrix, names in plan.matrices.items():
        scores = _scores(plan, matrix, rows.rows, columns.rows)
        for name in names:
            block = BLOCKS[name]
            x = _flat(scores if block.every else scores[:, :, :1])
            other, masked = masks.of(name)
            negative = other & ~masked
            axis, owner = (0, columns) if block.by_column else (1, rows)
            positive = jnp.expand_dims(owner.positive, axis)
            hardest = jnp.max(jnp.where(negative, x, -jnp.inf), axis)
            finite = jnp.expand_dims(jnp.where(hardest == -jnp.inf, 0, hardest), axis)
            exponentials = softplus = None
            if name in plan.lse:
                terms = jnp.where(negative, jnp.exp(coefficients.scale * (x - finite)), 0)
                exponentials = jnp.sum(terms, axis)
            if name in plan.softplus:
                logits = coefficients.scale * x + coefficients.bias
                softplus = jnp.sum(jnp.where(negative, jax.nn.softplus(logits), 0), axis)
            count = lambda which, axis=axis: jnp.sum(which, axis, dtype=jnp.int32)  # noqa: E731
            counts = Counts(
                hardest, count(negative & (x > positive)), count(negative), count(other & masked)
            )
            found[name] = Partial(counts, exponentials, softplus)
    return found


class TileGradients(NamedTuple):
    """A tile's part of the derivatives; those by texts are still to be multiplied by the scale.

    Attributes:
      left: field -> [r, e], by the rows' texts on the left of a matrix.
      right: field -> [c, k, e], by the columns' texts on the right.
      bias: scalar.
    """

    left: dict[str, jax.Array]
    right: dict[str, jax.Array]
    bias: jax.Array


def tile_gradients(
    plan: Sweep, rows: Side, columns: Side, coefficients: Coefficients
) -> TileGradients:
    """Derivatives of sum_i <slopes_i, sums_i> over one tile, its scores computed again."""
    masks = _Masks(rows.rows, columns.rows)
    left: dict[str, jax.Array] = {}
    right: dict[str, jax.Array] = {}
    bias = jnp.zeros((), coefficients.bias.dtype)
    for matrix, names in plan.matrices.items():
        x = _scores(plan, matrix, rows.rows, columns.rows)
        every, one = jnp.zeros_like(x), jnp.zeros_like(x[:, :, :1])
        for name in names:
            block = BLOCKS[name]
            other, masked = masks.of(name)
            owner, axis = (columns, 0) if block.by_column else (rows, 1)
            own = lambda v, axis=axis: jnp.expand_dims(v, (axis, 2))  # noqa: E731
            logits = coefficients.scale * (x if block.every else x[:, :, :1])
            slope = jnp.zeros_like(logits)
            if name in plan.lse:
                lse = own(owner.sums[f"lse/{name}"])
                slope += jnp.exp(logits - lse) * own(owner.slopes[f"lse/{name}"])
            negative = (other & ~masked).reshape(logits.shape)
            if name in plan.softplus:
                sigmoid = jax.nn.sigmoid(logits + coefficients.bias)
                part = sigmoid * own(owner.slopes[f"softplus/{name}"])
                slope += part
                bias += jnp.sum(jnp.where(negative, part, 0))
            slope = jnp.where(negative, slope, 0)
            if block.every:
                every += slope
            else:
                one += slope
        slopes = every + jnp.pad(one, ((0, 0), (0, 0), (0, x.shape[2] - 1)))
        _add_products(plan, matrix, slopes, rows.rows, columns.rows, left, right)
    return TileGradients(left, right, bias)


def _add_products(plan, matrix, slopes, rows: Rows, columns: Rows, left: dict, right: dict) -> None:
    mine = texts_of(rows, matrix[0])[:, 0]
    theirs = texts_of(columns, matrix[1], every=plan.every(matrix[1]))
    slopes = slopes.astype(jnp.promote_types(mine.dtype, theirs.dtype))
    by_left = dots("rck,cke->re", slopes, theirs[:, : slopes.shape[2]])
    by_right = dots("rck,re->cke", slopes, mine)
    by_right = jnp.pad(by_right, ((0, 0), (0, theirs.shape[1] - by_right.shape[1]), (0, 0)))
    left[matrix[0]] = by_left + left.get(matrix[0], 0)
    right[matrix[1]] = by_right + right.get(matrix[1], 0)


def _scores(plan: Sweep, matrix: tuple[str, str], rows: Rows, columns: Rows) -> jax.Array:
    """[r, c, k], k the texts that a block of this matrix has as candidates."""
    every = any(BLOCKS[name].every for name in plan.matrices[matrix])
    texts = texts_of(columns, matrix[1], every=every)
    return dots("re,cke->rck", texts_of(rows, matrix[0])[:, 0], texts)


class _Masks:
    """The masks of one tile, the same for every block but for whose side the candidates are on."""

    def __init__(self, rows: Rows, columns: Rows):
        self._rows, self._columns = rows, columns
        self._others = (rows.index[:, None] != columns.index[None])[:, :, None]

    def of(self, name: str) -> tuple[jax.Array, jax.Array]:
        """(other, same): bool[r, c * k] each, see Candidates."""
        rows, columns, block = self._rows, self._columns, BLOCKS[name]
        k = 1
        if block.every:
            k = texts_of(columns, block.right, every=True).shape[1]
        filled = rows.valid[:, None] if block.by_column else columns.valid[None]
        other = (self._others | (jnp.arange(k)[None, None] > 0)) & filled[:, :, None]
        same = jnp.zeros_like(other) if rows.ids is None else same_texts(rows.ids, columns.ids, k)
        return _flat(other), _flat(same)


def _flat(x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[0], -1)
