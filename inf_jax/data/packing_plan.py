"""Finds one shape of the packed grids that is enough for all steps, before the first one."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from inf_jax.core.packing import rows_of_chunks
from inf_jax.core.query_encoders import FIRST_EXTRA
from inf_jax.data.layout import BatchLayout
from inf_jax.data.sampler import StepAssignment

PLANNED_TEXTS = 2_000_000  # above this many texts the shape is planned on a sample of the steps
SAMPLED_STEPS = 64  # fewer of large steps, whose many chunks are a sample by themselves
SAMPLED_TEXTS = 16_000_000
LEAST_STEPS = 8
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
      poisons: mean poisoned instructions of a pair, which cost no tokens; 0 without block I.
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
    texts_a_step = layout.columns * layout.pairs
    exact = steps * texts_a_step <= PLANNED_TEXTS
    count = min(SAMPLED_STEPS, max(LEAST_STEPS, SAMPLED_TEXTS // texts_a_step))
    spread = np.linspace(0, steps - 1, count).astype(int)
    sample = np.arange(steps) if exact else np.unique(spread)
    rows, counts = [], []
    for step in sample.tolist():
        assignment = assign(step)
        lengths, instructions = assignment.lengths, assignment.instructions
        rows.append(_rows_needed(assignment, layout))
        sums = (
            lengths.sum(),
            np.count_nonzero(lengths[:, 0]),
            lengths[:, FIRST_EXTRA : FIRST_EXTRA + layout.sampled].sum(),
            np.count_nonzero(assignment.drawn >= 0),
            instructions.poisoned if instructions else 0,
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
    columns = np.vstack([assignment.lengths, np.zeros_like(assignment.lengths[:1])]).T
    needs = []
    for groups in layout.grids:
        # an empty slot is pair -1, the row of zeros
        texts = [columns[column][assignment.chunks] for group in groups for column in group]
        each = rows_of_chunks(np.hstack(texts), layout.row_tokens, layout.texts_per_row)
        needs.append(int(each.max()))
    return needs
