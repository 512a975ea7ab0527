"""Measures this project side by side with others: training step, loss, LLM requests, TPU plans.

    python launch/bench.py train      pairs/s of the training step, beside sentence-transformers
    python launch/bench.py loss       time and memory of the loss at batches of 1,024 to 65,536
    python launch/bench.py loss --aot              memory per TPU chip, by compilation alone
    python launch/bench.py factory    requests/s and memory of the data pipeline's LLM stages
    python launch/bench.py plan       does each shipped config fit its TPUs, and how long is a step

Every contender runs in its own process and they take turns, so that other load on the machine slows
all of them alike: compare figures within one run only. --write appends the result to
launch/benchmarks.md.
"""

import argparse
import sys

from inf_jax.core.errors import main_guard

from . import factory, loss, plan, train
from .options import make_parser, parse_options

# Each module has `HELP`, `add_arguments(parser)` and `main(args, overrides)`.
COMMANDS = {"train": train, "loss": loss, "factory": factory, "plan": plan}


def main(argv: list[str] | None = None) -> None:
    """Runs one benchmark.

    Args:
      argv: the command line without the program's name; default `sys.argv[1:]`.
    """
    parser = make_parser("python launch/bench.py", __doc__)
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
    with main_guard():
        args, overrides = parse_options(parser, sys.argv[1:] if argv is None else argv)
        COMMANDS[args.command].main(args, overrides)
