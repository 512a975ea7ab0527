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
import sys
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from inf_jax.config.checks import check_config
from inf_jax.config.command_line import EXAMPLE, parse_flags, say_idle
from inf_jax.config.defaults import run_config
from inf_jax.config.idle import idle_keys
from inf_jax.config.schema import value_of
from inf_jax.config.sections import RunConfig
from inf_jax.core.choices import AUTO
from inf_jax.core.console import table
from inf_jax.core.errors import UserError, main_guard
from inf_jax.core.query_encoders import query_encoder
from inf_jax.data.step_shapes import plan_inputs
from inf_jax.distributed.mesh import batch_devices, make_mesh
from inf_jax.io.storage import AnyPath, as_path, new_file
from inf_jax.losses.objective import parse_objective
from inf_jax.models.hf.backbone import configured_encoder, run_tokenizer
from inf_jax.planning.advice import (
    KEYS,
    SearchLimits,
    advice,
    flags,
    largest_fitting,
    search_fastest,
    with_option,
)
from inf_jax.planning.chips import GIB
from inf_jax.planning.compile import make_plan
from inf_jax.planning.model_shapes import model_shape
from inf_jax.planning.options import PlanOptions, add_plan_flags, plan_options
from inf_jax.planning.report import FASTEST_HEADER, compare, fastest_row, print_plan, unfit
from inf_jax.planning.topology import Topology, topology
from inf_jax.training.automatic import FIRST, open_keys, search_open, settled
from inf_jax.training.planned import planned_step


def main(argv: list[str]) -> None:
    """Runs the command line, given without the program's name."""
    config, own = parse_flags(
        ["plan", *argv], __doc__, sections=RunConfig(), example=EXAMPLE, define=add_plan_flags
    )
    options = plan_options(own)
    check_config(config)
    say_idle(idle_keys(config, asks=False))
    jax.config.update("jax_platforms", "cpu")  # nothing runs here: leave accelerators alone

    def planned(config: ConfigDict, name: str) -> dict[str, Any]:
        return plan_run(run_config(config), topology(name, slices=options.slices), options)

    def settled_plan(name: str) -> tuple[ConfigDict, dict[str, Any]]:
        return _settled_plan(config, name, options.slices, planned)

    names = options.topologies
    if options.search == "fastest":
        result = _fastest(config, names[0], options.slices, planned)
    elif options.search:
        result = _search(config, names[0], options.slices, planned)
    elif own["compare"]:
        result = [settled_plan(name)[1] for name in names]
        compare(result)
    else:
        chosen, result = settled_plan(names[0])
        print_plan(result)
        if options.try_advice:
            _try(chosen, names[0], result, planned)
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
    shape, source = model_shape(config.model.name, options.model_config)
    encoder = configured_encoder(config, shape, source=source, device=mesh.devices.flat[0])
    inputs = plan_inputs(
        config,
        functools.partial(run_tokenizer, config),
        devices=batch_devices(mesh),
        query_tokens=options.query_tokens,
        passage_tokens=options.passage_tokens,
    )
    step = planned_step(config, encoder, mesh, inputs, source=source)
    plan = make_plan(step, target, mesh, hbm=hbm)
    plan["advice"] = [] if plan["hbm"]["fits"] else advice(config, plan)
    return plan


def _settled_plan(
    config: ConfigDict, name: str, slices: int, planned: Callable
) -> tuple[ConfigDict, dict[str, Any]]:
    """The config with a value for each "auto", and its plan; what was compared is printed."""
    keys = open_keys(config)
    if not keys:
        return config, planned(config, name)

    def plan_of(form: ConfigDict) -> dict[str, Any]:
        print(" ".join(f"{key}={value_of(form, key)}" for key in keys), flush=True)
        return planned(form, name)

    devices = len(topology(name, slices=slices).devices) // config.mesh.tensor
    trials = search_open(config, plan_of, devices=devices)
    if not trials:
        raise UserError(f"{name}: no form of this step could be compiled, see above")
    start, best = dict.fromkeys(keys, AUTO), trials[0]
    rows = [(*fastest_row(t.plan), flags(t, start)) for t in trials]
    table(f"{name}: forms for auto, the fastest first", rows, FASTEST_HEADER)
    chosen = {key: best.overrides[key] for key in keys}
    return settled(config, chosen), best.plan | {"overrides": chosen}


def _search(config: ConfigDict, name: str, slices: int, planned: Callable) -> dict[str, Any]:
    """The plan of the largest batch that fits."""
    if keys := open_keys(config):
        raise UserError(
            f"--search=batch_size: {' and '.join(keys)} must not be {AUTO}, which depends on the "
            "batch; for the largest batch of all forms give model.remat=full"
        )
    config = with_option(config, "data.repeat_in_step", True)  # what fits is asked, not the data
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
    config = settled(config, {key: FIRST[key] for key in open_keys(config)})
    start = {key: value_of(config, key) for key in KEYS}
    encoder = query_encoder(config.model.query_encoder)
    block_i = "I" in parse_objective(config.loss.objective).blocks

    def plan_of(overrides: dict[str, Any]) -> dict[str, Any]:
        changed = config
        for key, value in overrides.items():
            changed = with_option(changed, key, value)
        print(" ".join(f"{key}={value}" for key, value in overrides.items()), flush=True)
        return planned(changed, name)

    limits = SearchLimits(
        chunks=max(1, config.train.batch_size // devices),
        fsdp=devices // slices,
        longest=max(config.data.max_query_tokens, config.data.max_passage_tokens),
    )
    in_chunk = block_i and not encoder.samples_instructions  # chunks are part of the objective
    keys = [k for k in KEYS if k != "train.chunks_per_device" or not in_chunk]
    trials = search_fastest(plan_of, start, limits, keys=keys)
    if not trials:
        raise UserError(f"{name}: no form of this step could be compiled, see above")
    rows = [(*fastest_row(trial.plan), flags(trial, start) or "as configured") for trial in trials]
    best = trials[0].plan
    print_plan(best)
    table("forms of the step, the fastest first", rows, FASTEST_HEADER)
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
