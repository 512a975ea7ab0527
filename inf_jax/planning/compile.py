"""Compiles a train step ahead of time and predicts its memory, FLOPs, traffic and time."""

import math
from typing import Any, NamedTuple

import jax
import numpy as np

from inf_jax.core.errors import UserError, first_line
from inf_jax.planning import hlo
from inf_jax.planning.advice import exhausted
from inf_jax.planning.chips import LOWER_BOUND, Chip
from inf_jax.planning.flops import product_flops
from inf_jax.planning.hlo_cost import InstructionCost, instruction_costs
from inf_jax.planning.roofline import Layout, collective_seconds, predict
from inf_jax.planning.topology import Topology


class StepToPlan(NamedTuple):
    """A train step to plan.

    Attributes:
      step: jitted (state, batch) -> (state, metrics).
      state, batch: pytrees of ShapeDtypeStructs with shardings.
      model_flops: FLOPs per step over the whole mesh, by `flops.model_flops`.
      facts: entries of the plan known beforehand, as plain values: "steps", "batch", "model", ...
    """

    step: jax.stages.Wrapped
    state: Any
    batch: Any
    model_flops: float
    facts: dict[str, Any]


def make_plan(
    planned: StepToPlan, target: Topology, mesh: jax.sharding.Mesh, *, hbm: float | None = None
) -> dict[str, Any]:
    """Compiles a step for a topology, without data, weights or the devices.

    Args:
      mesh: of the target's devices.
      hbm: bytes that a program may take per device, instead of the chip's.

    Returns:
      Plain values for JSON; bytes, FLOPs and seconds per device and step unless named otherwise.
      No "flops", "kernels", "collectives", "seconds", "rates" if it does not fit in memory.

    Raises:
      UserError: the compiler failed for another reason.
    """
    chip = target.device
    plan: dict[str, Any] = {
        "topology": target.name,
        "slices": target.slices,
        "chips": target.chips,
        "devices": mesh.size,
        "chip": {"source": target.chip.source, "flops": target.chip.flops}
        | ({} if chip.reached == LOWER_BOUND else {"reached": chip.reached._asdict()}),
        "mesh": dict(mesh.shape),
    } | planned.facts
    limit = chip.usable if hbm is None else hbm
    at_rest = sum(map(_shard_bytes, jax.tree.leaves((planned.state, planned.batch))))
    try:
        traced = planned.step.trace(planned.state, planned.batch)
    except RuntimeError as error:
        if "cuDNN" not in str(error):
            raise
        raise UserError(
            f"{target.name}: attention by cuDNN needs its library ({first_line(error)}): "
            "pip install -e '.[gpu]', or choose model.attention=xla"
        ) from None
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        needed, available = exhausted(str(error))
        plan["hbm"] = _memory(at_rest, needed=needed, limit=min(limit, available))
        return plan
    parts = memory_parts(compiled)
    platform = mesh.devices.flat[0].platform
    needed = bytes_needed(parts, platform=platform, usable=chip.usable)
    plan["hbm"] = _memory(at_rest, needed=needed, limit=limit) | parts
    text = compiled.as_text()
    costs, collectives = instruction_costs(text), hlo.collectives(text)
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
    places = [getattr(device, "coords", None) for device in mesh.devices.flat]
    at = Layout(target.shape, target.slices, tuple(places) if all(places) else ())
    plan["collectives"] = _collectives(collectives, chip, at, mesh)
    seconds = predict(costs, collectives, chip, at)
    plan["seconds"] = seconds._asdict()
    plan["rates"] = _rates(plan)
    return plan


def memory_parts(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Bytes of a compiled program on a device, as its compiler reports them by part."""
    memory = compiled.memory_analysis()
    return {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "reused": memory.alias_size_in_bytes,
        "temp": memory.temp_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
        "peak": memory.peak_memory_in_bytes,
        "host": memory.host_temp_size_in_bytes,
    }


def bytes_needed(parts: dict[str, int], *, platform: str, usable: float) -> float:
    """Bytes that a compiled program takes of a device's memory, on a TPU at most.

    "peak" is what is alive at once, "temp" the heap that holds it, with holes between its arrays.
    libtpu's "temp" counts the holes twice or more often, so its heap is at most half way between
    the two; and it refuses a program whose heap and arguments are larger than the memory, so one
    that it compiled takes no more than that (launch/benchmarks.md).

    Args:
      parts: of `memory_parts`.
      platform: of the devices, "tpu" or another.
      usable: bytes of a device's memory that the compiler may use.
    """
    whole = parts["arguments"] + parts["outputs"] - parts["reused"]
    heap = parts["temp"]
    if platform != "tpu":
        return whole + heap + parts["code"]
    alive = max(0, parts["peak"] - whole)  # may have arrays on the chip, above `heap`
    return min(whole + min(heap, (heap + alive) / 2) + parts["code"], usable)


def _rates(plan: dict[str, Any]) -> dict[str, float]:
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
    memory = {"at_rest": at_rest, "needed": needed, "limit": limit}
    return memory | {"free": limit - needed, "fits": bool(needed <= limit)}


def _shard_bytes(x: jax.ShapeDtypeStruct) -> int:
    return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize


def _collectives(
    collectives: list[hlo.Collective], chip: Chip, at: Layout, mesh: jax.sharding.Mesh
) -> list[dict[str, Any]]:
    """Occurrences, runs, bytes and seconds by kind, group size and mesh axes."""
    kinds: dict[tuple[str, int, str], dict[str, Any]] = {}
    for c in collectives:
        entry = kinds.setdefault(
            (c.kind, c.group, _axes(c, mesh)),
            {"count": 0, "runs": 0, "bytes": 0, "bytes_beside_work": 0, "seconds": 0.0},
        )
        entry["count"] += 1
        entry["runs"] += c.times
        entry["bytes"] += c.times * c.size
        entry["bytes_beside_work"] += c.times * c.size * c.overlapped
        entry["seconds"] += c.times * collective_seconds(c, chip, at)
    return [
        {"kind": k, "group": n, "axes": a, **entry} for (k, n, a), entry in sorted(kinds.items())
    ]


def _kernels(costs: list[InstructionCost]) -> dict[str, dict[str, float]]:
    """Runs, FLOPs and bytes by name of an attention kernel."""
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
    spanned = set()
    for group in c.groups:
        indices = np.unravel_index(group, mesh.devices.shape)
        spanned |= {name for name, i in zip(mesh.axis_names, indices, strict=True) if np.ptp(i)}
    return " ".join(name for name in mesh.axis_names if name in spanned)
