"""Plans a run before renting hardware: memory, FLOPs and predicted time on TPUs or GPUs.

    python -m inf_jax.plan --config=medquad_minilm --topology=v5e:16x16 [--slices=2]
    python -m inf_jax.plan --config=medquad_minilm --topology=v5e:16x16 --search=batch_size
    python -m inf_jax.plan --config=medquad_minilm --topology=v5e:16x16 --search=fastest
    python -m inf_jax.plan --config=medquad_minilm --compare=v5e:16x16,v5p:8x8x8

Compiles the step that training runs for the chips of a topology, on any machine with libtpu (the
extra aot) or, for the GPUs of a host (--topology=h100:8), JAX's CUDA plugin (the extra gpu);
--topology=cpu:8 tries the command without either. Needs neither data nor weights: the
model's shape comes from its config.json or from plan_models.json; text lengths are measured on the
dataset if it is built, else assumed. Predicted seconds are those of a roofline model
(inf_jax/planning/roofline.py), not a measurement: on TPUs a lower bound, on GPUs an estimate with
the shares of the rates that programs reach. A run that does not fit exits
with code 1 and lists the keys that may help.
"""

import functools
import json
import math
import sys
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from inf_jax.config.checks import check_config
from inf_jax.config.command_line import EXAMPLE, parse_flags
from inf_jax.config.defaults import run_config
from inf_jax.config.schema import value_of
from inf_jax.config.sections import RunConfig
from inf_jax.core.console import table
from inf_jax.core.errors import UserError, main_guard
from inf_jax.core.query_encoders import query_encoder
from inf_jax.data.from_config import batch_layout
from inf_jax.data.step_shapes import batch_shapes, plan_inputs
from inf_jax.distributed.mesh import batch_devices, batch_sharding, make_mesh
from inf_jax.io.storage import AnyPath, as_path, new_file
from inf_jax.losses.objective import parse_objective
from inf_jax.models.hf.backbone import configured_encoder, run_tokenizer
from inf_jax.planning.advice import (
    KEYS,
    advice,
    flags,
    largest_fitting,
    search_fastest,
    with_option,
)
from inf_jax.planning.chips import GIB
from inf_jax.planning.compile import StepToPlan, make_plan
from inf_jax.planning.flops import model_flops
from inf_jax.planning.model_shapes import model_shape
from inf_jax.planning.options import PlanOptions, add_plan_flags, plan_options
from inf_jax.planning.report import compare, fastest_row, print_plan, unfit
from inf_jax.planning.topology import Topology, topology
from inf_jax.training.program import make_program


def main(argv: list[str]) -> None:
    """Runs the command line, given without the program's name."""
    config, own = parse_flags(
        ["plan", *argv], __doc__, sections=RunConfig(), example=EXAMPLE, define=add_plan_flags
    )
    options = plan_options(own)
    check_config(config)
    jax.config.update("jax_platforms", "cpu")  # nothing runs here: leave accelerators alone

    def planned(config: ConfigDict, name: str) -> dict[str, Any]:
        return plan_run(run_config(config), topology(name, slices=options.slices), options)

    names = options.topologies
    if options.search == "fastest":
        result = _fastest(config, names[0], options.slices, planned)
    elif options.search:
        result = _search(config, names[0], options.slices, planned)
    elif own["compare"]:
        result = [planned(config, name) for name in names]
        compare(result)
    else:
        result = planned(config, names[0])
        print_plan(result)
        if options.try_advice:
            _try(config, names[0], result, planned)
    path = as_path(options.json) if options.json else _default_path(config, options)
    with new_file(path) as file:
        file.write(json.dumps(result, indent=2).encode() + b"\n")
    print(f"wrote {path}")
    if isinstance(result, dict) and not result["hbm"]["fits"]:
        raise UserError(unfit(result))


def plan_run(config: RunConfig, target: Topology, options: PlanOptions) -> dict[str, Any]:
    """The plan of a run on a topology, as of `planning.compile.make_plan`, with advice.

    Raises:
      UserError: the config does not suit the model or the devices.
    """
    mesh = make_mesh(fsdp=config.mesh.fsdp, tensor=config.mesh.tensor, devices=target.devices)
    hbm = options.hbm_gib * GIB if options.hbm_gib else None
    plan = make_plan(_step_to_plan(config, mesh, options), target, mesh, hbm=hbm)
    plan["advice"] = [] if plan["hbm"]["fits"] else advice(config, plan)
    return plan


