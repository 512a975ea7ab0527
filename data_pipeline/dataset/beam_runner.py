"""Apache Beam's runner, options and workers' errors, for the Beam commands."""

import argparse
import contextlib
import logging
import re
from collections.abc import Iterator, Sequence

import tensorflow_datasets as tfds

from inf_jax.core.cli_flags import hyphenated
from inf_jax.core.errors import UserError

_SUFFIX = " [while running"  # appended by Beam


def make_config(runner: str, options: Sequence[str]) -> tfds.download.DownloadConfig:
    """The download config that makes TFDS prepare a dataset with Beam.

    Args:
      runner: name of a Beam runner.
      options: Beam's own command-line flags.

    Raises:
      UserError: Beam is not installed, or has no such runner.
    """
    made = _make_runner(runner)
    from apache_beam.options.pipeline_options import PipelineOptions

    options = PipelineOptions([f"--runner={runner}", *options])
    return tfds.download.DownloadConfig(beam_runner=made, beam_options=options)


def _make_runner(name: str):
    try:
        from apache_beam.runners.portability.fn_api_runner import FnApiRunner
        from apache_beam.runners.runner import create_runner
    except ImportError as error:
        message = f"Apache Beam cannot be imported ({error}); pip install -e '.[beam]'"
        raise UserError(message) from error
    if name.lower() in ("direct", "directrunner"):
        # Beam's own choice for this name may be a runner in Go, which it downloads.
        return FnApiRunner()
    try:
        return create_runner(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"--runner={name}: {error}") from error


def check_paths(**paths: str) -> None:
    """Raises UserError if a path, given by its flag's name, is a URL rather than a local path."""
    for name, path in paths.items():
        if "://" in str(path):
            raise UserError(
                f"--{name.replace('_', '-')}={path}: URLs are not supported; give a directory that "
                "all workers mount (NFS, Lustre, a bucket by gcsfuse)"
            )


def quiet() -> None:
    """Stops Beam from logging a worker's traceback several times in addition to raising it."""
    for name in ("apache_beam.runners.common", "apache_beam.runners.worker.sdk_worker"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def parse_arguments(
    parser: argparse.ArgumentParser, argv: Sequence[str]
) -> tuple[argparse.Namespace, list[str]]:
    """Parses our flags, `--runner` among them, and returns them and the flags meant for Beam."""
    parser.add_argument(
        "--runner",
        default="DirectRunner",
        help="DirectRunner (this machine), DataflowRunner, FlinkRunner, SparkRunner, ... "
        "(default: %(default)s)",
    )
    ours = hyphenated(argv)
    args, others = parser.parse_known_args(ours)
    as_given = dict(zip(ours, argv, strict=True))  # Beam's own flags have underscores
    return args, [as_given[flag] for flag in others]


@contextlib.contextmanager
def worker_errors() -> Iterator[None]:
    """Turns a worker's UserError back into one; other errors propagate unchanged.

    Runners report errors as text, usually in a RuntimeError with the worker's traceback. Messages
    of UserErrors are one line each.
    """
    try:
        yield
    except Exception as error:
        text = str(error)
        messages = re.findall(r"\b(?:UserError|CorruptRecordError): (.+)", text)
        if not messages and not isinstance(error, UserError):
            raise
        raise UserError((messages or [text])[-1].split(_SUFFIX)[0]) from error
