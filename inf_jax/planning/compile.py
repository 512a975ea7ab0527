"""A run's step compiled ahead of time, and what follows: memory, operations, traffic, seconds."""

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from inf_jax.config.checks import check
from inf_jax.config.defaults import run_config
from inf_jax.core.errors import UserError
from inf_jax.data.step_shapes import batch_shapes, plan_inputs
from inf_jax.distributed.mesh import batch_devices, batch_sharding, make_mesh
from inf_jax.models.config import EncoderConfig
from inf_jax.models.hf.backbone import configured_encoder
from inf_jax.planning import hlo
from inf_jax.planning.flops import model_flops, product_flops
from inf_jax.planning.hlo_cost import Work, works
from inf_jax.planning.roofline import collective_seconds, predict
from inf_jax.planning.topology import Topology
from inf_jax.training.setup import make_program

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_CROWDED = 0.3  # share of the memory above which the state at rest is worth splitting


def make_plan(
    config: ConfigDict,
    target: Topology,
    *,
    shape: EncoderConfig,
    source: str,
    query_tokens: float,
    passage_tokens: float,
    hbm: float | None = None,
) -> dict[str, Any]:
    """Compiles the step that training runs, for these devices; needs neither data nor weights.

    Args:
      config: checked.
      shape, source: of the encoder, and where that is from.
      query_tokens, passage_tokens: see `plan_inputs`.
      hbm: bytes that a device's program may take, in place of the chip's.

    Returns:
      Plain values for JSON. Bytes, operations and seconds are of one device and one step unless
      they say otherwise; "flops", "kernels", "collectives", "seconds" and "rates" are missing where
      the compiler refused the program for its memory.

    Raises:
      UserError: the config does not suit the model or the devices.
    """
    read = run_config(config)
    mesh = make_mesh(fsdp=config.mesh.fsdp, tensor=config.mesh.tensor, devices=target.devices)
    encoder = configured_encoder(read, shape, source=source, device=target.devices[0])
    program = make_program(read, encoder, mesh, source=source)
    inputs = plan_inputs(
        read, devices=batch_devices(mesh), query_tokens=query_tokens, passage_tokens=passage_tokens
    )
    batch = batch_shapes(read, inputs, sharding=batch_sharding(mesh))
    chip = target.device
    found: dict[str, Any] = {
        "topology": target.name,
        "slices": target.slices,
        "chips": target.chips,
        "devices": mesh.size,
        "chip": {"source": target.chip.source, "flops": target.chip.flops},
        "mesh": dict(mesh.shape),
        "tensor_divides": math.gcd(shape.heads, shape.ffn),  # mesh.tensor must
        "model": config.model.name,
        "model_shape_from": source,
        "attention": encoder.attention_in_training(config.data.row_tokens),
        "parameters": _count(program.shapes.whole),
        "trained_parameters": _count(program.shapes.params),
        "objective": str(program.objective),
        "steps": config.train.steps,
        "batch": {
            "examples": config.train.batch_size,
            **inputs._asdict(),
            "row_tokens": config.data.row_tokens,
        },
    }
    limit = chip.usable if hbm is None else hbm
    at_rest = sum(map(_shard_bytes, jax.tree.leaves((program.shapes, batch))))
    traced = program.step.trace(program.shapes, batch)
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        needed, available = exhausted(str(error))
        found["hbm"] = _memory(at_rest, needed=needed, limit=min(limit, available))
        found["advice"] = advice(config, found)
        return found
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
    found["hbm"] = _memory(at_rest, needed=needed, limit=limit) | sizes
    text = compiled.as_text()
    work, collectives = works(text), hlo.collectives(text)
    seconds = predict(work, collectives, chip, shape=target.shape, slices=target.slices)
    model = model_flops(
        shape,
        program.objective,
        tokens=inputs.tokens,
        squares=inputs.squares,
        pairs=inputs.pairs,
        instructions=inputs.instructions,
        dims=tuple(config.loss.dims) or (encoder.width,),
        adapter=program.split.adapter_size,
    )
    once = compiled.cost_analysis() or {}
    found["flops"] = {
        "model": model / mesh.size,
        "traced": product_flops(traced.jaxpr.jaxpr, devices=mesh.size),
        "compiled": sum(w.times * w.flops for w in work),
        "compiled_unit": sum(w.times * w.unit_flops for w in work),
        "cost_analysis_loops_once": once.get("flops", 0.0),
    }
    found["kernels"] = _kernels(work)
    found["bytes"] = {
        "memory": sum(w.times * w.traffic for w in work),
        "cost_analysis_loops_once": once.get("bytes accessed", 0.0),
    }
    found["collectives"] = _collectives(collectives, target, mesh)
    found["seconds"] = seconds._asdict()
    found["rates"] = rates(found)
    found["advice"] = advice(config, found) if needed > limit else []
    return found


