"""One tile of scores, a block of rows by a block of columns: its sums and gradient contribution."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from inf_jax.losses.blocks import BLOCKS, LogitBlock
from inf_jax.losses.by_score import NO_RULES, ByScore
from inf_jax.losses.candidates import RowTexts, dots, eligible_texts, known_of, texts_of

Values = dict[str, jax.Array]  # "lse/P" or "softplus/P" -> [b]


@dataclasses.dataclass(frozen=True)
class BlockwisePlan:
    """Which sums an engine computes, and in which tiles; static.

    Attributes:
      lse: blocks that need logsumexp(scale x) over their negatives x.
      softplus: blocks that need the sum of softplus(scale x + bias) over their negatives x.
      engine: dense, blockwise, ring or gather.
      tile: (rows, columns) of a tile on a device, at most.
      mesh: all its axes split the batch; dense and blockwise need none.
      by_score: rules for candidates.
    """

    lse: tuple[str, ...]
    softplus: tuple[str, ...]
    engine: str
    tile: tuple[int, int]
    mesh: Mesh | None = None
    by_score: ByScore = NO_RULES

    @property
    def blocks(self) -> tuple[str, ...]:
        """All blocks of the plan, in the order of `BLOCKS`."""
        return tuple(name for name in BLOCKS if name in self.lse + self.softplus)

    @property
    def matrices(self) -> dict[tuple[str, str], list[str]]:
        """(left, right) -> the blocks that are rows or columns of this matrix."""
        blocks: dict[tuple[str, str], list[str]] = {}
        for name in self.blocks:
            blocks.setdefault(BLOCKS[name].matrix, []).append(name)
        return blocks

    def all_texts(self, right: str) -> bool:
        """Whether a block has all texts of this field as candidates."""
        return any(BLOCKS[t].all_texts for t in self.blocks if BLOCKS[t].right == right)


class Coefficients(NamedTuple):
    """scale and bias of the logits: scalars of the scores' dtype."""

    scale: jax.Array
    bias: jax.Array


class Counts(NamedTuple):
    """Statistics of a block's negatives for each row; no gradient.

    Attributes:
      hardest: [b], the largest score (not scaled) of a negative; -inf where there is none.
      above: int32[b], negatives that score above the row's positive.
      negatives: int32[b], candidates left after the identity mask.
      masked: int32[b], candidates that the identity mask removed.
      close: int32[b], candidates that the score mask removed; None without one.
    """

    hardest: jax.Array
    above: jax.Array
    negatives: jax.Array
    masked: jax.Array
    close: jax.Array | None = None


class Masks(NamedTuple):
    """bool[r, n], of the scores of a block.

    Attributes:
      eligible: by index, see `candidates.eligible_texts`.
      distinct: of these, left by the identity mask.
      negative: of these, left by the score mask.
    """

    eligible: jax.Array
    distinct: jax.Array
    negative: jax.Array


class Partial(NamedTuple):
    """Counts and sums of a block over some of its candidates; None where not needed."""

    counts: Counts
    exponentials: jax.Array | None  # [b], sum of exp(scale * (x - hardest) + what hardness adds)
    softplus: jax.Array | None  # [b], sum of softplus(scale * x + bias)


class Side(NamedTuple):
    """The rows or the columns of a tile.

    Attributes:
      rows: texts and ids; a field that this side does not need is None.
      positive: [b], <q_i, p_i>; None in the backward pass without a score mask.
      sums, slopes: in the backward pass, the sums of this side's blocks over the whole batch and
        the loss's derivatives by them; else empty.
    """

    rows: RowTexts
    positive: jax.Array | None
    sums: Values
    slopes: Values


def count_scores(
    scores: jax.Array, masks: Masks, positive: jax.Array, *, axis: int, by_score: bool
) -> Counts:
    """Counts along an axis of scores [r, n]; by_score: there is a score mask."""
    negative = masks.negative
    count = functools.partial(jnp.sum, axis=axis, dtype=jnp.int32)
    return Counts(
        hardest=jnp.max(jnp.where(negative, scores, -jnp.inf), axis),
        above=count(negative & (scores > jnp.expand_dims(positive, axis))),
        negatives=count(negative),
        masked=count(masks.eligible & ~masks.distinct),
        close=count(masks.distinct & ~negative) if by_score else None,
    )


