"""Values of a corpus's report as text, for the terminal, the audit page and the data card."""

from collections.abc import Iterator
from typing import Any

from data_pipeline.items import INSTRUCTED_QUERIES, PASSAGES


def percentage(part: int, whole: int) -> str:
    """E.g. "12.5%"; "none" of a whole of 0."""
    return f"{part / whole:.1%}" if whole else "none"


def kappa(agreement: dict[str, Any] | None) -> str:
    """Cohen's kappa of a table of `agreement.Agreement`, or of one of its combinations."""
    value = agreement and agreement["kappa"]
    return "undefined" if value is None else f"{value:.3f}"


def relevance_rows(report: dict[str, Any]) -> Iterator[tuple[str, str, list[str], bool]]:
    """Each combination of instructed query and passage.

    Yields:
      query, passage, each judge's share of "relevant" answers ("16.7% of 6"; "" if the judge has
      none), and whether the passage must be relevant.
    """
    shares = {
        (judge, row["query"], row["passage"]): f"{row['share']:.1%} of {row['judged']:,}"
        for judge, rows in report["relevance"].items()
        for row in rows
    }
    for n, query in enumerate(INSTRUCTED_QUERIES):
        for m, passage in enumerate(PASSAGES):
            judged = [shares.get((judge, query, passage), "") for judge in report["relevance"]]
            yield query, passage, judged, n == m
