"""Compares recipes: lists of overrides of one config, each trained with several seeds.

`ablation` has the command line. The recipes of one seed see the same
examples in the same order (where they keep data and batch), so differences are paired by seed.
"""

import argparse
import json
import math
import os
import re
import shlex
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure
from ml_collections import ConfigDict
from scipy import stats

from inf_jax.config.command_line import parse
from inf_jax.core import console
from inf_jax.core.errors import UserError
from inf_jax.evaluation.scores import METRICS
from inf_jax.io.atomic import atomic_file, atomic_write
from inf_jax.io.storage import is_bucket

from .cells import COLUMNS, Cell, CellFailedError, call, check_unchanged, finished
from .report import commit, machine, table

LEVEL = 0.95  # of the intervals
PAIRED = ("p_mrr", "ndcg@10")  # whose differences to the first recipe are given
_OWN = ("out_dir", "seed", "eval.base_from")
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
    for part in shlex.split(rest):
        key, equals, value = part.partition("=")
        if not (equals and key):
            raise UserError(f"--recipes {text!r}: {part!r} is not KEY=VALUE")
        if key in _OWN:
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


def compare(args: argparse.Namespace, common: list[str]) -> None:
    """Runs the unfinished trials and writes the report.

    Raises:
      UserError: a trial failed, or was begun with other settings.
    """
    config = parse(["ablate", *common])
    trials = make_trials(config, common, args.recipes, args.seeds)
    for trial in trials:
        check_unchanged(trial.run)
    results, failures, bases = [], {}, {}
    for number, trial in enumerate(trials, 1):
        label = f"[{number}/{len(trials)}] {trial.recipe.name}, seed {trial.seed}"
        try:
            scores = _scores(trial, label, args.also, bases)
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


def _scores(
    trial: Trial, label: str, also: Sequence[str], bases: dict[str, Path]
) -> dict[str, dict]:
    """{source: {"base": scores, "trained": scores}} of a trial: of its own, then of `also`.

    `bases`, source -> a file with the scores of the base, is for the trials that have the same, so
    that it is measured once; a trial that measured it is added.
    """
    started, scored = time.monotonic(), trial.scored
    own = scored.config.eval.source or scored.config.data.source
    files = {own: scored.directory / "eval.json"}
    files |= {source: scored.directory / f"eval_{source}.json" for source in also}
    if finished(scored) and all(file.exists() for file in files.values()):
        print(f"{label}: already finished, reused", flush=True)
    else:
        print(f"{label}: training", flush=True)
        call(trial.run, "train")
        if trial.recipe.average and not (scored.directory / "config.json").exists():
            of = (f"--of={trial.recipe.average}", f"--out={scored.directory}")
            call(trial.run, "average", *of)
        for source in also:
            flags = [f"--config.eval.source={source}", *_base(trial, bases.get(source))]
            call(scored, "evaluate", *flags)
            (scored.directory / "eval.json").replace(files[source])
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


def _usual(trial: Trial) -> bool:
    """Whether the base of a trial scores as that of the config does."""
    flags = [flag for flag in trial.recipe.flags if not flag.startswith("--config.data.source=")]
    return not any(flag.startswith(_OF_THE_BASE) for flag in flags)


def _base(trial: Trial, file: Path | None) -> list[str]:
    return [f"--config.eval.base_from={file}"] if file and _usual(trial) else []


def interval(values: Iterable[float]) -> tuple[float, float]:
    """The mean of some values, and half the width of its interval by Student's t; NaN for one."""
    values = list(values)
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.nan
    error = statistics.stdev(values) / math.sqrt(len(values))
    return mean, float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1)) * error


def summarise(results: Sequence[dict], names: Sequence[str], source: str) -> list[dict]:
    """For each recipe with a result, in the order of `names`: `mean` {metric: (mean, half)}, and
    `gain`, the same of the differences to the first recipe, of the seeds that both have."""
    by_name: dict[str, dict[int, dict]] = {name: {} for name in names}
    for result in results:
        if source in result["scores"]:
            trained = result["scores"][source]["trained"]
            by_name[result["recipe"]][result["seed"]] = trained
    first, rows = by_name[names[0]], []
    for name, seeds in by_name.items():
        if not seeds:
            continue
        metrics = list(next(iter(seeds.values())))
        both = [seed for seed in seeds if seed in first] if name != names[0] else []
        rows.append(
            {
                "recipe": name,
                "seeds": sorted(seeds),
                "mean": {key: interval(s[key] for s in seeds.values()) for key in metrics},
                "gain": {
                    key: interval(seeds[seed][key] - first[seed][key] for seed in both)
                    for key in metrics
                    if both
                },
            }
        )
    return rows


