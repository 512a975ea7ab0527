"""A sweep that plans each run first and refuses what does not fit.

    python launch/scaling.py                                  plan all of configs/scaling
    python launch/scaling.py v5e-65536 v5e-262144 --run       plan, then train those that fit
    python launch/scaling.py --configs a.py b.py --topology=v5e:4x4 -- --config.seed=1

Trains one after another, on the machine or pod that it is started on. Exit code 1 if a run was
refused or failed; the others are done all the same.
"""

import argparse
import importlib.util
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "scaling" / "e5_large.py"


def main() -> int:
    """The command line."""
    argv = sys.argv[1:]
    cut = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(
        prog="python launch/scaling.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("names", nargs="*", help="of configs/scaling/e5_large.py, CHIP-PAIRS; default all")
    add("--configs", nargs="+", default=[], metavar="FILE", help="these in place of the names")
    add("--topology", default="", help="default: the name's own; needed with --configs")
    add("--run", action="store_true", help="train what fits")
    args, options = parser.parse_known_args(argv[:cut])
    own = _own()
    unknown = [n for n in args.names if n not in own.NAMES]
    if unknown or bool(args.configs) > bool(args.topology):
        parser.error(
            f"no such run: {', '.join(unknown)}; one of {', '.join(own.NAMES)}"
            if unknown
            else "--configs needs --topology"
        )
    names = args.names or own.NAMES
    topology = {n: args.topology or own.TOPOLOGIES[n.split("-")[0]][0] for n in names}
    runs = [(f"{CONFIG}:{n}", topology[n]) for n in names]
    if args.configs:
        runs = [(file, args.topology) for file in args.configs]
    outcomes = {config: _one(config, t, options, argv[cut + 1 :], args.run) for config, t in runs}
    print("\n" + "\n".join(f"{outcome:8} {config}" for config, outcome in outcomes.items()))
    return int(any(outcome in ("REFUSED", "FAILED") for outcome in outcomes.values()))


def _one(config: str, topology: str, options: list[str], overrides: list[str], run: bool) -> str:
    """Plans one run, trains it if asked to; what came of it."""
    plan = [sys.executable, "-m", "inf_jax.plan", f"--config={config}", f"--topology={topology}"]
    print(f"{config} on {topology}:", flush=True)
    done = subprocess.run([*plan, *options, *overrides], check=False)
    if done.returncode:
        return "REFUSED"
    train = [sys.executable, "-m", "inf_jax.train", f"--config={config}", *overrides]
    print(shlex.join(train), flush=True)
    if not run:
        return "fits"
    return "FAILED" if subprocess.run(train, check=False).returncode else "trained"


def _own():
    spec = importlib.util.spec_from_file_location("scaling_e5_large", CONFIG)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    raise SystemExit(main())
