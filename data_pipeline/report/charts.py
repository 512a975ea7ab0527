"""Charts as inline SVG: sized and coloured by the page's style sheet, read out by their label."""

from collections.abc import Sequence
from html import escape
from typing import Any

_WIDTH = 460  # of the drawing; the page scales it
_LABEL = 196  # of that, the labels of bars
_BAR = 9
_HEIGHT = 96
_PAD = 14


def bars(title: str, rows: Sequence[tuple[str, Sequence[int]]], series: Sequence[str]) -> str:
    """Horizontal bars from 0 on.

    Args:
      title: of the figure.
      rows: label and one number for each series.
      series: their names; the n-th has the class `s<n>`.

    Returns:
      A `<figure>`.
    """
    if not rows:
        return _figure(title, series, '<p class="empty">nothing</p>')
    step = len(series) * (_BAR + 1) + 8
    most = max(max(numbers) for _, numbers in rows) or 1
    parts = []
    for n, (label, numbers) in enumerate(rows):
        top, middle = n * step + 4, n * step + step / 2
        parts.append(
            f'<text class="label" x="{_LABEL - 8}" y="{middle:g}">{escape(_short(label))}'
            f"<title>{escape(label)}</title></text>"
        )
        for m, number in enumerate(numbers):
            y, width = top + m * (_BAR + 1), number / most * (_WIDTH - _LABEL - 44)
            parts.append(
                f'<rect class="s{m}" x="{_LABEL}" y="{y}" width="{width:.1f}" height="{_BAR}" '
                f'rx="2"/><text class="value" x="{_LABEL + width + 5:.1f}" y="{y + _BAR / 2:g}">'
                f"{number:,}</text>"
            )
    told = "; ".join(
        f"{label}: {', '.join(f'{number} {name}' for number, name in zip(ns, series, strict=True))}"
        for label, ns in rows
    )
    return _figure(title, series, _svg(f"{title}. {told}", len(rows) * step + 4, parts))


def histogram(title: str, numbers: Sequence[tuple[str, dict[str, Any]]], *, unit: str) -> str:
    """Histograms of the same bins over each other; what lies beyond the last full bin is not drawn.

    Args:
      title: of the figure.
      numbers: name and numbers (see `summary.summarise`) of each series.
      unit: of the axis.

    Returns:
      A `<figure>`; its caption tells the means.
    """
    counted = [(name, found) for name, found in numbers if found["count"]]
    names = [name for name, _ in counted]
    if not counted:
        return _figure(title, names, '<p class="empty">nothing</p>')
    full = [n for _, found in counted for n, count in enumerate(found["counts"]) if count]
    first, last = min(full), max(full)
    share = max(max(found["counts"]) / found["count"] for _, found in counted)
    width = (_WIDTH - 2 * _PAD) / (last - first + 1)
    start, step, bins = (counted[0][1][k] for k in ("start", "width", "counts"))
    parts = []
    for m, (_, found) in enumerate(counted):
        for n, count in enumerate(found["counts"][first : last + 1]):
            if count:
                height = count / found["count"] / share * _HEIGHT
                shown = max(1.0, (width - 2) / len(counted))
                edge = start + (first + n) * step
                range_ = f"{edge:g} to {edge + step:g} {unit}"
                if first + n == len(bins) - 1:
                    range_ = f"from {edge:g} {unit}"
                parts.append(
                    f'<rect class="s{m}" x="{_PAD + n * width + m * shown:.1f}" '
                    f'y="{_HEIGHT + 4 - height:.1f}" width="{shown:.1f}" height="{height:.1f}">'
                    f"<title>{escape(f'{range_}: {count}')}</title></rect>"
                )
    parts.append(f'<path class="axis" d="M{_PAD} {_HEIGHT + 4}H{_WIDTH - _PAD}"/>')
    for place in range(first, last + 2, max(1, (last - first + 1) // 6)):
        parts.append(
            f'<text class="tick" x="{_PAD + (place - first) * width:.1f}" y="{_HEIGHT + 16}">'
            f"{start + place * step:.4g}</text>"
        )
    parts.append(f'<text class="unit" x="{_WIDTH - _PAD}" y="{_HEIGHT + 30}">{escape(unit)}</text>')
    told = "; ".join(
        f"{name}: mean {_plain(found['mean'])}, from {_plain(found['least'])} to "
        f"{_plain(found['most'])} {unit}"
        for name, found in counted
    )
    return _figure(title, names, _svg(f"{title}. {told}", _HEIGHT + 36, parts), told)


def _svg(label: str, height: float, parts: list[str]) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height:g}" role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg>"
    )


def _figure(title: str, series: Sequence[str], drawing: str, note: str = "") -> str:
    keys = "".join(f'<span class="key s{n}">{escape(name)}</span>' for n, name in enumerate(series))
    note = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<figure><figcaption>{escape(title)}</figcaption>{keys}{drawing}{note}</figure>"


def _short(label: str) -> str:
    return label if len(label) <= 28 else f"{label[:27]}…"


def _plain(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"
