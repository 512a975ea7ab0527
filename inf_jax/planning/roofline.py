"""Predicts the seconds of a program on a chip with a roofline model.

An instruction takes the longer of its products at peak and its bytes at the memory's rate, and
instructions run one after another. Work on the vector unit is not counted, so the result is a lower
bound. On a GPU, rates are those that programs reach (`chips.Reached`), attention also counts its
work on the vector units, and a kernel takes at least 2 us: an estimate, not a bound. An exposed
collective adds its time; overlapped ones share one bound with the computation. A collective of n
devices whose result has S bytes takes

    all-gather             S (n - 1) / n  / R
    all-reduce           2 S (n - 1) / n  / R
    reduce-scatter         S (n - 1)      / R
    all-to-all             S (n - 1) / n  / R   (no limit by the torus's bisection)
    collective-permute     S / one link
    dcn                    S / N, for all-reduce of s slices 2 S (s - 1) / s / N

plus a microsecond a hop (Austin et al., How to Scale Your Model, jax-ml.github.io/scaling-book).
R is the one-way rate over all links in use, those of the torus's dimensions that a group fills, at
least one ring's (on GPUs always NVLink's); N is the chip's share of the network between slices.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from inf_jax.planning.chips import Chip, chip_of
from inf_jax.planning.hlo import Collective
from inf_jax.planning.hlo_cost import InstructionCost, instruction_costs

_HOP = 1e-6


class Seconds(NamedTuple):
    """Predicted seconds of a step.

    Attributes:
      compute: all products at peak.
      memory: all traffic at the memory's rate.
      work: sum over instructions of the longer of the two, on a GPU at the rates it reaches.
      hidden, exposed: collectives that are and are not overlapped.
      host: all copies to and from the host's memory at the rate of its link, beside the work.
      step: max(work, compute, memory, hidden, host) + exposed.
      compiler: the same from the compiler's cycle estimates, which lack attention kernels (these
        keep their bound); None if it gives no cycles or the chip's clock is unknown.
    """

    compute: float
    memory: float
    work: float
    hidden: float
    exposed: float
    step: float
    compiler: float | None
    host: float = 0.0


class Layout(NamedTuple):
    """Where the devices of a program are.

    Attributes:
      shape: chips of a slice along each dimension.
      slices: their number.
      places: coordinates of each device, in the program's order; empty if they have none.
    """

    shape: tuple[int, ...] = (1,)
    slices: int = 1
    places: tuple[tuple[int, ...], ...] = ()

    def filled(self, c: Collective) -> tuple[int, ...]:
        """The sizes of the slice's dimensions that a collective's groups fill, each a box of chips;
        () if there is none."""
        if c.group >= math.prod(self.shape) or not c.groups:
            return self.shape
        if not self.places:
            return ()
        members = (self.places[i] for i in c.groups[0])
        across = [len(set(axis)) for axis in zip(*members, strict=True)]
        box = math.prod(across) == c.group
        # v5e's coordinates have a third, 0
        return tuple(n for n, size in zip(across, self.shape, strict=False) if box and n == size)


def collective_seconds(c: Collective, chip: Chip, at: Layout) -> float:
    """Seconds of one run of a collective of devices, each a `chip`; a group that is unknown counts
    as the whole slice."""
    n = c.group or math.prod(at.shape)
    if c.kind.startswith("dcn"):
        factor = 2 * (at.slices - 1) / max(at.slices, 1) if c.kind == "dcn all-reduce" else 1
        return c.size * factor / chip.dcn_rate
    if c.kind == "collective-permute":
        return c.size / chip.link_rate + _HOP
    if n == 1:
        return 0.0
    filled = at.filled(c)
    rate, hops = chip.rate(filled), sum(size // 2 for size in filled)
    if n < math.prod(at.shape):
        rate, hops = max(rate, min(2, chip.links) * chip.link_rate), hops or n // 2
    sent = c.size * (n - 1) / n
    factor = {"all-reduce": 2, "reduce-scatter": n}.get(c.kind, 1)
    return factor * sent / rate + _HOP * hops


def predict(
    costs: Sequence[InstructionCost],
    collectives: Sequence[Collective],
    chip: Chip,
    at: Layout = Layout(),
) -> Seconds:
    """Seconds of a step on a device."""
    compute = sum(w.times * w.unit_flops for w in costs) / chip.flops
    memory = sum(w.times * w.traffic for w in costs) / chip.hbm_rate

    def bound(w: InstructionCost) -> float:
        reached = chip.reached
        share = reached.attention if w.kernel else reached.products
        products, moved = w.unit_flops / chip.flops / share, w.traffic / chip.hbm_rate
        least = reached.kernel_s if w.traffic else 0.0
        vector = w.vector_flops / reached.vector
        return w.times * max(products, moved / reached.memory, vector, least)

    work = sum(bound(w) for w in costs if w.blocking)
    hidden = exposed = 0.0
    for c in collectives:
        seconds = c.times * collective_seconds(c, chip, at)
        hidden += seconds * c.overlapped
        exposed += seconds * (not c.overlapped)
    host = sum(w.times * w.host for w in costs) / chip.host_rate
    step = max(work, compute, memory, hidden, host) + exposed
    cycles, compiler = sum(w.times * w.cycles for w in costs), None
    if cycles and chip.clock:
        kernels = sum(bound(w) for w in costs if w.kernel)
        compiler = max(cycles / chip.clock + kernels, hidden, host) + exposed
    return Seconds(compute, memory, work, hidden, exposed, step, compiler, host)


def predicted_seconds(compiled_text: str, device_kind: str) -> Seconds | None:
    """The same of a program compiled for one device of this host; None if its chip is not listed.

    Args:
      compiled_text: `as_text()` of the compiled program.
      device_kind: `jax.Device.device_kind`.
    """
    chip = chip_of(device_kind)
    return predict(instruction_costs(compiled_text), [], chip) if chip else None
