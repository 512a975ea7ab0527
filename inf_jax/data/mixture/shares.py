"""Shares out a row of slots among sources, exactly in the proportion of whole weights."""

import functools
import math

import numpy as np


class Shares:
    """Which of S sources each slot of an endless row belongs to.

    Of any number of first slots T a source with weight w_i has less than one more or less than
    T * w_i / sum(w), and of a period of sum(w) slots exactly w_i: so does any run of periods.

    Args:
      weights: whole numbers above 0, S of them.

    Attributes:
      period: slots after which the row repeats.
    """

    def __init__(self, weights: tuple[int, ...]):
        self.weights, self.period = weights, sum(weights)
        self._source = _period(weights)
        each = self._source[:, None] == np.arange(len(weights))
        self._before = np.concatenate([np.zeros((1, len(weights)), np.int64), each.cumsum(0)])

    def source(self, slot: int) -> int:
        """The source of a slot."""
        return int(self._source[slot % self.period])

    def count(self, source: int, slots: int) -> int:
        """How many of the first `slots` slots a source has."""
        periods, rest = divmod(slots, self.period)
        return periods * self.weights[source] + int(self._before[rest, source])

    def range_of_sizes(self, source: int, slots: int) -> tuple[int, int]:
        """The least and the most that a source has of a step of `slots` slots, over all steps."""
        steps = self.period // math.gcd(self.period, slots)
        periods, rest = np.divmod(slots * np.arange(steps + 1), self.period)
        sizes = np.diff(periods * self.weights[source] + self._before[rest, source])
        return int(sizes.min()), int(sizes.max())


@functools.lru_cache(maxsize=16)
def _period(weights: tuple[int, ...]) -> np.ndarray:
    """uint16[sum(weights)], the source of each slot of a period.

    The n-th slot of a source (from 0) lies in the window of whole slots that covers [n, n + 1) /
    w_i: the one that is due first comes first among those whose window has begun (earliest deadline
    first, which finds a schedule wherever there is one, and here the fluid one shows that there is:
    Baruah et al., Proportionate Progress, Algorithmica 15, 1996).
    """
    total, given = sum(weights), [0] * len(weights)
    sources = np.empty(total, np.uint16)
    for slot in range(total):
        due = [
            (-(-(n + 1) * total // w), i)
            for i, (n, w) in enumerate(zip(given, weights, strict=True))
            if w * (slot + 1) > n * total
        ]
        sources[slot] = chosen = min(due)[1]
        given[chosen] += 1
    return sources
