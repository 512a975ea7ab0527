"""The arrays of one global batch: packed texts, their hashes, and instruction negatives."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import jax

    from inf_jax.core.packing import Packed


class TextIds(NamedTuple):
    """Hashes of each pair's texts: 64 bits as two uint32 halves (JAX has no uint64 by default).

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
    """TextIds of uint64[b, 3 + h], the hashes of instruction, query, passage and h hard negatives
    of b pairs; for h = 0 the passage's is [b, 2]."""
    halves = split_hashes(hashes)
    passage = halves[:, 2] if hashes.shape[1] == 3 else halves[:, 2:]
    return TextIds(halves[:, 0], halves[:, 1], passage)


class InstructionNegatives(NamedTuple):
    """Block I of a global batch: n_ik, the query of row i under instruction k.

    Attributes:
      ids: uint32[b, 1 + m, 2], hashes of the instructions of n_ik. Column 0 is the row of the same
        query under the example's other instruction, encoded anyway; the other columns are sampled
        and have texts of their own. Where n_ik is known to fit the row's passage, by any pair of
        the split, the hash is that of the row's own instruction, so that the identity mask drops
        it. With the query encoder
        "attention" uint32[b, n, 2], the instructions of the chunk.
      poison: int32[b], for column 0: the place in its chunk of the row of that other instruction,
        or the row's own place. A permutation in each chunk. None with "attention".
      valid: bool[b, 1 + m] or bool[b, n], whether n_ik exists and comes from another row.
    """

    ids: jax.Array
    poison: jax.Array | None
    valid: jax.Array


class Batch(NamedTuple):
    """A global batch; c chunks of n pairs, b = c * n. All leading axes are split over the mesh.

    Attributes:
      texts: for shared towers one Packed with k = 2n + n * m texts a chunk: n instructed queries,
        their n passages, then the m sampled n_ik of each pair, pair by pair; for separate towers
        (queries, passages), Packed of k = n + n * m and of k = n. With the query encoder
        "attention" k = 3n: n instructions, n queries, n passages; or k = 2n and k = n. The h hard
        negatives of each pair, pair by pair, come after all these, in the grid of passages.
      ids: TextIds, uint32[b, 2] each, in chunk order; passage [b, 1 + h, 2] where h is above 0.
      valid: bool[b], False for an empty slot.
      negatives: None where the objective has no block I.
      passage_valid: bool[b, 1 + h], False where a pair has no such hard negative; None for h = 0.
      teacher_scores: float32[b, 1 + h], of each passage of a row, -inf where there is none; None
        where the objective has no teacher, or where it is a model (loss.teacher).
      sources: int32[b], the number of each pair's source in a mixture, -1 in an empty slot; None
        without a mixture.
      queries_alone: bool[b], pairs without instruction, whose query every passage of the same query
        answers, under whatever instruction: to the identity mask these are positives. None: equal
        instructed queries alone have the same positives.
    """

    texts: Packed | tuple[Packed, Packed]
    ids: TextIds
    valid: jax.Array
    negatives: InstructionNegatives | None = None
    passage_valid: jax.Array | None = None
    teacher_scores: jax.Array | None = None
    sources: jax.Array | None = None
    queries_alone: jax.Array | None = None