def _step_to_plan(config: RunConfig, mesh: jax.sharding.Mesh, options: PlanOptions) -> StepToPlan:
    """The step that training runs with this config, from shapes alone."""
    shape, source = model_shape(config.model.name, options.model_config)
    encoder = configured_encoder(config, shape, source=source, device=mesh.devices.flat[0])
    program = make_program(config, encoder, mesh, source=source)
    devices = batch_devices(mesh)
    inputs = plan_inputs(
        config,
        functools.partial(run_tokenizer, config),
        devices=devices,
        query_tokens=options.query_tokens,
        passage_tokens=options.passage_tokens,
    )
    flops = model_flops(
        shape,
        program.objective,
        tokens=inputs.tokens,
        squares=inputs.squares,
        pairs=inputs.pairs,
        instructions=inputs.instructions,
        dims=config.loss.dims or (encoder.width,),
        adapter=program.partition.adapter_size,
    )
    facts = {
        "tensor_divides": math.gcd(shape.heads, shape.ffn),  # a multiple of mesh.tensor
        "model": config.model.name,
        "model_shape_from": source,
        "attention": encoder.attention_in_training(config.data.row_tokens),
        "parameters": _size(program.shapes.whole),
        "trained_parameters": _size(program.shapes.params),
        "objective": str(program.objective),
        "steps": config.train.steps,
        "batch": {
            "examples": config.train.batch_size // inputs.pairs_per_example,
            **inputs._asdict(),
            "row_tokens": config.data.row_tokens,
        },
    }
    k = inputs.pairs_per_example
    layout = batch_layout(config, devices=devices, pairs_per_example=k)
    batch = batch_shapes(layout, inputs.rows, sharding=batch_sharding(mesh))
    return StepToPlan(program.step, program.shapes, batch, flops, facts)


def _size(tree: dict) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


def _search(config: ConfigDict, name: str, slices: int, planned: Callable) -> dict[str, Any]:
    """The plan of the largest batch that fits."""
    plans: dict[int, dict[str, Any]] = {}
    devices = len(topology(name, slices=slices).devices) // config.mesh.tensor
    whole = 1 if config.train.batch_size % 3 else 3  # InF-IR's examples stay whole
    units = whole * devices * config.train.chunks_per_device

    def fits(batch_size: int) -> bool:
        plans[batch_size] = planned(with_option(config, "train.batch_size", batch_size), name)
        memory = plans[batch_size]["hbm"]
        gib = f"{memory['needed'] / GIB:.2f} of {memory['limit'] / GIB:.2f} GiB"
        print(f"train.batch_size={batch_size:,}: {gib}", flush=True)
        return memory["fits"]

    best = largest_fitting(fits, start=config.train.batch_size, unit=units)
    if not best:
        raise UserError(unfit(plans[min(plans)]))
    print_plan(plans[best])
    print(f"largest batch that fits: train.batch_size={best:,}\n")
    return plans[best] | {"searched": {n: p["hbm"]["needed"] for n, p in sorted(plans.items())}}


def _fastest(config: ConfigDict, name: str, slices: int, planned: Callable) -> dict[str, Any]:
    """The plan of the fastest form of the step that fits."""
    devices = len(topology(name, slices=slices).devices) // config.mesh.tensor
    start = {key: value_of(config, key) for key in KEYS}
    encoder = query_encoder(config.model.query_encoder)
    block_i = "I" in parse_objective(config.loss.objective).blocks

    def plan_of(overrides: dict[str, Any]) -> dict[str, Any]:
        changed = config
        for key, value in overrides.items():
            changed = with_option(changed, key, value)
        print(" ".join(f"{key}={value}" for key, value in overrides.items()), flush=True)
        return planned(changed, name)

    trials = search_fastest(
        plan_of,
        start,
        most_chunks=max(1, config.train.batch_size // devices),
        most_fsdp=devices // slices,
        longest=max(config.data.max_query_tokens, config.data.max_passage_tokens),
        keep_chunks=block_i and not encoder.samples_instructions,
    )
    if not trials:
        raise UserError(f"{name}: no form of this step could be compiled, see above")
    rows = [(*fastest_row(trial.plan), flags(trial, start) or "as configured") for trial in trials]
    header = ("s per step", "MFU", "GiB", "compiled / model TFLOP", "flags")
    best = trials[0].plan
    print_plan(best)
    table("forms of the step, the fastest first", rows, header)
    if trials[0].fits:
        print(f"fastest that fits: {flags(trials[0], start) or 'as configured'}\n")
    searched = [
        {"overrides": t.overrides, "seconds": row[0]} for t, row in zip(trials, rows, strict=True)
    ]
    return best | {"overrides": trials[0].overrides, "searched": searched}


def _try(config: ConfigDict, name: str, plan: dict[str, Any], planned: Callable) -> None:
    """Compiles each option of the advice."""
    rows = []
    for option in plan["advice"]:
        memory = planned(with_option(config, option["key"], option["value"]), name)["hbm"]
        option |= {"needed": memory["needed"], "fits": memory["fits"]}
        fits = "yes" if memory["fits"] else "no"
        rows.append((f"{option['key']}={option['value']}", f"{memory['needed'] / GIB:.2f}", fits))
    if rows:
        table("options, each alone", rows, ("", "GiB", "fits"))


def _default_path(config: ConfigDict, options: PlanOptions) -> AnyPath:
    name = "_".join(n.replace(":", "-") for n in options.topologies)
    name += f"-{options.slices}slices" if options.slices > 1 else ""
    name += f"-{options.search}" if options.search else ""
    return as_path(config.out_dir) / "plan" / f"{name}.json"


if __name__ == "__main__":
    with main_guard():
        main(sys.argv[1:])
