"""Tables and the picture of a comparison of recipes: means over seeds, intervals, paired gains."""

import json
import math
import os
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from ml_collections import ConfigDict
from scipy import stats

from inf_jax.core import console
from inf_jax.evaluation.scores import METRICS
from inf_jax.io.atomic import atomic_file, atomic_write

from .cells import COLUMNS
from .report import commit, machine, table

LEVEL = 0.95  # of the intervals
PAIRED = ("p_mrr", "ndcg@10")  # whose differences to the first recipe are given


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
    written = {
        source: {"base": each["base"], "recipes": [_without_nan(row) for row in each["recipes"]]}
        for source, each in report.items()
    }
    data = {"units": "times 100", "sources": written, "trials": results, "config": config.to_dict()}
    atomic_write(directory / "recipes.json", json.dumps(data, indent=2) + "\n")
    drawn = [s for s in sources if all(key in report[s]["base"] for key in PAIRED)]
    if drawn:
        draw_frontier(directory / "recipes.png", title, {s: report[s] for s in drawn})
    print(f"wrote {directory}/recipes.md, .json{' and .png' if drawn else ''}")


def draw_frontier(path: Path, title: str, report: dict[str, dict]) -> None:
    """Draws nDCG@10 over p-MRR for each source: the recipes' means with intervals, and the base."""
    figure = Figure(figsize=(8 * len(report), 5.2), dpi=150, layout="constrained")
    figure.suptitle(f"recipes: {title}", fontsize=12, fontweight="bold", x=0.01, ha="left")
    for axes, (source, found) in zip(
        figure.subplots(1, len(report), squeeze=False)[0], report.items(), strict=True
    ):
        base = found["base"]
        axes.plot(base["p_mrr"], base["ndcg@10"], "s", color="#2b2f36")
        axes.annotate(
            "base", (base["p_mrr"], base["ndcg@10"]), xytext=(4, 4), textcoords="offset points"
        )
        for number, row in enumerate(found["recipes"], 1):  # names would lie on each other
            (x, dx), (y, dy) = (row["mean"][key] for key in PAIRED)
            bars = {"xerr": _drawn(dx), "yerr": _drawn(dy), "elinewidth": 0.5, "capsize": 2}
            label = f"{number}  {row['recipe']}"
            axes.errorbar(x, y, **bars, fmt=".", color="#12708a", alpha=0.45, label=label)
            axes.annotate(str(number), (x, y), xytext=(2, 2), textcoords="offset points")
        axes.legend(
            loc="upper left", bbox_to_anchor=(1, 1), fontsize=8, frameon=False, handlelength=0
        )
        axes.set_title(source, fontsize=10, loc="left")
        axes.set_xlabel(METRICS["p_mrr"])
        axes.set_ylabel(METRICS["ndcg@10"])
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(0.2)
    with atomic_file(path) as file:
        figure.savefig(file, format="png")


def _without_nan(row: dict) -> dict:
    """A row of `summarise` with null for the interval of one seed, which JSON has no NaN for."""
    figures = {
        kind: {key: [None if math.isnan(x) else x for x in pair] for key, pair in row[kind].items()}
        for kind in ("mean", "gain")
    }
    return row | figures


def _drawn(half: float) -> float | None:
    return None if math.isnan(half) else half