def rates(found: dict[str, Any]) -> dict[str, float]:
    """What the predicted seconds come to: MFU, examples/s, the whole run."""
    step, batch = found["seconds"]["step"], found["batch"]
    peak = found["chip"]["flops"] * found["chips"] / found["devices"]
    hours = found["steps"] * step / 3600
    return {
        "mfu": found["flops"]["model"] / (peak * step),
        "examples_per_second": batch["examples"] / step,
        "pairs_per_second": batch["pairs"] / step,
        "tokens_per_second": batch["tokens"] / step,
        "run_tokens": found["steps"] * batch["tokens"],
        "run_hours": hours,
        "run_chip_hours": hours * found["chips"],
    }


def exhausted(message: str) -> tuple[float, float]:
    """(bytes needed, bytes that there are) of the compiler's RESOURCE_EXHAUSTED.

    Raises:
      UserError: it is another error.
    """
    text = message.split("Program hbm requirement")[0]
    sizes = re.findall(r"\b(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?\b", text)
    sizes = [float(number) * _UNITS[unit] for number, unit in sizes if unit]
    if "RESOURCE_EXHAUSTED" not in message or len(sizes) < 2:
        raise UserError(f"the compiler failed: {message[:2000]}")
    return sizes[0], sizes[1]


def advice(config: ConfigDict, found: dict[str, Any]) -> list[dict[str, Any]]:
    """Options that need less memory, most likely first.

    Returns:
      {"key", "value", "why"} each; setting the key to the value is a run with the same objective
      on the same batch.
    """
    memory, batch, mesh = found["hbm"], found["batch"], config.mesh
    limit, state = memory["limit"], memory["at_rest"]
    rest = max(memory["needed"] - state, 0)
    options = []

    def option(key: str, value: Any, why: str) -> None:
        options.append({"key": key, "value": value, "why": why})

    if config.loss.engine == "dense":
        option("loss.engine", "ring", "the dense engine holds every score of the batch")
    if config.model.remat != "full":
        option("model.remat", "full", "the backward pass then keeps no layer's activations")
    if config.model.dtype == "float32":
        option("model.dtype", "bfloat16", "activations take half")
    frozen = found["parameters"] - found["trained_parameters"]
    if frozen and config.model.frozen_dtype == "float32":
        option("model.frozen_dtype", "bfloat16", "what is not trained takes half")
    together = found["devices"] // found["slices"] // mesh.tensor  # that may share a copy
    if state > _CROWDED * limit:
        fsdp = _fsdp(mesh.fsdp, together, state / (_CROWDED * limit))
        if fsdp:
            option("mesh.fsdp", fsdp, f"the state takes {state / 2**30:.2f} GiB of each device")
    chunks = config.train.chunks_per_device
    gathered = mesh.gather == "step" or (mesh.gather == "auto" and chunks > 1)
    whole = 4 * (found["parameters"] + found["trained_parameters"]) / mesh.tensor  # and gradients
    if mesh.fsdp > 1 and gathered and whole > _CROWDED * limit:
        option(
            "mesh.gather",
            "layer",
            f"all weights at once and their gradients take {whole / 2**30:.2f} GiB of each device",
        )
    each = batch["pairs"] * mesh.tensor / found["devices"]
    room = limit - state
    times = 2 ** max(1, math.ceil(math.log2(rest / room))) if 0 < room < rest else 2
    if chunks * times <= each:
        option(
            "train.chunks_per_device",
            chunks * times,
            "chunks are encoded one after another (GradCache), for one more forward pass"
            if chunks == 1
            else "smaller chunks",
        )
    elif together % (2 * mesh.fsdp) == 0 and found["tensor_divides"] % (2 * mesh.tensor) == 0:
        option("mesh.tensor", 2 * mesh.tensor, "devices share a text's heads and ffn")
    longest = max(config.data.max_query_tokens, config.data.max_passage_tokens)
    if config.data.row_tokens > longest:
        option("data.row_tokens", longest, "attention holds tokens x tokens scores of a row")
    return options


