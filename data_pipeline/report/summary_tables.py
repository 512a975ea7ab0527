"""A corpus's report as tables for the terminal."""

from collections.abc import Iterator
from typing import Any

from rich.table import Table

from data_pipeline.report.formatting import kappa, percentage, relevance_rows


def report_tables(report: dict[str, Any]) -> Iterator[Table]:
    """The tables of a report of `summary.summarise`."""
    table = _table("pairs", "", "pairs", "share")
    pairs = report["pairs"]

    def line(name: str, n: int, **style) -> None:
        table.add_row(name, f"{n:,}", percentage(n, pairs), **style)

    line("from the source", pairs, end_section=True)
    for row in report["stages"]:
        line(f"dropped: {row['stage']}", row["dropped"])
        for reason, n in report["reasons"][row["stage"]].items():
            line(f"  {reason}", n, style="dim")
    line("kept", report["kept"], style="bold")
    yield table

    table = _table("instruction types", "", "made", "kept")
    for name, counts in report["types"].items():
        table.add_row(name, f"{counts['made']:,}", f"{counts['kept']:,}")
    yield table

    if report["relevance"]:
        table = _table("judged relevant", "", *report["relevance"], "expected")
        for query, passage, shares, expected in relevance_rows(report):
            table.add_row(f"{query} | {passage}", *shares, "100%" if expected else "0%")
        yield table
    if both := report["agreement"]:
        table = _table("two judges", "", "judged", "agreement", "kappa")
        share = f"{both['agreement']:.1%}"
        table.add_row("all combinations", f"{both['judged']:,}", share, kappa(both))
        yield table
    yield _cost_table(report)


def _cost_table(report: dict[str, Any]) -> Table:
    usage = report["usage"]
    table = _table("cost", "", "model", "requests", "answers", "tokens in", "tokens out", "USD")
    for stage, one in usage["stages"].items():
        names = ("requests", "answers", "prompt_tokens", "completion_tokens")
        numbers = (f"{one[name]:,}" for name in names)
        table.add_row(stage, f"{one['model']}, {one['mode']}", *numbers, f"{one['usd']:.4f}")
    table.add_section()
    table.add_row("total", *[""] * 5, f"{usage['usd']:.4f}", style="bold")
    if report["usd_per_kept"] is not None:
        table.add_row("per kept example", *[""] * 5, f"{report['usd_per_kept']:.6f}")
    if usage["usd_unknown"]:
        table.add_row("unanswered, at most", *[""] * 5, f"{usage['usd_unknown']:.4f}")
    table.add_row("in flight at kills", "", f"{usage['in_flight_at_kills']:,}", *[""] * 4)
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for n, name in enumerate(columns):
        table.add_column(name, justify="right" if n else "left", overflow="fold")
    return table
