"""A corpus's report as HTML, the second view of the audit page."""

from collections.abc import Iterator
from html import escape
from typing import Any

from data_pipeline.report.charts import bars, histogram
from data_pipeline.report.tables import kappa, percentage, report_tables

_MOST_REASONS = 24  # in the chart; the table of pairs has all


def report_html(report: dict[str, Any]) -> str:
    """Figures, charts and tables of a report of `summary.summarise`, escaped."""
    panels = (_charts(report), (table.html() for table in report_tables(report).values()))
    charts, tables = (
        "".join(f'<section class="panel">{one}</section>' for one in group) for group in panels
    )
    return f'{_numbers(report)}<div class="charts">{charts}</div><div class="tables">{tables}</div>'


def _numbers(report: dict[str, Any]) -> str:
    usage, made, usd = report["usage"], report["rewritten"], report["usd_per_kept"]
    figures = {
        "pairs": f"{report['pairs']:,}",
        "kept": f"{report['kept']:,} ({percentage(report['kept'], report['pairs'])})",
        "dropped": f"{report['dropped']:,}",
        "passages rewritten": percentage(made["kept"], report["kept"]),
        "cost": f"${usage['usd']:.2f}",
        "cost per kept example": "none" if usd is None else f"${usd:.5f}",
        "in flight at kills": f"{usage['in_flight_at_kills']:,}",
    }
    if report["agreement"]:
        figures["kappa of two judges"] = kappa(report["agreement"])
    cells = "".join(
        f'<dl class="panel"><dt>{escape(name)}</dt><dd>{escape(value)}</dd></dl>'
        for name, value in figures.items()
    )
    return f'<div class="numbers">{cells}</div>'


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
    lengths = report["lengths"]
    for kind in ("instruction", "query"):
        title = {"instruction": "Length of instructions", "query": "Length of queries"}[kind]
        yield histogram(f"{title}, kept", [(kind, lengths[kind])], unit="words")
    passages = [(name.split()[0], lengths[f"{name} passage"]) for name in ("positive", "negative")]
    yield histogram("Length of passages, kept", passages, unit="words")
    margins = [
        (name, report["scores"][f"margin_{name}"])
        for name in ("poisoned_instruction", "poisoned_query")
        if f"margin_{name}" in report["scores"]
    ]
    if margins:
        title = "Margin of the positive passage over the hard negative, all scored examples"
        yield histogram(title, margins, unit="cosine")
