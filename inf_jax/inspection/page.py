"""Writes inspect.html: queries with their passages side by side, and how scores spread.

The page needs nothing else: no script, no file and no address. All texts are escaped by the
template engine; characters that HTML forbids are replaced.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from inf_jax.inspection.cards import Card
from inf_jax.inspection.rankings import DOCUMENT_KINDS, Spread

WIDTH, HEIGHT = 320, 110  # of a histogram
_FORBIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"
)


@dataclasses.dataclass(frozen=True)
class Section:
    """Cards of one kind: what is compared, and the names of the two sides."""

    title: str
    about: str
    names: tuple[str, str]
    cards: Sequence[Card]


@dataclasses.dataclass(frozen=True)
class Histogram:
    """The scores of a model on a task."""

    task: str
    model: str
    spread: Spread

    @property
    def shapes(self) -> list[tuple[int, str, str]]:
        """(number of the kind of document, kind, points of an SVG polygon)."""
        return [
            (DOCUMENT_KINDS.index(kind), kind, _outline(counts))
            for kind, counts in self.spread.counts.items()
        ]


def _outline(counts: Sequence[int]) -> str:
    """Steps from the left to the right, as high as a bin's share of the largest one's."""
    step, top = WIDTH / len(counts), max(counts)
    points = [(0.0, float(HEIGHT))]
    for n, count in enumerate(counts):
        y = HEIGHT * (1 - 0.94 * count / top)
        points += [(n * step, y), ((n + 1) * step, y)]
    points.append((float(WIDTH), float(HEIGHT)))
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def render_page(
    title: str, facts: Mapping[str, str], sections: Sequence[Section], spreads: Sequence[Histogram]
) -> bytes:
    """The page, as UTF-8.

    Args:
      title: its heading.
      facts: name -> text, on top.
      sections, spreads: what it shows.
    """
    environment = jinja2.Environment(
        autoescape=True,
        finalize=_clean,
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template("page.html.jinja").render(
        title=title,
        facts=facts,
        sections=sections,
        spreads=spreads,
        kinds=DOCUMENT_KINDS,
        width=WIDTH,
        height=HEIGHT,
    )
    return page.encode()


def _clean(value: Any) -> Any:
    return _FORBIDDEN.sub("\ufffd", value) if type(value) is str else value
