"""Assigns examples to steps, their pairs to chunks and chunks to hosts: functions of (seed, step).

Every host computes the same from the index of the dataset, without reading a record, and then reads
the records of its own chunks alone.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from inf_jax.core.query_encoders import PASSAGE
from inf_jax.data.layout import BatchLayout
from inf_jax.data.negatives import draw_negatives, sample_instructions
from inf_jax.data.tokenised.dataset import TokenisedDataset
from inf_jax.data.tokenised.varied import VariedDataset

ORDER = 7  # of new runs; a run that is resumed keeps the order that it began with
_BALANCED_RUNS = 256  # see `balance_chunks`
# see `even_chunks`
_ABOVE_MEAN, _ROUNDS, _COMPARED = 0.0025, 32, 1 << 20


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
    return np.sort(_balanced(np.asarray(lengths)[None], chunks)[0][0], axis=1)


def _balanced(lengths: np.ndarray, chunks: int) -> tuple[np.ndarray, np.ndarray]:
    """(int64[g, chunks, b // chunks], int64[g, chunks]) of g groups, int[g, b]: the pairs of each
    chunk in no order, and its tokens."""
    runs = _stable_argsort(lengths.max(initial=0) - lengths).reshape(len(lengths), -1, chunks)
    lengths = np.take_along_axis(lengths[:, None], runs, axis=2)
    first = max(0, runs.shape[1] - _BALANCED_RUNS)
    for values in (runs, lengths):
        values[:, 1:first:2] = values[:, 1:first:2, ::-1].copy()
    tokens, every = lengths[:, :first].sum(1, dtype=np.int64), np.arange(len(runs))[:, None]
    for number in range(first, runs.shape[1]) if chunks > 1 else ():
        lightest = _stable_argsort(tokens - tokens.min())
        tokens[every, lightest] += lengths[:, number]
        runs[every, number, lightest] = runs[:, number].copy()
    return runs.swapaxes(1, 2), tokens


def even_chunks(lengths: np.ndarray, chunks: int) -> np.ndarray:
    """As `balance_chunks`, with pairs exchanged between the chunks with the most tokens and those
    with the fewest until none has over 0.25 % more than the mean.

    That matters where chunks have few pairs. Of more, most steps are left as they are, and of over
    a thousand all.

    Args:
      lengths: int[..., b], of groups that exchange nothing.

    Returns:
      int64[..., chunks, b // chunks]
    """
    lengths = np.asarray(lengths)
    groups = lengths.reshape(-1, lengths.shape[-1])
    found, tokens = _balanced(groups, chunks)
    most = groups.sum(1) / chunks * (1 + _ABOVE_MEAN)
    for number in np.flatnonzero((tokens > most[:, None]).any(1)).tolist():
        _exchange(found[number], tokens[number], groups[number].astype(np.int64), most[number])
    return np.sort(found, axis=2).reshape(*lengths.shape[:-1], chunks, -1)


def _exchange(found: np.ndarray, tokens: np.ndarray, lengths: np.ndarray, most: float) -> None:
    """Changes the pairs of chunks, int64[chunks, n], and their tokens so that none has more than
    the most, or few have."""
    chunks = len(found)
    for number in range(_ROUNDS):
        heavier = np.count_nonzero(tokens > most)
        count = min(heavier, chunks // 2, _COMPARED // found.shape[1] ** 2)
        if not count:
            break
        by_tokens = np.argsort(tokens, kind="stable")
        # in each round the heaviest meet other light ones
        light, heavy = np.roll(by_tokens[: chunks // 2], -number)[:count], by_tokens[-count:][::-1]
        gap, each = tokens[heavy] - tokens[light], np.arange(count)
        more = lengths[found[heavy]][:, :, None] - lengths[found[light]][:, None, :]
        more = more.reshape(count, -1)
        pair = np.abs(gap[:, None] - 2 * more).argmin(1)
        moved = more[each, pair]
        moved[np.abs(gap - 2 * moved) >= gap] = 0
        [some] = np.nonzero(moved)
        (given, taken), heavy, light = divmod(pair[some], found.shape[1]), heavy[some], light[some]
        found[heavy, given], found[light, taken] = found[light, taken], found[heavy, given]
        tokens[heavy] -= moved[some]
        tokens[light] += moved[some]


def _stable_argsort(values: np.ndarray) -> np.ndarray:
    """int64[..., b], a stable order of values from 0 along the last axis; numpy sorts 16 bits by
    radix, 20 times faster."""
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
      examples: int64[B], or [B, m] units of a mixture or of a `VariedDataset`.
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
    dataset: TokenisedDataset | VariedDataset,
    layout: BatchLayout,
    examples: np.ndarray,
    *,
    seed: int,
    step: int,
    order: int = ORDER,
    groups: int = 1,
) -> StepAssignment:
    """Draws the negatives of these examples' pairs and assigns the pairs to chunks, as runs of this
    order (a key of `example_order.ORDERS`) do.

    `groups` divides the examples and the chunks: the pairs of the n-th part of the examples go to
    the n-th part of the chunks.
    """
    drawn, instructions = np.empty((len(examples) * layout.pairs_per_example, 0), np.int64), None
    if layout.block_i:
        hashes = dataset.instruction_hashes[examples].ravel()
        usable = dataset.part_lengths[examples][:, :, 2].ravel() > 0
        known = dataset.known_instructions(examples)
        instructions = StepInstructions(hashes, usable, dataset.siblings(examples), known)
        options = {"count": layout.sampled, "seed": seed, "step": step, "known": known}
        drawn = sample_instructions(*instructions[:3], **options)
    negatives = np.empty((len(drawn), 0), np.int64)
    if layout.negatives:
        counts = np.zeros(len(drawn), np.int64)  # of a split without any that is measured
        if dataset.negative_counts is not None:
            counts = dataset.negative_counts[examples].ravel()
        negatives = draw_negatives(counts, count=layout.negatives, seed=seed, step=step)
    lengths = layout.text_lengths(dataset, examples, drawn, negatives)
    assign = {1: assign_to_chunks, 2: assign_to_chunks, 3: balance_chunks}.get(order, even_chunks)
    chunks = _chunks(layout, lengths, assign, groups)
    return StepAssignment(examples, chunks, lengths, drawn, instructions, negatives)


def _chunks(
    layout: BatchLayout,
    lengths: np.ndarray,
    assign: Callable[[np.ndarray, int], np.ndarray],
    groups: int,
) -> np.ndarray:
    """int64[c, n] of the pairs, by the lengths of their texts; -1 for an empty slot."""
    present, tokens = lengths[:, PASSAGE] > 0, sum(lengths.T)

    def in_chunks(items: np.ndarray, weights: np.ndarray, per_chunk: int) -> np.ndarray:
        bounds, each = np.arange(1, groups) * (len(weights) // groups), layout.chunks // groups
        padded = np.full((groups, each * per_chunk), -1)
        for row, part in zip(padded, np.split(items, np.searchsorted(items, bounds)), strict=True):
            row[: len(part)] = part
        tokens = np.where(padded >= 0, weights[padded], 0)
        if assign is even_chunks:
            places = even_chunks(tokens, each)
        else:
            places = np.stack([assign(row, each) for row in tokens])
        return padded[np.arange(groups)[:, None, None], places].reshape(layout.chunks, -1)

    n, k = layout.pairs_per_chunk, layout.pairs_per_example
    if not layout.block_i:
        return in_chunks(np.flatnonzero(present), tokens, n)
    # whole examples, so that the query with its other instruction is on the same device
    per_example = (tokens * present).reshape(-1, k).sum(1)
    every = np.arange(layout.batch_size)
    examples = in_chunks(every, per_example, n // k)[:, :, None]
    pairs = k * examples + np.arange(k)[None, None]
    return np.where((examples >= 0) & present[pairs], pairs, -1).reshape(layout.chunks, -1)
