"""Charts of the audit page: matplotlib SVGs, embedded as images with their numbers as alt text.

An SVG in `<img>` runs no scripts and loads nothing, whatever its labels contain. The same numbers
give the same bytes.
"""

import base64
import io
import warnings
from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # slow to import
    from matplotlib.axes import Axes

_WIDTH = 6.4  # inches; the page scales the image
_COLOURS = ("#2f5fd0", "#e08a2b")
_RC = {
    "axes.edgecolor": "#8a93a3",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 9,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "inf_jax",  # random by default
    "text.parse_math": False,  # a label may contain "$"
    "xtick.color": "#8a93a3",
    "ytick.left": False,
}
_STYLE = (
    "<style>text{fill:#1b1f27!important}"
    "@media(prefers-color-scheme:dark){text{fill:#e7eaf0!important}}</style>"
)


def bars(title: str, rows: Sequence[tuple[str, Sequence[int]]], series: Sequence[str]) -> str:
    """Horizontal bars as an HTML `<figure>`.

    Args:
      rows: a label, and a number for each series.
      series: their names, two at most.
    """

    def draw(axes: "Axes") -> None:
        thickness = 0.85 / len(series)
        for m, name in enumerate(series):
            numbers = [values[m] for _, values in rows]
            places = [n + (m - (len(series) - 1) / 2) * thickness for n in range(len(rows))]
            drawn = axes.barh(places, numbers, 0.9 * thickness, color=_COLOURS[m], label=name)
            axes.bar_label(drawn, [f"{number:,}" for number in numbers], padding=3)
        axes.set_yticks(range(len(rows)), [_short(label) for label, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(0, 1.1 * max(1, *(max(values) for _, values in rows)))
        axes.xaxis.set_visible(False)
        axes.spines["bottom"].set_visible(False)

    content = "; ".join(
        f"{label}: {', '.join(f'{n} {name}' for n, name in zip(values, series, strict=True))}"
        for label, values in rows
    )
    height = 0.4 + len(rows) * (0.15 * len(series) + 0.1)
    return _figure(title, draw if rows else None, height, alt=f"{title}. {content}")


def histogram(title: str, numbers: Sequence[tuple[str, dict[str, Any]]], *, unit: str) -> str:
    """Histograms with the same bins as an HTML `<figure>`, without empty bins at both ends.

    Each series is drawn as shares of its own count. The first and the last bin are open.

    Args:
      numbers: name and numbers (see `summary.summarise`) of each series, two at most.
      unit: of the horizontal axis.
    """
    counted = [(name, values) for name, values in numbers if values["count"]]
    full = [n for _, values in counted for n, count in enumerate(values["counts"]) if count]

    def draw(axes: "Axes") -> None:
        first, last = min(full), max(full) + 1
        start, width = counted[0][1]["start"], counted[0][1]["width"]
        thickness = 0.9 * width / len(counted)
        for m, (name, values) in enumerate(counted):
            shares = [count / values["count"] for count in values["counts"][first:last]]
            edges = [start + n * width + m * thickness for n in range(first, last)]
            axes.bar(edges, shares, thickness, align="edge", color=_COLOURS[m], label=name)
        axes.set_xlim(start + first * width, start + last * width)
        axes.set_xlabel(unit)
        axes.yaxis.set_visible(False)
        axes.spines["left"].set_visible(False)

    content = "; ".join(
        f"{name}: mean {_plain(values['mean'])}, from {_plain(values['least'])} to "
        f"{_plain(values['most'])} {unit}"
        for name, values in counted
    )
    alt = f"{title}. {content}"
    return _figure(title, draw if full else None, 1.9, alt=alt, note=content)


def _figure(
    title: str, draw: Callable[["Axes"], None] | None, height: float, *, alt: str, note: str = ""
) -> str:
    image = _image(draw, height, alt) if draw else '<p class="empty">nothing</p>'
    note = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<figure><figcaption>{escape(title)}</figcaption>{image}{note}</figure>"


def _image(draw: Callable[["Axes"], None], height: float, alt: str) -> str:
    import matplotlib
    from matplotlib.figure import Figure

    svg = io.StringIO()
    with matplotlib.rc_context(_RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # the viewer has it
        figure = Figure((_WIDTH, height), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        if len(axes.containers) > 1:
            figure.legend(loc="outside upper left", ncols=2)
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    data = svg.getvalue().replace("</defs>", f"</defs>{_STYLE}", 1).encode()
    source = f"data:image/svg+xml;base64,{base64.b64encode(data).decode()}"
    return f'<img alt="{escape(alt)}" src="{source}">'


def _short(label: str) -> str:
    """At most 28 characters, all of them allowed in XML."""
    label = "".join(c if c.isprintable() else " " for c in label)
    return label if len(label) <= 28 else f"{label[:27]}…"


def _plain(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"
