"""Benchmarks: this project side by side with others, in one run.

    python launch/bench.py train --help
    python launch/bench.py loss --help
    python launch/bench.py factory --help
    python launch/bench.py plan --help

Each contender runs in a process of its own, and they take turns, so that whatever else the machine
does hits all of them: only the ratios within one run mean something.
"""

import argparse

import bench_factory
import bench_loss
import bench_plan
import bench_train

# name -> module with `HELP`, `add_arguments(parser)` and `main(args, overrides)`
COMMANDS = {
    "train": bench_train,
    "loss": bench_loss,
    "factory": bench_factory,
    "plan": bench_plan,
}


def main() -> None:
    """The command line: a benchmark's name and its options."""
    parser = argparse.ArgumentParser(
        prog="python launch/bench.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="BENCHMARK")
    for name, module in COMMANDS.items():
        module.add_arguments(
            commands.add_parser(
                name,
                help=module.HELP,
                description=module.__doc__,
                formatter_class=argparse.RawDescriptionHelpFormatter,
                allow_abbrev=False,
            )
        )
    args, overrides = parser.parse_known_args()
    unknown = [o for o in overrides if not o.startswith("--config.") or "=" not in o]
    if unknown:
        parser.error(f"unknown arguments: {' '.join(unknown)}; keys are --config.KEY=VALUE")
    COMMANDS[args.command].main(args, overrides)


if __name__ == "__main__":
    main()
