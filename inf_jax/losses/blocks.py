"""The blocks: which candidates a row has, their scores, and which of them identity rules out.

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
P and IQ are the rows and the columns of one matrix, so that an engine computes it once for both.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from inf_jax.core.batch import TextIds


class Rows(NamedTuple):
    """Rows of the global batch, all or a slice: what a block needs of its rows and of its columns.

    Attributes:
      index: int32[b], the row's number in the global batch.
      valid: bool[b], False for an empty slot.
      queries: [b, e].
      passages: [b, 1 + h, e], the positive first.
      instruction_negatives: [b, m, e] or None.
      ids: TextIds with passage [b, 1 + h, 2], or None: then nothing is masked by identity.
      instruction_negative_ids: uint32[b, m, 2], hashes of the instructions of n_ik, or None.
      instruction_negative_valid: bool[b, m], False for an empty place, or None.
    """

    index: jax.Array
    valid: jax.Array
    queries: jax.Array
    passages: jax.Array
    instruction_negatives: jax.Array | None = None
    ids: TextIds | None = None
    instruction_negative_ids: jax.Array | None = None
    instruction_negative_valid: jax.Array | None = None


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
    """A set of candidates: rows or columns of a matrix of inner products, left against right.

    Attributes:
      left, right: fields of Rows, [b, e] or [b, k, e]. Of k texts the first one counts.
      count: (pairs, hard_negatives, instruction_negatives) -> negatives of a row before identity
        masks.
      every: all k texts of the right are candidates, not the first alone.
      by_column: the row's own text is on the right, its candidates are all on the left.
      own: the candidates come from the row itself, not from other rows.
    """

    left: str
    right: str
    count: Callable[[int, int, int], int]
    every: bool = False
    by_column: bool = False
    own: bool = False

    @property
    def matrix(self) -> tuple[str, str]:
        """Blocks with the same matrix share its products."""
        return self.left, self.right


def _other_pairs(pairs: int, hard: int, instructions: int) -> int:
    return pairs - 1


def _other_passages(pairs: int, hard: int, instructions: int) -> int:
    return pairs - 1 + pairs * hard


def _own_instructions(pairs: int, hard: int, instructions: int) -> int:
    return instructions


BLOCKS: dict[str, Block] = {
    "P": Block("queries", "passages", _other_passages, every=True),
    "I": Block("passages", "instruction_negatives", _own_instructions, every=True, own=True),
    "IQ": Block("queries", "passages", _other_pairs, by_column=True),
    "QQ": Block("queries", "queries", _other_pairs),
    "PP": Block("passages", "passages", _other_pairs),
}


def texts_of(rows: Rows, name: str, *, every: bool = False) -> jax.Array:
    """[b, k, e]: the texts of each pair in this field, all of them or the first (k = 1)."""
    values = getattr(rows, name)
    values = values if values.ndim == 3 else values[:, None]
    return values if every else values[:, :1]


def candidates(block: Block, rows: Rows, columns: Rows) -> Candidates:
    """The candidates of these rows among these columns; the same for any slices of the batch."""
    if block.own:
        texts = texts_of(rows, block.right, every=True)
        scores = dots("rke,re->rk", texts, texts_of(rows, block.left)[:, 0])
        other = jnp.broadcast_to(rows.valid[:, None], scores.shape)
        if rows.instruction_negative_valid is not None:
            other = other & rows.instruction_negative_valid
        same = None
        if rows.ids is not None:
            same = _equal(rows.ids.instruction[:, None], rows.instruction_negative_ids)
        return Candidates(scores, other, same)
    own, their = (block.right, block.left) if block.by_column else (block.left, block.right)
    texts = texts_of(columns, their, every=block.every)
    scores, k = dots("re,cke->rck", texts_of(rows, own)[:, 0], texts), texts.shape[1]
    same = None if rows.ids is None else same_texts(rows.ids, columns.ids, k)
    other = other_texts(rows, columns, k)
    return Candidates(*(None if x is None else _flat(x) for x in (scores, other, same)))


def other_texts(rows: Rows, columns: Rows, k: int, *, by_column: bool = False) -> jax.Array:
    """bool[r, c, k]: text k of the column is in a filled slot and not the row's own positive.

    by_column: the candidate is the row, which is to be in a filled slot, for the column's text.
    """
    other = (rows.index[:, None] != columns.index[None])[:, :, None]
    hard = jnp.arange(k)[None, None] > 0
    filled = rows.valid[:, None] if by_column else columns.valid[None]
    return (other | hard) & filled[:, :, None]


def same_texts(rows: TextIds, columns: TextIds, k: int) -> jax.Array:
    """bool[r, c, k]: known to be a positive of the row, whatever the block.

    The pairs share instructed query or passage: each then has a positive of the other. A hard
    negative (text 1 and on) of a pair with the same query stays one, unless it is the row's
    positive passage.
    """
    passage = _equal(rows.passage[:, None, :1], columns.passage[None, :, :k])
    twin = same_query(rows, columns)[:, :, None]
    return passage | (twin & (jnp.arange(k)[None, None] == 0))


def same_query(rows: TextIds, columns: TextIds) -> jax.Array:
    """bool[r, c]: the instructed queries are the same text (instruction and query both)."""
    same_instruction = _equal(rows.instruction[:, None], columns.instruction[None])
    return same_instruction & _equal(rows.query[:, None], columns.query[None])


def dots(spec: str, left: jax.Array, right: jax.Array) -> jax.Array:
    """Inner products accumulated in float32 (float64 for float64 inputs), bf16 inputs included.

    Highest precision, since TPUs and GPUs otherwise round float32 inputs: with a scale of 20 to 100
    that shows in the loss. Who wants fast products gives bf16 embeddings.
    """
    dtype = jnp.promote_types(jnp.result_type(left, right), jnp.float32)
    return jnp.einsum(
        spec, left, right, precision=jax.lax.Precision.HIGHEST, preferred_element_type=dtype
    )


def _equal(left: jax.Array, right: jax.Array) -> jax.Array:
    """bool[...]: 64-bit hashes uint32[..., 2] are equal, both halves."""
    return (left[..., 0] == right[..., 0]) & (left[..., 1] == right[..., 1])


def _flat(array: jax.Array) -> jax.Array:
    """[r, c, k] -> [r, c * k]."""
    return array.reshape(array.shape[0], -1)
