"""The audit page: its contents, and that no text becomes markup.

The script was tested in a browser by hand; here the page is parsed as a browser does.
"""

import base64
import dataclasses
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

from data_pipeline.items import example_hash
from data_pipeline.report import audit
from data_pipeline.report.audit import audit_page, write_audit
from data_pipeline.report.summary import summarise
from tests.data_pipeline.factory_items import USAGE, corpus, judged, made

EVIL = (
    "</script><script>alert(1)</script><!-- <script> --><img src=x onerror=alert(2)> "
    "]]> &lt;b&gt; {{data}} {{script}} \u2028 end"
)


class Page(HTMLParser):
    """The elements as (tag, attributes, own text), in order; all of them must be closed."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.elements, self._open = [], []
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in ("meta", "input", "img"):
            self._open.append(len(self.elements) - 1)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), ""))

    def handle_endtag(self, tag):
        assert self.elements[self._open.pop()][0] == tag

    def handle_data(self, data):
        if self._open:
            tag, attrs, text = self.elements[self._open[-1]]
            self.elements[self._open[-1]] = tag, attrs, text + data

    def all(self, tag):
        return [attrs for name, attrs, _ in self.elements if name == tag]

    def texts(self, *tags):
        return [text for name, _, text in self.elements if name in tags]

    def data(self):
        [text] = [text for _, attrs, text in self.elements if attrs.get("id") == "data"]
        return json.loads(text)


def page_of(items, title="a corpus"):
    report = summarise(items, USAGE, pairs_report={})
    shown = [item for item in items if item.example]
    html = audit_page(report, shown, title=title)
    return html, Page(html), report


def test_page_is_one_file_that_may_load_nothing():
    html, page, _ = page_of(corpus())
    assert not page.all("link") + page.all("iframe") + page.all("base")
    assert not any("src" in a or "href" in a for tag, a, _ in page.elements if tag != "img")
    for image in page.all("img"):
        assert image["src"].startswith("data:image/svg+xml;base64,")
    assert not re.search(r"url\(|@import|https?://", html)
    assert not any(
        name.startswith("on") or name == "style" for _, a, _ in page.elements for name in a
    )
    [csp] = [m["content"] for m in page.all("meta") if m.get("http-equiv")]
    policy = dict(part.split(" ", 1) for part in csp.split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["img-src"] == "data:"
    for tag, name in (("script", "script-src"), ("style", "style-src")):
        texts = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        assert len(texts) == 1  # the data's script element has a type of its own, and does not run
        digest = base64.b64encode(hashlib.sha256(texts[0].encode()).digest()).decode()
        assert policy[name] == f"'sha256-{digest}'"


def test_every_input_has_a_name():
    _, page, _ = page_of(corpus())
    labels = {a.get("for") for a in page.all("label")}
    for a in page.all("input") + page.all("progress"):
        assert a.get("aria-label") or a.get("id") in labels
    assert page.all("img") and all(a["alt"] for a in page.all("img"))
    assert page.all("html")[0]["lang"] == "en"


def test_script_finds_the_elements_that_it_uses():
    _, page, _ = page_of(corpus())
    folder = Path(audit.__file__).parent / "audit_page"
    script = "".join((folder / name).read_text() for name in audit.SCRIPTS)
    used = set(re.findall(r'\bat\("([^"]+)"\)', script)) | {"data"}
    assert len(used) > 10
    ids = {a["id"] for _, a, _ in page.elements if "id" in a}
    assert used - {"note"} <= ids  # which the script makes itself
    names = {a["name"] for a in page.all("select")}
    assert set(re.findall(r'options\("(\w+)"', script)) == names
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", script)


def test_data():
    items = corpus()
    _, page, report = page_of(items)
    data = page.data()
    assert data["corpus"] == report["corpus"]
    found = {one["id"]: one for one in data["items"]}
    assert list(found) == [item.id for item in items if item.example]
    assert [found["a"]["outcome"], found["e"]["outcome"]] == ["kept", "dropped"]
    assert found["e"]["reasons"] == items[4].reasons
    assert found["a"]["hash"] == example_hash(items[0])
    assert [q["query"] for q in found["a"]["queries"]] == ["query of a"] * 2 + [
        "another query than a"
    ]
    assert found["a"]["judgements"][1] == {
        "judge": "judge",
        "query": "I+Q+",
        "passage": "P-1",
        "relevant": False,
        "reason": "Because of P-1.",
    }
    assert found["a"]["passages"][1]["figures"] == (
        "9 words; cosine with I+Q+ 0.500; hardness -0.250"
    )
    assert [found["a"]["rewritten"], found["b"]["rewritten"]] == [False, True]
    assert found["a"]["made"].startswith("generate: model gpt-4o-mini, prompt generate_v1")


def test_no_text_becomes_markup():
    fields = [f.name for f in dataclasses.fields(made("a").example) if f.name != "id"]
    evil = judged(made(f"a{EVIL}", passage=f"x {EVIL}", **dict.fromkeys(fields, EVIL)))
    evil.judgements[0] = dataclasses.replace(evil.judgements[0], reason=EVIL)
    evil.instruction_type = EVIL
    evil.provenance["generate"] = {"model": EVIL, "prompt": EVIL, "prompt_hash": EVIL}
    evil.drop("judge", EVIL)
    plain, page, _ = page_of([made("a"), evil], title=EVIL)
    clean = page_of([made("a"), made("b")])[1]
    assert len(page.all("script")) == len(clean.all("script")) == 2
    assert len(page.all("img")) == len(page.all("figure")) == 5
    assert all(a.keys() == {"alt", "src"} for a in page.all("img"))
    one = page.data()["items"][1]
    assert one["id"] == f"a{EVIL}"
    assert "".join(text for text, _ in one["passages"][2]["segments"]) == EVIL
    assert "".join(text for text, _ in one["source"]) == f"x {EVIL}"
    assert one["judgements"][0]["reason"] == EVIL
    assert plain.count("<script") == 2
    [title] = page.texts("h1")
    assert title.startswith(EVIL)


def marked(passage):
    return [text.strip() for text, differs in passage["segments"] if differs]


def shown(**fields):
    return page_of([made("a", **fields)])[1].data()["items"][0]


def test_differences():
    one = shown(
        document_positive="Children  should take\none tablet a day, with milk.",
        hard_negative_document_1="Adults should take two tablets a day; with Milk",
        hard_negative_document_2="Children should take one tablet a day, never with tea.",
    )
    positive, first, second = one["passages"]
    assert marked(first) == ["Adults", "two tablets"]
    assert marked(second) == ["never", "tea."]
    assert marked(positive) == []  # each word is in one of the others at least
    texts = ["".join(text for text, _ in p["segments"]) for p in one["passages"]]
    assert texts[0] == "Children  should take\none tablet a day, with milk."
    assert texts[1] == "Adults should take two tablets a day; with Milk"

    one = shown(
        document_positive="Children should take one tablet a day.",
        hard_negative_document_1="Adults should take two tablets a day.",
        hard_negative_document_2="Nothing in common with it.",
    )
    positive, first, second = one["passages"]
    assert (marked(positive), marked(first)) == (
        ["Children", "one tablet"],
        ["Adults", "two tablets"],
    )
    assert marked(second) == []  # all would be marked, which says nothing


def test_absent_poison():
    one = shown(query_negative="", hard_negative_document_2="")
    assert [bool(p["segments"]) for p in one["passages"]] == [True, True, False]
    one = shown(instruction_negative="", hard_negative_document_1="")
    assert [bool(p["segments"]) for p in one["passages"]] == [True, False, True]
    one = shown(
        instruction_negative="",
        hard_negative_document_1="",
        query_negative="",
        hard_negative_document_2="",
    )
    assert [bool(p["segments"]) for p in one["passages"]] == [True, False, False]


def test_report_in_the_page():
    _, page, _ = page_of(corpus())
    cells = page.texts("td", "th", "dd", "caption")
    for text in ("2 (25.0%)", "$0.75", "too_short:query_negative", "Cohen's kappa", "16.7% of 6"):
        assert text in cells
    titles = page.texts("figcaption")
    assert "Instruction types" in titles
    assert len(titles) == 6


def test_page_of_nothing(tmp_path):
    write_audit(tmp_path / "audit.html", summarise([], USAGE, pairs_report={}), [], title="t")
    assert Page((tmp_path / "audit.html").read_text()).data()["items"] == []
