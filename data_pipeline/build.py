"""Reads a source, validates it, and writes the TFDS dataset `inf_ir/<source>` (text TFRecords).

python -m data_pipeline.build --source=medquad --data_dir=out/data
python -m data_pipeline.build --source=inf_ir --path_train=inf_ir.parquet --data_dir=out/data

Run again, it keeps what is there and says so. Killed, it leaves no dataset; run it again.
"""

import argparse
import contextlib
import fcntl
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from rich.console import Console

from data_pipeline.dataset.builder import REPORT_FILE, InfIr
from data_pipeline.dataset.inputs import DEV_FRACTION, InfIrConfig, Inputs
from data_pipeline.quality.rules import Report, report_table
from inf_jax.core.errors import UserError, main_guard
from inf_jax.io.tfrecord import FRAME_BYTES

_PARTIAL = "incomplete."  # TFDS's own prefix of a dataset that is being written


def build(
    source: str | InfIrConfig,
    data_dir: str | Path,
    *,
    path_train: str | Path = "",
    path_dev: str | Path = "",
    dev_fraction: float = DEV_FRACTION,
    near_duplicates: float = 0.0,
    overwrite: bool = False,
    beam: tfds.download.DownloadConfig | None = None,
) -> tuple[Path, bool]:
    """Writes the dataset of a source unless it is there already, whole and from the same files.

    Runs at the same time take turns, and the later ones reuse. Partial directories of killed runs
    are deleted.

    Args:
      source: a config, or the name of one of `InfIr`'s.
      data_dir: root of all datasets; missing directories are made.
      path_train, path_dev, dev_fraction, near_duplicates: as for `InfIr`.
      overwrite: replace a dataset that is there; it stays if the new one fails.
      beam: runner and options of Apache Beam; None: all is done in this process.

    Returns:
      The dataset's directory, and whether it was written (False: reused).

    Raises:
      UserError: bad input; or, without `overwrite`, a dataset that is damaged or of other input.
    """
    config = InfIr.builder_configs[source] if isinstance(source, str) else source
    final = Path(data_dir, InfIr.name, config.name, str(InfIr.VERSION))
    own = {
        "path_train": str(path_train),
        "path_dev": str(path_dev),
        "dev_fraction": dev_fraction,
        "near_duplicates": near_duplicates,
    }
    recipe = Inputs.resolve(config, **own).recipe()
    with _turn(final):
        for partial in final.parent.glob(f"{_PARTIAL}*_{final.name}"):
            shutil.rmtree(partial)
        old = None
        if final.exists():
            if not overwrite:
                _check_reusable(final, recipe)
                return final, False
            old = final.rename(final.with_name(f"{_PARTIAL}OLD_{final.name}"))
        try:
            _prepare(InfIr(config=config, data_dir=data_dir, beam=bool(beam), **own), beam)
        except BaseException:
            if old:
                old.rename(final)
            raise
        if old:
            shutil.rmtree(old)
        return final, True


def _prepare(builder: InfIr, beam: tfds.download.DownloadConfig | None) -> None:
    tfds.disable_progress_bar()  # the builder has its own
    with tempfile.TemporaryDirectory() as downloads:  # stays empty; TFDS insists on one
        builder.download_and_prepare(download_dir=downloads, download_config=beam)


def _check_reusable(final: Path, recipe: dict) -> None:
    """Raises UserError unless the dataset is complete and was made by this recipe."""
    remedy = "run again with --overwrite to replace it, or choose another --data_dir"
    try:
        info = tfds.builder_from_directory(final).info
        stored = dict(info.metadata or {})
        json.loads((final / REPORT_FILE).read_text())
    except Exception as error:  # whatever TFDS's and protobuf's parsers raise on a damaged file
        raise UserError(f"{final} holds no readable dataset ({error}); {remedy}") from error
    for name in [*recipe, *stored]:
        was, now = stored.get(name), recipe.get(name)
        if was != now:
            raise UserError(
                f"{final} was built with other {name}: {_brief(was)}; now: {_brief(now)}; {remedy}"
            )
    for split in info.splits.values():
        files = [Path(file) for file in split.filepaths]
        missing = [file.name for file in files if not file.exists()]
        if missing:
            raise UserError(f"{final} lacks {', '.join(missing)}; {remedy}")
        size = sum(file.stat().st_size for file in files)
        expected = split.num_bytes + FRAME_BYTES * split.num_examples
        if size != expected:
            raise UserError(
                f"{final}: split {split.name!r} has {size} bytes, expected {expected}; {remedy}"
            )


