"""Stores the results of `bench.py loss --write` as JSON and draws launch/benchmarks_loss.png.

Each run (CPU, GPU, ahead of time) replaces its own part; the figure shows all parts stored.
"""

import json
import statistics
from pathlib import Path
from typing import Any

from .loss_contenders import LABELS
from .report import ROOT

DATA = ROOT / "launch" / "benchmarks_loss.json"
PICTURE = ROOT / "launch" / "benchmarks_loss.png"

_INK, _GRID = "#2b2f36", "#e5e7eb"
_COLOURS = {
    "torch": "#b8c0cc",
    "cached": "#d98a29",
    "one-dense": "#8f6fb5",
    "one-blockwise": "#12708a",
    "mesh-ring": "#2f9e6b",
    "mesh-gather": "#c2475c",
}
_ENGINES = {"dense": "one-dense", "ring": "mesh-ring", "gather": "mesh-gather"}


def save(part: str, cells: list[dict[str, Any]]) -> str:
    """Stores the cells of a run and redraws the figure; returns the Markdown that shows it.

    Args:
      part: "cpu", "gpu" or "aot".
      cells: what `loss.measure` returns, or the cells of `loss_aot`.
    """
    from inf_jax.io.atomic import atomic_file

    data = json.loads(DATA.read_text()) if DATA.exists() else {}
    data[part] = cells
    with atomic_file(DATA) as file:
        lines = ",\n".join(
            f'"{name}": [\n' + ",\n".join(map(json.dumps, rows)) + "\n]"
            for name, rows in sorted(data.items())
        )
        file.write(f"{{\n{lines}\n}}\n".encode())
    draw(PICTURE, data)
    return f"![The loss at large batches]({PICTURE.name})"


def draw(path: Path, data: dict[str, list[dict[str, Any]]]) -> None:
    """Draws seconds and memory against the batch size, measured and compiled.

    Args:
      path: where the PNG is written, atomically.
      data: cells by part, see `save`; a missing part has no panels.
    """
    from matplotlib.figure import Figure

    from inf_jax.io.atomic import atomic_file

    measured = [part for part in ("cpu", "gpu") if data.get(part)]
    chips = list(dict.fromkeys(c["topology"] for c in data.get("aot", ())))
    rows = len(measured) + (len(chips) + 1) // 2
    figure = Figure(figsize=(10, 4.3 * rows), dpi=130, layout="constrained", facecolor="white")
    panels = iter(figure.subplots(rows, 2, squeeze=False).flat)
    for part in measured:
        objective = data[part][0]["objective"]
        cells = [c for c in data[part] if c["objective"] == objective and "seconds" in c]
        seconds = _lines(cells, "contender", lambda c: statistics.median(c["seconds"]))
        peaks = _lines(cells, "contender", lambda c: c["peak"] / 2**20)
        where = part.upper()
        _panel(next(panels), f"{objective} on a {where}: seconds", seconds)
        _panel(
            next(panels), f"{objective} on a {where}: MiB besides the inputs", peaks, legend=False
        )
    for chip in chips:
        cells = [c for c in data["aot"] if c["topology"] == chip and c["variant"] == "plain"]
        memory = _lines(cells, "engine", lambda c: max(c["demand"] / 2**20, 0.1))
        axes = next(panels)
        _panel(axes, f"{chip}, compiled: MiB per chip besides in and out", memory)
        limit = next((c["limit"] for c in cells if c.get("limit")), None)
        if limit:
            axes.axhline(limit / 2**20, color=_INK, linewidth=1, linestyle=":")
            axes.annotate(
                "the chip's memory",
                (0.02, limit / 2**20),
                xycoords=("axes fraction", "data"),
                xytext=(0, 3),
                textcoords="offset points",
                fontsize=8,
                color=_INK,
            )
    for axes in panels:
        axes.set_axis_off()
    with atomic_file(path) as file:
        figure.savefig(file, format="png")


def _lines(cells, key: str, value) -> dict[str, list[tuple[int, float]]]:
    """(batch, value) points by contender, in the order of LABELS; engines under their contender."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for cell in cells:
        name = _ENGINES.get(cell[key], cell[key])
        lines.setdefault(name, []).append((cell["batch"], value(cell)))
    # of the cached loss only the mini-batch size that got furthest, hence the fastest
    cached = [n for n in lines if n.startswith("cached")]
    if cached:
        best = max(cached, key=lambda n: (len(lines[n]), -sorted(lines[n])[-1][1]))
        lines = {n: points for n, points in lines.items() if n not in cached or n == best}
    return {n: sorted(lines[n]) for n in LABELS if n in lines}


def _panel(
    axes, title: str, lines: dict[str, list[tuple[int, float]]], *, legend: bool = True
) -> None:
    """One chart with logarithmic axes."""
    axes.set_title(title, fontsize=10, loc="left", color=_INK)
    axes.set(xscale="log", yscale="log")
    for name, points in lines.items():
        colour = _COLOURS.get(name) or _COLOURS[name.partition("-")[0]]
        label = LABELS[name] if "compiled" not in title else name.partition("-")[2]
        axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=4, label=label)
    batches = sorted({x for points in lines.values() for x, _ in points})
    names = [
        f"{b // 2**20}M" if b >= 2**20 else f"{b // 1024}k" if b >= 1024 else b for b in batches
    ]
    axes.set_xticks(batches, [str(n) for n in names])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("batch", fontsize=9, color=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#9aa3af")
    axes.tick_params(colors=_INK, labelsize=9)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    if legend:
        axes.legend(frameon=False, fontsize=8)
