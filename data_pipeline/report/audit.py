"""Writes the audit page: a sample of the corpus for human review, in one self-contained HTML file.

Its second view is the corpus's report. Model output is never parsed as markup: the sample is
embedded as JSON without any `<`, and the page's script inserts it as text. The content security
policy allows that one script, by its hash.
"""

import base64
import dataclasses
import difflib
import hashlib
import html
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from data_pipeline.items import INSTRUCTED_QUERIES, NEGATIVES, PASSAGES, Item, example_hash
from data_pipeline.report.charts import bars, histogram
from data_pipeline.report.tables import kappa, percentage, report_tables
from inf_jax.data.records import Pair, pairs
from inf_jax.io.atomic import atomic_write

_PAGE = Path(__file__).parent / "audit_page"
SCRIPTS = ("example.js", "audit.js")  # one script, in this order
TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_PAGE),
    autoescape=True,
    keep_trailing_newline=True,
    finalize=lambda v: v if isinstance(v, Markup) else Markup(html.escape(str(v))),
)
_MOST_REASONS = 24  # in the chart; the table of pairs has all
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
    atomic_write(path, audit_page(report, items, title=title))


def audit_page(report: dict[str, Any], items: Iterable[Item], *, title: str) -> str:
    """The page's HTML; arguments as for `write_audit`."""
    shown = [_payload(item) for item in items]
    style = (_PAGE / "audit.css").read_text()
    script = "".join((_PAGE / name).read_text() for name in SCRIPTS)
    return TEMPLATES.get_template("audit.html").render(
        title=title,
        shown=len(shown),
        report=report,
        numbers=_numbers(report),
        charts=_charts(report),
        tables=report_tables(report).values(),
        data=_script_safe({"corpus": report["corpus"], "items": shown}),
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
    )


def _numbers(report: dict[str, Any]) -> dict[str, str]:
    """The figures at the top of the report, by name."""
    usage, made, usd = report["usage"], report["rewritten"], report["usd_per_kept"]
    numbers = {
        "pairs": f"{report['pairs']:,}",
        "kept": f"{report['kept']:,} ({percentage(report['kept'], report['pairs'])})",
        "dropped": f"{report['dropped']:,}",
        "passages rewritten": percentage(made["kept"], report["kept"]),
        "cost": f"${usage['usd']:.2f}",
        "cost per kept example": "none" if usd is None else f"${usd:.5f}",
        "in flight at kills": f"{usage['in_flight_at_kills']:,}",
    }
    if report["agreement"]:
        numbers["kappa of two judges"] = kappa(report["agreement"])
    return numbers


def _charts(report: dict[str, Any]) -> Iterator[str]:
    types = [(name, (c["made"], c["kept"])) for name, c in report["types"].items()]
    yield bars("Instruction types", types, ("made", "kept"))
    reasons = [
        (f"{stage}:{reason}", (n,))
        for stage, counts in report["reasons"].items()
        for reason, n in counts.items()
    ]
    reasons.sort(key=lambda row: -row[1][0])
    yield bars("Reasons for dropping pairs", reasons[:_MOST_REASONS], ("pairs",))
    lengths, scores = report["lengths"], report["scores"]
    for kind, kinds in (("instruction", "instructions"), ("query", "queries")):
        yield histogram(f"Length of {kinds}, kept", [(kind, lengths[kind])], unit="words")
    passages = [(name, lengths[f"{name} passage"]) for name in ("positive", "negative")]
    yield histogram("Length of passages, kept", passages, unit="words")
    if margins := [(n, scores[f"margin_{n}"]) for n in NEGATIVES if f"margin_{n}" in scores]:
        title = "Margin of the positive passage over the hard negative, all scored examples"
        yield histogram(title, margins, unit="cosine")


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
        "judgements": [dataclasses.asdict(judgement) for judgement in item.judgements],
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
    marked_words = zip(marks or [False] * len(words), words, strict=True)
    runs = itertools.groupby(marked_words, key=lambda pair: pair[0])
    return [("".join(word for _, word in run), marked) for marked, run in runs]