def _brief(value: Any) -> str:
    """A part of a recipe in few words; of a source file its name and the checksum's beginning."""
    if isinstance(value, dict) and "sha256" in value:
        return f"{value['file']} (sha256 {value['sha256'][:12]})"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_brief(part)}" for name, part in value.items())
    if isinstance(value, list):
        return " ".join(map(_brief, value))
    return str(value)


@contextlib.contextmanager
def _turn(final: Path) -> Iterator[None]:
    """Holds the lock of one dataset; a killed run's lock goes with it."""
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        lock = open(final.with_name(f".{final.name}.lock"), "w")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise UserError(
            f"cannot write {final.parent}: {error.strerror}; choose another --data_dir"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another run is building {final}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            pass  # a file system without locks
        yield


def make_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """The flags of a build, for this main and for `data_pipeline.beam_build`."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {prog}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--source",
        required=True,
        choices=list(InfIr.builder_configs),
        help="where examples come from",
    )
    add(
        "--data_dir",
        required=True,
        metavar="DIR",
        help="root; the dataset is DIR/inf_ir/SOURCE/VERSION",
    )
    add(
        "--path_train",
        default="",
        metavar="FILE",
        help="jsonl, jsonl.gz or parquet file, or a directory of them; medquad: default is the "
        "shipped sample; others: required, with InF-IR's field names (instruction_positive, ...) "
        "and, if you like, an id",
    )
    add("--path_dev", default="", metavar="FILE", help="the same for the evaluation split")
    add(
        "--dev_fraction",
        type=float,
        default=DEV_FRACTION,
        metavar="F",
        help="without a dev file: the share of queries held out of the train file for evaluation, "
        "chosen by hash; 0 for no dev split (default: %(default)s)",
    )
    add(
        "--near_duplicates",
        type=float,
        default=0.0,
        metavar="S",
        help="drop an example whose instructed query and passage are both so similar to those of "
        "an earlier one (Jaccard of their shingles, by MinHash), e.g. 0.8; 0: keep all "
        "(default: %(default)s)",
    )
    add("--overwrite", action="store_true", help="replace a dataset that is already there")
    return parser


def run(args: argparse.Namespace, beam: tfds.download.DownloadConfig | None = None) -> None:
    """Builds as the flags say, and prints the report; UserError as `build`."""
    final, written = build(
        args.source,
        args.data_dir,
        path_train=args.path_train,
        path_dev=args.path_dev,
        dev_fraction=args.dev_fraction,
        near_duplicates=args.near_duplicates,
        overwrite=args.overwrite,
        beam=beam,
    )
    _show(final, written=written)


def main(argv: Sequence[str] | None = None) -> None:
    """The command; `argv` without the program's name."""
    args = make_parser("data_pipeline.build", __doc__).parse_args(argv)
    with main_guard():
        run(args)


def _show(final: Path, *, written: bool) -> None:
    console = Console(soft_wrap=True, highlight=False)
    reports = json.loads((final / REPORT_FILE).read_text())
    console.print(report_table({split: Report.from_json(r) for split, r in reports.items()}))
    for split in tfds.builder_from_directory(final).info.splits.values():
        mebibytes = split.num_bytes / 2**20
        shards = f"{split.num_shards} shard{'s' if split.num_shards > 1 else ''}"
        console.print(
            f"{split.name}: {split.num_examples:,} examples, {mebibytes:.1f} MiB, {shards}"
        )
    if written:
        console.print(f"wrote {final} (report: {REPORT_FILE})")
    else:
        console.print(f"reused {final}: it is there already, from the same source files")


if __name__ == "__main__":
    main()
