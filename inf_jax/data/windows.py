"""Orders the examples of a shuffled split so that each host reads long stretches of it.

The stored order, shard by shard in random order, is cut into lanes, equal parts side by side. A
step holds as many examples of each lane; a window is the next stretch of every lane, whose examples
are assigned to the window's steps at random, evenly by length. A chunk of a step takes its pairs
from lanes of its own, so a host reads the stretches of its lanes alone, one after another.
"""

import functools
import math
import threading
from collections.abc import Callable, Sequence

import numpy as np

from inf_jax.core.errors import UserError
from inf_jax.data.tokenised.windowed import WindowedDataset

MOST_LANES = 512
_LEAST_OF_LANE = 4  # examples that a step takes from a lane
_STRETCH = 1024  # examples of a window in a lane, at least, where the data are as large
_LEAST_STEPS = 16  # of a window, likewise
_SHARDS, _WINDOWS = 8 << 32, 9 << 32  # random streams, added to the seed (below 2**32)


class WindowedOrder:
    """The order of the examples of a shuffled split; threads may share it.

    An epoch holds each example once at most; those that no whole step is left for, fewer than a
    step's, are others in each epoch.

    Args:
      shard_sizes: int64[shards], examples of each.
      tokens: int64[m] examples -> int[m], tokens of each.
      seed, batch_size: with the step's number they decide its examples.

    Attributes:
      lanes: their number, a power of two that divides batch_size.

    Raises:
      UserError: a step is larger than the data.
    """

    def __init__(
        self,
        shard_sizes: np.ndarray,
        *,
        tokens: Callable[[np.ndarray], np.ndarray],
        seed: int,
        batch_size: int,
    ):
        total = int(shard_sizes.sum())
        if batch_size > total:
            raise UserError(
                f"data.shuffle=windows: a step of {batch_size:,} examples is larger than the data, "
                f"{total:,}; lower train.batch_size or set data.shuffle=global"
            )
        self._sizes, self._tokens, self._seed = shard_sizes, tokens, seed
        self._first = np.cumsum(shard_sizes) - shard_sizes
        self.lanes = math.gcd(batch_size, MOST_LANES)
        while self.lanes > 1 and batch_size // self.lanes < _LEAST_OF_LANE:
            self.lanes //= 2
        self._each = batch_size // self.lanes  # examples of a lane in a step
        self._steps = total // batch_size  # of an epoch
        self._windows = -(-self._steps // max(_LEAST_STEPS, -(-_STRETCH // self._each)))
        self._shards = functools.lru_cache(maxsize=2)(self._permutation)
        self._window = functools.lru_cache(maxsize=2)(self._examples)

    def examples(self, step: int) -> np.ndarray:
        """int64[batch_size], the examples of a step, lane by lane."""
        window = self.window(step)
        return self._window(window)[step - self.steps(window).start].astype(np.int64)

    def window(self, step: int) -> int:
        """The number of a step's window."""
        epoch, inside = divmod(step, self._steps)
        few, more = divmod(self._steps, self._windows)  # the first ones have a step more
        low = min(inside // (few + 1), more)
        return epoch * self._windows + low + (inside - low * (few + 1)) // few

    def steps(self, window: int) -> range:
        """The steps of a window."""
        epoch, inside = divmod(window, self._windows)
        few, more = divmod(self._steps, self._windows)
        first = epoch * self._steps + inside * few + min(inside, more)
        return range(first, first + few + (inside < more))

    def groups(self, chunks: int) -> int:
        """In how many groups chunks and lanes can be split, whose n-th belong together."""
        return math.gcd(chunks, self.lanes)

    def lanes_of(self, mine: Sequence[int] | np.ndarray, chunks: int) -> np.ndarray:
        """int64[...], the lanes of these chunks."""
        groups = self.groups(chunks)
        wanted = np.unique(np.asarray(mine) // (chunks // groups))
        per_group = self.lanes // groups
        return (wanted[:, None] * per_group + np.arange(per_group)).ravel()

    def stretches(self, window: int, lanes: np.ndarray) -> list[tuple[int, int]]:
        """(first, last + 1) of the examples that a window has in these lanes, each in one shard."""
        epoch, steps = window // self._windows, self.steps(window)
        order, ends = self._shards(epoch)
        inside = steps.start - epoch * self._steps
        found = []
        for lane in lanes.tolist():
            at = (lane * self._steps + inside) * self._each
            stop = at + len(steps) * self._each
            while at < stop:
                number = int(np.searchsorted(ends, at, side="right"))
                end, shard = int(ends[number]), order[number]
                first = int(self._first[shard] + self._sizes[shard]) - (end - at)
                found.append((first, first + min(stop, end) - at))
                at = min(stop, end)
        return found

    def _permutation(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The shards in an epoch's order, and the end of each there."""
        order = _generator(self._seed + _SHARDS, epoch).permutation(len(self._sizes))
        return order, np.cumsum(self._sizes[order])

    def _examples(self, window: int) -> np.ndarray:
        """[steps, batch_size], the examples of the steps of a window."""
        stretches, steps = self.stretches(window, np.arange(self.lanes)), len(self.steps(window))
        stored = np.concatenate([np.arange(*stretch) for stretch in stretches])
        tokens = self._tokens(stored)
        stored, tokens = (x.reshape(self.lanes, -1) for x in (stored, tokens))
        if tokens.max() < 1 << 16:
            tokens = tokens.astype(np.uint16)  # sorted by radix
        order = np.argsort(tokens, axis=1, kind="stable")
        rows = np.take_along_axis(stored, order, 1).reshape(self.lanes, self._each, steps)
        kind = np.int32 if stored.max() < 1 << 31 else np.int64
        # of each row of neighbours by length a step gets one
        rows = _generator(self._seed + _WINDOWS, window).permuted(rows.astype(kind), axis=2)
        return np.ascontiguousarray(np.moveaxis(rows, 2, 0)).reshape(steps, -1)


class WindowReader:
    """Has a host's records of a window read while the one before is trained on.

    Args:
      lanes: int64[...], of the host's chunks.
      steps: of the run.
    """

    def __init__(
        self, dataset: WindowedDataset, order: WindowedOrder, *, lanes: np.ndarray, steps: int
    ):
        self._dataset, self._order, self._lanes, self._steps = dataset, order, lanes, steps
        self._now, self._lock = -1, threading.Lock()

    def prepare(self, step: int) -> None:
        """Call before records of a step are read. UserError: two windows are larger than the
        dataset's limit."""
        window = self._order.window(step)
        with self._lock:
            if window == self._now:
                return
            ahead = []
            if self._order.steps(window).stop < self._steps:
                ahead = self._order.stretches(window + 1, self._lanes)
            self._dataset.stage(self._order.stretches(window, self._lanes), ahead)
            self._now = window


def _generator(seed: int, number: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, number]))
