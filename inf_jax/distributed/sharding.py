"""Sharding rules: an ordered table from patterns of parameter paths to PartitionSpecs.

The first match wins; a path that matches no pattern is an error.
"""

import re

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from inf_jax.core.errors import UserError
from inf_jax.core.trees import path_name
from inf_jax.distributed.mesh import replicated

# Layers are stacked along the first axis; the projection is not. "fsdp" splits the model width (d),
# which every weight has and every mesh divides; "tensor" splits heads and ffn (Megatron, arXiv
# 1909.08053).
PARTITION_RULES: tuple[tuple[str, PartitionSpec], ...] = (
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

# Where "tensor" does not divide the key and value heads, each device has them all and its query
# heads use some of them (`Shards.serving`).
_FEW_HEADS = r"(key|value)_(kernel|bias|lora_b)$"


def rule(name: str) -> PartitionSpec | None:
    """The PartitionSpec of the first pattern that matches a path, or None."""
    return next((spec for pattern, spec in PARTITION_RULES if re.search(pattern, name)), None)


def state_shardings(mesh: Mesh, abstract_state):
    """NamedSharding of every leaf of a train state (parameters, optimiser moments, counters).

    A moment is split as its parameter; what an optimiser keeps in another shape (the factors of
    Adafactor's) is small and replicated.

    Raises:
      UserError: lists all arrays that no rule matches or that the mesh does not divide.
    """
    problems = []
    shapes = {
        path_name(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(abstract_state)
    }

    def leaf(path, x) -> NamedSharding:
        name = path_name(path)
        if x.ndim == 0:  # counters
            return replicated(mesh)
        if name.startswith("opt_state/"):
            parameter = re.search(r"/((?:shared|query|passage)/.+)$", name)
            if not parameter or shapes[f"params/{parameter[1]}"] != x.shape:
                return replicated(mesh)
        spec = rule(name)
        if spec is None:
            problems.append(f"no sharding rule for {name}{x.shape}")
            return replicated(mesh)
        if re.search(_FEW_HEADS, name) and x.shape[-2] % mesh.shape["tensor"]:
            spec = PartitionSpec(*(None if axis == "tensor" else axis for axis in spec))
        for size, axis in zip(x.shape, spec, strict=False):
            if axis and size % mesh.shape[axis]:
                problems.append(f"{name}{x.shape}: {size} is not divisible by mesh axis {axis}")
        return NamedSharding(mesh, spec)

    shardings = jax.tree_util.tree_map_with_path(leaf, abstract_state)
    if problems:
        axes = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
        raise UserError(f"mesh {axes}: " + "; ".join(problems))
    return shardings
