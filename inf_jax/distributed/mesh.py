"""The device mesh and where each array lies on it.

Axes: "data" (copies of the state), "fsdp" (shards of one copy) and "tensor" (devices that share the
heads and the ffn of each layer, and its activations). A batch is split over the first two, so that
a loss is one global mean whatever the mesh. Parameters follow an ordered table of path patterns;
one that matches none raises.
"""

import math
import re
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from inf_jax.core.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

# First match wins; layers are stacked along the first axis, but for the projection. "fsdp" splits
# the model width (d), which every weight has and every mesh divides; "tensor" splits heads and ffn
# (Megatron, arXiv 1909.08053).
RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"(word|position|token_type)$", PartitionSpec(None, "fsdp")),
    (r"(query|key|value)_kernel$", PartitionSpec(None, "fsdp", "tensor", None)),
    (r"(query|key|value)_bias$", PartitionSpec(None, "tensor", None)),
    (r"out_kernel$", PartitionSpec(None, "tensor", None, "fsdp")),
    (r"(up|gate)_kernel$", PartitionSpec(None, "fsdp", "tensor")),
    (r"(up|gate)_bias$", PartitionSpec(None, "tensor")),
    (r"down_kernel$", PartitionSpec(None, "tensor", "fsdp")),
    (r"(query|key|value|up|gate)_lora_a$", PartitionSpec(None, "fsdp", None)),
    (r"(query|key|value)_lora_b$", PartitionSpec(None, None, "tensor", None)),
    (r"(up|gate)_lora_b$", PartitionSpec(None, None, "tensor")),
    (r"out_lora_a$", PartitionSpec(None, "tensor", None, None)),
    (r"down_lora_a$", PartitionSpec(None, "tensor", None)),
    (r"(out|down)_lora_b$", PartitionSpec(None, None, "fsdp")),
    (r"projection/kernel$", PartitionSpec("fsdp", None)),
    (r"(_bias|norm/(scale|bias)|projection/bias)$", PartitionSpec()),
)

# Where "tensor" does not divide the heads of keys and values, each device has them all; its own
# heads of queries need some of them (`Shards.serving`).
_FEW_HEADS = r"(key|value)_(kernel|bias|lora_b)$"


def make_mesh(
    *, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh of all devices, [data, fsdp, tensor].

    Devices of a TPU slice are laid out along its links. Of several slices "data" alone crosses the
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
    return Mesh(np.concatenate([_laid_out(part, shape) for part in slices]), AXES)


def local_mesh(split: int = 1) -> Mesh:
    """A mesh of this process's devices, to evaluate on: a copy of the model is split over as many
    of them as divide `split`, over how many a run splits its own."""
    devices = jax.local_devices()
    return make_mesh(fsdp=math.gcd(split, len(devices)), devices=devices)


def _slices(devices: Sequence[jax.Device]) -> list[list[jax.Device]]:
    """The devices by TPU slice."""
    found: dict[int, list[jax.Device]] = {}
    for device in devices:
        number = getattr(device, "slice_index", 0) if device.platform == "tpu" else 0
        found.setdefault(number, []).append(device)
    return [found[number] for number in sorted(found)]


def _laid_out(devices: list[jax.Device], shape: tuple[int, ...]) -> np.ndarray:
    """The devices of a slice in the mesh's shape, so that neighbours of an axis are linked."""
    if devices[0].platform == "tpu":
        try:
            return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        except (NotImplementedError, ValueError, AssertionError):  # a part of a slice, for example
            pass
    return np.array(devices).reshape(shape)


def batch_devices(mesh: Mesh) -> int:
    """Over how many devices a batch is split: those of "tensor" share their part."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis split over the batch's devices."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def local_parts(mesh: Mesh) -> list[int]:
    """Which of the `batch_devices` equal parts of a batch lie on this process's devices, ascending.

    Whatever the order of the mesh's devices; where "tensor" spans processes, several have the same.
    """
    count = batch_devices(mesh)
    found = batch_sharding(mesh).addressable_devices_indices_map((count,)).values()
    return sorted({part.start or 0 for (part,) in found})


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def rule(name: str) -> PartitionSpec | None:
    """The first rule that matches a path; None where none does."""
    return next((spec for pattern, spec in RULES if re.search(pattern, name)), None)


def state_shardings(mesh: Mesh, abstract_state):
    """NamedSharding of every leaf of a train state (parameters, optimiser moments, counters).

    Raises:
      UserError: lists all arrays without a rule, and all that the mesh does not divide.
    """
    problems = []

    def leaf(path, x) -> NamedSharding:
        if x.ndim == 0:  # counters
            return replicated(mesh)
        name = path_name(path)
        spec = rule(name)
        if spec is None:
            problems.append(f"no sharding rule for {name}{x.shape}")
            return replicated(mesh)
        few = re.search(_FEW_HEADS, name)
        if few and x.shape[-2] % mesh.shape["tensor"]:
            spec = PartitionSpec(*(None if axis == "tensor" else axis for axis in spec))
        for size, axis in zip(x.shape, spec, strict=False):
            if axis and size % mesh.shape[axis]:
                problems.append(f"{name}{x.shape}: {size} is no multiple of {axis}")
        return NamedSharding(mesh, spec)

    shardings = jax.tree_util.tree_map_with_path(leaf, abstract_state)
    if problems:
        raise UserError(f"mesh {dict(mesh.shape)}: " + "; ".join(problems))
    return shardings


def path_name(path) -> str:
    """`params/shared/blocks/up_kernel` of a tree path."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def compiler_options(mesh: Mesh) -> dict[str, bool]:
    """XLA options of the training step for the platform of the mesh's devices.

    XLA's CPU scheduler trades memory for concurrency by default: 30 % more of it for the step, and
    slower.
    """
    if mesh.devices.flat[0].platform == "cpu":
        return {"xla_cpu_enable_concurrency_optimized_scheduler": False}
    return {}
