"""Plans a run before renting hardware: memory, FLOPs and predicted time on a TPU topology.

    python -m inf_jax.plan --config=medquad_minilm --topology=v5e:16x16 [--slices=2]
    python -m inf_jax.plan --config=medquad_minilm --topology=v5e:16x16 --search=batch_size
    python -m inf_jax.plan --config=medquad_minilm --compare=v5e:16x16,v5p:8x8x8

Compiles the step that training runs for the chips of a topology, on any machine with libtpu (the
extra aot; --topology=cpu:8 tries the command without it). Needs neither data nor weights: the
model's shape comes from its config.json or from plan_models.json; text lengths are measured on the
dataset if it is built, else assumed. Predicted seconds are those of a roofline model
(inf_jax/planning/roofline.py), a lower bound and not a measurement. A run that does not fit exits
with code 1 and lists the keys that may help.

Options, besides --config and --config.KEY=VALUE:
  --topology=NAME         v4:AxBxC, v5e:AxB, v5p:AxBxC, v6e:AxB, tpu7x:AxBxC, or cpu:N
  --slices=N              number of slices, joined by the data-centre network
  --compare=NAME,NAME     a table of several topologies
  --search=batch_size     the largest train.batch_size that fits, within 1/16
  --try                   if it does not fit: compile each option that may help
  --json=FILE             default OUT_DIR/plan/TOPOLOGY.json
  --query-tokens=40 --passage-tokens=120      mean lengths, if there is no dataset to measure
  --model-config=FILE     a Hugging Face config.json instead of the model's own
  --hbm-gib=X             memory that a program may use per device, instead of the chip's
"""

import argparse
import functools
import json
import math
import sys
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from inf_jax.config.command_line import parse
from inf_jax.config.defaults import run_config
from inf_jax.config.sections import RunConfig
from inf_jax.core.cli_flags import hyphenated
from inf_jax.core.console import table
from inf_jax.core.errors import UserError, main_guard
from inf_jax.data.from_config import batch_layout
from inf_jax.data.step_shapes import batch_shapes, plan_inputs
from inf_jax.distributed.mesh import batch_devices, batch_sharding, make_mesh
from inf_jax.io.storage import AnyPath, as_path, new_file
from inf_jax.models.hf.backbone import configured_encoder, run_tokenizer
from inf_jax.planning.advice import advice, largest_fitting, with_option
from inf_jax.planning.chips import GIB
from inf_jax.planning.compile import StepToPlan, make_plan
from inf_jax.planning.flops import model_flops
from inf_jax.planning.model_shapes import model_shape
from inf_jax.planning.report import compare, print_plan, unfit
from inf_jax.planning.topology import Topology, topology
from inf_jax.training.program import make_program


def main(argv: list[str]) -> None:
    """Runs the command line, given without the program's name."""
    args, rest = _arguments(argv)
    config = parse(["plan", *rest], __doc__)
    jax.config.update("jax_platforms", "cpu")  # nothing runs here: leave accelerators alone

    def planned(config: ConfigDict, name: str) -> dict[str, Any]:
        return plan_run(run_config(config), topology(name, slices=args.slices), args)

    names = args.compare.split(",") if args.compare else [args.topology]
    if args.search:
        result = _search(config, names[0], args.slices, planned)
    elif args.compare:
        result = [planned(config, name) for name in names]
        compare(result)
    else:
        result = planned(config, names[0])
        print_plan(result)
        if args.try_options:
            _try(config, names[0], result, planned)
    path = as_path(args.json) if args.json else _default_path(config, names, args)
    with new_file(path) as file:
        file.write(json.dumps(result, indent=2).encode() + b"\n")
    print(f"wrote {path}")
    if isinstance(result, dict) and not result["hbm"]["fits"]:
        raise UserError(unfit(result))


def plan_run(config: RunConfig, target: Topology, args: argparse.Namespace) -> dict[str, Any]:
    """The plan of a run on a topology, as of `planning.compile.make_plan`, with advice.

    Raises:
      UserError: the config does not suit the model or the devices.
    """
    mesh = make_mesh(fsdp=config.mesh.fsdp, tensor=config.mesh.tensor, devices=target.devices)
    hbm = args.hbm_gib * GIB if args.hbm_gib else None
    plan = make_plan(_step_to_plan(config, mesh, args), target, mesh, hbm=hbm)
    plan["advice"] = [] if plan["hbm"]["fits"] else advice(config, plan)
    return plan


def _step_to_plan(
    config: RunConfig, mesh: jax.sharding.Mesh, args: argparse.Namespace
) -> StepToPlan:
    """The step that training runs with this config, from shapes alone."""
    shape, source = model_shape(config.model.name, args.model_config)
    encoder = configured_encoder(config, shape, source=source, device=mesh.devices.flat[0])
    program = make_program(config, encoder, mesh, source=source)
    devices = batch_devices(mesh)
    inputs = plan_inputs(
        config,
        functools.partial(run_tokenizer, config),
        devices=devices,
        query_tokens=args.query_tokens,
        passage_tokens=args.passage_tokens,
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
            "examples": config.train.batch_size,
            **inputs._asdict(),
            "row_tokens": config.data.row_tokens,
        },
    }
    layout = batch_layout(config, devices=devices)
    batch = batch_shapes(layout, inputs.rows, sharding=batch_sharding(mesh))
    return StepToPlan(program.step, program.shapes, batch, flops, facts)


def _size(tree: dict) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


def _search(config: ConfigDict, name: str, slices: int, planned: Callable) -> dict[str, Any]:
    """The plan of the largest batch that fits."""
    plans: dict[int, dict[str, Any]] = {}
    devices = len(topology(name, slices=slices).devices) // config.mesh.tensor
    units = devices * config.train.chunks_per_device

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


def _arguments(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m inf_jax.plan", add_help=False, allow_abbrev=False, exit_on_error=False
    )
    add = parser.add_argument
    add("--topology", default="")
    add("--compare", default="")
    add("--slices", type=int, default=1)
    add("--search", choices=["batch_size"])
    add("--try", dest="try_options", action="store_true")
    add("--json", default="")
    add("--query-tokens", type=float, default=40)
    add("--passage-tokens", type=float, default=120)
    add("--model-config")
    add("--hbm-gib", type=float)
    try:
        args, rest = parser.parse_known_args(hyphenated(argv))
    except argparse.ArgumentError as error:
        raise UserError(f"command line: {error}; --help shows the options") from None
    help_only = {"-h", "--help"} & set(rest)
    if not help_only and bool(args.topology) == bool(args.compare):
        raise UserError("name what to plan for: --topology=v5e:16x16, or --compare=NAME,NAME")
    if args.search and args.compare:
        raise UserError("--search takes one --topology, not --compare")
    for name in ("slices", "query_tokens", "passage_tokens", "hbm_gib"):
        value, least = getattr(args, name), 0 if name == "hbm_gib" else 1
        if value is not None and (value < least or value == 0):
            raise UserError(f"--{name.replace('_', '-')}: must be above 0")
    return args, rest


def _default_path(config: ConfigDict, names: list[str], args: argparse.Namespace) -> AnyPath:
    name = "_".join(n.replace(":", "-") for n in names)
    name += f"-{args.slices}slices" if args.slices > 1 else ""
    name += f"-{args.search}" if args.search else ""
    return as_path(config.out_dir) / "plan" / f"{name}.json"


if __name__ == "__main__":
    with main_guard():
        main(sys.argv[1:])
