"""Compiles a train step ahead of time and reads its memory, operations, traffic and seconds."""

import math
from typing import Any, NamedTuple

import jax
import numpy as np

from inf_jax.planning import hlo
from inf_jax.planning.advice import exhausted
from inf_jax.planning.flops import product_flops
from inf_jax.planning.hlo_cost import InstructionCost, instruction_costs
from inf_jax.planning.roofline import collective_seconds, predict
from inf_jax.planning.topology import Topology


class StepToPlan(NamedTuple):
    """A train step whose program is planned, and what is said of it.

    Attributes:
      step: jitted (state, batch) -> (state, metrics).
      state, batch: pytrees of ShapeDtypeStructs with shardings.
      model_flops: operations per step over the whole mesh, by `flops.model_flops`.
      facts: entries of the plan that are known beforehand, as plain values: "steps", "batch",
        "model", ...
    """

    step: jax.stages.Wrapped
    state: Any
    batch: Any
    model_flops: float
    facts: dict[str, Any]


def make_plan(
    planned: StepToPlan, target: Topology, mesh: jax.sharding.Mesh, *, hbm: float | None = None
) -> dict[str, Any]:
    """Compiles a step for a topology; needs neither data nor weights nor the devices.

    Args:
      mesh: of the target's devices.
      hbm: bytes that a device's program may take, in place of the chip's.

    Returns:
      Plain values for JSON. Bytes, operations and seconds are per device and step unless they say
      otherwise; "flops", "kernels", "collectives", "seconds" and "rates" are missing where the
      compiler refused the program for its memory.

    Raises:
      UserError: the compiler failed for another reason.
    """
    chip = target.device
    plan: dict[str, Any] = {
        "topology": target.name,
        "slices": target.slices,
        "chips": target.chips,
        "devices": mesh.size,
        "chip": {"source": target.chip.source, "flops": target.chip.flops},
        "mesh": dict(mesh.shape),
    } | planned.facts
    limit = chip.usable if hbm is None else hbm
    at_rest = sum(map(_shard_bytes, jax.tree.leaves((planned.state, planned.batch))))
    traced = planned.step.trace(planned.state, planned.batch)
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        needed, available = exhausted(str(error))
        plan["hbm"] = _memory(at_rest, needed=needed, limit=min(limit, available))
        return plan
    memory = compiled.memory_analysis()
    sizes = {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "reused": memory.alias_size_in_bytes,
        "temp": memory.temp_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
        "peak": memory.peak_memory_in_bytes,
    }
    needed = sum(sizes[k] for k in ("arguments", "outputs", "temp", "code")) - sizes["reused"]
    plan["hbm"] = _memory(at_rest, needed=needed, limit=limit) | sizes
    text = compiled.as_text()
    costs, collectives = instruction_costs(text), hlo.collectives(text)
    seconds = predict(costs, collectives, chip, shape=target.shape, slices=target.slices)
    once = compiled.cost_analysis() or {}
    plan["flops"] = {
        "model": planned.model_flops / mesh.size,
        "traced": product_flops(traced.jaxpr.jaxpr, devices=mesh.size),
        "compiled": sum(cost.times * cost.flops for cost in costs),
        "compiled_unit": sum(cost.times * cost.unit_flops for cost in costs),
        "cost_analysis_loops_once": once.get("flops", 0.0),
    }
    plan["kernels"] = _kernels(costs)
    plan["bytes"] = {
        "memory": sum(cost.times * cost.traffic for cost in costs),
        "cost_analysis_loops_once": once.get("bytes accessed", 0.0),
    }
    plan["collectives"] = _collectives(collectives, target, mesh)
    plan["seconds"] = seconds._asdict()
    plan["rates"] = rates(plan)
    return plan


def rates(plan: dict[str, Any]) -> dict[str, float]:
    """MFU, throughput and hours of the run, from a plan's predicted seconds."""
    step, batch = plan["seconds"]["step"], plan["batch"]
    peak = plan["chip"]["flops"] * plan["chips"] / plan["devices"]
    hours = plan["steps"] * step / 3600
    return {
        "mfu": plan["flops"]["model"] / (peak * step),
        "examples_per_second": batch["examples"] / step,
        "pairs_per_second": batch["pairs"] / step,
        "tokens_per_second": batch["tokens"] / step,
        "run_tokens": plan["steps"] * batch["tokens"],
        "run_hours": hours,
        "run_chip_hours": hours * plan["chips"],
    }


def _memory(at_rest: int, *, needed: float, limit: float) -> dict[str, Any]:
    return {
        "at_rest": at_rest,
        "needed": needed,
        "limit": limit,
        "free": limit - needed,
        "fits": bool(needed <= limit),
    }


def _shard_bytes(x: jax.ShapeDtypeStruct) -> int:
    return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize


def _collectives(
    collectives: list[hlo.Collective], target: Topology, mesh: jax.sharding.Mesh
) -> list[dict[str, Any]]:
    """Counts, runs, bytes and seconds of collectives by kind, group size and mesh axes."""
    kinds: dict[tuple[str, int, str], dict[str, Any]] = {}
    for c in collectives:
        entry = kinds.setdefault(
            (c.kind, c.group, _axes(c, mesh)),
            {"count": 0, "runs": 0, "bytes": 0, "bytes_beside_work": 0, "seconds": 0.0},
        )
        entry["count"] += 1
        entry["runs"] += c.times
        entry["bytes"] += c.times * c.size
        entry["bytes_beside_work"] += c.times * c.size * c.beside
        entry["seconds"] += c.times * collective_seconds(
            c, target.device, shape=target.shape, slices=target.slices
        )
    return [
        {"kind": k, "group": n, "axes": a, **entry} for (k, n, a), entry in sorted(kinds.items())
    ]


def _kernels(costs: list[InstructionCost]) -> dict[str, dict[str, float]]:
    """By name of an attention kernel: runs, operations and bytes."""
    kernels: dict[str, dict[str, float]] = {}
    for cost in costs:
        if cost.kernel:
            entry = kernels.setdefault(cost.kernel, {"runs": 0, "flops": 0.0, "bytes": 0})
            entry["runs"] += cost.times
            entry["flops"] += cost.times * cost.flops
            entry["bytes"] += cost.times * cost.traffic
    return kernels


def _axes(c: hlo.Collective, mesh: jax.sharding.Mesh) -> str:
    """The mesh axes that a collective's groups span, e.g. "data fsdp"; "" if unknown."""
    apart = set()
    for group in c.groups:
        places = np.unravel_index(group, mesh.devices.shape)
        apart |= {i for i, numbers in enumerate(places) if len(set(numbers.tolist())) > 1}
    return " ".join(name for i, name in enumerate(mesh.axis_names) if i in apart)
