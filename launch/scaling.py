"""Plans a series of runs, refuses what does not fit, and trains the rest.

    python launch/scaling.py                                  plan all of configs/scaling
    python launch/scaling.py v5e-65536 v5e-262144 --run       plan, then train those that fit
    python launch/scaling.py --configs a.py b.py --topology=v5e:4x4 -- --config.seed=1

Other flags go to inf_jax.plan (--query-tokens=40), config overrides after -- to plan and training.
Runs are trained one after another, on the machine or pod where this is started. Exit code 1 if a
run was refused or failed; the others are done all the same.
"""

import argparse
import importlib.util
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from inf_jax.core.cli_flags import hyphenated
from inf_jax.core.errors import main_guard

ROOT = Path(__file__).resolve().parents[1]
SERIES = ROOT / "configs" / "scaling" / "e5_large.py"


def main() -> int:
    """The command line; returns the exit code."""
    argv = hyphenated(sys.argv[1:])
    cut = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(
        prog="python launch/scaling.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("names", nargs="*", help="CHIP-PAIRS of configs/scaling/e5_large.py (default: all)")
    add("--configs", nargs="+", default=[], metavar="FILE", help="config files instead of names")
    add("--topology", default="", help="default: the one of the name; required with --configs")
    add("--run", action="store_true", help="train what fits")
    args, plan_flags = parser.parse_known_args(argv[:cut])
    overrides = argv[cut + 1 :]
    series = _load(SERIES)
    unknown = [n for n in args.names if n not in series.NAMES]
    if unknown:
        parser.error(f"no such run: {', '.join(unknown)}; choose from {', '.join(series.NAMES)}")
    if args.configs and not args.topology:
        parser.error("--configs needs --topology")
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
