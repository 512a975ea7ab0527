"""Compares recipes: lists of overrides of one config, each trained with several seeds.

`ablation` has the command line. The recipes of one seed see the same examples in the same order
(where they keep data and batch), so differences are paired by seed.
"""

import argparse
import json
import re
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from inf_jax.config.command_line import parse
from inf_jax.core.errors import UserError
from inf_jax.io.json_files import read_json
from inf_jax.io.storage import is_bucket

from .cells import Cell, CellFailedError, call, check_unchanged, finished
from .recipes_report import write_report

_KEYS_OF_ITS_OWN = ("out_dir", "seed", "eval.base_from")
_OF_THE_BASE = ("--config.model.", "--config.data.", "--config.eval.")  # may change its scores
_AVERAGE = "average"  # of a recipe: the mixture that `inf_jax.average` makes of its checkpoints


class Recipe(NamedTuple):
    """A named list of overrides.

    Attributes:
      flags: `--config.KEY=VALUE` each.
      average: a mixture of `inf_jax.average`, which is scored in place of the run; "": none.
    """

    name: str
    flags: tuple[str, ...]
    average: str


class Trial(NamedTuple):
    """A recipe with one seed: the run, and what is scored, the run itself or its average."""

    recipe: Recipe
    seed: int
    run: Cell
    scored: Cell


def parse_recipe(text: str) -> Recipe:
    """The recipe of `NAME: KEY=VALUE KEY=VALUE ...`, which may have no overrides.

    Raises:
      UserError: not of this form, or a key that the comparison sets.
    """
    name, _, rest = text.partition(":")
    flags, average = [], ""
    try:
        parts = shlex.split(rest)
    except ValueError as error:
        raise UserError(f"--recipes {text!r}: {error}") from None
    for part in parts:
        key, equals, value = part.partition("=")
        if not (equals and key):
            raise UserError(f"--recipes {text!r}: {part!r} is not KEY=VALUE")
        if key in _KEYS_OF_ITS_OWN:
            raise UserError(f"--recipes {text!r}: the comparison sets {key}; leave it out")
        if key == _AVERAGE:
            average = value
        else:
            flags.append(f"--config.{key}={value}")
    if not re.fullmatch(r"[\w.,+()-][\w .,+()-]*", name):
        raise UserError(f"--recipes {text!r}: begin with a name, as in 'wide: loss.scale=10'")
    return Recipe(name, tuple(flags), average)


def make_trials(
    config: ConfigDict, common: Sequence[str], texts: Sequence[str], seeds: Sequence[int]
) -> list[Trial]:
    """The trials, all recipes of the first seed first, each with its config checked.

    Args:
      config: what `common` gives.
      common: `--config=FILE` and the overrides of the command line.
      texts: see `parse_recipe`.

    Raises:
      UserError: an impossible recipe, or two of one name.
    """
    if is_bucket(config.out_dir):
        raise UserError(f"out_dir={config.out_dir}: give a local directory")
    recipes = [parse_recipe(text) for text in texts]
    slugs = [re.sub(r"[^A-Za-z0-9.]+", "_", recipe.name).strip("_") for recipe in recipes]
    if len({slug.lower() for slug in slugs}) < len(slugs):
        raise UserError(f"--recipes: two have one name among {', '.join(map(repr, slugs))}")
    trials = []
    for seed in dict.fromkeys(seeds):
        for recipe, slug in zip(recipes, slugs, strict=True):
            out_dir = Path(config.out_dir) / "recipes" / f"{slug}-{seed}"

            def cell(directory: Path, recipe=recipe, seed=seed) -> Cell:
                own = [f"--config.seed={seed}", f"--config.out_dir={directory}"]
                flags = [*common, *recipe.flags, *own]
                parsed = parse(["ablate", *flags])
                return Cell(parsed.loss.objective, parsed.loss.mask, flags, parsed)

            run = cell(out_dir)
            trials.append(
                Trial(recipe, seed, run, cell(out_dir / _AVERAGE) if recipe.average else run)
            )
    return trials


def _own(config: ConfigDict) -> str:
    """The name of the task of a config."""
    if config.eval.benchmark:
        return Path(config.eval.benchmark).resolve().name
    return config.eval.source or config.data.source


def tasks(config: ConfigDict, also: Sequence[str]) -> dict[str, list[str]]:
    """Name -> the flags of `inf_jax.evaluate` that score it, of `--also`.

    Args:
      config: what the command line gives; its own task is not repeated.
      also: directories in BEIR's layout, and sources of data.dir.

    Raises:
      UserError: two have one name, or a path is no directory.
    """
    found: dict[str, list[str]] = {}
    for text in dict.fromkeys(also):
        if is_directory := "/" in text or Path(text).is_dir():
            name, directory, source = Path(text).resolve().name, text, ""
        else:
            name, directory, source = text, "", text
        if is_directory and not Path(text).is_dir():
            raise UserError(f"--also {text}: no such directory; give one in BEIR's layout")
        if name in found or name == _own(config):
            raise UserError(f"--also {text}: {name} is scored already; leave it out or rename it")
        found[name] = [f"--config.eval.benchmark={directory}", f"--config.eval.source={source}"]
    return found


