"""`data_pipeline.build` on Apache Beam: the same dataset, made by many workers.

python -m data_pipeline.beam_build --source=factory --path_train=corpus/ --data_dir=out/data \\
    --runner=DirectRunner --direct_num_workers=0 --direct_running_mode=multi_processing

Flags that are not listed here are Beam's own (`--runner=DataflowRunner --project=...`,
`--runner=FlinkRunner --flink_master=...`). Source files and --data_dir must be on a file system
that every worker mounts under the same path.
"""

import argparse
import logging
from collections.abc import Sequence

import tensorflow_datasets as tfds

from data_pipeline.build import make_parser, run
from inf_jax.core.errors import UserError, main_guard


def make_config(runner: str, options: Sequence[str]) -> tfds.download.DownloadConfig:
    """How TFDS is told to use Beam.

    Args:
      runner: a runner of Beam, by name.
      options: Beam's flags, as on its command lines.

    Raises:
      UserError: Beam is not installed, or has no such runner.
    """
    made = make_runner(runner)
    from apache_beam.options.pipeline_options import PipelineOptions

    return tfds.download.DownloadConfig(
        beam_runner=made, beam_options=PipelineOptions([f"--runner={runner}", *options])
    )


def make_runner(name: str):
    """A runner of Beam by its name; raises UserError where there is none."""
    try:
        from apache_beam.runners.portability.fn_api_runner import FnApiRunner
        from apache_beam.runners.runner import create_runner
    except ImportError as error:
        raise UserError(
            f"Apache Beam cannot be imported ({error}); pip install -e '.[beam]'"
        ) from error
    if name.lower() in ("direct", "directrunner"):
        # What Beam runs under that name, unless it can fetch a runner in Go from the network.
        return FnApiRunner()
    try:
        return create_runner(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"--runner={name}: {error}") from error


def check_paths(**paths: str) -> None:
    """Raises UserError for a URL among paths by flag: files must be on a file system."""
    for name, path in paths.items():
        if "://" in str(path):
            raise UserError(
                f"--{name}={path}: URLs cannot be read or written; give a directory that all "
                "workers mount (NFS, Lustre, a bucket by gcsfuse)"
            )


def main(argv: Sequence[str] | None = None) -> None:
    """The command; `argv` without the program's name."""
    parser = make_parser("data_pipeline.beam_build", __doc__)
    add_runner(parser)
    args, options = parser.parse_known_args(argv)
    with main_guard():
        quiet()
        check_paths(data_dir=args.data_dir, path_train=args.path_train, path_dev=args.path_dev)
        run(args, make_config(args.runner, options))


def quiet() -> None:
    """Keeps Beam from printing a worker's traceback several times beside raising its error."""
    for name in ("apache_beam.runners.common", "apache_beam.runners.worker.sdk_worker"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def add_runner(parser: argparse.ArgumentParser) -> None:
    """Adds the flag --runner."""
    parser.add_argument(
        "--runner",
        default="DirectRunner",
        help="DirectRunner (this machine), DataflowRunner, FlinkRunner, SparkRunner, ... "
        "(default: %(default)s)",
    )


if __name__ == "__main__":
    main()
