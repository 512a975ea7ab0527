"""The objectives' notation, their blocks, and which candidates identity rules out.

Letters: b rows (pairs), r rows and c columns of a tile of the batch, h hard negatives a pair, m
instruction negatives a row, e embedding. q_i is the instructed query of row i, p_i its passage,
p_ih a hard negative, n_ik the query of row i under instruction k.

| block | candidates of row i                   | score      |
|-------|---------------------------------------|------------|
| P     | passages p_j, and every p_jh          | <q_i, p_j> |
| I     | n_ik, k in the row's sample           | <n_ik, p_i>|
| IQ    | instructed queries q_j                | <q_j, p_i> |
| QQ    | instructed queries q_j                | <q_i, q_j> |
| PP    | passages p_j                          | <p_i, p_j> |

with j != i. `BLOCKS` is the one place for a new block: engines, metrics and counts follow from it.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from inf_jax.errors import UserError

KINDS = ("uni", "multi")


@dataclasses.dataclass(frozen=True)
class Objective:
    """A set of blocks and how to combine them; `str` gives the notation back.

    Attributes:
      kind: "uni", one softmax over the union of the blocks, or "multi", the sum over the blocks.
      blocks: names in `BLOCKS`, kept in its order.
    """

    kind: str
    blocks: tuple[str, ...]

    def __post_init__(self):
        if self.kind not in KINDS:
            raise UserError(f"objective kind {self.kind!r}; choose one of {', '.join(KINDS)}")
        unknown = [name for name in self.blocks if name not in BLOCKS]
        if unknown or not self.blocks:
            raise UserError(
                f"objective {self.kind}({','.join(self.blocks)}): "
                f"{f'unknown block {unknown[0]!r}' if unknown else 'no block'}; "
                f"choose from {', '.join(BLOCKS)}"
            )
        if len(set(self.blocks)) < len(self.blocks):
            raise UserError(
                f"objective {self.kind}({','.join(self.blocks)}): a block is named twice"
            )
        object.__setattr__(self, "blocks", tuple(n for n in BLOCKS if n in self.blocks))

    def __str__(self) -> str:
        return f"{self.kind}({','.join(self.blocks)})"


def parse_objective(text: str | Objective) -> Objective:
    """`"multi(P,IQ)"` -> Objective("multi", ("P", "IQ")); an Objective is returned as it is.

    Raises:
      UserError: not `kind(block,...)`, unknown kind or block, a block twice, no block.
    """
    if isinstance(text, Objective):
        return text
    match = re.fullmatch(r"\s*(\w+)\s*\(([\w\s,]*)\)\s*", text) if isinstance(text, str) else None
    if not match:
        raise UserError(
            f"objective {text!r} is not of the form kind(block,...); write it like 'multi(P,IQ)'"
        )
    kind, names = match.groups()
    return Objective(kind, tuple(n.strip() for n in names.split(",")) if names.strip() else ())


class TextIds(NamedTuple):
    """Which texts each pair has: 64-bit hashes as two uint32 halves (jax has no uint64 by default).

    Attributes:
      instruction: uint32[b, 2].
      query: uint32[b, 2], the query without its instruction.
      passage: uint32[b, 2], or [b, 1 + h, 2] with the positive first.
    """

    instruction: jax.Array
    query: jax.Array
    passage: jax.Array


def split_hashes(hashes: np.ndarray) -> np.ndarray:
    """uint64[...] -> uint32[..., 2], the low half first."""
    return np.stack([hashes & np.uint64(0xFFFFFFFF), hashes >> np.uint64(32)], -1).astype(np.uint32)


def text_ids(hashes: np.ndarray) -> TextIds:
    """TextIds of uint64[b, 3], the hashes of b pairs as `TokenisedRecord.hashes` has them."""
    halves = split_hashes(hashes)
    return TextIds(halves[:, 0], halves[:, 1], halves[:, 2])


class Rows(NamedTuple):
    """Rows of the global batch, all or a slice: what a block needs of its rows and of its columns.

    Attributes:
      index: int32[b], the row's number in the global batch.
      queries: [b, e].
      passages: [b, 1 + h, e], the positive first.
      valid: bool[b], False for an empty slot.
      instruction_negatives: [b, m, e] or None.
      ids: TextIds with passage [b, 1 + h, 2], or None: then nothing is masked by identity.
      instruction_negative_ids: uint32[b, m, 2], hashes of the instructions of n_ik, or None.
    """

    index: jax.Array
    queries: jax.Array
    passages: jax.Array
    valid: jax.Array
    instruction_negatives: jax.Array | None = None
    ids: TextIds | None = None
    instruction_negative_ids: jax.Array | None = None


class Candidates(NamedTuple):
    """The candidates of r rows among n texts of the columns.

    Attributes:
      scores: [r, n], inner products, not scaled; float32, or float64 if the embeddings are.
      other: bool[r, n], by index: in a filled slot and not the row's own positive.
      same: bool[r, n], by identity: known to be a positive of the row; None where ids are not
        given.
    """

    scores: jax.Array
    other: jax.Array
    same: jax.Array | None


@dataclasses.dataclass(frozen=True)
class Block:
    """One set of candidates.

    Attributes:
      candidates: (rows, columns) -> Candidates; pure, and the same for any slice of rows and of
        columns.
      count: (pairs, hard_negatives, instruction_negatives) -> negatives of a row before identity
        masks.
      own: the candidates come from the row itself: an engine that goes round the columns asks once.
    """

    candidates: Callable[[Rows, Rows], Candidates]
    count: Callable[[int, int, int], int]
    own: bool = False


def same_query(rows: TextIds, columns: TextIds) -> jax.Array:
    """bool[r, c]: the instructed queries are the same text (instruction and query both)."""
    same_instruction = _equal(rows.instruction[:, None], columns.instruction[None])
    return same_instruction & _equal(rows.query[:, None], columns.query[None])


def same_passage(rows: TextIds, columns: TextIds) -> jax.Array:
    """bool[r, c, 1 + h]: the column's passage is the row's positive passage."""
    return _equal(rows.passage[:, None, :1], columns.passage[None])


def same_pair(rows: TextIds, columns: TextIds) -> jax.Array:
    """bool[r, c]: the pairs share instructed query or passage: each has a positive of the other."""
    return same_query(rows, columns) | same_passage(rows, columns)[:, :, 0]


def _passages(rows: Rows, columns: Rows) -> Candidates:
    scores = _dots("re,che->rch", rows.queries, columns.passages)
    first = jnp.arange(scores.shape[2]) == 0
    other = _others(rows, columns)[:, :, None] | (columns.valid[None, :, None] & ~first[None, None])
    same = None
    if rows.ids is not None:
        # a hard negative of a pair with the same query stays one, unless it is the row's positive
        # passage
        twin = same_query(rows.ids, columns.ids)[:, :, None] & first[None, None]
        same = _flat(twin | same_passage(rows.ids, columns.ids))
    return Candidates(_flat(scores), _flat(other), same)


def _instructions(rows: Rows, columns: Rows) -> Candidates:
    del columns  # a row's candidates are its own
    scores = _dots("rme,re->rm", rows.instruction_negatives, rows.passages[:, 0])
    same = None
    if rows.ids is not None:
        same = _equal(rows.ids.instruction[:, None], rows.instruction_negative_ids)
    return Candidates(scores, jnp.broadcast_to(rows.valid[:, None], scores.shape), same)


def _towers(row: Callable[[Rows], jax.Array], column: Callable[[Rows], jax.Array]) -> Callable:
    """Candidates of one embedding a pair against one embedding a pair."""

    def candidates(rows: Rows, columns: Rows) -> Candidates:
        scores = _dots("re,ce->rc", row(rows), column(columns))
        same = None if rows.ids is None else same_pair(rows.ids, columns.ids)
        return Candidates(scores, _others(rows, columns), same)

    return candidates


def _query(rows: Rows) -> jax.Array:
    return rows.queries


def _passage(rows: Rows) -> jax.Array:
    return rows.passages[:, 0]


BLOCKS: dict[str, Block] = {
    "P": Block(_passages, lambda pairs, hard, instructions: pairs - 1 + pairs * hard),
    "I": Block(_instructions, lambda pairs, hard, instructions: instructions, own=True),
    "IQ": Block(_towers(_passage, _query), lambda pairs, hard, instructions: pairs - 1),
    "QQ": Block(_towers(_query, _query), lambda pairs, hard, instructions: pairs - 1),
    "PP": Block(_towers(_passage, _passage), lambda pairs, hard, instructions: pairs - 1),
}


def count_negatives(
    objective: str | Objective,
    *,
    pairs: int,
    hard_negatives: int = 0,
    instruction_negatives: int = 0,
) -> dict[str, int]:
    """Negatives of a row by block, before identity masks, for the start banner.

    Args:
      objective: the notation or the parsed object.
      pairs: filled rows of the global batch.
      hard_negatives: passages of a pair beyond its positive.
      instruction_negatives: m, instruction negatives of a row.

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
            f"objective {objective} has block I; set instruction_negatives to 1 or more"
        )
    return {
        name: BLOCKS[name].count(pairs, hard_negatives, instruction_negatives)
        for name in objective.blocks
    }


def _others(rows: Rows, columns: Rows) -> jax.Array:
    """bool[r, c]: the column is a filled slot and not the row itself."""
    return (rows.index[:, None] != columns.index[None]) & columns.valid[None]


def _equal(left: jax.Array, right: jax.Array) -> jax.Array:
    """bool[...]: 64-bit hashes uint32[..., 2] are equal, both halves."""
    return (left[..., 0] == right[..., 0]) & (left[..., 1] == right[..., 1])


def _dots(spec: str, left: jax.Array, right: jax.Array) -> jax.Array:
    """Inner products accumulated in float32 (float64 for float64 inputs), bf16 inputs included.

    Highest precision, since TPUs and GPUs otherwise round float32 inputs: with a scale of 20 to 100
    that shows in the loss. Who wants fast products gives bf16 embeddings.
    """
    dtype = jnp.promote_types(jnp.result_type(left, right), jnp.float32)
    return jnp.einsum(
        spec, left, right, precision=jax.lax.Precision.HIGHEST, preferred_element_type=dtype
    )


def _flat(array: jax.Array) -> jax.Array:
    """[r, c, 1 + h] -> [r, c * (1 + h)]."""
    return array.reshape(array.shape[0], -1)
