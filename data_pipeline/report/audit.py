"""Writes the audit page: a sample of the corpus for human review, in one self-contained HTML file.

Model output is never parsed as markup: it is embedded as JSON without any `<`, and the page's
script inserts it as text. The content security policy allows that one script, by its hash.
"""

import base64
import difflib
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path
from typing import Any

from data_pipeline.items import INSTRUCTED_QUERIES, NEGATIVES, PASSAGES, Item, example_hash
from data_pipeline.report.audit_report import report_html
from inf_jax.data.records import Pair, pairs
from inf_jax.io.atomic import atomic_write

_PAGE = Path(__file__).parent / "audit_page"
SCRIPTS = ("example.js", "audit.js")  # one script, in this order
_WORD = re.compile(r"\s*\S+\s*|\s+")
_EDGES = re.compile(r"^\W+|\W+$")
_ALIKE = 0.3  # least share of common words at which differences are shown
_MANY_WORDS = 1500  # in longer texts difflib may ignore frequent words, to stay fast

Segments = list[tuple[str, bool]]  # consecutive pieces of a text; True for those that differ


def write_audit(path: Path, report: dict[str, Any], items: Iterable[Item], *, title: str) -> None:
    """Writes the page atomically; raises UserError if it cannot be written.

    Args:
      report: from `summary.summarise`, on the whole corpus.
      items: the sample in the order to show; each has an example.
      title: name of the corpus.
    """
    page = audit_page(report, items, title=title)
    atomic_write(path, page)


def audit_page(report: dict[str, Any], items: Iterable[Item], *, title: str) -> str:
    """The page's HTML; arguments as for `write_audit`."""
    shown = [_payload(item) for item in items]
    style = (_PAGE / "audit.css").read_text()
    script = "".join((_PAGE / name).read_text() for name in SCRIPTS)
    csp = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
        "img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = {
        "csp": csp,
        "title": escape(title),
        "subtitle": f"{report['pairs']:,} pairs, {report['kept']:,} kept, {report['dropped']:,} "
        f"dropped; {len(shown)} shown here. Corpus {escape(report['corpus'])}",
        "style": style,
        "script": script,
        "report": report_html(report),
        "data": _script_safe({"corpus": report["corpus"], "items": shown}),
    }
    template = (_PAGE / "audit.html").read_text()
    # in one pass, so that inserted text is not taken for a placeholder
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _script_safe(values: Any) -> str:
    """JSON that cannot close its HTML element: `<`, `>` and `&` are escaped, as is all that is not
    ASCII (UTF-8 cannot encode lone surrogates)."""
    text = json.dumps(values, separators=(",", ":"))
    return re.sub("[<>&]", lambda match: f"\\u{ord(match[0]):04x}", text)


def _payload(item: Item) -> dict[str, Any]:
    """The values of an item that the page's script shows."""
    triple = [pair or Pair("", "", "") for pair in pairs(item.example)]
    texts = [pair.passage for pair in triple]
    rewritten = texts[0].split() != item.passage.split()
    return {
        "id": item.id,
        "hash": example_hash(item),
        "outcome": "kept" if item.alive else "dropped",
        "reasons": item.reasons,
        "type": item.instruction_type,
        "rewritten": rewritten,
        "source": _Comparison(texts[0], item.passage).second() if rewritten else [],
        "queries": [
            {"name": name, "instruction": pair.instruction, "query": pair.query}
            for name, pair in zip(INSTRUCTED_QUERIES, triple, strict=True)
        ],
        "passages": _passages(item, texts),
        "judgements": [
            {name: getattr(j, name) for name in ("judge", "query", "passage", "relevant", "reason")}
            for j in item.judgements
        ],
        "made": "; ".join(
            f"{stage}: {', '.join(f'{name} {value}' for name, value in made.items() if value)}"
            for stage, made in item.provenance.items()
        ),
    }


def _passages(item: Item, texts: list[str]) -> list[dict[str, Any]]:
    """The three passages with marked differences: in a negative those from the positive passage,
    in the positive passage the words that are in neither negative."""
    comparisons = [_Comparison(texts[0], text) for text in texts[1:]]
    alike = [each.marks[0] for each in comparisons if each.alike]
    marks = [all(each) for each in zip(*alike, strict=True)]
    segments = [_segments(_words(texts[0]), marks), *(each.second() for each in comparisons)]
    return [
        {"name": name, "segments": segments[n], "figures": "; ".join(_figures(item, n, texts[n]))}
        for n, name in enumerate(PASSAGES)
    ]


def _figures(item: Item, n: int, text: str) -> Iterator[str]:
    yield f"{len(text.split()):,} words"
    name = ("positive", *NEGATIVES)[n]
    if name in item.scores:
        yield f"cosine with I+Q+ {item.scores[name]:.3f}"
    if f"margin_{name}" in item.scores:
        yield f"hardness {-item.scores[f'margin_{name}']:+.3f}"


class _Comparison:
    """The word-by-word difference of two texts, regardless of case and punctuation.

    Attributes:
      marks: for each of the two texts a list with True for each word that differs.
      alike: whether the texts share enough words for the marks to be useful.
    """

    def __init__(self, first: str, second: str):
        self._words = _words(first), _words(second)
        keys = [[_EDGES.sub("", word).casefold() for word in words] for words in self._words]
        many = max(map(len, keys)) > _MANY_WORDS
        matcher = difflib.SequenceMatcher(None, *keys, autojunk=many)
        self.marks = [True] * len(keys[0]), [True] * len(keys[1])
        for a, b, size in matcher.get_matching_blocks():
            self.marks[0][a : a + size] = self.marks[1][b : b + size] = [False] * size
        self.alike = matcher.ratio() >= _ALIKE

    def second(self) -> Segments:
        """The second text, with marks if the two are alike."""
        return _segments(self._words[1], self.marks[1] if self.alike else [])


def _words(text: str) -> list[str]:
    """Splits a text into words, each with the white space around it."""
    return _WORD.findall(text)


def _segments(words: list[str], marks: list[bool]) -> Segments:
    """Merges neighbouring words with equal marks; without marks the text is one segment."""
    pairs_ = zip(marks or [False] * len(words), words, strict=True)
    runs = itertools.groupby(pairs_, key=lambda pair: pair[0])
    return [("".join(word for _, word in run), marked) for marked, run in runs]
