"""Apache Beam's runner, options and workers' errors, for the Beam commands."""

import argparse
import contextlib
import functools
import logging
import os
import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches

import tensorflow_datasets as tfds

from inf_jax.core.cli_flags import FlagParser
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
    if _is_direct(name):
        # Beam's own choice for this name may be a runner in Go, which it downloads.
        return FnApiRunner()
    try:
        return create_runner(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"--runner={name}: {error}") from error


def _is_direct(name: str) -> bool:
    return name.lower() in ("direct", "directrunner")


def check_paths(**paths: str) -> None:
    """Raises UserError if a path, given by its flag's name, is a URL rather than a local path, or
    data_dir holds a character of glob patterns: Beam's writer searches for its files with one, and
    would leave them under their temporary names."""
    for name, path in paths.items():
        found = sorted({*"*?[]{}\\"} & set(os.path.abspath(path))) if name == "data_dir" else []
        if found:
            raise UserError(
                f"--{name.replace('_', '-')}={path}: Beam cannot write to a path that holds "
                f"{' '.join(found)}; choose another"
            )
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
    parser: FlagParser, argv: Sequence[str], *, others: str = ""
) -> tuple[argparse.Namespace, list[str]]:
    """Parses our flags, `--runner` among them, and returns them and the flags that are not ours.

    Those are meant for Beam, but for those that begin with `others`. Some runners know flags that
    Beam itself does not: for them, a flag that is unknown to Beam is an error only if it resembles
    a known one.

    Raises:
      UsageError: as `FlagParser.parse`.
    """
    text = "DirectRunner (this machine), DataflowRunner, FlinkRunner, SparkRunner, ..."
    parser.add("--runner", text, default="DirectRunner", metavar="NAME")
    runners = [flag.partition("=")[2] for flag in argv if flag.startswith("--runner")]
    local = not runners or _is_direct(runners[-1])

    def check(flag: str) -> None:
        if others and flag.startswith(others):
            return
        name, known = flag.partition("=")[0], _beam_flags()
        alike = get_close_matches(name.replace("_", "-"), [*parser.names, *known], 1, cutoff=0.85)
        if name.replace("_", "-") not in known and (local or alike):
            parser.refuse_unknown(flag, known)

    args, rest = parser.parse_known(argv, check)
    return args, [_as_beam_writes(flag) for flag in rest]


@functools.cache
def _beam_flags() -> dict[str, str]:
    """Beam's own flags: with hyphens -> as Beam writes them."""
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        return {}  # `make_config` says that Beam is not installed
    names: list[str] = []
    PipelineOptions([]).get_all_options(
        add_extra_args_fn=lambda parser: names.extend(parser._option_string_actions)
    )
    return {name.replace("_", "-"): name for name in names}


def _as_beam_writes(flag: str) -> str:
    name, equals, value = flag.partition("=")
    return _beam_flags().get(name.replace("_", "-"), name) + equals + value


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
