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
| GPUs: peak, HBM, NVLink   | https://www.nvidia.com/en-us/data-center/{a100,h100,h200}; B200:  |
|                           | .../data-center/hgx, a board's figures / 8; dense, not sparse     |
| GPUs: memory              | what nvidia-smi shows; usable is the 75 % that JAX takes of it    |
|                           | unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise              |
| TPUs: link to the host    | https://jax-ml.github.io/scaling-book/tpus: 15 GB/s               |
| GPUs: link to the host    | 16 lanes of PCIe 4 (A100) or 5 (the others), one way              |
| GPUs: network             | one port a GPU of a DGX: A100 200 Gbit/s, the others 400          |
| GPUs: reached products    | H200: launch/benchmarks.md (8192^3); the others: ml-engineering,  |
|                           | https://github.com/stas00/ml-engineering, its table of MAMF       |
| GPUs: other reached rates | a profile of a step on an H200, launch/benchmarks.md; assumed for |
|                           | the other GPUs                                                    |

The documents give the interconnect as the sum of both directions of all links of a chip: a link
carries that over twice the number of links one way. The network between slices is given per chip,
or per pod (v5e: 6.4 Tbit/s for 256 chips).
"""

import dataclasses
import math
from typing import NamedTuple

GIB = 2**30
_DOCS = "https://docs.cloud.google.com/tpu/docs/"


class Reached(NamedTuple):
    """What programs reach of a chip's rates; the defaults make a prediction a lower bound.

    Attributes:
      products, attention: share of the peak in plain products and in cuDNN's attention.
      memory: share of the memory's rate.
      vector: FLOPs per second of the vector units, for attention.
      kernel_s: least seconds of a kernel.
    """

    products: float = 1.0
    attention: float = 1.0
    memory: float = 1.0
    vector: float = math.inf
    kernel_s: float = 0.0


LOWER_BOUND = Reached()


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip. Rates are per second.

    Attributes:
      flops: peak FLOPs of bfloat16 matrix products.
      hbm, usable: bytes of memory, as documented and as a program may take them.
      hbm_rate: bytes between memory and chip.
      links: of the interconnect, two per dimension; one to a switch on GPUs.
      wraps: a dimension whose size is a multiple of this is a ring, else a line.
      link_rate: bytes one way over one link.
      dcn_rate: bytes one way between slices, a chip's share.
      clock: Hz of a core, for the compiler's cycle estimates: peak over twice the multiply-adds of
        its matrix units; 0 where their number is not documented.
      source: where the figures are from.
      reached: shares of the rates that programs reach.
      host_rate: bytes one way between the device and its host's memory.
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
    reached: Reached = LOWER_BOUND
    host_rate: float = 1.5e10

    def share(self, devices: int) -> "Chip":
        """One of the `devices` that JAX sees in a chip: an even share of all its rates."""
        if devices == 1:
            return self
        shared = ("flops", "hbm", "usable", "hbm_rate", "link_rate", "dcn_rate", "host_rate")
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


def _gpu(
    peak: float,
    gib: float,
    hbm_rate: float,
    links: float,
    network: float,
    reached: Reached,
    page: str,
) -> Chip:
    """TFLOP/s, GiB, GB/s of the memory, of NVLink one way and of the network."""
    return Chip(
        flops=peak * 1e12,
        hbm=gib * GIB,
        usable=0.75 * gib * GIB,
        hbm_rate=hbm_rate * 1e9,
        links=1,
        wraps=1,
        link_rate=links * 1e9,
        dcn_rate=network * 1e9,
        clock=0,
        source=f"https://www.nvidia.com/en-us/data-center/{page}",
        reached=reached,
        host_rate=3.2e10 if page == "a100" else 6.4e10,
    )


def _reached(products: float, vector: float) -> Reached:
    return Reached(products, attention=1 / 6, memory=0.7, vector=vector * 1e12, kernel_s=2e-6)


CHIPS = {name: _chip(figures) for name, figures in _FIGURES.items()} | {
    "a100_40": _gpu(312, 40, 1555, 300, 25, _reached(0.869, 19.5), "a100"),
    "a100": _gpu(312, 80, 2039, 300, 25, _reached(0.869, 19.5), "a100"),
    "h100": _gpu(989.5, 79.6, 3350, 450, 50, _reached(0.803, 67), "h100"),
    "h200": _gpu(989.5, 140.4, 4800, 450, 50, _reached(0.763, 67), "h200"),
    "b200": _gpu(2250, 179, 8000, 900, 50, _reached(0.776, 80), "hgx"),
}


class Multiprocessors(NamedTuple):
    """What XLA's GPU compiler asks of a chip, from NVIDIA's architecture papers; KiB, MiB, GHz."""

    count: int
    lanes: int
    shared_kib: int
    block_kib: int
    cache_mib: int
    ghz: float
    capability: int


# The names of CHIPS that are GPUs.
GPUS = {
    "a100_40": Multiprocessors(108, 64, 164, 163, 40, 1.41, 8),
    "a100": Multiprocessors(108, 64, 164, 163, 40, 1.41, 8),
    "h100": Multiprocessors(132, 128, 228, 227, 50, 1.98, 9),
    "h200": Multiprocessors(132, 128, 228, 227, 50, 1.98, 9),
    "b200": Multiprocessors(148, 128, 228, 227, 126, 1.965, 10),
}

# jax.Device.device_kind -> a chip, and how many devices of that kind it has.
DEVICE_KINDS = {
    "TPU v4": ("v4", 1),  # megacore, as on a Cloud TPU VM
    "TPU v5 lite": ("v5e", 1),
    "TPU v5e": ("v5e", 1),
    "TPU v5": ("v5p", 1),
    "TPU v5p": ("v5p", 1),
    "TPU v6 lite": ("v6e", 1),
    "TPU v6e": ("v6e", 1),
    "TPU7x": ("tpu7x", 2),
    "NVIDIA A100-SXM4-40GB": ("a100_40", 1),
    "NVIDIA A100-PCIE-40GB": ("a100_40", 1),
    "NVIDIA A100-SXM4-80GB": ("a100", 1),
    "NVIDIA A100 80GB PCIe": ("a100", 1),
    "NVIDIA H100 80GB HBM3": ("h100", 1),
    "NVIDIA H200": ("h200", 1),
    "NVIDIA B200": ("b200", 1),
}


def chip_of(kind: str) -> Chip | None:
    """The figures of a `jax.Device.device_kind`, for one device; None if not listed."""
    name, devices = DEVICE_KINDS.get(kind, ("", 1))
    return CHIPS[name].share(devices) if name else None


def peak_flops(kind: str) -> float | None:
    """Peak bfloat16 FLOPs per second of a `jax.Device.device_kind`; None if not listed."""
    chip = chip_of(kind)
    return chip.flops if chip else None
