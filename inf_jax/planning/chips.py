"""Published chip specs: peak FLOP/s, HBM, interconnect.

| figure                    | source                                                            |
|---------------------------|-------------------------------------------------------------------|
| v4: peak, HBM             | https://docs.cloud.google.com/tpu/docs/v4                         |
| v4: links                 | TPU v4, arXiv 2304.01433, table 4: 6 links of 50 GB/s             |
| v4: network               | https://jax-ml.github.io/scaling-book/tpus: 25 GB/s a host of 4   |
| v5e: all                  | https://docs.cloud.google.com/tpu/docs/v5e                        |
| v5p: all                  | https://docs.cloud.google.com/tpu/docs/v5p                        |
| v6e, tpu7x: all           | https://docs.cloud.google.com/tpu/docs/tpu7x, its table of chips  |
| usable HBM                | what libtpu 0.0.42.1 reports when it refuses a program            |
| rings (wraps)             | https://jax-ml.github.io/scaling-book/tpus                        |
| GPUs: peak                | https://www.nvidia.com/en-us/data-center/{a100,h100,h200}, dense  |

The documents give the interconnect as the sum of both directions of all links of a chip: a link
carries that over twice the number of links one way. The network between slices is given per chip,
or per pod (v5e: 6.4 Tbit/s for 256 chips).
"""

import dataclasses

GIB = 2**30
_DOCS = "https://docs.cloud.google.com/tpu/docs/"


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip. Rates are per second.

    Attributes:
      flops: peak FLOPs of bfloat16 matrix products.
      hbm, usable: bytes of memory, as documented and as a program may take them.
      hbm_rate: bytes between memory and chip.
      links: of the interconnect, two per dimension.
      wraps: a dimension whose size is a multiple of this is a ring, else a line.
      link_rate: bytes one way over one link.
      dcn_rate: bytes one way between slices, a chip's share.
      clock: Hz of a core, for the compiler's cycle estimates: peak over twice the multiply-adds of
        its matrix units; 0 where their number is not documented.
      source: where the figures are from.
    """

    flops: float
    hbm: float
    usable: float
    hbm_rate: float
    links: int
    wraps: int
    link_rate: float
    dcn_rate: float
    clock: float
    source: str

    def share(self, devices: int) -> "Chip":
        """One of the `devices` that JAX sees in a chip: an even share of all its rates."""
        if devices == 1:
            return self
        shared = ("flops", "hbm", "usable", "hbm_rate", "link_rate", "dcn_rate")
        return dataclasses.replace(self, **{n: getattr(self, n) / devices for n in shared})

    def rate(self, shape: tuple[int, ...]) -> float:
        """Bytes per second one way of a chip over all its links, in a slice of this shape."""
        links = sum(0 if size == 1 else 2 if size % self.wraps == 0 else 1 for size in shape)
        return min(links, self.links) * self.link_rate


# Peak TFLOP/s; HBM: GiB, usable GiB, GB/s; interconnect: links, wraps, GB/s of a link; GB/s between
# slices; matrix units of 128 x 128 (0: not documented); source.
_FIGURES = {
    "v4": (275, 32, 30.75, 1200, 6, 4, 50, 6.25, 8, _DOCS + "v4"),
    "v5e": (197, 16, 15.75, 819, 4, 16, 50, 3.125, 4, _DOCS + "v5e"),
    # usable: more than documented
    "v5p": (459, 95, 95.74, 2765, 6, 4, 100, 6.25, 8, _DOCS + "v5p"),
    "v6e": (918, 32, 31.25, 1638, 4, 16, 100, 12.5, 0, _DOCS + "tpu7x"),
    "tpu7x": (2307, 192, 189.5, 7380, 6, 4, 100, 12.5, 0, _DOCS + "tpu7x"),
    "cpu": (1, 8, 8, 100, 2, 1, 10, 1, 0, "made up, to try plan without libtpu"),
}


def _chip(figures: tuple) -> Chip:
    peak, hbm, usable, hbm_rate, links, wraps, link_rate, dcn_rate, units, source = figures
    memory = (hbm * GIB, usable * GIB, hbm_rate * 1e9)
    clock = peak * 1e12 / (2 * units * 128**2) if units else 0
    return Chip(peak * 1e12, *memory, links, wraps, link_rate * 1e9, dcn_rate * 1e9, clock, source)


CHIPS = {name: _chip(figures) for name, figures in _FIGURES.items()}

# jax.Device.device_kind -> a chip, and how many devices of that kind it has.
_TPUS = {
    "TPU v4": ("v4", 1),  # megacore, as on a Cloud TPU VM
    "TPU v5 lite": ("v5e", 1),
    "TPU v5e": ("v5e", 1),
    "TPU v5": ("v5p", 1),
    "TPU v5p": ("v5p", 1),
    "TPU v6 lite": ("v6e", 1),
    "TPU v6e": ("v6e", 1),
    "TPU7x": ("tpu7x", 2),
}
# Beginning of the device_kind -> peak.
_GPUS = {"NVIDIA A100": 312e12, "NVIDIA H100 80GB HBM3": 989.5e12, "NVIDIA H200": 989.5e12}


def peak_flops(kind: str) -> float | None:
    """Peak bfloat16 FLOPs per second of a `jax.Device.device_kind`; None if not listed."""
    if kind in _TPUS:
        name, devices = _TPUS[kind]
        return CHIPS[name].share(devices).flops
    return next((peak for name, peak in _GPUS.items() if kind.startswith(name)), None)
