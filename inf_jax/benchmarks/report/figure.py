"""Draws benchmark.png: bars of the scores, and the differences with their intervals."""

import numpy as np

from inf_jax.benchmarks.report.rows import Compared, rows_of
from inf_jax.io.storage import AnyPath, new_file

_COLOURS = ("#12708a", "#b8c0cc", "#c2703d", "#6b8e4e", "#7a5c99")
_INK = "#2b2f36"


def draw_models(path: AnyPath, compared: Compared) -> None:
    """Bars of the values, and the differences with their intervals."""
    from matplotlib.figure import Figure  # slow to import, needed at the end

    rows, labels = rows_of(compared), list(compared.scores)
    others = labels[1:]
    height = 1.3 + len(rows) * (0.12 + 0.13 * len(labels))
    figure = Figure(
        figsize=(12 if others else 8, height), dpi=130, layout="constrained", facecolor="white"
    )
    panels = figure.subplots(1, 2 if others else 1, squeeze=False)[0]
    places, step = np.arange(len(rows))[::-1], 0.8 / len(labels)
    for n, label in enumerate(labels):
        shift = places + 0.4 - step * (n + 0.5)
        values = [100 * row.values[label] for row in rows]
        bars = panels[0].barh(shift, values, height=step * 0.9, color=_COLOURS[n % 5], label=label)
        panels[0].bar_label(bars, fmt="%.1f", padding=2, fontsize=7, color=_INK)
    tasks = [row.title.partition(":")[0] for row in rows]
    several = len(set(tasks)) > 1 and ":" in rows[0].title
    names = [
        f"{task} {row.name}" if several else row.name for task, row in zip(tasks, rows, strict=True)
    ]
    panels[0].set_yticks(places, names)
    panels[0].set_title("times 100", fontsize=10, loc="left", color=_INK)
    panels[0].margins(x=0.12)
    for n, other in enumerate(others):
        each = [row.differences[other] for row in rows]
        values = 100 * np.array([(d.value, d.low, d.high) for d in each]).T
        panels[1].errorbar(
            values[0],
            places + 0.4 - 0.8 / len(others) * (n + 0.5),
            xerr=np.maximum((values[0] - values[1], values[2] - values[0]), 0),
            fmt="o",
            markersize=4,
            capsize=2,
            color=_COLOURS[(n + 1) % 5],
        )
    if others:
        title = f"{compared.label} minus the other, 95 % interval"
        panels[1].set_title(title, fontsize=10, loc="left", color=_INK)
        panels[1].set_yticks(places, [""] * len(rows))
    for panel in panels:
        panel.set_ylim(-0.6, len(rows) - 0.4)
        panel.axvline(0, color="#9aa3af", linewidth=0.8)
        panel.spines[["top", "right", "left"]].set_visible(False)
        panel.tick_params(axis="y", length=0, labelsize=8, colors=_INK)
        panel.tick_params(axis="x", labelsize=8, colors=_INK)
        panel.grid(axis="x", color="#e5e7eb", linewidth=0.6)
        panel.set_axisbelow(True)
    figure.legend(loc="outside lower left", frameon=False, fontsize=8, ncols=3)
    with new_file(path) as file:
        figure.savefig(file, format="png")