def empty_partial(plan: BlockwisePlan, name: str, shape: Sequence[int], dtype) -> Partial:
    """The sums over no candidates."""
    none = jnp.zeros(shape, jnp.int32)
    zeros = jnp.zeros(shape, dtype)
    return Partial(
        Counts(
            jnp.full(shape, -jnp.inf, dtype),
            *(none, none, none),
            close=none if plan.by_score.masks(BLOCKS[name]) else None,
        ),
        zeros if name in plan.lse else None,
        zeros if name in plan.softplus else None,
    )


def merge(old: Partial, new: Partial, scale: jax.Array) -> Partial:
    """The sums over both sets of candidates."""
    hardest = jnp.maximum(old.counts.hardest, new.counts.hardest)

    def rebased(part: Partial) -> jax.Array:
        # an unchanged maximum is not subtracted from itself: -inf - -inf is NaN
        same = part.counts.hardest == hardest
        difference = jnp.where(same, 0, part.counts.hardest - jnp.where(same, 0, hardest))
        return part.exponentials * jnp.exp(scale * difference)

    added = jax.tree.map(jnp.add, old._replace(exponentials=None), new._replace(exponentials=None))
    return added._replace(
        counts=added.counts._replace(hardest=hardest),
        exponentials=None if old.exponentials is None else rebased(old) + rebased(new),
    )


def sums_of(plan: BlockwisePlan, partials: dict[str, Partial], scale: jax.Array) -> Values:
    """The sums over all candidates from their parts."""
    lse = {
        f"lse/{t}": scale * partials[t].counts.hardest + jnp.log(partials[t].exponentials)
        for t in plan.lse
    }
    return lse | {f"softplus/{t}": partials[t].softplus for t in plan.softplus}


def tile_partials(
    plan: BlockwisePlan, rows: Side, columns: Side, coefficients: Coefficients
) -> dict[str, Partial]:
    """Each block's sums over one tile: for its rows, or by column for its columns."""
    partials = {}
    for matrix, names in plan.matrices.items():
        tile = _Tile(plan, matrix, rows, columns)
        for name in names:
            block = BLOCKS[name]
            x, masks = tile.scores_of(block), tile.masks_of(block)
            axis, owner = (0, columns) if block.by_column else (1, rows)
            by_score = plan.by_score.masks(block)
            counts = count_scores(x, masks, owner.positive, axis=axis, by_score=by_score)
            negative = masks.negative
            exponentials = softplus = None
            if name in plan.lse:
                shift = jnp.where(counts.hardest == -jnp.inf, 0, counts.hardest)
                shifted = coefficients.scale * (x - jnp.expand_dims(shift, axis))
                shifted = jnp.exp(tile.with_hardness(shifted, x, block))
                exponentials = jnp.sum(jnp.where(negative, shifted, 0), axis)
            if name in plan.softplus:
                logits = coefficients.scale * x + coefficients.bias
                softplus = jnp.sum(jnp.where(negative, jax.nn.softplus(logits), 0), axis)
            partials[name] = Partial(counts, exponentials, softplus)
    return partials


class TileGradients(NamedTuple):
    """A tile's part of the derivatives."""

    left: dict[str, jax.Array]  # field -> [r, e], by the rows' texts on the left of a matrix
    right: dict[str, jax.Array]  # field -> [c, k, e], by the columns' texts on the right
    bias: jax.Array  # scalar


