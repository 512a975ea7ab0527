"""Devices to plan for: TPUs that libtpu's compiler knows, GPUs of a host, this CPU split.

XLA's compiler for GPUs is part of JAX's CUDA plugin and needs neither a GPU nor a driver. It cannot
try out kernels then, so a plan has the products that it chooses untried.
"""

import contextlib
import importlib.util
import math
import os
import re
from typing import Any, NamedTuple

import jax

from inf_jax.core.errors import UserError, first_line
from inf_jax.planning.chips import CHIPS, DEVICE_KINDS, GPUS, Chip, Multiprocessors

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
    if not match or match[1] not in CHIPS:
        raise UserError(
            f"topology {name!r}: write CHIP:AxB or CHIP:AxBxC, e.g. v5e:16x16 or v5p:8x8x8, or the "
            f"GPUs of a host, h100:8; chips: {', '.join(CHIPS)} (cpu:8 is eight virtual devices of "
            "this machine, to try things)"
        )
    if match[1] in GPUS and not re.fullmatch("[1-8]", match[2]):
        raise UserError(
            f"topology {name!r}: GPUs are planned for one host with NVLink: {match[1]}:1 to "
            f"{match[1]}:8; between hosts no time is predicted"
        )
    return match[1], tuple(map(int, match[2].split("x")))


def topology(name: str, *, slices: int = 1) -> Topology:
    """The devices of a topology.

    Raises:
      UserError: the topology is unknown, its compiler is not installed, or the CPU has too few
        devices.
    """
    kind, shape = parse_topology(name)
    chips = slices * math.prod(shape)
    if kind == "cpu":
        with contextlib.suppress(RuntimeError):  # the backend is initialised already
            jax.config.update("jax_num_cpu_devices", chips)
        devices = jax.devices("cpu")[:chips]
        if len(devices) < chips:
            raise UserError(f"topology {name!r}: this process has {len(devices)} virtual devices")
    elif kind in GPUS:
        if slices > 1:
            raise UserError(f"topology {name!r}: GPUs are planned for one host: leave out --slices")
        devices = _gpus(kind, name, chips)
    else:
        devices = _tpu(kind, name, shape, slices)
    return Topology(name, slices, shape, CHIPS[kind], devices)


# Share of a device's memory that a planned program may take: the batches of the next steps lie
# beside it, and on an H200 steps took up to 1.16 times what was planned (launch/benchmarks.md).
_PLANNED_SHARE = {"tpu": 0.97, "gpu": 0.85}
_STAND_IN = "a100"  # for the rates of a device that is not listed: forms are only compared


def topology_of(devices: list[jax.Device]) -> Topology:
    """The devices of a run as a topology. A kind that `chips` does not list has the rates of an
    A100."""
    first = devices[0]
    name, _ = DEVICE_KINDS.get(first.device_kind, (_STAND_IN, 1))
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    places = [getattr(d, "coords", None) for d in devices if getattr(d, "slice_index", 0) == 0]
    shape = (len(devices) // slices,)
    if places and all(places):
        used = (len(set(axis)) for axis in zip(*places, strict=True))
        shape = tuple(size for size in used if size > 1) or (1,)
    return Topology(f"{len(devices)} x {first.device_kind}", slices, shape, CHIPS[name], devices)


def device_memory() -> float | None:
    """Bytes that a planned program may take of each of this process's devices; None on a CPU and
    where a device does not say what it has."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    limits = [each.get("bytes_limit", 0) for each in stats]
    share = _PLANNED_SHARE.get(jax.local_devices()[0].platform, 0.0)
    return share * min(limits) or None


def _tpu(kind: str, name: str, shape: tuple[int, ...], slices: int) -> list[jax.Device]:
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"topology {name!r}: compiling for a TPU needs libtpu (484 MB): pip install -e '.[aot]'"
        )
    os.environ |= _ENVIRONMENT | os.environ
    options: dict = {"num_slices": slices} if slices > 1 else {}
    if math.prod(shape) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    if kind == "v4":
        options["chip_config_name"] = "megacore"  # one device per chip, as on a Cloud TPU VM
    return _known_devices(name, platform="tpu", topology_name=name, **options)


def _gpus(kind: str, name: str, count: int) -> list[jax.Device]:
    if not has_gpu_compiler():
        raise UserError(
            f"topology {name!r}: compiling for a GPU needs JAX's CUDA plugin, but no GPU (3 GB): "
            "pip install -e '.[gpu]'"
        )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    target = _target_config(CHIPS[kind], GPUS[kind], kind)
    # partitions x hosts x devices of each
    return _known_devices(name, platform="cuda", target_config=target, topology=f"1x1x{count}")


def _known_devices(name: str, **description: Any) -> list[jax.Device]:
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(**description).devices)
    except Exception as error:  # JaxRuntimeError, ValueError, ...
        why = first_line(error)
        raise UserError(f"topology {name!r}: unknown to the compiler ({why})") from None


def has_gpu_compiler() -> bool:
    """Whether JAX's CUDA plugin is installed."""
    if importlib.util.find_spec("jax_plugins") is None:
        return False
    return any(importlib.util.find_spec(f"jax_plugins.xla_cuda{n}") for n in (12, 13))


def _target_config(chip: Chip, units: Multiprocessors, name: str) -> str:
    """A chip as XLA's GpuTargetConfigProto, in text format."""
    accelerated = "feature_extension: ACCELERATED_FEATURES" if units.capability > 8 else ""
    return f"""
        gpu_device_info {{
          threads_per_block_limit: 1024
          threads_per_warp: 32
          shared_memory_per_block: {48 * 1024}
          shared_memory_per_core: {units.shared_kib * 1024}
          shared_memory_per_block_optin: {units.block_kib * 1024}
          threads_per_core_limit: 2048
          core_count: {units.count}
          fpus_per_core: {units.lanes}
          block_dim_limit_x: {2**31 - 1}
          block_dim_limit_y: {2**16 - 1}
          block_dim_limit_z: {2**16 - 1}
          memory_bandwidth: {chip.hbm_rate:.0f}
          l2_cache_size: {units.cache_mib * 2**20}
          clock_rate_ghz: {units.ghz}
          device_memory_size: {chip.hbm:.0f}
          registers_per_core_limit: {2**16}
          registers_per_block_limit: {2**16}
          cuda_compute_capability {{ major: {units.capability} {accelerated} }}
        }}
        platform_name: "CUDA"
        dnn_version_info {{ major: 9 minor: 12 }}
        runtime_version {{ major: 12 minor: 8 }}
        device_description_str: "NVIDIA {name.upper()}"
    """