def with_interval(value: tuple[float, float], *, sign: bool = False) -> str:
    """A mean with the half of its interval, as in "72.4 ± 1.0"; alone without one."""
    mean, half = value
    return f"{mean:{'+' if sign else ''}.1f}" + ("" if math.isnan(half) else f" ± {half:.1f}")


def write_report(config: ConfigDict, results: list[dict], *, names: Sequence[str]) -> None:
    """Prints the tables and writes recipes.md, .json and .png; nothing without results."""
    if not results:
        return
    directory = Path(config.out_dir) / "recipes"
    sources = list(dict.fromkeys(source for result in results for source in result["scores"]))
    text, report = [], {}
    for source in sources:
        rows = summarise(results, names, source)
        base = next(r["scores"][source]["base"] for r in results if source in r["scores"])
        columns = {key: label for key, label in COLUMNS.items() if key in base}
        gains = {key: f"{METRICS[key]}, gain" for key in PAIRED if key in base}
        lines = [["base", "", *(f"{base[key]:.1f}" for key in columns), *("" for _ in gains)]]
        for row in rows:
            line = [row["recipe"], len(row["seeds"])]
            line += [with_interval(row["mean"][key]) for key in columns]
            line += [
                with_interval(row["gain"][key], sign=True) if row["gain"] else "" for key in gains
            ]
            lines.append(line)
        header = ("recipe", "seeds", *columns.values(), *gains.values())
        console.table(f"recipes on {source}", lines, header=header)
        text.append(f"{source}:\n\n{table(header, lines)}\n")
        report[source] = {"base": base, "recipes": rows}
    title = f"{config.train.steps} steps of {config.train.batch_size} pairs, times 100"
    where = f"commit {commit()}, {machine(os.cpu_count())}"
    note = f"Means over seeds ± {LEVEL:.0%} intervals by t; gains over {names[0]!r} are paired."
    body = "\n".join(text)
    atomic_write(directory / "recipes.md", f"# Recipes\n\n{title}; {where}. {note}\n\n{body}")
    data = {"units": "times 100", "sources": report, "trials": results, "config": config.to_dict()}
    atomic_write(directory / "recipes.json", json.dumps(data, indent=2) + "\n")
    drawn = [s for s in sources if all(key in report[s]["base"] for key in PAIRED)]
    if drawn:
        draw_frontier(directory / "recipes.png", title, {s: report[s] for s in drawn})
    print(f"wrote {directory}/recipes.md, .json{' and .png' if drawn else ''}")


def draw_frontier(path: Path, title: str, report: dict[str, dict]) -> None:
    """Draws nDCG@10 over p-MRR for each source: the recipes' means with intervals, and the base."""
    figure = Figure(figsize=(6.5 * len(report), 5.2), dpi=150, layout="constrained")
    figure.suptitle(f"recipes: {title}", fontsize=12, fontweight="bold", x=0.01, ha="left")
    for axes, (source, found) in zip(
        figure.subplots(1, len(report), squeeze=False)[0], report.items(), strict=True
    ):
        base = found["base"]
        axes.plot(base["p_mrr"], base["ndcg@10"], "s", color="#2b2f36")
        axes.annotate(
            "base", (base["p_mrr"], base["ndcg@10"]), xytext=(4, 4), textcoords="offset points"
        )
        for row in found["recipes"]:
            (x, dx), (y, dy) = (row["mean"][key] for key in PAIRED)
            axes.errorbar(
                x, y, xerr=_drawn(dx), yerr=_drawn(dy), fmt="o", color="#12708a", capsize=2, lw=0.8
            )
            axes.annotate(
                row["recipe"], (x, y), xytext=(5, 5), textcoords="offset points", fontsize=8
            )
        axes.set_title(source, fontsize=10, loc="left")
        axes.set_xlabel(METRICS["p_mrr"])
        axes.set_ylabel(METRICS["ndcg@10"])
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(0.2)
    with atomic_file(path) as file:
        figure.savefig(file, format="png")


def _drawn(half: float) -> float | None:
    return None if math.isnan(half) else half
