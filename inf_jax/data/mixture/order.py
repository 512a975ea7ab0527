"""Orders the examples of several sources by their weights: a function of (seed, step).

A step is made of units, whole examples of one source with as many pairs in all sources (the least
common multiple of their pairs an example). So a step has always as many pairs, whatever its
sources.
"""

import bisect
import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from inf_jax.core.errors import UserError
from inf_jax.data.example_order import ORDERS, Cuts
from inf_jax.data.mixture.shares import Shares
from inf_jax.data.sampler import ORDER

_OF_SOURCE = 40  # a source's number is shifted by so many bits and added to the seed


@dataclasses.dataclass(frozen=True)
class Mixing:
    """How sources are mixed; `str` tells apart those whose steps differ.

    Attributes:
      names: of the sources.
      weights: of their pairs, whole numbers.
      homogeneous: whether a step is of one source.
      max_epochs: most epochs of a source in a run; 0: no limit.
      leave: whether a source leaves the mixture before it exceeds them; otherwise the run is
        refused.
    """

    names: tuple[str, ...]
    weights: tuple[int, ...]
    homogeneous: bool = False
    max_epochs: float = 0.0
    leave: bool = False

    def __str__(self) -> str:
        shares = ",".join(f"{n}:{w}" for n, w in zip(self.names, self.weights, strict=True))
        kind = "homogeneous" if self.homogeneous else "mixed"
        limited = self.max_epochs and self.leave
        return f"{shares} {kind}" + f", each for {self.max_epochs:g} epochs" * bool(limited)


class _Phase(NamedTuple):
    """Steps with the same sources.

    Attributes:
      first: step.
      given: slots that each of all sources had before it.
      sources: numbers of those that are left, ascending.
      shares: of these.
    """

    first: int
    given: list[int]
    sources: list[int]
    shares: Shares


