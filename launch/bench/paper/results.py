"""The tables of the paper's pack: what a cell scored beside its backbone and the paper."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from inf_jax.core import console
from inf_jax.io.atomic import atomic_file, atomic_write

from ..report import commit, machine, table
from .cells import NOISY, Cell, paper_config

# Mean gain in p-MRR over the backbone, abstract of arXiv 2505.21439; it is of all its instruction
# benchmarks together, and the abstract does not say with which objective.
PAPER = {"encoder": 9.0, "decoder": 4.2}
_METRICS = ("p_mrr", "ndcg@10", "robustness@10")


def write_grid(out_dir: Path, results: Sequence[tuple[Cell, dict[str, Any]]]) -> None:
    """Prints and writes the grid: one row a cell and benchmark, then the gains by kind."""
    rows = [row for cell, found in results for row in _rows(cell, found)]
    header = ("backbone", "objective", "benchmark", "metric", "base", "trained", "gain [95 %]")
    gains = _gains(results)
    beside = [
        (f"{kind}s", f"{len(each)}", f"{sum(each) / len(each):+.1f}", f"{PAPER[kind]:+.1f}")
        for kind, each in gains.items()
    ]
    titles = ("backbones", "best objectives", "gain in p-MRR, ours", "the paper's mean")
    _write(out_dir, "grid", [("the paper's grid", header, rows), ("ours | paper", titles, beside)])
    _draw(out_dir / "grid.png", results)


def write_questions(out_dir: Path, results: Sequence[tuple[Cell, dict[str, Any]]]) -> None:
    """Prints and writes one table a question."""
    header = ("", "benchmark", "metric", "base", "trained", "gain [95 %]", "seconds a step")
    tables = []
    for question in dict.fromkeys(c.question for c, _ in results if c.question != NOISY):
        rows = [
            (*row[1:], f"{found['step_s']:.3g}")
            for cell, found in results
            if cell.question == question
            for row in _rows(cell, found)
        ]
        tables.append((question, header, rows))
    noisy = ("noise", "benchmark", "metric", "without", "with", "loss [95 %]")
    tables.append((NOISY, noisy, [row for cell, found in results for row in _noise(cell, found)]))
    tables.append(("by instruction type", ("", *header[1:-1]), _by_type(results)))
    _write(out_dir, "questions", [each for each in tables if each[2]])


def _rows(cell: Cell, found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Backbone, name, benchmark, metric, base, trained and their difference."""
    rows = []
    for task, scores in found["scores"]["tasks"].items():
        (base, differences), *_ = scores["differences"].items()
        label = next(name for name in scores["models"] if name != base)
        ours, theirs = (scores["models"][name]["scores"] for name in (label, base))
        shown = dict.fromkeys([scores["main"], *(m for m in _METRICS if m in ours)])
        for metric in shown:
            gain = f"{ours[metric] - theirs[metric]:+.1f}"
            if metric in differences:
                value, low, high = differences[metric]
                gain = f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"
            values = (f"{theirs[metric]:.1f}", f"{ours[metric]:.1f}", gain)
            rows.append((cell.backbone, cell.name, task, metric, *values))
    return rows


def _noise(cell: Cell, found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Rows of the kinds of noise of a cell: the trained model's scores without and with it."""
    rows = []
    for task, scores in found["scores"]["tasks"].items() if cell.noise else ():
        base = next(iter(scores["differences"]))
        ours = next(each for name, each in scores["models"].items() if name != base)
        for kind, noisy in ours["noise"].items():
            for metric in dict.fromkeys([scores["main"], *_METRICS]):
                if metric in noisy["loss"]:
                    value, low, high = noisy["loss"][metric]
                    clean, worse = ours["scores"][metric], noisy["scores"][metric]
                    loss = f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"
                    rows.append((kind, task, metric, f"{clean:.1f}", f"{worse:.1f}", loss))
    return rows


def _by_type(results: Sequence[tuple[Cell, dict[str, Any]]]) -> list[tuple[str, ...]]:
    """Rows of the subsets by instruction type, of the cell with several seeds."""
    rows = []
    for cell, found in results:
        if len(cell.seeds) < 2:
            continue
        for task, scores in found["scores"]["tasks"].items():
            base = next(iter(scores["differences"]))
            label = next(name for name in scores["models"] if name != base)
            ours, theirs = (scores["models"][name]["scores"] for name in (label, base))
            for metric in (m for m in ours if m.endswith("/ndcg@10") and m in theirs):
                subset, _, name = metric.rpartition("/")
                gain = f"{ours[metric] - theirs[metric]:+.1f}"
                values = (f"{theirs[metric]:.1f}", f"{ours[metric]:.1f}", gain)
                rows.append((subset, task, name, *values))
    return rows


def _gains(results: Sequence[tuple[Cell, dict[str, Any]]]) -> dict[str, list[float]]:
    """Kind of backbone -> mean gain in p-MRR over the benchmarks that have it, best objective."""
    backbones, best = paper_config().BACKBONES, {}
    for cell, found in results:
        each = []
        for scores in found["scores"]["tasks"].values():
            (differences,) = scores["differences"].values()
            each += [differences["p_mrr"][0]] if "p_mrr" in differences else []
        if each:
            mean = sum(each) / len(each)
            best[cell.backbone] = max(mean, best.get(cell.backbone, mean))
    gains: dict[str, list[float]] = {}
    for name, gain in best.items():
        gains.setdefault(backbones[name].kind, []).append(gain)
    return gains


def _write(out_dir: Path, name: str, tables: Sequence[tuple[str, Sequence[str], list]]) -> None:
    text = f"Commit {commit()}, {machine(os.cpu_count())}. Scores times 100.\n"
    for title, header, rows in tables:
        console.table(title, rows, header=header)
        text += f"\n## {title}\n\n{table(header, rows)}\n"
    atomic_write(out_dir / f"{name}.md", text)
    data = [{"title": title, "header": header, "rows": rows} for title, header, rows in tables]
    atomic_write(out_dir / f"{name}.json", json.dumps(data, indent=2) + "\n")
    print(f"wrote {out_dir}/{name}.md and .json")


def _draw(path: Path, results: Sequence[tuple[Cell, dict[str, Any]]]) -> None:
    """Bars of the gain in the first benchmark's main metric, one row a cell."""
    rows = [row for cell, found in results for row in _rows(cell, found)[:1]]
    if not rows:
        return
    figure = Figure(figsize=(9, 1.5 + 0.3 * len(rows)), dpi=150, layout="constrained")
    axes = figure.subplots()
    gains = [float(row[-1].split()[0]) for row in rows]
    bars = axes.barh(range(len(rows)), gains, color="#12708a")
    axes.bar_label(bars, fmt="%+.1f", padding=3, fontsize=7)
    axes.set_yticks(range(len(rows)), [f"{row[0]} {row[1]}" for row in rows], fontsize=8)
    axes.set_title(f"gain over the backbone: {rows[0][2]} {rows[0][3]}", fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.invert_yaxis()
    with atomic_file(path) as file:
        figure.savefig(file, format="png")
