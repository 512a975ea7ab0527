"""Parses the notation of objectives: which blocks of negatives a loss has, how they are combined.

    uni(P,IQ)                          one softmax over the union of the blocks
    multi(P,I,IQ)                      a softmax a block, summed
    sigmoid(P)                         SigLIP: a binary decision for every candidate
    distil(P)                          KL to a teacher's softmax over the row's own passages
    margin(P)                          MarginMSE: squared error of the margins of a teacher
    multi(P,0.5*IQ) + 0.2*sigmoid(P)   weights of blocks, and sums of terms

`contrastive_loss` has the formulas, `losses.blocks` the blocks. This module does not import JAX.
"""

import dataclasses
import math
import re

from inf_jax.core.errors import UserError
from inf_jax.losses.blocks import BLOCKS

KINDS = ("uni", "multi", "sigmoid", "distil", "margin")
TAUGHT = ("distil", "margin")  # compare a row's own passages with a teacher's scores
ENGINES = ("dense", "blockwise", "ring", "gather")
MASKS = ("identity", "faithful")
HARDNESS_OF = ("hard", "all")
_NUMBER = r"(?:(\d+\.?\d*(?:e[+-]?\d+)?|\.\d+)\s*\*\s*)?"


@dataclasses.dataclass(frozen=True)
class Term:
    """A kind of loss over a set of blocks; `str` gives the notation.

    Attributes:
      kind: one of `KINDS`.
      blocks: names in `BLOCKS`, kept in its order.
      weights: factor of each block; () is 1 for all. In uni a block's candidates count that many
        times in the softmax; in multi and sigmoid it multiplies the block's part of the loss.
      weight: factor of the term.

    Raises:
      UserError: unknown kind or block, no block or one twice, a weight that is not above 0.
    """

    kind: str
    blocks: tuple[str, ...]
    weights: tuple[float, ...] = ()
    weight: float = 1.0

    def __post_init__(self):
        given = f"objective {self.kind}({','.join(self.blocks)})"
        if self.kind not in KINDS:
            raise UserError(f"objective kind {self.kind!r}; choose one of {', '.join(KINDS)}")
        unknown = [name for name in self.blocks if name not in BLOCKS]
        if unknown or not self.blocks:
            raise UserError(
                f"{given}: {f'unknown block {unknown[0]!r}' if unknown else 'no block'}; "
                f"choose from {', '.join(BLOCKS)}"
            )
        if len(set(self.blocks)) < len(self.blocks):
            raise UserError(f"{given}: a block is named twice")
        weights = self.weights or (1.0,) * len(self.blocks)
        if len(weights) != len(self.blocks):
            raise UserError(f"{given}: {len(weights)} weights for {len(self.blocks)} blocks")
        if not all(0 < w < math.inf for w in (*weights, self.weight)):
            raise UserError(f"{given}: weights {weights}, {self.weight} must be above 0")
        if self.kind in TAUGHT and self.blocks != ("P",):
            raise UserError(f"{given}: {self.kind} takes block P only: write {self.kind}(P)")
        by_name = dict(zip(self.blocks, weights, strict=True))
        ordered = tuple(name for name in BLOCKS if name in by_name)
        object.__setattr__(self, "blocks", ordered)
        object.__setattr__(self, "weights", tuple(float(by_name[name]) for name in ordered))

    def __str__(self) -> str:
        named = zip(self.weights, self.blocks, strict=True)
        return f"{_factor(self.weight)}{self.kind}({','.join(_factor(w) + n for w, n in named)})"


@dataclasses.dataclass(frozen=True)
class Objective:
    """A sum of terms; `str` gives the notation."""

    terms: tuple[Term, ...]

    @property
    def blocks(self) -> tuple[str, ...]:
        """The blocks with negatives in any term, in the order of `BLOCKS`."""
        used = {name for term in self.terms if term.kind not in TAUGHT for name in term.blocks}
        return tuple(name for name in BLOCKS if name in used)

    def has(self, *kinds: str) -> bool:
        """Whether a term is of one of these kinds."""
        return any(term.kind in kinds for term in self.terms)

    def __str__(self) -> str:
        return " + ".join(map(str, self.terms))


def parse_objective(text: str | Objective) -> Objective:
    """Parses `"multi(P,0.5*IQ) + 0.2*sigmoid(P)"`; an Objective is returned unchanged.

    Raises:
      UserError: not of the form, or see `Term`.
    """
    if isinstance(text, Objective):
        return text
    pattern = rf"\s*{_NUMBER}(\w+)\s*\(([^()]*)\)\s*"
    parts = re.split(r"\+(?=[^()]*\()", text) if isinstance(text, str) else [""]
    terms = []
    for part in parts:
        match = re.fullmatch(pattern, part)
        if not match:
            raise UserError(
                f"objective {text!r} is not of the form kind(block,...), or a sum of such; write "
                "it like 'multi(P,IQ)' or 'uni(P,0.5*IQ) + 0.1*sigmoid(P)'"
            )
        weight, kind, names = match.groups()
        blocks = [re.fullmatch(rf"\s*{_NUMBER}([^*]*?)\s*", name) for name in names.split(",")]
        if not all(blocks):
            raise UserError(f"objective {text!r}: blocks are written like P or 0.5*IQ")
        listed = blocks if names.strip() else []
        weights = tuple(float(b[1] or 1) for b in listed)
        terms.append(Term(kind, tuple(b[2] for b in listed), weights, float(weight or 1)))
    return Objective(tuple(terms))


def count_negatives(
    objective: str | Objective,
    *,
    pairs: int,
    hard_negatives: float = 0,
    instruction_negatives: int = 0,
) -> dict[str, int]:
    """Negatives of a row by block, before identity masks, for the start banner.

    Args:
      pairs: filled rows of the global batch.
      hard_negatives: h, passages of a pair beyond its positive; may be a mean.
      instruction_negatives: m, of a row.

    Raises:
      UserError: pairs below 1, a negative count, or block I without instruction negatives.
    """
    objective = parse_objective(objective)
    if pairs < 1 or hard_negatives < 0 or instruction_negatives < 0:
        raise UserError(
            f"pairs={pairs}, hard_negatives={hard_negatives}, instruction_negatives="
            f"{instruction_negatives}: pairs must be 1 or more, the others 0 or more"
        )
    if "I" in objective.blocks and not instruction_negatives:
        raise UserError(
            f"objective {objective} has block I: set instruction_negatives to 1 or more"
        )
    sizes = pairs, hard_negatives, instruction_negatives
    return {name: round(BLOCKS[name].count(*sizes)) for name in objective.blocks}


def _factor(weight: float) -> str:
    return "" if weight == 1 else f"{weight:.12g}*".replace("e+", "e")
