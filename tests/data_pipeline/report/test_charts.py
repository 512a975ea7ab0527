"""Charts are SVG images: bars in proportion to the numbers, which the alt text tells."""

import base64
import re
from xml.etree import ElementTree

import pytest

from data_pipeline.report.charts import bars, histogram

SVG = "{http://www.w3.org/2000/svg}"


def image(figure):
    """The SVG's root; it must be well-formed and refer to nothing outside itself."""
    [data] = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', figure)
    text = base64.b64decode(data).decode()
    assert not re.search(r"<script|<image|@import|href=\"(?!#)", text)
    return ElementTree.fromstring(text)


def sizes(figure):
    """Width and height of each bar, in drawing order: they are filled and have no border."""
    found = []
    for path in image(figure).iter(f"{SVG}path"):
        if re.fullmatch(r"fill: #(2f5fd0|e08a2b)", path.get("style", "")) and path.get("clip-path"):
            xs, ys = zip(*re.findall(r"([\d.]+) ([\d.]+)", path.get("d")), strict=True)
            xs, ys = [float(x) for x in xs], [float(y) for y in ys]
            found.append((max(xs) - min(xs), max(ys) - min(ys)))
    return found


def texts(figure):
    return ["".join(text.itertext()) for text in image(figure).iter(f"{SVG}text")]


def test_bars_are_in_proportion():
    figure = bars("Reasons", [("a<b", (10, 5)), ("$c$", (20, 0))], ("made", "kept"))
    widths = [width for width, _ in sizes(figure)]  # a series after the other
    assert widths == pytest.approx([widths[1] / 2, widths[1], widths[1] / 4, 0], abs=0.1)
    assert 'alt="Reasons. a&lt;b: 10 made, 5 kept; $c$: 20 made, 0 kept"' in figure
    assert "a<b" not in figure
    assert {"a<b", "$c$", "20", "made", "kept"} <= set(texts(figure))


def test_histogram_is_in_proportion():
    numbers = {"count": 4, "mean": 3.0, "least": 1, "most": 9, "start": 0, "width": 2}
    figure = histogram("Words", [("query", numbers | {"counts": [0, 3, 0, 1, 0]})], unit="words")
    heights = [height for _, height in sizes(figure)]  # of the bins from 2 to 8
    assert heights == pytest.approx([heights[0], 0, heights[0] / 3], abs=0.1)
    assert 'alt="Words. query: mean 3, from 1 to 9 words"' in figure
    assert {"2", "8", "words"} <= set(texts(figure))


def test_labels_that_xml_or_the_font_lacks():
    rows = [("\x00\ud83d\u2028", (1,)), ("\u4e2d" * 40, (2,))]
    figure = bars("", rows, ("n",))
    assert "   " in texts(figure)
    assert f"{27 * chr(0x4E2D)}\u2026" in texts(figure)
    assert figure == bars("", rows, ("n",))  # the same bytes again


def test_nothing_to_draw():
    assert 'class="empty"' in bars("Reasons", [], ("n",))
    assert 'class="empty"' in histogram("Words", [("query", {"count": 0})], unit="words")
