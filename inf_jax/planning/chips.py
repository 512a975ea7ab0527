"""What a chip can do, from public documents.

| figure                    | source                                                            |
|---------------------------|-------------------------------------------------------------------|
| v4: peak, HBM             | https://docs.cloud.google.com/tpu/docs/v4                         |
| v4: links                 | TPU v4, arXiv 2304.01433, table 4: 6 links of 50 GB/s             |
| v4: network               | https://jax-ml.github.io/scaling-book/tpus: 25 GB/s a host of 4   |
| v5e: all                  | https://docs.cloud.google.com/tpu/docs/v5e                        |
| v5p: all                  | https://docs.cloud.google.com/tpu/docs/v5p                        |
| v6e, tpu7x: all           | https://docs.cloud.google.com/tpu/docs/tpu7x, its table of chips  |
| usable HBM                | what libtpu 0.0.42.1 says it has when it refuses a program        |
| rings (wraps)             | https://jax-ml.github.io/scaling-book/tpus                        |
| GPUs: peak                | https://www.nvidia.com/en-us/data-center/{a100,h100,h200}, dense  |

The documents give the interconnect as the sum of both directions of all links of a chip: a link
carries that over twice the number of links one way. The network between slices is given a chip, or
a pod (v5e: 6.4 Tbit/s for 256 chips).
"""

import dataclasses

GIB = 2**30
_DOCS = "https://docs.cloud.google.com/tpu/docs/"


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip. Rates are per second.

    Attributes:
      libtpu: its name in a topology of libtpu; "" for a target that is no TPU.
      flops: peak of bfloat16 products.
      hbm: bytes of memory, as documented.
      usable: bytes of it that a program may take.
      hbm_rate: bytes between memory and chip.
      links: of the interconnect, two a dimension.
      wraps: a dimension of a multiple of so many chips is a ring, else a line.
      link_rate: bytes one way over one link.
      dcn_rate: bytes one way between slices, a chip's share.
      clock: of a core, for the compiler's count of cycles: peak over twice the multiply-adds of its
        matrix units; 0 where the documents do not say how many it has.
      source: where the figures are from.
    """

    libtpu: str
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
        """One of the devices that jax sees in a chip: an even share of all its rates."""
        if devices == 1:
            return self
        shared = ("flops", "hbm", "usable", "hbm_rate", "link_rate", "dcn_rate")
        return dataclasses.replace(self, **{n: getattr(self, n) / devices for n in shared})

    def rate(self, shape: tuple[int, ...]) -> float:
        """Bytes one way that a chip of a slice of this shape sends over all its links in use."""
        links = 0
        for size in shape:
            links += 0 if size == 1 else 2 if size % self.wraps == 0 else 1
        return min(links, self.links) * self.link_rate


CHIPS = {
    "v4": Chip(
        libtpu="v4",
        flops=275e12,
        hbm=32 * GIB,
        usable=30.75 * GIB,
        hbm_rate=1200e9,
        links=6,
        wraps=4,
        link_rate=50e9,
        dcn_rate=6.25e9,
        clock=275e12 / (2 * 8 * 128**2),
        source=_DOCS + "v4",
    ),
    "v5e": Chip(
        libtpu="v5e",
        flops=197e12,
        hbm=16 * GIB,
        usable=15.75 * GIB,
        hbm_rate=819e9,
        links=4,
        wraps=16,
        link_rate=50e9,
        dcn_rate=3.125e9,
        clock=197e12 / (2 * 4 * 128**2),
        source=_DOCS + "v5e",
    ),
    "v5p": Chip(
        libtpu="v5p",
        flops=459e12,
        hbm=95 * GIB,
        usable=95.74 * GIB,  # more than the documents say
        hbm_rate=2765e9,
        links=6,
        wraps=4,
        link_rate=100e9,
        dcn_rate=6.25e9,
        clock=459e12 / (2 * 8 * 128**2),
        source=_DOCS + "v5p",
    ),
    "v6e": Chip(
        libtpu="v6e",
        flops=918e12,
        hbm=32 * GIB,
        usable=31.25 * GIB,
        hbm_rate=1638e9,
        links=4,
        wraps=16,
        link_rate=100e9,
        dcn_rate=12.5e9,
        clock=0,
        source=_DOCS + "tpu7x",
    ),
    "tpu7x": Chip(
        libtpu="tpu7x",
        flops=2307e12,
        hbm=192 * GIB,
        usable=189.5 * GIB,
        hbm_rate=7380e9,
        links=6,
        wraps=4,
        link_rate=100e9,
        dcn_rate=12.5e9,
        clock=0,
        source=_DOCS + "tpu7x",
    ),
    # No chip: something to try plan on where libtpu is not installed.
    "cpu": Chip(
        libtpu="",
        flops=1e12,
        hbm=8 * GIB,
        usable=8 * GIB,
        hbm_rate=100e9,
        links=2,
        wraps=1,
        link_rate=10e9,
        dcn_rate=1e9,
        clock=0,
        source="made up, to try plan without libtpu",
    ),
}

# jax.Device.device_kind -> a chip, and how many devices of that kind it is.
_TPUS = {
    "TPU v4": ("v4", 1),  # megacore, as a Cloud TPU VM has it
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
    """Peak of bfloat16 products, operations a second, of a device of this `device_kind`; None where
    this table has none."""
    if kind in _TPUS:
        name, devices = _TPUS[kind]
        return CHIPS[name].share(devices).flops
    return next((peak for name, peak in _GPUS.items() if kind.startswith(name)), None)
