"""The picture of a run: its training curve, and its figures before and after."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from inf_jax.io.storage import AnyPath, new_file

_BASE, _TRAINED, _INK = "#b8c0cc", "#12708a", "#2b2f36"


def draw(
    path: AnyPath,
    *,
    title: str,
    losses: Sequence[tuple[int, float]],
    bars: Sequence[tuple[str, float, float]],
) -> None:
    """Writes a PNG: the loss over the steps beside bars of base and trained figures.

    Args:
      path: of the PNG, written atomically.
      title: over the whole picture.
      losses: (step, loss) in order; where there are none, the panel says so. A loss that is not
        finite leaves a gap.
      bars: (name, base, trained), times 100, from the top.
    """
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
    """Exponential moving mean, float[n]; unbiased at the start, values that are not finite skipped.

    Args:
      values: float[n].
      half_life: after so many values the weight of one has halved.
    """
    keep = 0.5 ** (1 / half_life)
    total = weight = 0.0
    out = np.full(len(values), np.nan)
    for i, value in enumerate(values):
        seen = np.isfinite(value)
        total = keep * total + (value if seen else 0.0)
        weight = keep * weight + seen
        if weight:
            out[i] = total / weight
    return out


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
    marker = "o" if len(values) < 20 else ""  # few points would be lines too short to see
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
    axes.set_xlim(lowest - 18 if lowest < 0 else 0, 108)  # room for the numbers
    axes.set_xticks([x for x in range(-100, 101, 25) if x >= lowest])
    axes.axvline(0, color="#9aa3af", linewidth=0.8)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.legend(
        frameon=False, fontsize=9, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), borderpad=0
    )
