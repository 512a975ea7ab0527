"""Builds the device mesh and splits a batch over it.

Axes: "data" (copies of the state), "fsdp" (shards of one copy) and "tensor" (devices that share the
heads and the ffn of each layer, and its activations). A batch is split over the first two, so that
a loss is one global mean whatever the mesh.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from inf_jax.core.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")


def make_mesh(
    *, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh of all devices, [data, fsdp, tensor].

    Devices of a TPU slice are laid out along its links. With several slices only "data" crosses the
    network between them: it is the axis with the least traffic, once a step.

    Raises:
      UserError: `fsdp` and `tensor` do not divide the devices of a slice.
    """
    devices = jax.devices() if devices is None else list(devices)
    slices = _slices(devices)
    each = len(slices[0])
    if any(len(part) != each for part in slices):
        sizes = ", ".join(str(len(part)) for part in slices)
        raise UserError(f"the slices differ in their devices: {sizes}; a mesh needs equal ones")
    if each % (fsdp * tensor):
        split = f"mesh.fsdp={fsdp}" + (f" * mesh.tensor={tensor}" if tensor > 1 else "")
        of = " of a slice, and only data crosses slices" if len(slices) > 1 else ""
        raise UserError(f"{split} does not divide the {each} devices{of}")
    shape = each // (fsdp * tensor), fsdp, tensor
    return Mesh(np.concatenate([_lay_out(part, shape) for part in slices]), AXES)


def local_mesh(split: int = 1) -> Mesh:
    """A mesh of this process's devices, to evaluate on.

    A copy of the model is split over as many of them as divide `split`, the number in training.
    """
    devices = jax.local_devices()
    return make_mesh(fsdp=math.gcd(split, len(devices)), devices=devices)


def _slices(devices: Sequence[jax.Device]) -> list[list[jax.Device]]:
    """The devices by TPU slice."""
    slices: dict[int, list[jax.Device]] = {}
    for device in devices:
        number = getattr(device, "slice_index", 0) if device.platform == "tpu" else 0
        slices.setdefault(number, []).append(device)
    return [slices[number] for number in sorted(slices)]


def _lay_out(devices: list[jax.Device], shape: tuple[int, ...]) -> np.ndarray:
    """The devices of a slice in the mesh's shape, neighbours of an axis linked where possible."""
    if devices[0].platform == "tpu":
        try:
            return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        except (NotImplementedError, ValueError, AssertionError):  # part of a slice, for example
            pass
    return np.array(devices).reshape(shape)


def batch_devices(mesh: Mesh) -> int:
    """Number of equal parts of a batch; the devices of "tensor" share a part."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis split over the batch's devices."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def local_parts(mesh: Mesh) -> list[int]:
    """Which of the `batch_devices` equal parts of a batch are on this process's devices, ascending.

    Where "tensor" spans processes, several of them have the same parts.
    """
    count = batch_devices(mesh)
    indices = batch_sharding(mesh).addressable_devices_indices_map((count,)).values()
    return sorted({part.start or 0 for (part,) in indices})


def on_devices(tree: Any, sharding: NamedSharding) -> Any:
    """Arrays of the host on a mesh, which may span processes; all have the same arrays then."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def leaf(x: np.ndarray | jax.Array) -> jax.Array:
        if isinstance(x, jax.Array) and x.sharding == sharding:
            return x
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, host.__getitem__)

    return jax.tree.map(leaf, tree)


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def compiler_options(mesh: Mesh) -> dict[str, bool]:
    """XLA options of the training step for the platform of the mesh's devices."""
    if mesh.devices.flat[0].platform == "cpu":  # concurrency takes 30 % more memory, and is slower
        return {"xla_cpu_enable_concurrency_optimized_scheduler": False}
    return {}
