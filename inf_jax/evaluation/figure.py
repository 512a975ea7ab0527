"""Draws the figure of a run: its training loss, and its scores before and after."""

from __future__ import annotations

import typing
from collections.abc import Sequence

import numpy as np

from inf_jax.io.storage import AnyPath, new_file

if typing.TYPE_CHECKING:
    from matplotlib.axes import Axes

_BASE, _TRAINED, _INK = "#b8c0cc", "#12708a", "#2b2f36"


def draw(
    path: AnyPath,
    *,
    title: str,
    losses: Sequence[tuple[int, float]],
    bars: Sequence[tuple[str, float, float]],
) -> None:
    """Writes a PNG: the loss over the steps, and bars of the base and trained scores.

    Args:
      path: the PNG, written atomically.
      title: title of the figure.
      losses: (step, loss) in order; a loss that is not finite leaves a gap. If there are none, the
        panel says so.
      bars: (name, base, trained), times 100, from top to bottom.
    """
    from matplotlib.figure import Figure  # slow to import, needed at the end

    figure = Figure(figsize=(11, 4.4), dpi=150, layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08)
    figure.suptitle(title, fontsize=12, fontweight="bold", color=_INK, x=0.01, ha="left")
    curve, compared = figure.subplots(1, 2, width_ratios=(1, 1.15))
    for axes in (curve, compared):
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color("#9aa3af")
        axes.tick_params(colors=_INK, labelsize=9)
    _curve(curve, losses)
    _bars(compared, bars)
    with new_file(path) as file:
        figure.savefig(file, format="png")


def smooth(values: np.ndarray, half_life: float) -> np.ndarray:
    """Exponential moving average, unbiased at the start; values that are not finite are skipped.

    Args:
      values: float[n].
      half_life: number of values after which the weight of a value has halved.

    Returns:
      float[n]; NaN before the first finite value.
    """
    decay = 0.5 ** (1 / half_life)
    total = weight = 0.0
    averages = np.full(len(values), np.nan)
    for i, value in enumerate(values):
        finite = np.isfinite(value)
        total = decay * total + (value if finite else 0.0)
        weight = decay * weight + finite
        if weight:
            averages[i] = total / weight
    return averages


def _curve(axes: Axes, losses: Sequence[tuple[int, float]]) -> None:
    axes.set_title("training loss", fontsize=10, loc="left", color=_INK)
    axes.set_xlabel("step", fontsize=9, color=_INK)
    if not losses:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "no metrics.jsonl", ha="center", transform=axes.transAxes, color=_INK)
        return
    steps, values = np.array(losses, float).T
    values = np.where(np.isfinite(values), values, np.nan)
    smoothed = smooth(values, half_life=max(1.0, len(values) / 50))
    marker = "o" if len(values) < 20 else ""  # the line through few points is hard to see
    axes.plot(steps, values, color=_TRAINED, alpha=0.25, linewidth=0.9, marker=marker, label="step")
    axes.plot(steps, smoothed, color=_TRAINED, linewidth=2, label="smoothed")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.02)
    axes.locator_params(axis="x", integer=True)
    axes.grid(axis="y", color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=9)


def _bars(axes: Axes, bars: Sequence[tuple[str, float, float]]) -> None:
    axes.set_title("before and after, times 100", fontsize=10, loc="left", color=_INK)
    places = np.arange(len(bars))[::-1]
    names, base, trained = zip(*bars, strict=True)
    for offset, values, colour, label in (
        (0.19, base, _BASE, "base"),
        (-0.19, trained, _TRAINED, "trained"),
    ):
        drawn = axes.barh(places + offset, values, height=0.36, color=colour, label=label)
        axes.bar_label(drawn, fmt="%.1f", padding=3, fontsize=8.5, color=_INK)
    axes.set_yticks(places, names)
    lowest = min(0.0, *base, *trained)
    axes.set_xlim(lowest - 18 if lowest < 0 else 0, 108)  # space for the numbers
    axes.set_xticks([x for x in range(-100, 101, 25) if x >= lowest])
    axes.axvline(0, color="#9aa3af", linewidth=0.8)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.legend(
        frameon=False, fontsize=9, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), borderpad=0
    )
