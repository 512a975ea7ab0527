"""A corpus's report as HTML, the second view of the audit page."""

from collections.abc import Iterable, Iterator
from html import escape
from typing import Any

from data_pipeline.report.charts import bars, histogram
from data_pipeline.report.formatting import kappa, percentage, relevance_rows

_MOST_REASONS = 24  # in the chart; the table of pairs has all


def report_html(report: dict[str, Any]) -> str:
    """Figures, charts and tables of a report of `summary.summarise`, escaped."""
    tables = [_pairs(report), _cost(report)]
    if report["relevance"]:
        tables.append(_relevance(report))
    if report["agreement"]:
        tables.append(_agreement(report["agreement"]))
    tables.append(_provenance(report))
    charts, tables = (
        "".join(f'<section class="panel">{panel}</section>' for panel in panels)
        for panels in (_charts(report), tables)
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


def _pairs(report: dict[str, Any]) -> str:
    total = report["pairs"]
    rows = [("", "from the source", f"{total:,}", percentage(total, total))]
    for row in report["stages"]:
        n = row["dropped"]
        rows.append(("", f"dropped: {row['stage']}", f"{n:,}", percentage(n, total)))
        rows += [
            ("sub", reason, f"{n:,}", percentage(n, total))
            for reason, n in report["reasons"][row["stage"]].items()
        ]
    rows.append(("sum", "kept", f"{report['kept']:,}", percentage(report["kept"], total)))
    return _table("Outcomes of the pairs", ("", "pairs", "share"), rows)


def _relevance(report: dict[str, Any]) -> str:
    rows = [
        ("", f"{query} | {passage}", *shares, "100%" if expected else "0%")
        for query, passage, shares, expected in relevance_rows(report)
    ]
    return _table("Judged relevant", ("", *report["relevance"], "expected"), rows)


def _agreement(agreement: dict[str, Any]) -> str:
    rows = [
        (
            "",
            f"{row['query']} | {row['passage']}",
            f"{row['judged']:,}",
            f"{row['agreement']:.1%}",
            kappa(row),
        )
        for row in agreement["combinations"]
    ]
    share = f"{agreement['agreement']:.1%}"
    rows.append(("sum", "all", f"{agreement['judged']:,}", share, kappa(agreement)))
    header = ("", "judged by both", "agree", "Cohen's kappa")
    return _table("Agreement of the two judges", header, rows)


def _cost(report: dict[str, Any]) -> str:
    usage = report["usage"]
    rows = [
        (
            "",
            f"{stage}: {one['model']}, {one['mode']}",
            f"{one['requests']:,}",
            f"{one['answers']:,}",
            f"{one['prompt_tokens']:,}",
            f"{one['completion_tokens']:,}",
            f"{one['usd']:.4f}",
        )
        for stage, one in usage["stages"].items()
    ]
    rows.append(("sum", f"total of {usage['runs']} runs", *[""] * 4, f"{usage['usd']:.4f}"))
    if usage["usd_unknown"]:
        rows.append(("", "unanswered, at most", *[""] * 4, f"{usage['usd_unknown']:.4f}"))
    header = ("", "requests", "answers", "tokens in", "tokens out", "USD")
    return _table("Cost", header, rows)


def _provenance(report: dict[str, Any]) -> str:
    rows = [
        ("", stage, made["model"], made.get("prompt", ""), made.get("prompt_hash", ""), items)
        for stage, all_made in report["provenance"].items()
        for made in all_made
        for items in [f"{made['items']:,}"]
    ]
    header = ("stage", "model", "prompt", "hash", "items")
    return _table("Models and prompts", header, rows, texts=4)


def _table(
    caption: str, header: tuple[str, ...], rows: Iterable[tuple[str, ...]], *, texts: int = 1
) -> str:
    """An HTML table whose first `texts` columns are texts, the others numbers.

    The first element of a row is its class, the second its header cell.
    """
    kinds = [' class="number"' if n >= texts else "" for n in range(len(header))]
    head = "".join(
        f'<th scope="col"{kind}>{escape(name)}</th>' if name else "<td></td>"
        for name, kind in zip(header, kinds, strict=True)
    )
    body = "".join(
        f'<tr class="{row_kind}"><th scope="row">{escape(first)}</th>'
        + "".join(
            f"<td{kind}>{escape(cell)}</td>" for cell, kind in zip(cells, kinds[1:], strict=True)
        )
        + "</tr>"
        for row_kind, first, *cells in rows
    )
    return (
        f'<div class="scroll"><table><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
