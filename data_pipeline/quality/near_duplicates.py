"""Finds near-duplicate examples, within one process or grouped by Beam.

Two examples are near duplicates if both their positive instructed queries and their positive
passages are, as in the stage filter. An example is dropped if it has an earlier sound near
duplicate (`rules.Verdict.sound`), even one that is itself dropped as a duplicate: so verdicts
depend on the records and their order only, not on how they are grouped.

Candidates share a band key of their queries or of their passages: of a corpus with one instruction
all queries resemble each other, its passages do not. Of the examples that share a key only the
first different ones are compared with the later, at most `minhash.MOST_SHARING`: the work grows
with the number of examples, not with its square. Near duplicates have many keys, so one that is
late under one key is still found by others.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np

from data_pipeline.quality.minhash import (
    MOST_SHARING,
    NUM_PERM,
    BandKeys,
    bands,
    compact,
    signature,
)
from inf_jax.data.records import AnyExample, pairs

_COMPARED = 64  # examples compared at once, which bounds memory
_QUERY, _PASSAGE = 0, 1


def is_near(threshold: float) -> Callable[[AnyExample], bool]:
    """Returns a function that, called for examples in order, says whether each is a near duplicate
    of an earlier one.

    Raises:
      UserError: a threshold outside `minhash.THRESHOLDS`.
    """
    examples = NearExamples(threshold)

    def near(example: AnyExample) -> bool:
        repeated = example in examples
        examples.add(example)
        return repeated

    return near


class NearExamples:
    """An index of examples; `example in index` says whether it has a near duplicate there.

    Takes 1 kB per example at a threshold of 0.8: 512 bytes of signatures, 12 per band key;
    and up to 70 MB for recent keys.

    Raises:
      UserError: a threshold outside `minhash.THRESHOLDS`.
    """

    def __init__(self, threshold: float):
        bands(np.zeros(NUM_PERM, np.uint32), threshold=threshold)  # checks it
        self._threshold = threshold
        self._count = 0
        self._sketches = np.empty((0, 2, NUM_PERM), np.uint16)  # grown by a quarter
        self._keys = BandKeys()
        self._last: tuple[AnyExample, int, tuple[bool, bool]] | None = None

    def __contains__(self, example: AnyExample) -> bool:
        return self._find(example)[0]

    def add(self, example: AnyExample) -> None:
        """Adds an example, whether or not it has near duplicates."""
        if self._find(example)[1]:
            return  # what is near to it is near to the equal one, which is earlier
        keys, values = sketch(example, self._threshold)
        if self._count == len(self._sketches):
            size = self._count + self._count // 4 + 1024
            self._sketches.resize((size, *values.shape), refcheck=False)
        self._sketches[self._count] = values
        self._keys.add(keys, self._count)
        self._count += 1

    def _find(self, example: AnyExample) -> tuple[bool, bool]:
        """Whether there is a near duplicate, and whether there is one with equal signatures."""
        if self._last is None or self._last[:2] != (example, self._count):  # looked up, then added
            self._last = example, self._count, self._compare(example)
        return self._last[2]

    def _compare(self, example: AnyExample) -> tuple[bool, bool]:
        keys, values = sketch(example, self._threshold)
        numbers, least = self._keys.find(keys), self._threshold * NUM_PERM
        passages = _equal(self._sketches[numbers, _PASSAGE], values[_PASSAGE])
        rows = self._sketches[numbers[passages >= least]]
        near = bool((_equal(rows[:, _QUERY], values[_QUERY]) >= least).any())
        return near, near and bool((rows == values).all(axis=(1, 2)).any())


def item_query(example: AnyExample) -> str:
    """The text that is compared besides the positive passage."""
    positive = pairs(example)[0]
    return f"{positive.query} {positive.instruction}"


@functools.lru_cache(maxsize=1)  # an example is looked up, then added
def sketch(example: AnyExample, threshold: float) -> tuple[tuple[int, ...], np.ndarray]:
    """The band keys of an example's instructed query and of its passage, and the compact signatures
    of both, uint16[2, NUM_PERM]."""
    both = signature(item_query(example)), signature(pairs(example)[0].passage)
    keys = (bands(values, threshold=threshold, kind=kind) for kind, values in enumerate(both))
    return sum(keys, ()), np.stack([compact(values) for values in both])


def repeats(sketches: Sequence[bytes], threshold: float) -> list[int]:
    """The indices of the sketches, of examples that share a band key, that are near duplicates of
    one of the first MOST_SHARING different ones, earlier in the list."""
    first: dict[bytes, int] = {}
    for number, each in enumerate(sketches):
        if len(first) == MOST_SHARING:
            break
        first.setdefault(each, number)
    rows = np.frombuffer(b"".join(sketches), np.uint16).reshape(len(sketches), 2, NUM_PERM)
    earlier = np.array(list(first.values()))
    found: list[int] = []
    for start in range(0, len(rows), _COMPARED):
        later = rows[start : start + _COMPARED]
        passages = _equal(later[:, None, _PASSAGE], rows[None, earlier, _PASSAGE])
        numbers = np.arange(start, start + len(later))
        near = (passages >= threshold * NUM_PERM) & (earlier < numbers[:, None])
        n, e = np.nonzero(near)
        queries = _equal(later[n, _QUERY], rows[earlier[e], _QUERY])
        found += sorted(set(numbers[n[queries >= threshold * NUM_PERM]].tolist()))
    return found


def _equal(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """uint8[...], how many of the NUM_PERM values in the last axis are equal."""
    return (a == b).view(np.uint8).sum(axis=-1, dtype=np.uint8)
