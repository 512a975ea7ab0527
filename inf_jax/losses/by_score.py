"""What a candidate's own score changes: whether it is a negative, and how much it weighs."""

import dataclasses

import jax
import jax.numpy as jnp

from inf_jax.losses.blocks import LogitBlock
from inf_jax.losses.candidates import RowTexts


@dataclasses.dataclass(frozen=True)
class ByScore:
    """Rules by scores, which are inner products without scale; none has a gradient. Static.

    Attributes:
      margin: a candidate that scores above the row's positive plus this is no negative; None: no
        such rule.
      relative: the margin is a share of the positive's score, not added to it.
      hardness: alpha; a candidate's weight in a softmax is exp(alpha score).
      hardness_of: "hard": of the row's own hard negatives; "all": of all candidates.
    """

    margin: float | None = None
    relative: bool = False
    hardness: float = 0.0
    hardness_of: str = "hard"

    def masks(self, block: LogitBlock) -> bool:
        """Whether candidates of a block are masked by their score. Those of block I, the row's
        query under instructions that do not fit, are negatives whatever they score."""
        return self.margin is not None and not block.per_row

    def kept(self, scores: jax.Array, positive: jax.Array) -> jax.Array:
        """bool, in the shape of the scores: not above the positive by more than the margin."""
        allowed = self.margin * jnp.abs(positive) if self.relative else self.margin
        return scores <= positive + allowed

    def added(
        self, scores: jax.Array, block: LogitBlock, rows: RowTexts, columns: RowTexts
    ) -> jax.Array | None:
        """What hardness adds to the logits of [r, n] scores of rows against columns; None: nothing.

        rows, columns: of the matrix, whose left texts are the rows'.
        """
        own = self.hardness_of == "hard"
        if not self.hardness or (own and (block.per_row or not block.all_texts)):
            return None
        extra = self.hardness * jax.lax.stop_gradient(scores)
        if not own:
            return extra
        k = scores.shape[1] // columns.index.shape[0]
        same = (rows.index[:, None] == columns.index[None])[:, :, None]
        hard = same & (jnp.arange(k)[None, None] > 0)
        return jnp.where(hard.reshape(scores.shape), extra, 0)


NO_RULES = ByScore()
