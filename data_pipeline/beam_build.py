"""`data_pipeline.build` on Apache Beam: many workers produce the same dataset.

python -m data_pipeline.beam_build --source=factory --path-train=corpus/ --data-dir=out/data \\
    --runner=DirectRunner --direct_num_workers=0 --direct_running_mode=multi_processing

Flags that are not listed here are Beam's own (`--runner=DataflowRunner --project=...`,
`--runner=FlinkRunner --flink_master=...`). Source files and --data-dir must be on a file system
that every worker mounts under the same path.
"""

import sys
from collections.abc import Sequence

from data_pipeline.dataset import beam_runner
from data_pipeline.dataset.command import build_parser, run_build
from inf_jax.core.errors import main_guard


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command; `argv` is without the program's name."""
    with main_guard():
        parser = build_parser("python -m data_pipeline.beam_build", __doc__)
        args, options = beam_runner.parse_arguments(parser, sys.argv[1:] if argv is None else argv)
        beam_runner.quiet()
        beam_runner.check_paths(
            data_dir=args.data_dir, path_train=args.path_train, path_dev=args.path_dev
        )
        run_build(args, beam_runner.make_config(args.runner, options))


if __name__ == "__main__":
    main()
