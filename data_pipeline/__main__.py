"""The console script `inf-jax-data`: starts a command, also `python -m data_pipeline.NAME`."""

import sys

from inf_jax.core.console_script import dispatch
from inf_jax.core.errors import main_guard

_COMMANDS = {
    "run": "make a corpus of triplets from <query, passage> pairs with language models",
    "build": "build a TFDS dataset (text TFRecords) from a source of triplets",
    "beam-build": "the same on Apache Beam, for corpora of MS MARCO's size",
    "beam-tokenise": "tokenise a built dataset on Apache Beam",
}


def main() -> None:
    """The console script."""
    with main_guard():
        dispatch(sys.argv, program="inf-jax-data", package="data_pipeline", commands=_COMMANDS)


if __name__ == "__main__":
    main()