def with_option(config: ConfigDict, key: str, value: Any) -> ConfigDict:
    """The config with one key changed, checked."""
    changed = config.copy_and_resolve_references()
    section, _, name = key.rpartition(".")
    (changed[section] if section else changed)[name] = value
    check(changed)
    return changed


def largest(fits: Callable[[int], bool], *, start: int, unit: int, most: int = 2**24) -> int:
    """The largest multiple of `unit` that fits, to a sixteenth; 0 where none does.

    Args:
      fits: of a number; what fits, fits with less.
      start: where to begin.
      most: where to stop.
    """

    def rounded(number: float) -> int:
        return max(unit, int(number) // unit * unit)

    low, high = 0, 0  # fits, does not
    at = rounded(start)
    while not (low and high):
        if fits(at):
            low = at
            if low >= most:
                return low
            at = rounded(2 * at)
        else:
            high = at
            if high == unit:
                return 0
            at = rounded(at / 2)
    while high - low > max(unit, low // 16):
        middle = rounded((low + high) / 2)
        if middle in (low, high):
            break
        if fits(middle):
            low = middle
        else:
            high = middle
    return low


def _count(tree: dict) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


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


def _fsdp(now: int, devices: int, factor: float) -> int:
    """The smallest larger divisor of the devices that splits the state `factor` further; else the
    largest there is."""
    larger = [n for n in range(now + 1, devices + 1) if devices % n == 0 and n % now == 0]
    enough = [n for n in larger if n >= factor * now]
    return (enough or larger or [0])[0 if enough else -1]


def _collectives(
    found: list[hlo.Collective], target: Topology, mesh: jax.sharding.Mesh
) -> list[dict[str, Any]]:
    """By kind, group size and mesh axes: how many in the program, runs, bytes, and seconds."""
    kinds: dict[tuple[str, int, str], dict[str, Any]] = {}
    for c in found:
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


def _kernels(found: list[Work]) -> dict[str, dict[str, float]]:
    """By name of an attention kernel: runs, operations and bytes."""
    kernels: dict[str, dict[str, float]] = {}
    for w in found:
        if w.kernel:
            entry = kernels.setdefault(w.kernel, {"runs": 0, "flops": 0.0, "bytes": 0})
            entry["runs"] += w.times
            entry["flops"] += w.times * w.flops
            entry["bytes"] += w.times * w.traffic
    return kernels


def _axes(c: hlo.Collective, mesh: jax.sharding.Mesh) -> str:
    """The mesh axes along which its devices lie apart, "data fsdp"; "" where that is not known."""
    apart = set()
    for group in c.groups:
        places = np.unravel_index(group, mesh.devices.shape)
        apart |= {i for i, numbers in enumerate(places) if len(set(numbers.tolist())) > 1}
    return " ".join(name for i, name in enumerate(mesh.axis_names) if i in apart)
