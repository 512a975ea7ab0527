"""Chooses the negatives of a step: hard negatives, and other instructions for block I.

Hard negatives are drawn from the list of each pair. Block I (losses.objective) needs n_ik, the
query of row i under the instruction of row k. The one under the example's poisoned instruction is
in the batch anyway; the others are sampled here. Pure numpy on the whole global batch: neither mesh
nor chunks nor hosts change a sample.
"""

from collections.abc import Sequence

import numpy as np

from inf_jax.data.records import text_hash

_STREAM = 1 << 32  # added to the seed (below 2**32): another random stream than the epochs' order
_HARD_STREAM = 3 << 32  # and another than `sampler` shuffles by
# (the pairs whose instructions rows are encoded with, which exist); the row's own pair where not
Sources = tuple[np.ndarray, np.ndarray]


def usual_siblings(present: np.ndarray) -> np.ndarray:
    """int64[n, k], the place in its example of each pair's sibling, the pair with the same query
    under another instruction, or its own place: as in InF-IR, whose pairs 0 and 1 are such.

    `present` is bool[n, k], False for an absent pair.
    """
    places = np.tile(np.arange(present.shape[1]), (len(present), 1))
    if present.shape[1] > 1:
        places[present[:, :2].all(1), :2] = [1, 0]
    return places


def find_siblings(hashes: np.ndarray, present: np.ndarray) -> np.ndarray:
    """As `usual_siblings`, by the hashes of instruction, query and passage, uint64[n, k, 3]; a pair
    without instruction has none."""
    k = present.shape[1]
    places = np.tile(np.arange(k), (len(present), 1))
    free = present & (hashes[:, :, 0] != np.uint64(text_hash("")))
    for a in range(k):
        for b in range(a + 1, k):
            differ = hashes[:, a, :2] != hashes[:, b, :2]
            both = free[:, a] & free[:, b] & differ[:, 0] & ~differ[:, 1]
            places[both, a], places[both, b] = b, a
            free[both, a] = free[both, b] = False
    return places


