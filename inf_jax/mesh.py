"""The device mesh and where each array lies on it.

Axes: "data" (copies of the state) and "fsdp" (shards of one copy). A batch is split over both, so
that a loss is one global mean whatever the mesh. Parameters follow an ordered table of path
patterns; one that matches none raises.
"""

import re
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from inf_jax.errors import UserError

BATCH_AXES = ("data", "fsdp")

# First match wins. The model width (d) is what every weight has and what every mesh divides.
RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"(word|position|token_type)$", PartitionSpec(None, "fsdp")),
    (r"(query|key|value)_kernel$", PartitionSpec(None, "fsdp", None, None)),
    (r"out_kernel$", PartitionSpec(None, None, None, "fsdp")),
    (r"(up|gate)_kernel$", PartitionSpec(None, "fsdp", None)),
    (r"down_kernel$", PartitionSpec(None, None, "fsdp")),
    (r"(_bias|norm/(scale|bias))$", PartitionSpec()),
)


def make_mesh(*, fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of all devices, [data, fsdp].

    Raises:
      UserError: `fsdp` does not divide the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    if len(devices) % fsdp:
        raise UserError(f"mesh.fsdp={fsdp} does not divide the {len(devices)} devices")
    return Mesh(np.array(devices).reshape(-1, fsdp), BATCH_AXES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis split over all devices."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


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
        for pattern, spec in RULES:
            if re.search(pattern, name):
                for size, axis in zip(x.shape, spec, strict=False):
                    if axis and size % mesh.shape[axis]:
                        problems.append(f"{name}{x.shape}: {size} is no multiple of {axis}")
                return NamedSharding(mesh, spec)
        problems.append(f"no sharding rule for {name}{x.shape}")
        return replicated(mesh)

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
