"""Scores each row's candidates in a block and masks those known to be positives of the row.

Letters: b rows (pairs) of the global batch, r rows and c columns of a tile of it, h hard negatives
a pair, m instruction negatives a row, e embedding width.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from inf_jax.core.batch import TextIds
from inf_jax.losses.blocks import LogitBlock


class RowTexts(NamedTuple):
    """Embeddings and hashes of the texts of some rows, all of the global batch or a slice.

    Attributes:
      index: int32[b], the row's number in the global batch.
      valid: bool[b], False for an empty slot.
      queries: [b, e].
      passages: [b, 1 + h, e], the positive first.
      passage_valid: bool[b, 1 + h], False where a row has no such passage, or None: all are there.
      instruction_negatives: [b, m, e] or None.
      ids: TextIds with passage [b, 1 + h, 2], or None: then nothing is masked by identity.
      instruction_negative_ids: uint32[b, m, 2], hashes of the instructions of n_ik, or None.
      instruction_negative_valid: bool[b, m], False where there is no n_ik, or None: all are there.
      alone: bool[b], as `Batch.queries_alone`, or None.
      instruction_negative_known: bool[b, m], `known_instructions` of the global batch; None: by
        ids, the row's own instruction alone.
    """

    index: jax.Array
    valid: jax.Array
    queries: jax.Array
    passages: jax.Array
    passage_valid: jax.Array | None = None
    instruction_negatives: jax.Array | None = None
    ids: TextIds | None = None
    instruction_negative_ids: jax.Array | None = None
    instruction_negative_valid: jax.Array | None = None
    instruction_negative_known: jax.Array | None = None
    alone: jax.Array | None = None


class Candidates(NamedTuple):
    """The candidates of r rows among n texts of the columns, [r, n] each."""

    scores: jax.Array  # inner products, not scaled; float32, or float64 if the embeddings are
    eligible: jax.Array  # bool, by index: in a filled slot and not the row's own positive
    known_positive: jax.Array | None  # bool, by identity; None without ids


def texts_of(rows: RowTexts, name: str, *, all_texts: bool = False) -> jax.Array:
    """[b, k, e]: the texts of each pair in this field, all of them or the first (k = 1)."""
    values = getattr(rows, name)
    values = values if values.ndim == 3 else values[:, None]
    return values if all_texts else values[:, :1]


def candidates(block: LogitBlock, rows: RowTexts, columns: RowTexts) -> Candidates:
    """The candidates of these rows among these columns; the same for any slices of the batch."""
    if block.per_row:
        texts = texts_of(rows, block.right, all_texts=True)
        scores = dots("rke,re->rk", texts, texts_of(rows, block.left)[:, 0])
        eligible = jnp.broadcast_to(rows.valid[:, None], scores.shape)
        if rows.instruction_negative_valid is not None:
            eligible = eligible & rows.instruction_negative_valid
        known = rows.instruction_negative_known
        if known is None and rows.ids is not None:
            known = _equal(rows.ids.instruction[:, None], rows.instruction_negative_ids)
        return Candidates(scores, eligible, known)
    own, other = (block.right, block.left) if block.by_column else (block.left, block.right)
    texts = texts_of(columns, other, all_texts=block.all_texts)
    scores, k = dots("re,cke->rck", texts_of(rows, own)[:, 0], texts), texts.shape[1]
    known = None if rows.ids is None else known_of(rows, columns, k)
    flat = (scores, eligible_texts(rows, columns, k), known)
    return Candidates(*(None if x is None else x.reshape(x.shape[0], -1) for x in flat))


def eligible_texts(
    rows: RowTexts, columns: RowTexts, k: int, *, by_column: bool = False
) -> jax.Array:
    """bool[r, c, k]: text k of the column is in a filled slot, there, and not the row's own
    positive.

    by_column: the row is the candidate of the column, so it is the row that must be filled.
    """
    other = (rows.index[:, None] != columns.index[None])[:, :, None]
    hard = jnp.arange(k)[None, None] > 0
    filled = rows.valid[:, None] if by_column else columns.valid[None]
    eligible = (other | hard) & filled[:, :, None]
    if k > 1 and columns.passage_valid is not None:
        eligible = eligible & columns.passage_valid[None, :, :k]
    return eligible


def known_of(rows: RowTexts, columns: RowTexts, k: int) -> jax.Array:
    """`known_positives` of rows and columns that have ids, with what `RowTexts.alone` adds."""
    known = known_positives(rows.ids, columns.ids, k)
    if rows.alone is None:
        return known
    either = rows.alone[:, None] | columns.alone[None]
    answers = either & _equal(rows.ids.query[:, None], columns.ids.query[None])
    return known | (answers[:, :, None] & (jnp.arange(k)[None, None] == 0))


def known_positives(rows: TextIds, columns: TextIds, k: int) -> jax.Array:
    """bool[r, c, k]: the text is a positive of the row, whatever the block.

    The pairs share instructed query or passage. A hard negative (text 1 and on) of a pair with the
    same query stays one, unless it is the row's positive passage.
    """
    passage = _equal(rows.passage[:, None, :1], columns.passage[None, :, :k])
    twin = same_query(rows, columns)[:, :, None]
    return passage | (twin & (jnp.arange(k)[None, None] == 0))


def known_instructions(rows: RowTexts) -> jax.Array:
    """bool[b, m]: a pair of the batch has the row's query and passage and the instruction of n_ik.

    So n_ik, whose instruction fits the passage, is a positive of the row, whichever pair it was
    drawn from; the row's own instruction is such a one. `rows` are all of the global batch.
    """
    ids, others = rows.ids, rows.instruction_negative_ids
    fixed = ids.query, ids.passage[:, 0]
    own = _digest(ids.instruction, *fixed)
    theirs = _digest(others, *(x[:, None] for x in fixed)).reshape(-1, 2)
    low, high = jnp.concatenate([own, theirs]).T
    b, number = own.shape[0], jnp.arange(low.size)
    no_pair = jnp.concatenate([~rows.valid, jnp.ones(len(theirs), bool)]).astype(jnp.uint32)
    # equal triplets are neighbours, those of pairs first: one sort, not b x b x m comparisons
    low, high, no_pair, place = jax.lax.sort((low, high, no_pair, number), num_keys=3)
    differs = (low[1:] != low[:-1]) | (high[1:] != high[:-1])
    first = jax.lax.cummax(jnp.where(jnp.pad(differs, (1, 0), constant_values=True), number, 0))
    known = jnp.zeros(low.size, bool).at[place].set(no_pair[first] == 0)
    return known[b:].reshape(others.shape[:2])


def same_query(rows: TextIds, columns: TextIds) -> jax.Array:
    """bool[r, c]: the instructed queries are the same text (instruction and query both)."""
    same_instruction = _equal(rows.instruction[:, None], columns.instruction[None])
    return same_instruction & _equal(rows.query[:, None], columns.query[None])


def dots(spec: str, left: jax.Array, right: jax.Array) -> jax.Array:
    """Inner products accumulated in float32 (float64 for float64 inputs), bf16 inputs included.

    Highest precision: TPUs and GPUs otherwise round float32 inputs, which a scale of 20 to 100
    shows in the loss. For fast products, pass bf16 embeddings.
    """
    dtype = jnp.promote_types(jnp.result_type(left, right), jnp.float32)
    return jnp.einsum(
        spec, left, right, precision=jax.lax.Precision.HIGHEST, preferred_element_type=dtype
    )


def _digest(*hashes: jax.Array) -> jax.Array:
    """uint32[..., 2]: one 64-bit hash of several, [..., 2] each (the steps are MurmurHash3's)."""
    halves = []
    for seed in (0x2545F491, 0x9E3779B9):
        mixed = jnp.uint32(seed)
        for word in (x[..., n] for x in hashes for n in (0, 1)):
            word = word * jnp.uint32(0xCC9E2D51)
            mixed ^= (word << 15 | word >> 17) * jnp.uint32(0x1B873593)
            mixed = (mixed << 13 | mixed >> 19) * jnp.uint32(5) + jnp.uint32(0xE6546B64)
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
            mixed = (mixed ^ mixed >> shift) * jnp.uint32(factor)
        halves.append(mixed)
    return jnp.stack(halves, axis=-1)


def _equal(left: jax.Array, right: jax.Array) -> jax.Array:
    """bool[...]: 64-bit hashes uint32[..., 2] are equal, both halves."""
    return (left[..., 0] == right[..., 0]) & (left[..., 1] == right[..., 1])
