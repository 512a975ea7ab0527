"""Orders the examples of a dataset: epochs without a gap, cut into steps.

A step's examples are a function of (seed, step).
"""

import bisect
import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from inf_jax.data.sampler import ORDER, assign_to_chunks

WINDOW_STEPS = 16  # at least so many steps share their examples' lengths evenly, and of small ones
WINDOW_EXAMPLES = 1024  # so many that they have these examples, but at most half of the data
_SHUFFLE = 2 << 32  # added to the seed (below 2**32): another random stream than the epochs' order


class Cuts(NamedTuple):
    """Where a stream of examples is cut into steps.

    Attributes:
      before: step -> examples of all steps before it; rises.
      least, most: examples of the smallest and of the largest step.
    """

    before: Callable[[int], int]
    least: int
    most: int

    @classmethod
    def even(cls, size: int) -> "Cuts":
        """Steps of one size."""
        return cls(lambda step: step * size, size, size)

    def first(self, count: int) -> int:
        """The first step that at least `count` examples come before."""
        if self.least == self.most:
            return -(-count // self.most)
        return bisect.bisect_left(range(1 << 62), count, key=self.before)

    def sizes(self, first: int, last: int) -> np.ndarray:
        """int64[last - first], examples of each of these steps."""
        return np.diff([self.before(step) for step in range(first, last + 1)])


class ExampleOrder:
    """The order of n examples; threads may share it. `tokens` is int[n], tokens of each example.

    Epochs follow each other without a gap, each holds every example once, and a step holds an
    example floor(batch_size / n) or ceil(batch_size / n) times: never twice where it is not larger
    than the data. Steps of more than half of the data are drawn by what they leave out. Steps that
    differ in size, of which some are larger than the data or some are clearly above and others
    clearly below half of it, are cut from whole epochs, one after another: one that two epochs
    share may hold an example twice.

    Args:
      batch_size: examples of a step, or `Cuts` where steps differ.
    """

    _window_examples = WINDOW_EXAMPLES

    def __init__(self, tokens: np.ndarray, *, seed: int, batch_size: int | Cuts):
        cuts = batch_size if isinstance(batch_size, Cuts) else Cuts.even(batch_size)
        self._n, self._seed, self._copies, self._epochs = len(tokens), seed, 0, None
        if cuts.least == cuts.most:
            self._copies, rest = divmod(cuts.most, self._n)
            cuts = Cuts.even(rest)
        self._whole = cuts if cuts.most > self._n else None
        self._by_left_out = False
        if self._n >= cuts.most > self._n / 2:
            # both halves of a step that two epochs share, and the next one's, are of other examples
            left, most = _left_out(cuts, self._n), (self._n + 1) // 2
            self._by_left_out = left.most <= most
            self._whole = cuts if min(left.most, cuts.most) > most else None
            cuts = left if self._by_left_out else cuts
        if cuts.most and not self._whole:
            self._epochs = _Epochs(tokens, seed=seed, cuts=cuts, examples=self._window_examples)

    @property
    def short_windows(self) -> bool:
        """Whether fewer steps share their examples' lengths evenly than in a new run."""
        return self._epochs is not None and self._epochs.short_windows

    def examples(self, step: int) -> np.ndarray:
        """int64[batch_size], the examples of a step."""
        if self._whole:
            return self._of_whole_epochs(step)
        some = self._epochs.step(step) if self._epochs else np.empty(0, np.int64)
        if not (self._copies or self._by_left_out):
            return some
        if self._by_left_out:
            kept = np.ones(self._n, bool)
            kept[some] = False
            some = np.flatnonzero(kept)
        every = np.concatenate([*[np.arange(self._n)] * self._copies, some])
        return _generator(self._seed + _SHUFFLE, step).permutation(every)

    def _of_whole_epochs(self, step: int) -> np.ndarray:
        first, last = (self._whole.before(step + n) for n in (0, 1))
        epochs = range(first // self._n, -(-last // self._n))
        parts = [_generator(self._seed, epoch).permutation(self._n) for epoch in epochs]
        begin = epochs.start * self._n
        return np.concatenate([np.empty(0, np.int64), *parts])[first - begin : last - begin]


class ShortWindowsOrder(ExampleOrder):
    """The order of runs that began with ORDER 2 to 5: windows of small steps are short too."""

    _window_examples = 0


def window_steps(cuts: Cuts, whole: range, examples: int) -> int:
    """How many of an epoch's `whole` steps form a window: enough for so many `examples`.

    They are at most half of the steps, so that a window does not hold the same examples each time,
    and at most `examples` steps, where some have none. But they are at least WINDOW_STEPS, and hold
    the tail of the epoch before, which the head skips that is drawn from the first window. With 0
    `examples` they are WINDOW_STEPS, as in older orders.
    """
    if not examples:
        return WINDOW_STEPS
    first, last = cuts.before(whole.start), cuts.before(whole.stop)
    wanted = min(-(-examples * len(whole) // (last - first)), examples, len(whole) // 2)
    return max(WINDOW_STEPS, wanted, cuts.first(first + cuts.most - 1) - whole.start)


def _left_out(cuts: Cuts, count: int) -> Cuts:
    """The cuts of what is left of `count` examples in each step."""
    if cuts.least == cuts.most:
        return Cuts.even(count - cuts.most)
    before = lambda step: step * count - cuts.before(step)  # noqa: E731
    return Cuts(before, count - cuts.most, count - cuts.least)


class _Epochs:
    """Steps of at most half of the n examples: the stream of epochs, cut into steps.

    An epoch is its head, the last part of the step that the epoch before has opened, its whole
    steps, and its tail, the first part of a step. The whole steps form windows of `window_steps`,
    the last one of up to twice as many. The examples of a window are assigned to its steps by
    length, so that all steps hold nearly as many tokens; head and tail are drawn evenly by length
    from the first and the last window. The tail depends on this epoch's permutation alone, and the
    head on the tail before it, whose examples it skips: any step is known from two permutations,
    however far into a run.
    """

    def __init__(self, tokens: np.ndarray, *, seed: int, cuts: Cuts, examples: int):
        self._tokens, self._seed, self._cuts = tokens, seed, cuts
        self._epoch = functools.lru_cache(maxsize=2)(self._permutation)
        self._window = functools.lru_cache(maxsize=4)(self._window_steps)
        self._whole = functools.lru_cache(maxsize=4)(self._whole_steps)
        self._size = functools.lru_cache(maxsize=4)(
            lambda epoch: window_steps(cuts, self._whole(epoch), examples)
        )
        self._head, self._tail = (
            functools.lru_cache(maxsize=4)(draw) for draw in (self._draw_head, self._draw_tail)
        )

    @property
    def short_windows(self) -> bool:
        """See `ExampleOrder`."""
        return self._size(0) < window_steps(self._cuts, self._whole(0), WINDOW_EXAMPLES)

    def step(self, step: int) -> np.ndarray:
        """int64[size], the examples of a step."""
        first, last = (self._cuts.before(step + n) for n in (0, 1))
        epoch = first // len(self._tokens)
        if last > (epoch + 1) * len(self._tokens):
            return np.concatenate([self._tail(epoch), self._head(epoch + 1)])
        number, size = step - self._whole(epoch).start, self._size(epoch)
        window = min(number // size, self._last_window(epoch))
        return self._window(epoch, window)[number - window * size]

    def _whole_steps(self, epoch: int) -> range:
        """The steps inside an epoch."""
        begin, end = (n * len(self._tokens) for n in (epoch, epoch + 1))
        return range(self._cuts.first(begin), self._cuts.first(end + 1) - 1)

    def _head_size(self, epoch: int) -> int:
        return self._cuts.before(self._whole(epoch).start) - epoch * len(self._tokens)

    def _last_window(self, epoch: int) -> int:
        return max(0, len(self._whole(epoch)) // self._size(epoch) - 1)

    def _steps(self, epoch: int, window: int) -> range:
        """The steps of a window."""
        first, last = (self._size(epoch) * n for n in (window, window + 1))
        whole = self._whole(epoch)
        return whole[first:] if window == self._last_window(epoch) else whole[first:last]

    def _places(self, epoch: int, window: int) -> np.ndarray:
        """int64[...], the examples of a window, with head and tail, in the permutation's order."""
        steps, begin = self._steps(epoch, window), epoch * len(self._tokens)
        first = self._cuts.before(steps.start) - begin if window else 0
        last = self._cuts.before(steps.stop) - begin
        return self._epoch(epoch)[first : None if window == self._last_window(epoch) else last]

    def _window_steps(self, epoch: int, window: int) -> list[np.ndarray]:
        """int64[size] of each step."""
        last, steps = self._last_window(epoch), self._steps(epoch, window)
        drawn = [self._head(epoch)] * (window == 0) + [self._tail(epoch)] * (window == last)
        examples = self._without(self._places(epoch, window), *drawn)
        sizes, by_length = self._cuts.sizes(steps.start, steps.stop), self._by_length
        even = (sizes == sizes[0]).all()
        if last and even:
            return [*examples[assign_to_chunks(self._tokens[examples], len(steps))]]
        # All windows hold the same examples, whose ranks by length are always the same too: of each
        # row of neighbours by length a step gets one at random, the n-th place in the permutation.
        if even:
            rows = by_length(examples).reshape(-1, len(steps))
            return [*examples[np.sort(np.sort(rows, axis=1).T, axis=1)]]
        # Steps of other sizes have their examples at ranks that are spread as evenly.
        step = np.repeat(np.arange(len(steps)), sizes)
        rank = np.arange(len(step)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        spread = (rank + 0.5) / sizes[step]
        order = np.lexsort((step, spread))
        step, row = step[order], np.cumsum(np.diff(spread[order], prepend=0) > 0)
        places = by_length(examples)
        places = places[np.lexsort((places, row))]
        return np.split(examples[places[np.lexsort((places, step))]], np.cumsum(sizes)[:-1])

    def _draw_tail(self, epoch: int) -> np.ndarray:
        count = (epoch + 1) * len(self._tokens) - self._cuts.before(self._whole(epoch).stop)
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
    """The order of runs that began with ORDER 1: as `ShortWindowsOrder`, but windows straddle
    epochs.

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


# by their number; they also differ in how the pairs of a step are assigned (`data.sampler`), and
# 4 and 5 in `data.windows` alone; 6 was that of one commit, 6f7aeac, and is refused
ORDERS = {
    1: StraddlingOrder,
    2: ShortWindowsOrder,
    3: ShortWindowsOrder,
    4: ShortWindowsOrder,
    5: ShortWindowsOrder,
    ORDER: ExampleOrder,
}


def _generator(seed: int, number: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, number]))
