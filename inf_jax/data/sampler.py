"""Assigns examples to steps, their pairs to chunks and chunks to hosts: functions of (seed, step).

Every host computes the same from the index of the dataset, without reading a record, and then reads
the records of its own chunks alone.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from inf_jax.core.query_encoders import PASSAGE
from inf_jax.data.layout import BatchLayout
from inf_jax.data.negatives import draw_negatives, sample_instructions
from inf_jax.data.tokenised.dataset import TokenisedDataset

WINDOW_STEPS = 16  # steps that share their examples' lengths evenly
ORDER = 3  # of new runs; a run that is resumed keeps the order that it began with
_BALANCED_RUNS = 256  # see `balance_chunks`
_SHUFFLE = 2 << 32  # added to the seed (below 2**32): another random stream than the epochs' order


class ExampleOrder:
    """The order of n examples; threads may share it. `tokens` is int[n], tokens of each example.

    Epochs follow each other without a gap, each holds every example once, and a step holds an
    example floor(batch_size / n) or ceil(batch_size / n) times: never twice where it is not larger
    than the data. Steps of more than half of the data are drawn by what they leave out.
    """

    def __init__(self, tokens: np.ndarray, *, seed: int, batch_size: int):
        self._n, self._seed = len(tokens), seed
        self._copies, rest = divmod(batch_size, self._n)
        self._by_left_out = 2 * rest > self._n
        size = self._n - rest if self._by_left_out else rest
        self._epochs = _Epochs(tokens, seed=seed, size=size) if size else None

    def examples(self, step: int) -> np.ndarray:
        """int64[batch_size], the examples of a step."""
        some = self._epochs.step(step) if self._epochs else np.empty(0, np.int64)
        if not (self._copies or self._by_left_out):
            return some
        if self._by_left_out:
            kept = np.ones(self._n, bool)
            kept[some] = False
            some = np.flatnonzero(kept)
        every = np.concatenate([*[np.arange(self._n)] * self._copies, some])
        return _generator(self._seed + _SHUFFLE, step).permutation(every)


class _Epochs:
    """Steps of at most half of the n examples: the stream of epochs, cut into steps of `size`.

    An epoch is its head, the last part of the step that the epoch before has opened, its whole
    steps, and its tail, the first part of a step. The whole steps form windows of WINDOW_STEPS, the
    last one of up to twice as many. The examples of a window are assigned to its steps by length,
    so that all steps hold nearly as many tokens; head and tail are drawn evenly by length from the
    first and the last window. The tail depends on this epoch's permutation alone, and the head on
    the tail before it, whose examples it skips: any step is known from two permutations, however
    far into a run.
    """

    def __init__(self, tokens: np.ndarray, *, seed: int, size: int):
        self._tokens, self._seed, self._size = tokens, seed, size
        self._epoch = functools.lru_cache(maxsize=2)(self._permutation)
        self._window = functools.lru_cache(maxsize=4)(self._window_steps)
        self._head, self._tail = (
            functools.lru_cache(maxsize=4)(draw) for draw in (self._draw_head, self._draw_tail)
        )

    def step(self, step: int) -> np.ndarray:
        """int64[size], the examples of a step."""
        epoch, inside = divmod(step * self._size, len(self._tokens))
        if inside + self._size > len(self._tokens):
            return np.concatenate([self._tail(epoch), self._head(epoch + 1)])
        number = (inside - self._head_size(epoch)) // self._size
        window = min(number // WINDOW_STEPS, self._last_window(epoch))
        return self._window(epoch, window)[number - window * WINDOW_STEPS]

    def _head_size(self, epoch: int) -> int:
        return -epoch * len(self._tokens) % self._size

    def _last_window(self, epoch: int) -> int:
        whole = (len(self._tokens) - self._head_size(epoch)) // self._size
        return max(0, whole // WINDOW_STEPS - 1)

    def _places(self, epoch: int, window: int) -> np.ndarray:
        """int64[...], the examples of a window, with head and tail, in the permutation's order."""
        width, head = WINDOW_STEPS * self._size, self._head_size(epoch)
        first = head + window * width if window else 0
        last = window == self._last_window(epoch)
        return self._epoch(epoch)[first : None if last else head + (window + 1) * width]

    def _window_steps(self, epoch: int, window: int) -> np.ndarray:
        """int64[steps, size]."""
        last = self._last_window(epoch)
        drawn = [self._head(epoch)] * (window == 0) + [self._tail(epoch)] * (window == last)
        examples = self._without(self._places(epoch, window), *drawn)
        if last:
            steps = assign_to_chunks(self._tokens[examples], len(examples) // self._size)
            return examples[steps]
        # All windows hold the same examples, whose ranks by length are always the same too: of each
        # row of neighbours by length a step gets one at random, the n-th place in the permutation.
        rows = self._by_length(examples).reshape(self._size, -1)
        return examples[np.sort(np.sort(rows, axis=1).T, axis=1)]

    def _draw_tail(self, epoch: int) -> np.ndarray:
        count = (epoch + 1) * len(self._tokens) % self._size
        return self._evenly(self._places(epoch, self._last_window(epoch)), count)

    def _draw_head(self, epoch: int) -> np.ndarray:
        if not self._head_size(epoch):
            return np.empty(0, np.int64)
        drawn = [self._tail(epoch - 1)]
        if not self._last_window(epoch):
            drawn.append(self._tail(epoch))
        left = self._without(self._places(epoch, 0), *drawn)
        return self._evenly(left, self._head_size(epoch))

    def _without(self, examples: np.ndarray, *drawn: np.ndarray) -> np.ndarray:
        left = np.ones(len(self._tokens), bool)
        for some in drawn:
            left[some] = False
        return examples[left[examples]]

    def _evenly(self, examples: np.ndarray, count: int) -> np.ndarray:
        """`count` of these examples, at random one of each `count`-th part by length."""
        if not count:
            return examples[:0]
        parts = np.arange(count) * len(examples) // count
        return examples[np.sort(np.minimum.reduceat(self._by_length(examples), parts))]

    def _by_length(self, examples: np.ndarray) -> np.ndarray:
        return np.argsort(-self._tokens[examples], kind="stable")

    def _permutation(self, epoch: int) -> np.ndarray:
        return _generator(self._seed, epoch).permutation(len(self._tokens))


class StraddlingOrder:
    """The order of runs that began with ORDER 1: as `ExampleOrder`, but windows straddle epochs.

    A step near the seam of two epochs may hold an example several times.
    """

    def __init__(self, tokens: np.ndarray, *, seed: int, batch_size: int):
        self._tokens, self._seed, self._batch_size = tokens, seed, batch_size
        self._permutation = functools.lru_cache(maxsize=2)(self._epoch_order)
        self._window = functools.lru_cache(maxsize=4)(self._window_steps)

    def examples(self, step: int) -> np.ndarray:
        """int64[batch_size], the examples of a step."""
        window, inside = divmod(step, WINDOW_STEPS)
        return self._window(window)[inside]

    def _window_steps(self, window: int) -> np.ndarray:
        size = WINDOW_STEPS * self._batch_size
        epochs, inside = np.divmod(np.arange(window * size, (window + 1) * size), len(self._tokens))
        parts = [self._permutation(int(e))[inside[epochs == e]] for e in np.unique(epochs)]
        examples = np.concatenate(parts)
        return examples[assign_to_chunks(self._tokens[examples], WINDOW_STEPS)]

    def _epoch_order(self, epoch: int) -> np.ndarray:
        return _generator(self._seed, epoch).permutation(len(self._tokens))


ORDERS = {1: StraddlingOrder, 2: ExampleOrder, ORDER: ExampleOrder}


def _generator(seed: int, number: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, number]))


