"""The console script `inf-jax`: starts a command; each is also `python -m inf_jax.NAME`."""

import sys

from inf_jax.core.console_script import dispatch
from inf_jax.core.errors import main_guard

_COMMANDS = {
    "train": "train a retriever on a built dataset",
    "evaluate": "score a run's checkpoint and its base model on the eval split",
    "export": "write a checkpoint as a verified Hugging Face directory",
    "average": "average checkpoints with each other or with the base, and score the mixtures",
    "tokenise": "tokenise a dataset ahead of training",
    "encode": "write the vectors of a corpus, or of queries, as shards",
    "search": "find the nearest passages among such vectors, exactly",
    "mine": "find hard negatives for pairs, with margins, ranks and a teacher",
    "benchmark": "score any model on public benchmarks or your own, beside others",
    "mteb": "mteb's own commands, on any model that inf_jax opens",
    "plan": "memory, time and cost of a run, before hardware is rented",
}


def main() -> None:
    """The console script."""
    with main_guard():
        dispatch(sys.argv, program="inf-jax", package="inf_jax", commands=_COMMANDS)


if __name__ == "__main__":
    main()
