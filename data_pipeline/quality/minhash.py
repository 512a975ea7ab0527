"""Finds near-duplicate texts by MinHash signatures and locality-sensitive hashing.

`signature`, `bands` and `similarity` depend on the text alone (Broder 1997; bands as in Leskovec et
al., Mining of Massive Datasets, chapter 3), so Beam can group texts by band keys. `NearDuplicates`
is an index within one process.
"""

import functools
import hashlib
import re
from collections.abc import Iterator
from typing import Generic, TypeVar

import numpy as np

from data_pipeline.sources.folding import UNSPACED, fold
from inf_jax.core.errors import UserError

NUM_PERM = 128  # the estimate's standard deviation is sqrt(s (1 - s) / 128): 0.035 at s = 0.8
THRESHOLDS = (0.3, 0.95)  # the range in which 128 permutations are reliable

_WORDS = 3  # of a shingle
_FEW_WORDS = 8  # in shorter texts one changed word would change most shingles
_CHARACTERS = 5  # of a shingle of a text with few words
_WEIGHTS = (0.05, 0.95)  # of false positives, which cost one comparison, and false negatives
_TOKEN = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")
_BLOCK = 4096  # signatures per array
_RECENT = 1 << 19  # band keys in a dict, up to 70 MB, before they are sorted into arrays
MOST_SHARING = 64  # texts that share a band key and are compared: the first ones

K = TypeVar("K")


def tokens(text: str) -> list[str]:
    """The words of the folded text without punctuation; single characters in scripts without
    spaces."""
    return _TOKEN.findall(fold(text))


def shingles(text: str) -> set[bytes]:
    """All 3-grams of `tokens`; all character 5-grams of a text with under 8 tokens."""
    units, size, glue = tokens(text), _WORDS, " "
    if len(units) < _FEW_WORDS:
        units, size, glue = fold(text), _CHARACTERS, ""
    last = max(1, len(units) - size + 1)
    # surrogatepass: JSON may contain half a surrogate pair
    return {glue.join(units[i : i + size]).encode("utf-8", "surrogatepass") for i in range(last)}


