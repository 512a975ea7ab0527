"""The table of candidate blocks of the contrastive loss: what is scored against what.

Letters: h hard negatives a pair, m instruction negatives a row. q_i is the instructed query of row
i, p_i its passage, p_ih a hard negative, n_ik the query of row i under instruction k.

| block | candidates of row i         | score       |
|-------|-----------------------------|-------------|
| P     | passages p_j, and every p_jh| <q_i, p_j>  |
| I     | n_ik, k sampled for the row | <n_ik, p_i> |
| IQ    | instructed queries q_j      | <q_j, p_i>  |
| QQ    | instructed queries q_j      | <q_i, q_j>  |
| PP    | passages p_j                | <p_i, p_j>  |

with j != i. A new block is one entry here: notation, engines, metrics and counts follow from it. P
and IQ are the rows and the columns of one matrix, so that an engine computes it once for both.
"""

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class LogitBlock:
    """A set of candidates: rows or columns of a matrix of inner products, left against right.

    Attributes:
      left, right: fields of `RowTexts`, [b, e] or [b, k, e]. Of k texts the first one counts.
      count: (b pairs, h, m) -> negatives of a row before identity masks.
      all_texts: all k texts of the right are candidates, not only the first.
      by_column: the row's own text is on the right, its candidates are all on the left.
      per_row: the candidates come from the row itself, not from other rows.
    """

    left: str
    right: str
    count: Callable[[int, int, int], int]
    all_texts: bool = False
    by_column: bool = False
    per_row: bool = False

    @property
    def matrix(self) -> tuple[str, str]:
        """Blocks with the same matrix share its products."""
        return self.left, self.right


BLOCKS: dict[str, LogitBlock] = {
    "P": LogitBlock("queries", "passages", lambda b, h, m: b - 1 + b * h, all_texts=True),
    "I": LogitBlock(
        "passages", "instruction_negatives", lambda b, h, m: m, all_texts=True, per_row=True
    ),
    "IQ": LogitBlock("queries", "passages", lambda b, h, m: b - 1, by_column=True),
    "QQ": LogitBlock("queries", "queries", lambda b, h, m: b - 1),
    "PP": LogitBlock("passages", "passages", lambda b, h, m: b - 1),
}
