"""Reads a source, validates its examples, writes the TFDS dataset `inf_ir/<source>` (TFRecords).

python -m data_pipeline.build --source=medquad --keyword-instructions --data-dir=out/data
python -m data_pipeline.build --source=inf_ir --path-train=inf_ir.parquet --data-dir=out/data
python -m data_pipeline.build --source=fields --name=nq --path-train=nq.jsonl --data-dir=out/data

A second run reuses an existing dataset. An interrupted run leaves no dataset; run it again.
"""

import sys
from collections.abc import Sequence

from data_pipeline.dataset.command import build_parser, run_build
from inf_jax.core.errors import main_guard


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command; `argv` is without the program's name."""
    with main_guard():
        parser = build_parser("python -m data_pipeline.build", __doc__)
        run_build(parser.parse(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    main()
