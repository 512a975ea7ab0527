"""Assigns examples to steps, their pairs to chunks and chunks to hosts: functions of (seed, step).

Every host computes the same from the index of the dataset, without reading a record, and then reads
the records of its own chunks alone.
"""

import functools
from typing import NamedTuple

import numpy as np

from inf_jax.core.packing import assign_to_chunks
from inf_jax.data.layout import BatchLayout
from inf_jax.data.negatives import sample_instructions, siblings
from inf_jax.data.records import PAIRS_PER_EXAMPLE
from inf_jax.data.tokenised import TokenisedDataset

WINDOW_STEPS = 16  # steps that share their examples' lengths evenly


class ExampleOrder:
    """The order of n examples; threads may share it.

    The stream of the epochs' permutations, drawn from (seed, epoch), is cut into windows of
    WINDOW_STEPS steps; the examples of a window are assigned to its steps by length, so that all
    steps hold nearly as many tokens. `tokens` is int[n], tokens of each example.
    """

    def __init__(self, tokens: np.ndarray, *, seed: int, batch_size: int):
        self._tokens, self._seed, self._batch_size = tokens, seed, batch_size
        self._permutation = functools.lru_cache(maxsize=2)(self._epoch_order)
        self._window = functools.lru_cache(maxsize=4)(self._window_steps)

    def examples(self, step: int) -> np.ndarray:
        """int64[batch_size], the examples of a step; epochs follow each other without a gap."""
        window, inside = divmod(step, WINDOW_STEPS)
        return self._window(window)[inside]

    def _window_steps(self, window: int) -> np.ndarray:
        size = WINDOW_STEPS * self._batch_size
        epochs, inside = np.divmod(np.arange(window * size, (window + 1) * size), len(self._tokens))
        parts = [self._permutation(int(e))[inside[epochs == e]] for e in np.unique(epochs)]
        examples = np.concatenate(parts)
        return examples[assign_to_chunks(self._tokens[examples], WINDOW_STEPS)]

    def _epoch_order(self, epoch: int) -> np.ndarray:
        generator = np.random.Generator(np.random.Philox(key=[self._seed, epoch]))
        return generator.permutation(len(self._tokens))


class StepAssignment(NamedTuple):
    """The pairs of a step and their chunks; p pairs of B examples.

    Attributes:
      examples: int64[B].
      chunks: int64[c, n], the pairs of each chunk; -1 for an empty slot.
      lengths: int64[p, columns], tokens of each text (`BatchLayout.text_lengths`).
      hashes: uint64[p], of each pair's instruction.
      usable: bool[p], pairs that have an instruction.
      sibling: int64[p], the pair with the same query and the other instruction, or its own number.
      drawn: int64[p, m], the pair whose instruction is sampled; -1 for none.
    """

    examples: np.ndarray
    chunks: np.ndarray
    lengths: np.ndarray
    hashes: np.ndarray
    usable: np.ndarray
    sibling: np.ndarray
    drawn: np.ndarray

    def of_host(self, chunks: np.ndarray) -> np.ndarray:
        """int64[h, n], the pairs whose records a host reads; `chunks` as of `mesh.local_parts`."""
        return self.chunks[chunks]


def assign_step(
    dataset: TokenisedDataset, layout: BatchLayout, examples: np.ndarray, *, seed: int, step: int
) -> StepAssignment:
    """Samples instruction negatives for these examples' pairs and assigns the pairs to chunks."""
    present = dataset.text_lengths[examples, ::2].ravel() > 0
    hashes = dataset.instruction_hashes[examples].ravel()
    usable = dataset.part_lengths[examples, :, 2].ravel() > 0
    sibling = siblings(present)
    drawn = sample_instructions(hashes, usable, sibling, count=layout.sampled, seed=seed, step=step)
    lengths = layout.text_lengths(dataset, examples, drawn)
    chunks = _chunks(layout, present, lengths.sum(1))
    return StepAssignment(examples, chunks, lengths, hashes, usable, sibling, drawn)


def _chunks(layout: BatchLayout, present: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """int64[c, n] of the pairs (bool and int64[p]); -1 for an empty slot."""

    def in_chunks(items: np.ndarray, weights: np.ndarray, per_chunk: int) -> np.ndarray:
        padded = np.full(layout.chunks * per_chunk, -1)
        padded[: len(items)] = items
        return padded[assign_to_chunks(np.where(padded >= 0, weights[padded], 0), layout.chunks)]

    n = layout.pairs_per_chunk
    if not layout.block_i:
        return in_chunks(np.flatnonzero(present), tokens, n)
    # whole examples, so that the query with its other instruction is on the same device
    per_example = (tokens * present).reshape(-1, PAIRS_PER_EXAMPLE).sum(1)
    every = np.arange(layout.batch_size)
    examples = in_chunks(every, per_example, n // PAIRS_PER_EXAMPLE)[:, :, None]
    pairs = PAIRS_PER_EXAMPLE * examples + np.arange(PAIRS_PER_EXAMPLE)[None, None]
    return np.where((examples >= 0) & present[pairs], pairs, -1).reshape(layout.chunks, -1)
