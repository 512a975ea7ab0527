"""The tables of a corpus's report, for the terminal, the audit page and the data card."""

import dataclasses
from typing import TYPE_CHECKING, Any

from data_pipeline.items import COMBINATIONS, RELEVANT

if TYPE_CHECKING:
    from rich.table import Table as TerminalTable


@dataclasses.dataclass(frozen=True)
class ReportTable:
    """A table of strings.

    Attributes:
      rows: kind ("": plain, "sub": detail of the row before, "sum": total) and cells of each row.
      texts: the first so many columns are left-aligned, the others right-aligned.
    """

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    texts: int = 1

    def terminal(self) -> "TerminalTable":
        """For the rich console."""
        from rich.table import Table as TerminalTable

        table = TerminalTable(title=self.title, title_justify="left")
        for n, name in enumerate(self.header):
            justify = "left" if n < self.texts else "right"
            table.add_column(name, justify=justify, overflow="fold")
        for kind, first, *cells in self.rows:
            indent = "  " if kind == "sub" else ""
            table.add_row(indent + first, *cells, style={"sub": "dim", "sum": "bold"}.get(kind))
        return table

    def markdown(self) -> str:
        """Without the title; details are shown as code, totals in bold."""
        marks = {"sub": ("`", ""), "sum": ("**", "**")}
        rules = ("---",) * self.texts + ("---:",) * (len(self.header) - self.texts)
        lines = [self.header, rules]
        for kind, *cells in self.rows:
            outer, inner = marks.get(kind, ("", ""))
            first, *others = (cell.replace("|", "\\|") for cell in cells)
            lines.append((f"{outer}{first}{outer}", *(c and f"{inner}{c}{inner}" for c in others)))
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def report_tables(report: dict[str, Any]) -> dict[str, ReportTable]:
    """The tables of a report of `summary.summarise` by name, in order; empty ones are left out."""
    tables = {
        "pairs": _pairs(report),
        "types": _types(report),
        "relevance": _relevance(report),
        "agreement": _agreement(report["agreement"] or {"combinations": []}),
        "lengths": _lengths(report),
        "cost": _cost(report),
        "provenance": _provenance(report),
    }
    return {name: table for name, table in tables.items() if table.rows}


def kappa(agreement: dict[str, Any] | None) -> str:
    """Cohen's kappa of a table of `agreement.Agreement`, or of one of its combinations."""
    value = agreement and agreement["kappa"]
    return "undefined" if value is None else f"{value:.3f}"


def percentage(part: int, whole: int) -> str:
    """E.g. "12.5%"; "none" if the whole is 0."""
    return f"{part / whole:.1%}" if whole else "none"


def _pairs(report: dict[str, Any]) -> ReportTable:
    def row(kind: str, name: str, n: int) -> tuple[str, ...]:
        return kind, name, f"{n:,}", percentage(n, report["pairs"])

    rows = [row("", "from the source", report["pairs"])]
    for stage in report["stages"]:
        rows.append(row("", f"dropped: {stage['stage']}", stage["dropped"]))
        rows += [row("sub", why, n) for why, n in report["reasons"][stage["stage"]].items()]
    rows.append(row("sum", "kept", report["kept"]))
    return ReportTable("Outcomes of the pairs", ("", "pairs", "share"), rows)


def _types(report: dict[str, Any]) -> ReportTable:
    rows = [("", name, f"{n['made']:,}", f"{n['kept']:,}") for name, n in report["types"].items()]
    return ReportTable("Instruction types", ("", "made", "kept"), rows)


def _relevance(report: dict[str, Any]) -> ReportTable:
    judges = report["relevance"]
    shares = {
        (judge, row["query"], row["passage"]): f"{row['share']:.1%} of {row['judged']:,}"
        for judge, rows in judges.items()
        for row in rows
    }
    rows = []
    for query, passage in COMBINATIONS if judges else ():
        cells = [shares.get((judge, query, passage), "") for judge in judges]
        expected = "100%" if RELEVANT[query] == passage else "0%"
        rows.append(("", f"{query} | {passage}", *cells, expected))
    return ReportTable("Judged relevant", ("", *judges, "expected"), rows)


def _agreement(agreement: dict[str, Any]) -> ReportTable:
    def row(kind: str, name: str, values: dict[str, Any]) -> tuple[str, ...]:
        return kind, name, f"{values['judged']:,}", f"{values['agreement']:.1%}", kappa(values)

    combinations = agreement["combinations"]
    rows = [row("", f"{one['query']} | {one['passage']}", one) for one in combinations]
    if rows:
        rows.append(row("sum", "all", agreement))
    header = ("", "judged by both", "agree", "Cohen's kappa")
    return ReportTable("Agreement of two judges", header, rows)


def _lengths(report: dict[str, Any]) -> ReportTable:
    rows = [
        ("", kind, f"{n['count']:,}", f"{n['mean']:.1f}", f"{n['least']:,}", f"{n['most']:,}")
        for kind, n in report["lengths"].items()
        if n["count"]
    ]
    return ReportTable("Words, kept", ("", "texts", "mean", "least", "most"), rows)


def _cost(report: dict[str, Any]) -> ReportTable:
    usage = report["usage"]
    names = ("requests", "answers", "prompt_tokens", "completion_tokens")
    rows = []
    for stage, one in usage["stages"].items():
        counts = (f"{one[name]:,}" for name in names)
        rows.append(("", f"{stage}: {one['model']}, {one['mode']}", *counts, f"{one['usd']:.4f}"))
    rows.append(("sum", f"total of {usage['runs']} runs", *[""] * 4, f"{usage['usd']:.4f}"))
    if report["usd_per_kept"] is not None:
        rows.append(("", "per kept example", *[""] * 4, f"{report['usd_per_kept']:.6f}"))
    if usage["usd_unknown"]:
        rows.append(("", "unanswered, at most", *[""] * 4, f"{usage['usd_unknown']:.4f}"))
    rows.append(("", "in flight at kills", f"{usage['in_flight_at_kills']:,}", *[""] * 4))
    return ReportTable("Cost", ("", "requests", "answers", "tokens in", "tokens out", "USD"), rows)


def _provenance(report: dict[str, Any]) -> ReportTable:
    rows = []
    for stage, all_made in report["provenance"].items():
        for made in all_made:
            prompt, digest = made.get("prompt", ""), made.get("prompt_hash", "")
            rows.append(("", stage, made["model"], prompt, digest, f"{made['items']:,}"))
    header = ("stage", "model", "prompt", "hash", "items")
    return ReportTable("Models and prompts", header, rows, texts=4)