class KnownInstructions:
    """The instructions that go with a query and a passage in more than one of n pairs.

    Args:
      pairs: uint64[n], `records.pair_hashes`.
      instructions: uint64[n], hashes.
    """

    def __init__(self, pairs: np.ndarray, instructions: np.ndarray):
        ordered = np.sort(pairs)
        repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        several = np.isin(pairs, repeated) if repeated.size else np.zeros(len(pairs), bool)
        known = np.stack([pairs[several], instructions[several]], axis=1)
        self.pairs, self.instructions = np.unique(known, axis=0).T

    @classmethod
    def joined(cls, datasets: Sequence) -> "KnownInstructions":
        """Of all pairs that are there in several `TokenisedDataset`."""
        present = [one.text_lengths[:, ::2] > 0 for one in datasets]
        both = list(zip(datasets, present, strict=True))
        return cls(
            np.concatenate([one.pair_hashes[there] for one, there in both]),
            np.concatenate([one.instruction_hashes[there] for one, there in both]),
        )

    def of(self, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(rows, instructions), int64[k] and uint64[k]: for each of the pairs, uint64[p], all
        instructions that go with it, by rising row; none for a pair that is there once."""
        first, last = (np.searchsorted(self.pairs, pairs, side=side) for side in ("left", "right"))
        count = last - first
        rows = np.repeat(np.arange(len(pairs)), count)
        inside = np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count)
        return rows, self.instructions[first[rows] + inside]


def sample_instructions(
    hashes: np.ndarray,
    usable: np.ndarray,
    sibling: np.ndarray,
    *,
    count: int,
    seed: int,
    step: int,
    known: tuple[np.ndarray, np.ndarray] | None = None,
) -> np.ndarray:
    """Samples `count` instructions for each pair, uniformly from the different texts of the batch.

    A row's samples differ from each other, from its own instruction, from its sibling's, and from
    those that are known to go with its query and passage. Floyd's algorithm: `count` passes
    whatever the batch, without rejection.

    Args:
      hashes: uint64[p], hash of each pair's instruction.
      usable: bool[p], pairs that have an instruction.
      sibling: int64[p], see `usual_siblings`; the pair's number, not its place.
      seed, step: with a pair's number they decide its samples.
      known: `KnownInstructions.of` these pairs; None for none.

    Returns:
      int64[p, count], the first pair of the batch with the sampled instruction; -1 where the row
      has no instruction or the batch has no more different ones.
    """
    drawn = np.full((len(hashes), count), -1)
    pairs = np.flatnonzero(usable)
    if not count or not pairs.size:
        return drawn
    texts, first, text_of = np.unique(hashes[pairs], return_index=True, return_inverse=True)
    # Each row excludes one or two texts, in rising order: its own and its sibling's.
    other = sibling[pairs]
    text_of_other = np.where(usable[other], np.searchsorted(texts, hashes[other]), text_of)
    low, high = np.minimum(text_of, text_of_other), np.maximum(text_of, text_of_other)
    # Some rows exclude more: (row, text) in rising order, with those two.
    rows, excluded = np.empty((2, 0), np.int64)
    if known is not None and len(known[0]):
        row_of = np.full(len(hashes), -1)
        row_of[pairs] = np.arange(len(pairs))
        rows, place = row_of[known[0]], np.searchsorted(texts, known[1])
        there = (rows >= 0) & (texts[np.minimum(place, len(texts) - 1)] == known[1])
        rows, place = rows[there], place[there]
        numbers = [rows * len(texts) + text for text in (place, low[rows], high[rows])]
        rows, excluded = np.divmod(np.unique(np.concatenate(numbers)), len(texts))
    number = np.bincount(rows, minlength=len(pairs))
    available = len(texts) - np.where(number, number, 1 + (low != high))
    generator = np.random.Generator(np.random.Philox(key=[seed + _STREAM, step]))
    chosen = _floyd(available, generator.random((len(hashes), count))[pairs])
    text = chosen + (chosen >= low[:, None])
    text += (text >= high[:, None]) & (low != high)[:, None]
    # In these rows the k-th text left comes after the excluded ones that leave k or fewer before.
    more, width = np.flatnonzero(number), len(texts) + 1
    start = np.cumsum(number) - number
    left_before = rows * width + excluded - (np.arange(len(rows)) - start[rows])
    asked = more[:, None] * width + chosen[more]
    skipped = np.searchsorted(left_before, asked, side="right") - start[more, None]
    text[more] = chosen[more] + skipped
    drawn[pairs] = np.where(chosen >= 0, pairs[first][text], -1)
    return drawn


def draw_negatives(counts: np.ndarray, *, count: int, seed: int, step: int) -> np.ndarray:
    """Draws for each pair `count` of its hard negatives, or all if it has fewer, without
    repetition.

    Args:
      counts: int[p], hard negatives of each pair.
      seed, step: with a pair's number they decide what is drawn.

    Returns:
      int64[p, count], numbers in the pair's list, rising; -1 after the last.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed + _HARD_STREAM, step]))
    chosen = _floyd(counts, generator.random((len(counts), count)))
    return np.sort(chosen.astype(np.uint64), axis=1).astype(np.int64)  # -1 is the largest


def _floyd(available: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """int64[r, count], different numbers below `available`, int[r], as many as there are, then -1;
    of random numbers in [0, 1), [r, count]. Floyd's algorithm."""
    count = uniform.shape[1]
    wanted = np.minimum(count, available)
    chosen = np.full(uniform.shape, -1)
    for n in range(count):
        last = available - wanted + n
        pick = (uniform[:, n] * (last + 1)).astype(np.int64)
        pick = np.where((chosen == pick[:, None]).any(1), last, pick)
        chosen[:, n] = np.where(n < wanted, pick, -1)
    return chosen


def sibling_slots(chunks: np.ndarray, sibling: np.ndarray) -> np.ndarray:
    """int32[c, n], the slot of each row's sibling in its chunk; its own slot where it has none.

    `chunks` is int64[c, n], the pairs of each chunk (whole examples); -1 in an empty slot.
    """
    slots = np.broadcast_to(np.arange(chunks.shape[1], dtype=np.int32), chunks.shape)
    filled = chunks >= 0
    slot_of = np.zeros(len(sibling), np.int32)
    slot_of[chunks[filled]] = slots[filled]
    return np.where(filled, slot_of[sibling[chunks]], slots)


def of_rows(pairs: np.ndarray, sibling: np.ndarray, drawn: np.ndarray) -> Sources:
    """int64 and bool[b, 1 + m]: each row's sibling, then the pairs with its sampled instructions.

    Args:
      pairs: int64[b], the pair in each row; -1 in an empty slot.
      sibling, drawn: see `sample_instructions`.
    """
    sources = np.hstack([sibling[pairs, None], drawn[pairs]])
    return _existing(pairs, sources, sources >= 0)


def of_chunk(chunks: np.ndarray, usable: np.ndarray) -> Sources:
    """As `of_rows` where a row takes all instructions of its chunk: [c * n, n] each, of the pairs
    of the chunks, int64[c, n], that have an instruction, bool[p]; a row without one takes none."""
    sources, rows = np.repeat(chunks, chunks.shape[1], axis=0), chunks.ravel()
    return _existing(rows, sources, (sources >= 0) & usable[sources] & usable[rows, None])


def instruction_ids(
    pairs: np.ndarray,
    sources: np.ndarray,
    hashes: np.ndarray,
    known: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """uint64[b, k], hashes that the identity mask compares with the row's own instruction.

    The row's own hash stands where the instruction is known to go with the row's query and passage:
    the passage is relevant under that instruction, so it is no negative.

    Args:
      pairs, sources: as `of_rows` takes and gives them.
      hashes: uint64[p], hash of each pair's instruction.
      known: `KnownInstructions.of` the p pairs.
    """
    own, theirs = hashes[pairs][:, None], hashes[sources]
    if len(known[0]):
        texts, number = np.unique(np.concatenate([hashes, known[1]]), return_inverse=True)
        there = known[0] * len(texts) + number[len(hashes) :]
        asked = pairs[:, None] * len(texts) + number[: len(hashes)][sources]
        theirs = np.where(np.isin(asked, there), own, theirs)
    return np.where(pairs[:, None] < 0, 0, theirs)


def _existing(pairs: np.ndarray, sources: np.ndarray, exists: np.ndarray) -> Sources:
    own = pairs[:, None]
    valid = (own >= 0) & exists & (sources != own)
    return np.where(valid, sources, own), valid
