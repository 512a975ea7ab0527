"""Builds the data, trains, exports and scores the cells, and goes on where it stopped."""

import hashlib
import json
import re
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from inf_jax.core.errors import UserError
from inf_jax.io.atomic import atomic_write
from inf_jax.io.json_files import read_json

from ..process import run_module
from .cells import CONFIG, Cell, paper_config


class Settings(NamedTuple):
    """What all cells share.

    Attributes:
      out_dir: everything is below it.
      keys: overrides of every config, KEY=VALUE.
      models: backbone -> model in place of the config's own.
      benchmark: flags of `inf_jax.benchmark`, without models, noise and out_dir.
    """

    out_dir: Path
    keys: tuple[str, ...]
    models: dict[str, str]
    benchmark: tuple[str, ...]

    def model(self, backbone: str) -> str:
        """The backbone's model: a directory or hub id."""
        return self.models.get(backbone) or paper_config().BACKBONES[backbone].model


def build(settings: Settings, name: str, flags: Sequence[str]) -> None:
    """Builds a dataset `inf_ir/NAME`; one that is there and equal is reused.

    Raises:
      UserError: the files cannot be read, or a dataset of other files is there.
    """
    print(f"data {name}", flush=True)
    data = settings.out_dir / "data"
    arguments = [*flags, f"--name={name}", f"--data-dir={data}"]
    place = settings.out_dir / f"build-{name}"
    if not _done(place, arguments):
        run_module("data_pipeline.build", arguments, place / "build.log")
        _mark(place, arguments)


def result(settings: Settings, cell: Cell) -> dict[str, Any]:
    """Trains, exports and scores a cell, unless that is done.

    Returns:
      "scores": the content of `inf_jax.benchmark`'s scores.json; "step_s": median seconds of a
      training step, over the seeds.

    Raises:
      UserError: a command failed.
    """
    runs = [_train(settings, cell, seed) for seed in cell.seeds]
    base = settings.model(cell.backbone)
    flags = [f"--model={','.join(str(run / 'export') for run in runs)}", f"--baseline={base}"]
    flags += settings.benchmark
    if cell.noise:
        flags.append(f"--noise={cell.noise}")
    place = runs[0].parent / f"benchmark-{_hash([*flags, *map(str, cell.seeds)])}"
    if not _done(place, flags):
        print("  scoring", flush=True)
        run_module("inf_jax.benchmark", [*flags, f"--out-dir={place}"], place / "benchmark.log")
        _mark(place, flags)
    scores = read_json(place / "scores.json", kind=dict, remedy=f"delete {place}")
    return {"scores": scores, "step_s": statistics.median(map(_step_seconds, runs))}


def _train(settings: Settings, cell: Cell, seed: int) -> Path:
    """The directory of a trained and exported run."""
    identity = cell.run(seed)
    words = re.sub(r"[^A-Za-z0-9.]+", "_", "-".join(cell.keys).replace("loss.", "")).strip("_")
    name = f"{cell.data}-{words[:60]}-{_hash(identity[:-1])}"
    run = settings.out_dir / cell.backbone / name / f"seed{seed}"
    keys = [f"out_dir={run}", f"data.dir={settings.out_dir / 'data'}", f"data.source={cell.data}"]
    keys += [f"model.name={settings.model(cell.backbone)}", f"seed={seed}"]
    keys += [*settings.keys, *cell.keys]
    flags = [f"--config={CONFIG}:{cell.backbone}", *(f"--config.{key}" for key in keys)]
    if not _done(run, flags):
        started = time.monotonic()
        print(f"  training {run}", flush=True)
        run_module("inf_jax.train", flags, run / "train.log")
        run_module("inf_jax.export", flags, run / "export.log")
        _mark(run, flags)
        print(f"  {time.monotonic() - started:.0f} s", flush=True)
    return run


def _step_seconds(run: Path) -> float:
    """Median seconds of the steps in timing.jsonl, without the first, which compiles."""
    try:
        lines = [json.loads(line) for line in (run / "timing.jsonl").read_text().splitlines()]
        seconds = [s for line in lines for s in line.get("step_s") or []]
        return statistics.median(seconds[1:] or seconds)
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{run}/timing.jsonl: cannot be read ({error}); delete {run}") from error


def _hash(words: Sequence[str]) -> str:
    return hashlib.blake2b(json.dumps(list(words)).encode(), digest_size=4).hexdigest()


def _done(directory: Path, flags: Sequence[str]) -> bool:
    """Whether the commands of a directory have ended, with these flags."""
    try:
        return (directory / "done.txt").read_text() == shlex.join(flags) + "\n"
    except OSError:
        return False


def _mark(directory: Path, flags: Sequence[str]) -> None:
    atomic_write(directory / "done.txt", shlex.join(flags) + "\n")


def failed(cell: Cell, error: UserError) -> None:
    """Prints why a cell has no result."""
    print(f"{cell.backbone} {cell.question} {cell.name}: FAILED\n{error}", file=sys.stderr)