def assign_to_chunks(lengths: np.ndarray, chunks: int) -> np.ndarray:
    """Assigns pairs to chunks in snake order: equal in number and near equal in tokens.

    Sorted by length, each run of `chunks` pairs is assigned forwards and the next one backwards.

    Args:
      lengths: int[b], tokens of each pair; b a multiple of `chunks`.

    Returns:
      int64[chunks, b // chunks], the pairs of each chunk, in rising order.
    """
    lengths = np.asarray(lengths)
    order = _stable_argsort(lengths.max(initial=0) - lengths)
    forwards = np.arange(chunks)
    both_ways = np.concatenate([forwards, forwards[::-1]])
    chunk_of = np.empty(len(order), np.int64)
    chunk_of[order] = np.resize(both_ways, len(order))
    return _stable_argsort(chunk_of).reshape(chunks, -1)


def balance_chunks(lengths: np.ndarray, chunks: int) -> np.ndarray:
    """As `assign_to_chunks`, more equal in tokens.

    The longest of each run of `chunks` pairs goes to the chunk with the fewest tokens so far, the
    next one to the next (in the last 256 runs; in those before them the order is the snake's).
    """
    lengths = np.asarray(lengths)
    runs = _stable_argsort(lengths.max(initial=0) - lengths).reshape(-1, chunks)
    first = max(0, len(runs) - _BALANCED_RUNS)
    runs[1:first:2] = runs[1:first:2, ::-1].copy()
    tokens = lengths[runs[:first]].sum(0, dtype=np.int64)
    for number, run in enumerate(runs[first:] if chunks > 1 else (), first):
        lightest = _stable_argsort(tokens - tokens.min())
        tokens[lightest] += lengths[run]
        runs[number, lightest] = run.copy()
    return np.sort(runs.T, axis=1)


