"""Devices to plan for: a TPU topology that libtpu's compiler knows, or this machine's CPU split."""

import contextlib
import importlib.util
import math
import os
import re
from typing import NamedTuple

import jax

from inf_jax.core.errors import UserError, first_line
from inf_jax.planning.chips import CHIPS, GPUS, Chip

# Without these libtpu looks for TPUs on this machine and logs each failure.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # else one process per machine, by a lock file in /tmp
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


class Topology(NamedTuple):
    """Devices that a program is compiled for.

    Attributes:
      name: as given, e.g. "v5e:16x16".
      slices: number of slices, joined by the data-centre network.
      shape: chips of a slice along each dimension, e.g. (16, 16).
      chip: figures of one chip.
      devices: of JAX, slice by slice; one per chip, or two if JAX sees two cores in it.
    """

    name: str
    slices: int
    shape: tuple[int, ...]
    chip: Chip
    devices: list[jax.Device]

    @property
    def chips(self) -> int:
        """Chips of all slices."""
        return self.slices * math.prod(self.shape)

    @property
    def device(self) -> Chip:
        """Figures of one device: a chip, or its share of one."""
        return self.chip.share(len(self.devices) // self.chips)


def parse_topology(name: str) -> tuple[str, tuple[int, ...]]:
    """("v5e", (16, 16)) of "v5e:16x16"; raises UserError."""
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    if not match or match[1] not in CHIPS or match[1] in GPUS:
        known = ", ".join(chip for chip in CHIPS if chip not in GPUS)
        raise UserError(
            f"topology {name!r}: write CHIP:AxB or CHIP:AxBxC, e.g. v5e:16x16 or v5p:8x8x8; chips: "
            f"{known} (cpu:8 is eight virtual devices of this machine, to try things)"
        )
    return match[1], tuple(map(int, match[2].split("x")))


def topology(name: str, *, slices: int = 1) -> Topology:
    """The devices of a topology.

    Raises:
      UserError: the topology is unknown, libtpu is not installed, or the CPU has too few devices.
    """
    kind, shape = parse_topology(name)
    chips = slices * math.prod(shape)
    if kind == "cpu":
        with contextlib.suppress(RuntimeError):  # the backend is initialised already
            jax.config.update("jax_num_cpu_devices", chips)
        devices = jax.devices("cpu")[:chips]
        if len(devices) < chips:
            raise UserError(f"topology {name!r}: this process has {len(devices)} virtual devices")
    else:
        devices = _tpu(kind, name, shape, slices)
    return Topology(name, slices, shape, CHIPS[kind], devices)


def _tpu(kind: str, name: str, shape: tuple[int, ...], slices: int) -> list[jax.Device]:
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"topology {name!r}: compiling for a TPU needs libtpu (484 MB): pip install -e '.[aot]'"
        )
    from jax.experimental import topologies

    os.environ |= _ENVIRONMENT | os.environ
    options: dict = {"num_slices": slices} if slices > 1 else {}
    if math.prod(shape) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    if kind == "v4":
        options["chip_config_name"] = "megacore"  # one device per chip, as on a Cloud TPU VM
    try:
        known = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except Exception as error:  # JaxRuntimeError, ValueError, ...
        why = first_line(error)
        raise UserError(f"topology {name!r}: unknown to the compiler ({why})") from None
    return list(known.devices)