def compare(args: argparse.Namespace, common: list[str]) -> None:
    """Runs the unfinished trials and writes the report.

    Raises:
      UserError: a trial failed, or was begun with other settings.
    """
    config = parse(["ablate", *common])
    trials = make_trials(config, common, args.recipes, args.seeds)
    also = tasks(config, args.also)
    for trial in trials:
        check_unchanged(trial.run)
        _check_average(trial)
    results, failures, bases = [], {}, {}
    for number, trial in enumerate(trials, 1):
        label = f"[{number}/{len(trials)}] {trial.recipe.name}, seed {trial.seed}"
        try:
            scores = _scores(trial, label, also, bases)
        except CellFailedError as failure:
            print(f"{label}: FAILED\n{failure}", file=sys.stderr, flush=True)
            failures[label] = str(failure)
            continue
        results.append(
            {"recipe": trial.recipe.name, "seed": trial.seed, "overrides": trial.recipe.flags}
            | {"average": trial.recipe.average, "scores": scores}
        )
    write_report(config, results, names=[parse_recipe(text).name for text in args.recipes])
    if failures:
        raise UserError(
            f"{len(failures)} of {len(trials)} trials failed: {'; '.join(failures)} (see above, "
            "and the logs in their directories); the same command tries them again"
        )


def _mixture_in(directory: Path) -> str | None:
    """The mixture that `inf_jax.average` wrote a directory for; None: none, or not to the end."""
    path = directory / "command.txt"  # the last file that it writes
    words = shlex.split(path.read_text()) if path.exists() else []
    return next((w.removeprefix("--of=") for w in words if w.startswith("--of=")), None)


def _check_average(trial: Trial) -> None:
    """Raises UserError if the trial's average was made of another mixture."""
    directory, wanted = trial.scored.directory, trial.recipe.average
    was = _mixture_in(directory) if wanted else None
    if was not in (None, wanted):
        raise UserError(
            f"{directory}: is the average {was}, and recipe {trial.recipe.name!r} asks for "
            f"{wanted}; give it another name, or delete that directory"
        )


def _scores(
    trial: Trial, label: str, also: Mapping[str, list[str]], bases: dict[str, Path]
) -> dict[str, dict]:
    """{name: {"base": scores, "trained": scores}} of a trial: of its own task, then of `also`.

    `bases`, name -> a file with the scores of the base, is for the trials that have the same, so
    that it is measured once; a trial that measured it is added.
    """
    started, scored = time.monotonic(), trial.scored
    own = _own(scored.config)
    files = {own: scored.directory / "eval.json"}
    files |= {name: scored.directory / f"eval_{name}.json" for name in also}
    if finished(scored) and all(_is_of(files[name], flags) for name, flags in also.items()):
        print(f"{label}: already finished, reused", flush=True)
    else:
        print(f"{label}: training", flush=True)
        call(trial.run, "train")
        if trial.recipe.average and _mixture_in(scored.directory) is None:
            shutil.rmtree(scored.directory / "checkpoints", ignore_errors=True)  # of a killed one
            of = (f"--of={trial.recipe.average}", f"--out={scored.directory}")
            call(trial.run, "average", *of)
        for name, flags in also.items():
            call(scored, "evaluate", *flags, *_base(trial, bases.get(name)))
            (scored.directory / "eval.json").replace(files[name])
        call(scored, "evaluate", *_base(trial, bases.get(own)))
        if not finished(scored):
            raise CellFailedError(f"{files[own]} is of another step")
        print(f"{label}: {time.monotonic() - started:.0f} s", flush=True)
    for source, file in files.items() if _usual(trial) else ():
        bases.setdefault(source, file)
    found = {source: json.loads(file.read_text()) for source, file in files.items()}
    return {
        source: {key: scores[key] for key in ("base", "trained")}
        for source, scores in found.items()
    }


def _is_of(file: Path, flags: Sequence[str]) -> bool:
    """Whether a file has the scores that these flags of `inf_jax.evaluate` give; two directories
    may have one name."""
    if not file.exists():
        return False
    saved = read_json(file, kind=dict, remedy=f"delete {file}")["config"]["eval"]
    return all(
        saved.get(key, "") == value
        for key, _, value in (flag.removeprefix("--config.eval.").partition("=") for flag in flags)
    )


def _usual(trial: Trial) -> bool:
    """Whether the base of a trial scores as that of the config does."""
    flags = [flag for flag in trial.recipe.flags if not flag.startswith("--config.data.source=")]
    return not any(flag.startswith(_OF_THE_BASE) for flag in flags)


def _base(trial: Trial, file: Path | None) -> list[str]:
    return [f"--config.eval.base_from={file}"] if file and _usual(trial) else []
