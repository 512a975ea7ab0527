"""Says before anything is rented whether a run fits, and how fast it may be.

    python -m inf_jax.plan --config=configs/x.py --topology=v5e:16x16 [--slices=2]
    python -m inf_jax.plan --config=configs/x.py --topology=v5e:16x16 --search=batch_size
    python -m inf_jax.plan --config=configs/x.py --compare=v5e:16x16,v5p:8x8x8

Compiles the step that training runs for the chips of a TPU topology, on any machine with libtpu
(the extra aot; --topology=cpu:8 tries the command without). Neither data nor weights need be there:
the model's shape is that of its config.json, or of plan_models.json; lengths are measured where the
dataset is, else assumed. Seconds are a roofline's (inf_jax/planning/roofline.py): a bound, not a
measurement. A run that does not fit gives exit code 1 and says what would help.

Options, beside --config and --config.KEY=VALUE:
  --topology=NAME         v4:AxBxC, v5e:AxB, v5p:AxBxC, v6e:AxB, tpu7x:AxBxC, or cpu:N
  --slices=N              so many of them, joined by the data-centre network
  --compare=NAME,NAME     a table of several topologies
  --search=batch_size     the largest train.batch_size that fits, to a sixteenth
  --try                   where it does not fit: compile each option that may help
  --json=FILE             default <out_dir>/plan/<topology>.json
  --query-tokens=40 --passage-tokens=120      mean lengths, where there is no dataset to measure
  --model-config=FILE     a Hugging Face config.json, in place of the model's own
  --hbm-gib=X             memory of a device that a program may take, in place of the chip's
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from inf_jax import config as configs
from inf_jax.core.cli_flags import hyphenated
from inf_jax.core.console import table
from inf_jax.core.errors import UserError, main_guard
from inf_jax.io import storage
from inf_jax.models.config import EncoderConfig
from inf_jax.models.hf.config import config_from_hf, read_config
from inf_jax.models.hf.resolve import resolve_model
from inf_jax.planning.compile import largest, make_plan, with_option
from inf_jax.planning.report import compare, show, unfit
from inf_jax.planning.topology import topology

PUBLIC = Path(__file__).with_name("plan_models.json")
GIB = 2**30


def main(argv: list[str]) -> None:
    """The command line, without the program's name."""
    args, rest = _arguments(argv)
    config = configs.parse(["plan", *rest], __doc__)
    jax.config.update("jax_platforms", "cpu")  # nothing here runs: leave accelerators alone
    shape, source = model_shape(config.model.name, args.model_config)

    def planned(config: ConfigDict, name: str) -> dict[str, Any]:
        return make_plan(
            config,
            topology(name, slices=args.slices),
            shape=shape,
            source=source,
            query_tokens=args.query_tokens,
            passage_tokens=args.passage_tokens,
            hbm=args.hbm_gib * GIB if args.hbm_gib else None,
        )

    names = args.compare.split(",") if args.compare else [args.topology]
    if args.search:
        found = _search(config, names[0], args.slices, planned)
    elif args.compare:
        found = [planned(config, name) for name in names]
        compare(found)
    else:
        found = planned(config, names[0])
        show(found)
        if args.try_options:
            _try(config, names[0], found, planned)
    path = storage.as_path(args.json) if args.json else _default_path(config, names, args)
    with storage.new_file(path) as file:
        file.write(json.dumps(found, indent=2).encode() + b"\n")
    print(f"wrote {path}")
    if isinstance(found, dict) and not found["hbm"]["fits"]:
        raise UserError(unfit(found))


def model_shape(name: str, override: str | None = None) -> tuple[EncoderConfig, str]:
    """(shape, where it is from) of a model, without its weights.

    Raises:
      UserError: there is no config to be had.
    """
    if override:
        path = Path(override)
        path = path / "config.json" if path.is_dir() else path
        try:
            return config_from_hf(json.loads(path.read_text()), str(path)), str(path)
        except (OSError, ValueError) as error:
            raise UserError(f"--model-config={override}: {error}") from None
    public = json.loads(PUBLIC.read_text())
    try:
        if name in public and not name.startswith("package:") and not Path(name).is_dir():
            return config_from_hf(public[name], name), f"{PUBLIC.name}, {name}"
        directory = resolve_model(name)
        return read_config(directory), str(directory)
    except UserError as error:
        if name in public:
            return config_from_hf(public[name], name), f"{PUBLIC.name}, {name}"
        raise UserError(f"{error}; or give its config.json with --model-config=FILE") from None


def _search(config: ConfigDict, name: str, slices: int, planned: Callable) -> dict[str, Any]:
    """The plan of the largest batch that fits."""
    plans: dict[int, dict[str, Any]] = {}
    devices = len(topology(name, slices=slices).devices) // config.mesh.tensor
    units = devices * config.train.chunks_per_device

    def fits(batch_size: int) -> bool:
        plans[batch_size] = planned(with_option(config, "train.batch_size", batch_size), name)
        memory = plans[batch_size]["hbm"]
        print(
            f"train.batch_size={batch_size:,}: {memory['needed'] / GIB:.2f} of "
            f"{memory['limit'] / GIB:.2f} GiB",
            flush=True,
        )
        return memory["fits"]

    best = largest(fits, start=config.train.batch_size, unit=units)
    if not best:
        raise UserError(unfit(plans[min(plans)]))
    show(plans[best])
    print(f"largest batch that fits: train.batch_size={best:,}\n")
    return plans[best] | {"searched": {n: p["hbm"]["needed"] for n, p in sorted(plans.items())}}


def _try(config: ConfigDict, name: str, found: dict[str, Any], planned: Callable) -> None:
    """Compiles each option of the advice."""
    for option in found["advice"]:
        memory = planned(with_option(config, option["key"], option["value"]), name)["hbm"]
        option |= {"needed": memory["needed"], "fits": memory["fits"]}
    if found["advice"]:
        table(
            "options, each alone",
            [
                (
                    f"{o['key']}={o['value']}",
                    f"{o['needed'] / GIB:.2f}",
                    "yes" if o["fits"] else "no",
                )
                for o in found["advice"]
            ],
            ("", "GiB", "fits"),
        )


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
    asks_help = {"-h", "--help"} & set(rest)
    if not asks_help and bool(args.topology) == bool(args.compare):
        raise UserError("name what to plan for: --topology=v5e:16x16, or --compare=NAME,NAME")
    if args.search and args.compare:
        raise UserError("--search is for one --topology")
    low = [f for f in ("slices", "query_tokens", "passage_tokens") if getattr(args, f) < 1]
    if low or (args.hbm_gib is not None and args.hbm_gib <= 0):
        name = (low or ["hbm_gib"])[0].replace("_", "-")
        raise UserError(f"--{name}: must be above 0")
    return args, rest


def _default_path(
    config: ConfigDict, names: list[str], args: argparse.Namespace
) -> storage.AnyPath:
    name = "_".join(n.replace(":", "-") for n in names)
    name += f"-{args.slices}slices" if args.slices > 1 else ""
    name += f"-{args.search}" if args.search else ""
    return storage.as_path(config.out_dir) / "plan" / f"{name}.json"


if __name__ == "__main__":
    with main_guard():
        main(sys.argv[1:])
