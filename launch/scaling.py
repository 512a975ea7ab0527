"""Plans a series of runs, refuses what does not fit, and trains the rest.

    python launch/scaling.py                                  plan all of configs/scaling
    python launch/scaling.py v5e-65536 v5e-262144 --run       plan, then train those that fit
    python launch/scaling.py --configs a.py b.py --topology=v5e:4x4 -- --config.seed=1

Other flags go to inf_jax.plan (--query-tokens=40), config overrides after -- to plan and training.
Runs are trained one after another, on the machine or pod where this is started. Exit code 1 if a
run was refused or failed; the others are done all the same.
"""

import importlib.util
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from inf_jax.config.command_line import override_check
from inf_jax.config.sections import RunConfig
from inf_jax.core.cli_flags import FlagParser, check_choice
from inf_jax.core.errors import UsageError, main_guard
from inf_jax.planning.options import add_plan_flags

ROOT = Path(__file__).resolve().parents[1]
SERIES = ROOT / "configs" / "scaling" / "e5_large.py"


def main() -> int:
    """The command line; returns the exit code."""
    argv = sys.argv[1:]
    cut = argv.index("--") if "--" in argv else len(argv)
    parser = FlagParser(__doc__, "python launch/scaling.py")
    add = parser.add
    add("names", "CHIP-PAIRS of configs/scaling/e5_large.py (default: all)", many=True)
    add("--configs", "config files instead of names", many=True, default=[], metavar="FILE")
    text = "default: the one of the name; required with --configs"
    add("--topology", text, default="", metavar="NAME")
    parser.add_boolean("--run", "train what fits")
    plan_parser = FlagParser("")
    add_plan_flags(plan_parser)

    def check(flag: str) -> None:
        if flag.startswith("--config."):
            raise UsageError(f"{flag}: write config overrides after --")
        if not plan_parser.knows(flag):
            parser.refuse_unknown(flag, plan_parser.names)

    args, plan_flags = parser.parse_known(argv[:cut], check)
    plan_parser.parse(plan_flags)
    overrides = argv[cut + 1 :]
    refuse_others = override_check(parser, RunConfig())
    for override in overrides:
        refuse_others(override)
    series = _load(SERIES)
    for name in args.names:
        check_choice("run", name, series.NAMES)
    if args.configs and not args.topology:
        raise UsageError("--configs needs --topology, e.g. --topology=v5e:16x16")
    names = args.names or series.NAMES
    topologies = {n: args.topology or series.TOPOLOGIES[n.split("-")[0]][0] for n in names}
    runs = [(f"{SERIES}:{name}", topology) for name, topology in topologies.items()]
    if args.configs:
        runs = [(file, args.topology) for file in args.configs]
    outcomes = {}
    for config, topology in runs:
        fits = plan(config, topology, [*plan_flags, *overrides])
        outcomes[config] = train(config, overrides, run=args.run) if fits else "REFUSED"
    print("\n" + "\n".join(f"{outcome:8} {config}" for config, outcome in outcomes.items()))
    return int(any(outcome in ("REFUSED", "FAILED") for outcome in outcomes.values()))


def plan(config: str, topology: str, flags: list[str]) -> bool:
    """Whether inf_jax.plan finds that a run fits its topology."""
    command = [sys.executable, "-m", "inf_jax.plan", f"--config={config}"]
    print(f"{config} on {topology}:", flush=True)
    command += [f"--topology={topology}", *flags]
    return subprocess.run(command, check=False).returncode == 0


def train(config: str, overrides: list[str], *, run: bool) -> str:
    """Prints the command that trains a config and, with `run`, runs it; returns the outcome."""
    command = [sys.executable, "-m", "inf_jax.train", f"--config={config}", *overrides]
    print(shlex.join(command), flush=True)
    if not run:
        return "fits"
    return "FAILED" if subprocess.run(command, check=False).returncode else "trained"


def _load(path: Path) -> ModuleType:
    """A config file as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    with main_guard():
        raise SystemExit(main())
