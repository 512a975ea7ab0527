"""Finds one shape of the packed grids that is enough for all steps, before the first one."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from inf_jax.core.packing import fit
from inf_jax.core.query_encoders import FIRST_EXTRA
from inf_jax.data.layout import BatchLayout
from inf_jax.data.row_counts import rows_of_chunks, surely_fit
from inf_jax.data.sampler import StepAssignment

PLANNED_TEXTS = 2_000_000  # above this many texts the shape is planned on a sample of the steps
SAMPLED_STEPS = 64  # fewer of large steps, whose many chunks are a sample by themselves
SAMPLED_TEXTS = 16_000_000
LEAST_STEPS = 8
_NEIGHBOURS = 4  # sampled steps that follow each other: finding a window of steps takes the time
MARGIN = 1.03  # rows of orders 1 and 2 added to the largest sampled need
# Chunks of a step that are fitted again with more effort, a fraction of a millisecond each. The
# plan makes fewer attempts than a step may: that is its margin for the steps outside the sample.
_REFITTED, _PLANNED_ATTEMPTS, _ATTEMPTS = 64, 3, 16


class PackingPlan(NamedTuple):
    """The shape of all steps, and what fills it.

    Attributes:
      rows: of a chunk's grid, one number a grid (one for shared towers, two for separate).
      exact: all steps were assigned; otherwise a sample, and a rare step may need a larger shape.
      refit: chunks that need more rows are fitted again with more effort.
      fill: mean share of token slots that hold a token.
      tokens: mean real tokens of a step, over the whole mesh.
      pairs: mean pairs of a step.
      sampled_tokens: mean tokens of the sampled instruction negatives of a step.
      sampled: mean sampled instruction negatives of a pair.
      poisons: mean poisoned instructions of a pair, which cost no tokens; 0 without block I.
      negatives: mean drawn hard negatives of a pair.
      negative_squares: mean sum over the hard negatives of a step of tokens^2.
    """

    rows: tuple[int, ...]
    exact: bool
    refit: bool
    fill: float
    tokens: float
    pairs: float
    sampled_tokens: float
    sampled: float
    poisons: float
    negatives: float
    negative_squares: float

    def rows_for(self, assignment: StepAssignment, layout: BatchLayout) -> tuple[int, ...]:
        """The planned rows; where a step needs more, the next of a few larger shapes (each is
        another compilation)."""
        if self.exact:
            return self.rows
        larger = []
        for grid, planned in enumerate(self.rows):
            needed = _Needs(assignment, layout, grid).most(planned, _ATTEMPTS * self.refit)
            stride = max(1, planned // 8)
            larger.append(planned + -(-max(0, needed - planned) // stride) * stride)
        return tuple(larger)


def plan_packing(
    assign: Callable[[int], StepAssignment], layout: BatchLayout, *, steps: int, refit: bool
) -> PackingPlan:
    """The plan of a run; `assign` gives the assignment of a step. UserError: a text is longer than
    a row.

    Args:
      refit: see `PackingPlan`; False for orders 1 and 2, whose shapes stay as they were.
    """
    texts_a_step = layout.columns * layout.pairs
    exact = steps * texts_a_step <= PLANNED_TEXTS
    count = min(SAMPLED_STEPS, max(LEAST_STEPS, SAMPLED_TEXTS // texts_a_step))
    if refit:
        count = max(count, PLANNED_TEXTS // 4 // texts_a_step)
    sample = np.arange(steps) if exact else _spread(steps, count, _NEIGHBOURS if refit else 1)
    rows, counts = [0] * len(layout.grids), []
    for step in sample.tolist():
        assignment = assign(step)
        lengths, instructions = assignment.lengths, assignment.instructions
        for grid, so_far in enumerate(rows):
            needs = _Needs(assignment, layout, grid)
            rows[grid] = needs.with_few_refits(so_far) if refit else max(so_far, needs.rows.max())
        sums = (
            lengths.sum(),
            np.count_nonzero(lengths[:, 0]),
            lengths[:, FIRST_EXTRA : FIRST_EXTRA + layout.sampled].sum(),
            np.count_nonzero(assignment.drawn >= 0),
            instructions.poisoned if instructions else 0,
            np.count_nonzero(assignment.negatives >= 0),
            np.square(lengths[:, layout.first_negative :], dtype=np.float64).sum(),
        )
        counts.append(sums)
    if not (exact or refit):
        rows = [np.ceil(r * MARGIN) for r in rows]
    capacity = layout.chunks * sum(rows) * layout.row_tokens
    means = np.mean(counts, axis=0).tolist()
    tokens, pairs, sampled_tokens, sampled, poisons, negatives, squares = means
    return PackingPlan(
        rows=tuple(int(r) for r in rows),
        exact=exact,
        refit=refit,
        fill=float(tokens / capacity),
        tokens=tokens,
        pairs=pairs,
        sampled_tokens=sampled_tokens,
        sampled=sampled / pairs,
        poisons=poisons / pairs,
        negatives=negatives / pairs,
        negative_squares=squares,
    )


def _spread(steps: int, count: int, neighbours: int) -> np.ndarray:
    """int64[...], about `count` of the steps, rising: from the first to the last, as many of each
    neighbourhood."""
    neighbours = min(neighbours, count, steps)
    first = np.linspace(0, steps - neighbours, -(-count // neighbours)).astype(int)
    return np.unique(first[:, None] + np.arange(neighbours))


def planned_rows(texts: np.ndarray, row_tokens: int, texts_per_row: int) -> int:
    """Rows of a chunk of these lengths, int[k], with the effort that a plan makes."""
    least = -(-int(texts.sum()) // row_tokens)
    found, _, _ = fit(texts, row_tokens, texts_per_row, rows=least, attempts=_PLANNED_ATTEMPTS)
    return int(found.max(initial=-1)) + 1


class _Needs:
    """Rows that the chunks of a step need in a grid."""

    def __init__(self, assignment: StepAssignment, layout: BatchLayout, grid: int):
        # an empty slot is pair -1, the column of zeros; contiguous, which is gathered twice as fast
        columns = np.pad(assignment.lengths.T, ((0, 0), (0, 1)))
        groups = layout.grids[grid]
        self._texts = np.hstack([columns[c][assignment.chunks] for group in groups for c in group])
        self._row = layout.row_tokens, layout.texts_per_row

    @functools.cached_property
    def rows(self) -> np.ndarray:
        """int64[c], of a first fit."""
        return rows_of_chunks(self._texts, *self._row)

    def most(self, planned: int, attempts: int) -> int:
        """The rows that all chunks fit after these attempts of those above `planned`; 0 of no
        chunk above it."""
        [unsure] = np.nonzero(~surely_fit(self._texts, *self._row, rows=planned))
        above = unsure[rows_of_chunks(self._texts[unsure], *self._row) > planned].tolist()
        return max((self._refit(n, planned, attempts) for n in above), default=0)

    def with_few_refits(self, least: int) -> int:
        """As `most`, at least `least`, and so many that few chunks have to be fitted again."""
        fullest = np.sort(self.rows)[-_REFITTED - 1 :]
        tokens = int(self._texts.sum(1).max())
        rows = max(least, -(-tokens // self._row[0]))
        if len(fullest) > _REFITTED:
            rows = max(rows, int(fullest[0]))
        for chunk in np.flatnonzero(self.rows > rows).tolist():
            if self.rows[chunk] > rows:
                rows = max(rows, self._refit(chunk, rows, _PLANNED_ATTEMPTS))
        return rows

    def _refit(self, chunk: int, rows: int, attempts: int) -> int:
        found, _, _ = fit(self._texts[chunk], *self._row, rows=rows, attempts=attempts)
        return int(found.max(initial=-1)) + 1
