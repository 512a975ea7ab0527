"""inspect.html: what changed most, differing words, and that texts stay texts."""

import html.parser

import numpy as np
import pytest

from inf_jax.inspection.cards import TaskTexts, card_of
from inf_jax.inspection.changes import between_instructions, between_models, largest
from inf_jax.inspection.page import Histogram, Section, render_page
from inf_jax.inspection.rankings import DOCUMENT_KINDS, keep_run
from inf_jax.inspection.words import marked

BAD = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;{{ 7 * 7 }}"


def run_of(**orders):
    """Query id -> documents a to z in an order, written as one word."""
    return {q: {d: 1 - n / 100 for n, d in enumerate(order)} for q, order in orders.items()}


def test_the_largest_change_of_a_relevant_passage_comes_first():
    relevant = {"q1": {"a"}, "q2": {"a", "b"}, "q3": {"z"}, "q4": set()}
    before = keep_run(run_of(q1="abcdef", q2="abcdef", q3="abc", q4="abc"), relevant, {})
    after = keep_run(run_of(q1="bacdef", q2="cdefba", q3="cba", q4="cba"), relevant, {})
    found = largest(between_models("t", before.rankings, after.rankings))
    assert [(c.queries, c.document, c.ranks) for c in found] == [
        (("q2", "q2"), "a", (1, 6)),
        (("q1", "q1"), "a", (1, 2)),
    ]  # q3's was found by neither
    assert found[0].size == pytest.approx(np.log2(6))
    assert largest(found, 1) == found[:1]


def test_the_two_instructions_of_a_query_that_differ_most():
    relevant = {"1": {"a"}, "2": {"b"}, "3": {"c"}, "x": {"a"}}
    groups = {"g": ["1", "2", "3"]}
    run = run_of(**{"1": "abcdefgh", "2": "bacdefgh", "3": "bcdefgah", "x": "a"})
    kept = keep_run(run, relevant, groups)
    (change,) = between_instructions("t", kept.rankings, groups)
    assert (change.queries, change.document, change.ranks) == (("1", "3"), "a", (1, 7))
    assert set(kept.rankings["2"].ranks) == {"a", "b", "c"}  # of any instruction
    counts = {kind: each.sum() for kind, each in kept.spread.counts.items()}
    assert counts == dict(zip(DOCUMENT_KINDS, (4, 6, 15), strict=True))
    assert kept.spread.medians[DOCUMENT_KINDS[0]] == 1.0


def test_places():
    kept = keep_run({"q": {f"d{n:03}": -n for n in range(150)}}, {"q": {"d120", "none"}}, {})
    ranking = kept.rankings["q"]
    found = [ranking.place(d) for d in ("d000", "d099", "d120", "d130", "none")]
    assert found == ["1", "100", "121", "after 100", "not found"]
    assert keep_run({"q": {}}, {"q": {"a"}}, {}).rankings["q"].place("b") == "not found"


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("the big cat", "the small cat", (["big"], ["small"])),
        (" only  a.\nb ", "only c.\nb", (["a"], ["c"])),
        ("", "none", ([], ["none"])),
        ("关于树木的文档", "关于山的文档", (["树木"], ["山"])),
        ("same", "same", ([], [])),
        ("a " * 2500, "b " * 2500, (["a " * 2500], ["b " * 2500])),  # too many to compare
    ],
)
def test_differing_words(before, after, words):
    parts = marked(before, after)
    assert tuple("".join(text for text, _ in side) for side in parts) == (before, after)
    assert tuple([text for text, differs in side if differs] for side in parts) == words


class Page(html.parser.HTMLParser):
    """Tags in order, texts of all elements, and attributes."""

    def __init__(self, content):
        super().__init__()
        self.tags, self.texts, self.values, self.marks, self.open = [], [], [], [], []
        self.feed(content)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.values += attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.values += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append(data)
            if self.open[-1] == "mark":
                self.marks.append(data)


def test_texts_stay_texts():
    """Whatever data holds; and the page refers to nothing outside."""
    documents = {"d<1>": f"{BAD} 1", "d2": f"two \x00\ud800 {BAD} " + "word " * 2000, "d3": "پ"}
    queries = {"q<1>": (f"q {BAD}", f"not {BAD}"), "q2": (f"q {BAD}", f"only {BAD}")}
    groups = {"g": list(queries)}
    run = {"q<1>": dict.fromkeys(documents, 1.0), "q2": {"d3": 2.0, "d2": 1.5, "d<1>": 1.0}}
    kept = keep_run(run, {"q<1>": {"d<1>"}, "q2": set()}, groups)
    (change,) = between_instructions(BAD, kept.rankings, groups)
    texts = TaskTexts(queries, documents, lambda qid, document: f"{BAD}{qid}")
    card = card_of(change, texts, *(kept.rankings[q] for q in change.queries))
    assert not card.same and len(card.sides[0].passages) == 3
    sections = [Section(BAD, BAD, (BAD, BAD), [card]), Section("empty", "", ("", ""), [])]
    content = render_page(BAD, {BAD: BAD}, sections, [Histogram(BAD, BAD, kept.spread)]).decode()
    page = Page(content)
    assert page.open == [] and not {"script", "img", "b"} & set(page.tags)
    assert not [name for name, _ in page.values if name.startswith("on")]
    links = {value for name, value in page.values if name in ("href", "src")}
    assert links and all(link.startswith("#") for link in links)
    ids = [value for name, value in page.values if name == "id"]
    assert {link[1:] for link in links} <= set(ids) and len(ids) == len(set(ids))
    text = "\n".join(page.texts)
    for each in (f"q {BAD}", f"{BAD} 1", "d<1>", f"two \ufffd\ufffd {BAD}"):
        assert each in text
    assert page.marks == ["not", "only"]
    assert text.count("word ") < 2000 and "[…]" in text  # cut
    assert content.count("No rank of a relevant passage changed.") == 1
    points = [value for name, value in page.values if name == "points"]
    numbers = [float(x) for each in points for pair in each.split() for x in pair.split(",")]
    assert numbers and np.isfinite(numbers).all()
