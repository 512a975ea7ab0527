"""Measures this project: training step, loss and LLM requests beside others, TPU plans, memory.

    python launch/bench.py train      pairs/s of the training step, beside sentence-transformers
    python launch/bench.py quality    scores after training, beside sentence-transformers
    python launch/bench.py loss       time and memory of the loss at batches of 1,024 to 65,536
    python launch/bench.py loss --aot              memory per TPU chip, by compilation alone
    python launch/bench.py factory    requests/s and memory of the data pipeline's LLM stages
    python launch/bench.py plan       does each shipped config fit its TPUs, and how long is a step
    python launch/bench.py memory     peak memory of encoding and evaluation
    python launch/bench.py input      records/s, and the time of the input beside a step's
    python launch/bench.py rehearsal  memory and rate of millions of synthetic pairs, end to end
    python launch/bench.py search     exact top-k search, beside FAISS

Every contender runs in its own process and they take turns, so that other load on the machine slows
all of them alike: compare figures within one run only. --write appends the result to
launch/benchmarks.md.
"""

import sys
from collections.abc import Sequence

from inf_jax.config.command_line import override_check
from inf_jax.config.sections import RunConfig
from inf_jax.core.cli_flags import FlagParser, check_choice
from inf_jax.core.errors import main_guard

from . import factory, input, loss, memory, plan, quality, rehearsal, search, train

# Each module has `HELP`, `TAKES_CONFIG`, `add_arguments(parser)`, and `main(args)`, or with
# TAKES_CONFIG `main(args, overrides)`.
COMMANDS = {
    "train": train,
    "quality": quality,
    "loss": loss,
    "factory": factory,
    "plan": plan,
    "memory": memory,
    "input": input,
    "rehearsal": rehearsal,
    "search": search,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one benchmark.

    Args:
      argv: the command line without the program's name; default `sys.argv[1:]`.
    """
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    with main_guard():
        if name in ("-h", "--help"):
            about = "\n".join(f"  {name:<10}{module.HELP}" for name, module in COMMANDS.items())
            print(f"{__doc__.strip()}\n\n{about}\n\nBENCHMARK --help lists its flags.")
            return
        check_choice("benchmark", name, COMMANDS)
        module = COMMANDS[name]
        parser = FlagParser(module.__doc__, f"python launch/bench.py {name}")
        module.add_arguments(parser)
        if module.TAKES_CONFIG:
            module.main(*parser.parse_known(rest, override_check(parser, RunConfig())))
        else:
            module.main(parser.parse(rest))