@functools.lru_cache(maxsize=32)  # several rules in a row use the same text
def signature(text: str) -> np.ndarray:
    """uint32[NUM_PERM], read-only: the MinHash of the text's `shingles`."""
    sketch = _empty().copy()
    sketch.update_batch(shingles(text))
    values = sketch.hashvalues
    values.flags.writeable = False
    return values


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Estimates the Jaccard similarity of two texts' shingles from their signatures, both whole or
    both `compact`."""
    return float(np.mean(a == b))


def compact(values: np.ndarray) -> np.ndarray:
    """uint16[NUM_PERM]: a signature for `similarity` in half the memory.

    The low halves of two different minima collide with probability 2^-16 only (b-bit MinHash, Li
    and Koenig 2010). High halves would collide often, since minima are small.
    """
    return values.astype(np.uint16)


def bands(values: np.ndarray, *, threshold: float, kind: int = 0) -> tuple[int, ...]:
    """The band keys of a signature, as signed 64-bit integers; those of two kinds of text differ.

    Two texts of similarity s share at least one key with probability 1 - (1 - s^rows)^bands. At a
    threshold of 0.8 (16 bands of 8 rows) this is 0.95 for s = 0.8, 0.999 for 0.9 and 0.06 for 0.5.
    Texts that share a key are candidates; `similarity` decides.

    Raises:
      UserError: a threshold outside THRESHOLDS.
    """
    count, rows = _bands_and_rows(threshold)
    data, size = np.ascontiguousarray(values, "<u4").tobytes(), 4 * rows
    salts = [band.to_bytes(2) + bytes([kind]) for band in range(count)]
    parts = (data[start : start + size] for start in range(0, size * count, size))
    digests = b"".join(
        hashlib.blake2b(part, digest_size=8, salt=salt).digest()
        for part, salt in zip(parts, salts, strict=True)
    )
    return tuple(np.frombuffer(digests, "<i8").tolist())


class NearDuplicates(Generic[K]):
    """An index of texts that finds the near duplicates of a text; each text has a key.

    Of the texts that share a band key only the first MOST_SHARING are found by it, which bounds the
    work where most texts resemble each other. Takes 0.6 kB per text at a threshold of 0.8,
    including a small key (256 bytes per signature, 12 per band), and up to 70 MB for recent ones;
    datasketch's MinHashLSH takes 5.7 kB per text.
    """

    def __init__(self, threshold: float):
        """
        Args:
          threshold: Jaccard similarity of the shingles from which two texts are near duplicates.

        Raises:
          UserError: a threshold outside THRESHOLDS.
        """
        _bands_and_rows(threshold)
        self.threshold = threshold
        self._keys: list[K] = []
        self._signatures: list[np.ndarray] = []  # blocks of uint16[_BLOCK, NUM_PERM]
        self._postings = BandKeys()

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, text: str) -> K | None:
        """The key of the earliest near duplicate of the text; None if there is none."""
        return next(self.matches(text), None)

    def matches(self, text: str) -> Iterator[K]:
        """The keys of all near duplicates of the text, in the order of `add`."""
        values = signature(text)
        own = compact(values)
        for number in self._postings.find(bands(values, threshold=self.threshold)).tolist():
            other = self._signatures[number // _BLOCK][number % _BLOCK]
            if similarity(other, own) >= self.threshold:
                yield self._keys[number]

    def add(self, key: K, text: str) -> None:
        """Adds a text, whether or not it has near duplicates."""
        values, number = signature(text), len(self._keys)
        if number % _BLOCK == 0:
            self._signatures.append(np.empty((_BLOCK, NUM_PERM), np.uint16))
        self._signatures[-1][number % _BLOCK] = compact(values)
        self._postings.add(bands(values, threshold=self.threshold), number)
        self._keys.append(key)


class BandKeys:
    """Maps band keys to the first MOST_SHARING numbers of texts each.

    A dict of recent ones, and sorted arrays of doubling sizes: a dict alone would take ten times as
    much memory.
    """

    def __init__(self):
        self._recent: dict[int, list[int]] = {}
        self._count = 0
        self._sorted: list[tuple[np.ndarray, np.ndarray]] = []  # int64 keys, int32 numbers

    def add(self, keys: tuple[int, ...], number: int) -> None:
        """Adds a text, whose number is larger than all before."""
        for key in keys:
            numbers = self._recent.setdefault(key, [])
            if len(numbers) < MOST_SHARING:
                numbers.append(number)
        self._count += len(keys)
        if self._count >= _RECENT:
            self._sort()

    def find(self, keys: tuple[int, ...]) -> np.ndarray:
        """The first MOST_SHARING numbers added under each of the keys, together, ascending."""
        wanted, room = np.array(keys, np.int64), np.full(len(keys), MOST_SHARING)
        found: list[np.ndarray | list[int]] = [[]]
        for sorted_keys, numbers in self._sorted:  # older ones first
            starts = np.searchsorted(sorted_keys, wanted)
            hits = np.flatnonzero(sorted_keys[np.minimum(starts, len(sorted_keys) - 1)] == wanted)
            if not len(hits):
                continue
            starts = starts[hits]
            stops = np.searchsorted(sorted_keys, wanted[hits], "right")
            stops = np.minimum(stops, starts + room[hits])
            room[hits] -= stops - starts
            parts = zip(starts.tolist(), stops.tolist(), strict=True)
            found += [numbers[start:stop] for start, stop in parts]
        for key, left in zip(keys, room.tolist(), strict=True):
            found[0] += self._recent.get(key, ())[:left]
        return np.unique(np.concatenate(found)).astype(np.int64)

    def _sort(self) -> None:
        sizes = [len(numbers) for numbers in self._recent.values()]
        keys = np.repeat(np.fromiter(self._recent, np.int64, len(sizes)), sizes)
        numbers = np.fromiter((n for each in self._recent.values() for n in each), np.int32)
        while True:
            order = np.argsort(keys, kind="stable")
            keys, numbers = keys[order], numbers[order]
            if len(keys) > MOST_SHARING:
                # a key that equals the one MOST_SHARING places before it is one too many
                keep = np.ones(len(keys), bool)
                keep[MOST_SHARING:] = keys[MOST_SHARING:] != keys[:-MOST_SHARING]
                keys, numbers = keys[keep], numbers[keep]
            if not self._sorted or len(self._sorted[-1][0]) > len(keys):
                break
            # arrays of equal size are merged, so there are at most log2(n) to search
            older = self._sorted.pop()
            keys, numbers = np.concatenate([older[0], keys]), np.concatenate([older[1], numbers])
        self._sorted.append((keys, numbers))
        self._recent, self._count = {}, 0


@functools.cache
def _empty():
    from datasketch import MinHash  # slow to import (scipy)

    return MinHash(num_perm=NUM_PERM, seed=1, scheme="affine32")


@functools.cache
def _bands_and_rows(threshold: float) -> tuple[int, int]:
    """Number of bands and rows per band, as optimised by datasketch."""
    least, most = THRESHOLDS
    if not least <= threshold <= most:
        raise UserError(
            f"near-duplicate threshold {threshold} is out of range; give one from {least} to {most}"
        )
    from datasketch import MinHashLSH

    index = MinHashLSH(threshold=threshold, num_perm=NUM_PERM, weights=_WEIGHTS)
    return index.b, index.r
