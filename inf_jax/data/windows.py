"""Orders the examples of a shuffled split so that each host reads long stretches of it.

The stored order, shard by shard in random order, is cut into lanes, equal parts side by side. A
step holds as many examples of each lane; a window is the next stretch of every lane, whose examples
are assigned to the window's steps at random, evenly by length. Chunks form groups, each with lanes
of its own, and within a group chunks are made equal in tokens; so a host reads the stretches of its
groups' lanes alone, one after another.
"""

import functools
import math
import threading
from collections.abc import Callable, Sequence

import numpy as np

from inf_jax.core.errors import UserError
from inf_jax.data.sampler import ORDER
from inf_jax.data.tokenised.windowed import WindowedDataset

MOST_LANES = 512
_LEAST_OF_LANE = 4  # examples that a step takes from a lane
_LEAST_OF_GROUP = 512  # and a group from its lanes: with fewer, chunks differ by over 1 % in tokens
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
      order: a key of `example_order.ORDERS`. Before 5 a lane's share of each step was drawn without
        regard to what the step had of it, and groups were as many as could be.

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
        order: int = ORDER,
    ):
        total = int(shard_sizes.sum())
        if batch_size > total:
            raise UserError(
                f"data.shuffle=windows: a step of {batch_size:,} examples is larger than the data, "
                f"{total:,}; lower train.batch_size or set data.shuffle=global"
            )
        self._sizes, self._tokens, self._seed = shard_sizes, tokens, seed
        self._even = order > 4
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
        """In how many groups chunks and lanes are split, whose n-th belong together."""
        groups, least = math.gcd(chunks, self.lanes), _LEAST_OF_GROUP if self._even else 0
        while groups > 1 and self._each * self.lanes < least * groups:
            groups //= 2
        return groups

    def lanes_of(self, mine: Sequence[int] | np.ndarray, chunks: int) -> np.ndarray:
        """int64[...], the lanes of these chunks."""
        groups = self.groups(chunks)
        wanted = np.unique(np.asarray(mine) // (chunks // groups))
        per_group = self.lanes // groups
        return (wanted[:, None] * per_group + np.arange(per_group)).ravel()

    def stretches(self, window: int, lanes: np.ndarray) -> list[tuple[int, int]]:
        """(first, last + 1) of the examples that a window has in these lanes, each in one shard;
        those that follow each other there are one."""
        epoch, steps = window // self._windows, self.steps(window)
        firsts, ends = self._shards(epoch)
        inside = steps.start - epoch * self._steps
        found: list[tuple[int, int]] = []
        before = -1  # the part's number
        for lane in lanes.tolist():
            at = (lane * self._steps + inside) * self._each
            stop = at + len(steps) * self._each
            while at < stop:
                number = int(np.searchsorted(ends, at, side="right"))
                end = int(ends[number])
                first = int(firsts[number]) + at - int(ends[number - 1] if number else 0)
                last = first + min(stop, end) - at
                if number == before and found[-1][1] == first:
                    first, _ = found.pop()
                found.append((first, last))
                at, before = min(stop, end), number
        return found

    def _permutation(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The parts of the stored order one after another as an epoch has them, all shards: the
        first example of each, and where it ends in the epoch.

        The epoch begins within its first shard, whose examples before that are its end.
        """
        rng = _generator(self._seed + _SHARDS, epoch)
        order = rng.permutation(len(self._sizes))
        first, sizes = self._first[order], self._sizes[order]
        if self._even:
            cut = int(rng.integers(sizes[0]))
            first, sizes = np.append(first, first[0]), np.append(sizes, cut)
            first[0] += cut
            sizes[0] -= cut
        return first, np.cumsum(sizes)

    def _examples(self, window: int) -> np.ndarray:
        """[steps, batch_size], the examples of the steps of a window."""
        stretches, steps = self.stretches(window, np.arange(self.lanes)), len(self.steps(window))
        stored = np.concatenate([np.arange(*stretch) for stretch in stretches])
        tokens = self._tokens(stored)
        if tokens.max() < 1 << 16:
            tokens = tokens.astype(np.uint16)  # sorted by radix
        stored, tokens = (x.reshape(self.lanes, -1) for x in (stored, tokens))
        order = np.argsort(tokens, axis=1, kind="stable")
        kind = np.int32 if stored.max() < 1 << 31 else np.int64
        rows, tokens = (
            np.take_along_axis(x, order, 1).reshape(self.lanes, self._each, steps)
            for x in (stored.astype(kind), tokens)
        )
        rng = _generator(self._seed + _WINDOWS, window)
        # of each row of neighbours by length a step gets one
        if self._even:
            rows = _evened(rows, tokens, self.groups(self.lanes), rng)
        else:
            rows = rng.permuted(rows, axis=2)
        return np.ascontiguousarray(np.moveaxis(rows, 2, 0)).reshape(steps, -1)


def _evened(
    rows: np.ndarray, tokens: np.ndarray, groups: int, rng: np.random.Generator
) -> np.ndarray:
    """int[lanes, each, steps], each row in another order, in which all steps have nearly as many
    tokens of a group's lanes.

    A lane's longest examples are its last row, and the last of a row. The last row of a group's
    last lane is in random order; of the others, from the last to the first, the longer ones are for
    the steps that have fewer tokens so far.
    """
    lanes, each, steps = rows.shape
    of_groups = (groups, lanes // groups, each, steps)
    rows, tokens = (
        x.reshape(of_groups).swapaxes(1, 2).reshape(groups, -1, steps) for x in (rows, tokens)
    )
    found, sums = np.empty_like(rows), np.zeros((groups, steps), np.int64)
    by_tokens = rng.permuted(np.tile(np.arange(steps), (groups, 1)), axis=1)
    for row in reversed(range(rows.shape[1])):
        np.put_along_axis(found[:, row], by_tokens, rows[:, row], axis=1)
        more = np.take_along_axis(sums, by_tokens, axis=1) + tokens[:, row]
        np.put_along_axis(sums, by_tokens, more, axis=1)
        by_tokens = np.argsort(-sums, axis=1, kind="stable")
    return found.reshape(groups, each, -1, steps).swapaxes(1, 2).reshape(lanes, each, steps)


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