def tile_gradients(
    plan: BlockwisePlan, rows: Side, columns: Side, coefficients: Coefficients
) -> TileGradients:
    """Derivatives of sum_i <slopes_i, sums_i> over one tile, whose scores are recomputed."""
    left: dict[str, jax.Array] = {}
    right: dict[str, jax.Array] = {}
    bias = jnp.zeros((), coefficients.bias.dtype)
    for matrix, names in plan.matrices.items():
        tile, slopes = _Tile(plan, matrix, rows, columns), 0
        for name in names:
            block = BLOCKS[name]
            x, negative = tile.scores_of(block), tile.masks_of(block).negative
            logits, slope = coefficients.scale * x, jnp.zeros_like(x)
            owner, axis = (columns, 0) if block.by_column else (rows, 1)
            own = functools.partial(jnp.expand_dims, axis=axis)
            if name in plan.lse:
                lse, by_lse = owner.sums[f"lse/{name}"], owner.slopes[f"lse/{name}"]
                slope += jnp.exp(tile.with_hardness(logits - own(lse), x, block)) * own(by_lse)
            if name in plan.softplus:
                part = jax.nn.sigmoid(logits + coefficients.bias)
                part *= own(owner.slopes[f"softplus/{name}"])
                slope += part
                bias += jnp.sum(jnp.where(negative, part, 0))
            slopes += tile.spread(jnp.where(negative, slope, 0), block)
        by_left, by_right = tile.products(coefficients.scale * slopes)
        left[matrix[0]] = by_left + left.get(matrix[0], 0)
        right[matrix[1]] = by_right + right.get(matrix[1], 0)
    return TileGradients(left, right, bias)


class _Tile:
    """The scores of r rows against c columns of k texts, [r, c * k], as the blocks see them.

    All products are of plain matrices: a compiler may copy the operands of others.
    """

    def __init__(self, plan: BlockwisePlan, matrix: tuple[str, str], rows: Side, columns: Side):
        self._rows, self._columns = rows.rows, columns.rows
        self._by_score, self._positive = plan.by_score, (rows.positive, columns.positive)
        self._left = texts_of(self._rows, matrix[0])[:, 0]
        right = texts_of(self._columns, matrix[1], all_texts=plan.all_texts(matrix[1]))
        self._texts = right.shape[1]  # texts a pair in the plan; this tile has the first k
        self._k = self._texts if any(BLOCKS[n].all_texts for n in plan.matrices[matrix]) else 1
        self._right = right[:, : self._k].reshape(-1, right.shape[2])
        self._scores = dots("re,ne->rn", self._left, self._right)

    def scores_of(self, block: LogitBlock) -> jax.Array:
        """[r, c * k], or of the first texts only [r, c]."""
        if block.all_texts or self._k == 1:
            return self._scores
        return self._scores.reshape(-1, len(self._columns.index), self._k)[:, :, 0]

    def masks_of(self, block: LogitBlock) -> Masks:
        """In the shape of `scores_of`."""
        rows, columns, k = self._rows, self._columns, self._k if block.all_texts else 1
        eligible = distinct = eligible_texts(rows, columns, k, by_column=block.by_column)
        if rows.ids is not None:
            distinct = eligible & ~known_of(rows, columns, k)
        eligible, distinct = (x.reshape(x.shape[0], -1) for x in (eligible, distinct))
        negative = distinct
        if self._by_score.masks(block):
            mine = self._positive[block.by_column]
            positive = jnp.expand_dims(mine, 0 if block.by_column else 1)
            negative = distinct & self._by_score.kept(self.scores_of(block), positive)
        return Masks(eligible, distinct, negative)

    def with_hardness(self, logits: jax.Array, scores: jax.Array, block: LogitBlock) -> jax.Array:
        """The logits of a softmax with what hardness adds, in the shape of `scores_of`."""
        extra = self._by_score.added(scores, block, self._rows, self._columns)
        return logits if extra is None else logits + extra

    def spread(self, values: jax.Array, block: LogitBlock) -> jax.Array:
        """The inverse of `scores_of`: zeros for the texts that are not in the block."""
        if block.all_texts or self._k == 1:
            return values
        wide = jnp.pad(values[:, :, None], ((0, 0), (0, 0), (0, self._k - 1)))
        return wide.reshape(values.shape[0], -1)

    def products(self, slopes: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Derivatives by the left texts [r, e] and the right ones [c, texts, e]."""
        slopes = slopes.astype(jnp.promote_types(self._left.dtype, self._right.dtype))
        by_left = dots("rn,ne->re", slopes, self._right)
        by_right = dots("rn,re->ne", slopes, self._left)
        by_right = by_right.reshape(-1, self._k, by_right.shape[1])
        return by_left, jnp.pad(by_right, ((0, 0), (0, self._texts - self._k), (0, 0)))