class MixtureOrder:
    """The units of each step; threads may share it.

    Args:
      tokens: of each source int[n], tokens of its examples.
      pairs: pairs an example of each source.
      units: of a step.
      order: of the examples of each source, a key of `example_order.ORDERS`.

    Attributes:
      unit: pairs of a unit.
      ends: the step before which the last source is exhausted; None without a limit.
    """

    def __init__(
        self,
        mixing: Mixing,
        tokens: Sequence[np.ndarray],
        pairs: Sequence[int],
        *,
        units: int,
        seed: int,
        order: int = ORDER,
    ):
        self.unit = math.lcm(*pairs)
        self._mixing, self._seed = mixing, seed
        self._sizes = [len(each) for each in tokens]
        self._in_unit = [self.unit // k for k in pairs]
        self._slots = 1 if mixing.homogeneous else units  # of a step
        slot = units if mixing.homogeneous else 1  # in units
        self._in_slot = [slot * n for n in self._in_unit]  # examples
        self._phases, self.ends = self._make_phases()
        self._starts = np.cumsum([0, *self._sizes]).tolist()
        self._orders = [
            ORDERS[order](
                each,
                seed=seed + (i << _OF_SOURCE),
                batch_size=self._in_slot[i] if mixing.homogeneous else self._cuts(i),
            )
            for i, each in enumerate(tokens)
        ]

    @property
    def short_windows(self) -> bool:
        """Whether a source has shorter windows than in a new run: see `ExampleOrder`."""
        return any(order.short_windows for order in self._orders)

    def examples(self, step: int) -> np.ndarray:
        """int64[units, m], the examples of each unit of a step, numbered through all sources; -1
        after the last one. Units are in the order of their sources."""
        phase = self._phase(step)
        if self._mixing.homogeneous:
            chosen = [phase.sources[phase.shares.source(step - phase.first)]]
        else:
            chosen = phase.sources
        parts, width = [], max(self._in_unit)
        for i in chosen:
            at = self._given(i, step) if self._mixing.homogeneous else step
            examples = self._starts[i] + self._orders[i].examples(at)
            units = examples.reshape(-1, self._in_unit[i])
            parts.append(np.pad(units, ((0, 0), (0, width - units.shape[1])), constant_values=-1))
        return np.concatenate(parts)

    def pairs_before(self, step: int) -> list[int]:
        """Pairs of each source in all steps before this one."""
        units = self._in_slot[0] // self._in_unit[0] * self.unit
        return [units * self._given(i, step) for i in range(len(self._sizes))]

    def epochs(self, steps: int) -> list[float]:
        """How often each source is read in so many steps."""
        counts = zip(self._in_slot, self._sizes, strict=True)
        return [n * self._given(i, steps) / size for i, (n, size) in enumerate(counts)]

    def larger(self) -> str:
        """What is said of steps that are larger than a source; "" if none is."""
        for i, name in enumerate(self._mixing.names):
            most, size = self._most(i), self._sizes[i]
            if most > size:
                return (
                    f"data.mixture: a step takes {most:,} examples of {name}, which has {size:,}; "
                    "lower its weight or train.batch_size, or add data"
                )
        return ""

    def check(self, steps: int) -> None:
        """Raises UserError where a run of so many steps reads a source more often than it may."""
        mixing = self._mixing
        remedy = "raise data.max_epochs, lower train.steps, or add data"
        if mixing.leave and self.ends is not None and steps > self.ends:
            raise UserError(
                f"data.max_epochs={mixing.max_epochs:g}: all sources are exhausted after "
                f"{self.ends:,} of {steps:,} steps; {remedy}"
            )
        if mixing.max_epochs and not mixing.leave:
            over = [
                f"{name} {epochs:.2f} times"
                for name, epochs in zip(mixing.names, self.epochs(steps), strict=True)
                if epochs > mixing.max_epochs
            ]
            if over:
                raise UserError(
                    f"data.max_epochs={mixing.max_epochs:g}: {steps:,} steps would read "
                    f"{', '.join(over)}; lower its weight, {remedy}, or set "
                    "data.at_max_epochs='leave' to go on without it"
                )

    def leaving(self, steps: int) -> list[tuple[str, int]]:
        """(name, step) of the sources that leave the mixture before so many steps."""
        after = [*self._phases[1:]] + ([self._phases[-1]._replace(sources=[])] if self.ends else [])
        firsts = [phase.first for phase in self._phases[1:]] + ([self.ends] if self.ends else [])
        return [
            (self._mixing.names[i], first)
            for old, new, first in zip(self._phases, after, firsts, strict=False)
            for i in old.sources
            if i not in new.sources and first < steps
        ]

    def _make_phases(self) -> tuple[list[_Phase], int | None]:
        weights, left = self._mixing.weights, [*range(len(self._sizes))]
        phases = [_Phase(0, [0] * len(left), left, Shares(weights))]
        if not (self._mixing.max_epochs and self._mixing.leave):
            return phases, None
        limits = [
            int(self._mixing.max_epochs * size) // n
            for size, n in zip(self._sizes, self._in_slot, strict=True)
        ]
        while left:
            phase = phases[-1]
            last = {  # the first step that a source cannot fill
                i: bisect.bisect_left(
                    range(1 << 62),
                    limits[i] + 1,
                    key=lambda n, i=i, p=phase: self._in_phase(p, i, p.first + n + 1),
                )
                for i in left
            }
            first = phase.first + min(last.values())
            given = [self._in_phase(phase, i, first) for i in range(len(limits))]
            left = [i for i in left if last[i] > min(last.values())]
            if left:
                kept = Shares(
                    tuple(weights[i] // math.gcd(*(weights[j] for j in left)) for i in left)
                )
                phases.append(_Phase(first, given, left, kept))
        return phases, first

    def _in_phase(self, phase: _Phase, source: int, step: int) -> int:
        """Slots of a source before a step, as the sources of this phase share them."""
        if source not in phase.sources:
            return phase.given[source]
        slots = self._slots * (step - phase.first)
        return phase.given[source] + phase.shares.count(phase.sources.index(source), slots)

    def _phase(self, step: int) -> _Phase:
        return self._phases[bisect.bisect_right(self._phases, step, key=lambda p: p.first) - 1]

    def _given(self, source: int, step: int) -> int:
        return self._in_phase(self._phase(step), source, step)

    def _own_phases(self, source: int) -> list[_Phase]:
        return [phase for phase in self._phases if source in phase.sources]

    def _range(self, source: int) -> tuple[int, int]:
        ranges = [
            phase.shares.range_of_sizes(phase.sources.index(source), self._slots)
            for phase in self._own_phases(source)
        ]
        return min(r[0] for r in ranges), max(r[1] for r in ranges)

    def _most(self, source: int) -> int:
        """The most examples of a source in a step."""
        return self._in_slot[source] * (1 if self._mixing.homogeneous else self._range(source)[1])

    def _cuts(self, source: int) -> Cuts:
        """Of a source's examples; after it has left, as if it had not."""
        own, size = self._own_phases(source), self._in_slot[source]

        def before(step: int) -> int:
            at = bisect.bisect_right(own, step, key=lambda p: p.first) - 1
            return size * self._in_phase(own[at], source, step)

        least, most = self._range(source)
        return Cuts(before, size * least, size * most)
