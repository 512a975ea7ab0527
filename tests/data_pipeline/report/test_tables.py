"""The report's tables: their cells, and the three ways to show them."""

import io

from rich.console import Console

from data_pipeline.report.audit import TEMPLATES
from data_pipeline.report.summary import summarise
from data_pipeline.report.tables import ReportTable, report_tables
from tests.data_pipeline.factory_items import USAGE, corpus


def test_report_on_the_terminal():
    console = Console(file=io.StringIO(), width=120)
    for table in report_tables(summarise(corpus(), USAGE, pairs_report={})).values():
        console.print(table.terminal())
    lines = [line.replace("│", " ").split() for line in console.file.getvalue().splitlines()]
    for line in (
        "kept 2 25.0%",
        "dropped: judge_2 1 12.5%",
        "audience 5 1",
        "I+Q+ | P-1 16.7% of 6 33.3% of 3 0%",
        "total of 3 runs 0.7500",
        "in flight at kills 2",
    ):
        assert line.split() in lines


def test_tables_of_nothing():
    report = summarise([], USAGE | {"stages": {}}, pairs_report={})
    assert list(report_tables(report)) == ["pairs", "cost"]


def test_kinds_of_rows():
    rows = [("", "a", "<1>"), ("sub", "b|c", ""), ("sum", "d", "3")]
    table = ReportTable("Title", ("", "n"), rows)
    assert table.markdown().splitlines() == [
        "|  | n |",
        "| --- | ---: |",
        "| a | <1> |",
        "| `b\\|c` |  |",
        "| **d** | **3** |",
    ]
    html = TEMPLATES.get_template("table.html").module.table(table)
    assert '<tr class="sub"><th scope="row">b|c</th><td class="number"></td></tr>' in html
    assert '<td class="number">&lt;1&gt;</td>' in html