def _stable_argsort(values: np.ndarray) -> np.ndarray:
    """int64[b], a stable order of values from 0; numpy sorts 16 bits by radix, 20 times faster."""
    if values.max(initial=0) < 1 << 16:
        values = values.astype(np.uint16)
    return np.argsort(values, kind="stable")


class StepInstructions(NamedTuple):
    """The instructions of the p pairs of a step.

    Attributes:
      hashes: uint64[p], of each pair's instruction.
      usable: bool[p], pairs that have an instruction.
      sibling: int64[p], the pair with the same query and the other instruction, or its own number.
      known: `KnownInstructions.of` the pairs, by the whole dataset.
    """

    hashes: np.ndarray
    usable: np.ndarray
    sibling: np.ndarray
    known: tuple[np.ndarray, np.ndarray]

    @property
    def poisoned(self) -> int:
        """Pairs whose sibling has another instruction."""
        return np.count_nonzero(self.hashes[self.sibling] != self.hashes)


class StepAssignment(NamedTuple):
    """The pairs of a step and their chunks; p pairs of B examples.

    Attributes:
      examples: int64[B].
      chunks: int64[c, n], the pairs of each chunk; -1 for an empty slot.
      lengths: int[p, columns], tokens of each text (`BatchLayout.text_lengths`).
      drawn: int64[p, m], the pair whose instruction is sampled; -1 for none.
      instructions: of the pairs, for block I; None without it.
      negatives: int64[p, h], the drawn hard negatives, numbers in the pair's list; -1 for none.
    """

    examples: np.ndarray
    chunks: np.ndarray
    lengths: np.ndarray
    drawn: np.ndarray
    instructions: StepInstructions | None
    negatives: np.ndarray

    def of_host(self, chunks: np.ndarray) -> np.ndarray:
        """int64[h, n], the pairs whose records a host reads; `chunks` as of `mesh.local_parts`."""
        return self.chunks[chunks]


def assign_step(
    dataset: TokenisedDataset,
    layout: BatchLayout,
    examples: np.ndarray,
    *,
    seed: int,
    step: int,
    order: int = ORDER,
) -> StepAssignment:
    """Draws the negatives of these examples' pairs and assigns the pairs to chunks, as runs of this
    order (a key of ORDERS) do."""
    drawn, instructions = np.empty((len(examples) * layout.pairs_per_example, 0), np.int64), None
    if layout.block_i:
        hashes = dataset.instruction_hashes[examples].ravel()
        usable = dataset.part_lengths[examples, :, 2].ravel() > 0
        known = dataset.known_instructions(examples)
        instructions = StepInstructions(hashes, usable, dataset.siblings(examples), known)
        options = {"count": layout.sampled, "seed": seed, "step": step, "known": known}
        drawn = sample_instructions(*instructions[:3], **options)
    negatives = np.empty((len(drawn), 0), np.int64)
    if layout.negatives:
        counts = dataset.negative_counts[examples].ravel()
        negatives = draw_negatives(counts, count=layout.negatives, seed=seed, step=step)
    lengths = layout.text_lengths(dataset, examples, drawn, negatives)
    chunks = _chunks(layout, lengths, balance_chunks if order > 2 else assign_to_chunks)
    return StepAssignment(examples, chunks, lengths, drawn, instructions, negatives)


def _chunks(
    layout: BatchLayout, lengths: np.ndarray, assign: Callable[[np.ndarray, int], np.ndarray]
) -> np.ndarray:
    """int64[c, n] of the pairs, by the lengths of their texts; -1 for an empty slot."""
    present, tokens = lengths[:, PASSAGE] > 0, sum(lengths.T)

    def in_chunks(items: np.ndarray, weights: np.ndarray, per_chunk: int) -> np.ndarray:
        padded = np.full(layout.chunks * per_chunk, -1)
        padded[: len(items)] = items
        return padded[assign(np.where(padded >= 0, weights[padded], 0), layout.chunks)]

    n, k = layout.pairs_per_chunk, layout.pairs_per_example
    if not layout.block_i:
        return in_chunks(np.flatnonzero(present), tokens, n)
    # whole examples, so that the query with its other instruction is on the same device
    per_example = (tokens * present).reshape(-1, k).sum(1)
    every = np.arange(layout.batch_size)
    examples = in_chunks(every, per_example, n // k)[:, :, None]
    pairs = k * examples + np.arange(k)[None, None]
    return np.where((examples >= 0) & present[pairs], pairs, -1).reshape(layout.chunks, -1)
