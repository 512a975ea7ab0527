"""Builds the TFDS dataset of a source, or reuses a complete one built from the same files."""

import contextlib
import dataclasses
import errno
import logging
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import tensorflow_datasets as tfds

from data_pipeline.dataset.builder import REPORT_FILE, InfIr
from data_pipeline.dataset.inputs import InfIrConfig, Inputs
from data_pipeline.dataset.tfds_adapter import PARTIAL_PREFIX
from data_pipeline.quality.rules import Report
from inf_jax.core.errors import UserError
from inf_jax.io.json_files import read_json
from inf_jax.io.tfrecord import FRAME_BYTES

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)  # errors of a file system without locks


def build(
    source: str | InfIrConfig,
    data_dir: str | Path,
    *,
    name: str = "",
    overwrite: bool = False,
    beam: tfds.download.DownloadConfig | None = None,
    **inputs: Any,
) -> tuple[Path, bool]:
    """Writes the dataset of a source unless a complete one from the same files exists.

    Concurrent runs wait for each other, and the later ones reuse the result. Partial directories of
    killed runs are deleted.

    Args:
      source: a config, or the name of one of `InfIr`'s.
      data_dir: root of all datasets; missing directories are created.
      name: of the dataset, if not the source's.
      overwrite: replace an existing dataset; it stays if the new build fails.
      beam: runner and options of Apache Beam; None to build in this process.
      **inputs: the fields of `Inputs`, but for the config.

    Returns:
      The dataset's directory, and whether it was written (False: reused).

    Raises:
      UserError: bad input; or, without `overwrite`, an existing dataset that is damaged or was
        built from other input.
    """
    config = InfIr.builder_configs[source] if isinstance(source, str) else source
    if name and name != config.name:
        if not _NAME.fullmatch(name) or name in InfIr.builder_configs:
            raise UserError(
                f"--name={name}: must be letters, digits, '.', '_' and '-', and not another "
                "source's"
            )
        config = dataclasses.replace(config, name=name)
    if beam and config.plain:
        raise UserError(
            f"source {config.name!r} is not built on Beam; build it with "
            "`python -m data_pipeline.build`, whose memory does not grow with the source"
        )
    final = Path(data_dir, InfIr.name, config.name, str(InfIr.VERSION))
    recipe = Inputs(config, **inputs).recipe()
    with _exclusive(final), _quiet():
        for partial in final.parent.glob(f"{PARTIAL_PREFIX}*_{final.name}"):
            shutil.rmtree(partial)
        old = None
        if final.exists():
            if not overwrite:
                _check_reusable(final, recipe)
                return final, False
            old = final.rename(final.with_name(f"{PARTIAL_PREFIX}OLD_{final.name}"))
        try:
            _prepare(InfIr(config=config, data_dir=data_dir, beam=bool(beam), **inputs), beam)
        except BaseException:
            if old:
                old.rename(final)
            raise
        if old:
            shutil.rmtree(old)
        return final, True


def _prepare(builder: InfIr, beam: tfds.download.DownloadConfig | None) -> None:
    tfds.disable_progress_bar()  # the builder shows its own
    with tempfile.TemporaryDirectory() as downloads:  # stays empty, but TFDS requires one
        builder.download_and_prepare(download_dir=downloads, download_config=beam)


def _check_reusable(final: Path, recipe: dict) -> None:
    """Raises UserError unless the dataset is complete and was built by this recipe."""
    remedy = "run again with --overwrite to replace it, or choose another --data-dir"
    try:
        info = tfds.builder_from_directory(final).info
        stored = dict(info.metadata or {})
        for report in read_json(final / REPORT_FILE, kind=dict).values():
            Report.from_json(report)
    except Exception as error:  # TFDS's and protobuf's parsers raise many kinds on a damaged file
        raise UserError(f"the dataset in {final} cannot be read ({error}); {remedy}") from error
    for name in ["options", *recipe, *stored]:  # options first: others follow from them
        was, now = stored.get(name), recipe.get(name)
        if was != now:
            raise UserError(
                f"{final} was built with other {name}: {_brief(was)}; now: {_brief(now)}; {remedy}"
            )
    for split in info.splits.values():
        files = [Path(file) for file in split.filepaths]
        if missing := [file.name for file in files if not file.exists()]:
            raise UserError(f"{final} lacks {', '.join(missing)}; {remedy}")
        size = sum(file.stat().st_size for file in files)
        expected = split.num_bytes + FRAME_BYTES * split.num_examples
        if size != expected:
            raise UserError(
                f"{final}: split {split.name!r} has {size} bytes, expected {expected}; {remedy}"
            )


def _brief(value: Any) -> str:
    """A recipe value for an error message; a source file by its name and abbreviated checksum."""
    if isinstance(value, dict) and "sha256" in value:
        return f"{value['file']} (sha256 {value['sha256'][:12]})"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_brief(part)}" for name, part in value.items())
    if isinstance(value, list):
        return " ".join(map(_brief, value))
    return "none" if value is None else str(value)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No warnings of TFDS, which warns of a name of the user's own."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _exclusive(final: Path) -> Iterator[None]:
    """Holds the lock of one dataset; the system releases it when the process dies."""
    lock = filelock.FileLock(final.with_name(f".{final.name}.lock"), fallback_to_soft=False)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            print(f"another run is building {final}; waiting for it")
            lock.acquire()
    except OSError as error:
        if error.errno not in _NO_LOCKS:  # without locks, go on unlocked
            raise UserError(
                f"cannot write {final.parent}: {error.strerror}; choose another --data-dir"
            ) from error
    try:
        yield
    finally:
        lock.release()
