"""Finds one shape of the packed grids that is enough for all steps, before the first one."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from inf_jax.core.packing import rows_needed
from inf_jax.core.query_encoders import FIRST_EXTRA
from inf_jax.data.layout import BatchLayout
from inf_jax.data.records import PAIRS_PER_EXAMPLE
from inf_jax.data.sampler import StepAssignment

PLANNED_TEXTS = 2_000_000  # above this many texts the shape is planned on a sample of the steps
SAMPLED_STEPS = 64
MARGIN = 1.03  # rows added to the largest sampled need


class PackingPlan(NamedTuple):
    """The shape of all steps, and what fills it.

    Attributes:
      rows: of a chunk's grid, one number a grid (one for shared towers, two for separate).
      exact: all steps were assigned; otherwise a sample, and a rare step may need a larger shape.
      fill: mean share of token slots that hold a token.
      tokens: mean real tokens of a step, over the whole mesh.
      pairs: mean pairs of a step.
      sampled_tokens: mean tokens of the sampled instruction negatives of a step.
      sampled: mean sampled instruction negatives of a pair.
      poisons: mean poisoned instructions of a pair, which cost no tokens.
    """

    rows: tuple[int, ...]
    exact: bool
    fill: float
    tokens: float
    pairs: float
    sampled_tokens: float
    sampled: float
    poisons: float

    def rows_for(self, assignment: StepAssignment, layout: BatchLayout) -> tuple[int, ...]:
        """The planned rows; where a step needs more, the next of a few larger shapes (each is
        another compilation)."""
        if self.exact:
            return self.rows
        larger = []
        for need, planned in zip(_rows_needed(assignment, layout), self.rows, strict=True):
            stride = max(1, planned // 8)
            larger.append(planned + -(-max(0, need - planned) // stride) * stride)
        return tuple(larger)


def plan_packing(
    assign: Callable[[int], StepAssignment], layout: BatchLayout, *, steps: int
) -> PackingPlan:
    """The plan of a run; `assign` gives the assignment of a step. UserError: a text is longer than
    a row."""
    texts_a_step = layout.columns * PAIRS_PER_EXAMPLE * layout.batch_size
    exact = steps * texts_a_step <= PLANNED_TEXTS
    spread = np.linspace(0, steps - 1, SAMPLED_STEPS).astype(int)
    sample = np.arange(steps) if exact else np.unique(spread)
    rows, counts = [], []
    for step in sample.tolist():
        assignment = assign(step)
        lengths, hashes = assignment.lengths, assignment.hashes
        rows.append(_rows_needed(assignment, layout))
        sums = (
            lengths.sum(),
            np.count_nonzero(lengths[:, 0]),
            lengths[:, FIRST_EXTRA : FIRST_EXTRA + layout.sampled].sum(),
            np.count_nonzero(assignment.drawn >= 0),
            np.count_nonzero(hashes[assignment.sibling] != hashes),
        )
        counts.append(sums)
    most = np.max(rows, axis=0)
    if not exact:
        most = np.ceil(most * MARGIN).astype(int)
    capacity = layout.chunks * most.sum() * layout.row_tokens
    tokens, pairs, sampled_tokens, sampled, poisons = np.mean(counts, axis=0).tolist()
    return PackingPlan(
        rows=tuple(int(r) for r in most),
        exact=exact,
        fill=float(tokens / capacity),
        tokens=tokens,
        pairs=pairs,
        sampled_tokens=sampled_tokens,
        sampled=sampled / pairs,
        poisons=poisons / pairs,
    )


def _rows_needed(assignment: StepAssignment, layout: BatchLayout) -> list[int]:
    """Rows that the fullest chunk needs, one number a grid."""
    needs = []
    for chunk in assignment.chunks:
        texts = [layout.grid_texts(chunk, grid) for grid in range(len(layout.grids))]
        lengths = [np.where(p >= 0, assignment.lengths[p, columns], 0) for p, columns in texts]
        needs.append([rows_needed(x, layout.row_tokens, layout.texts_per_row) for x in lengths])
    return np.max(needs, axis=0).tolist()
