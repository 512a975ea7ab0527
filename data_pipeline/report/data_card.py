"""Writes DATA_CARD.md, a Hugging Face dataset card, from the report of a corpus."""

import dataclasses
import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data_pipeline.report.formatting import kappa, percentage, relevance_rows
from inf_jax.io.atomic import atomic_write

_TEMPLATE = Path(__file__).with_name("data_card.md.jinja")
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (10**6, "100K<n<1M"))


@dataclasses.dataclass(frozen=True)
class CardInfo:
    """What the report does not contain.

    Attributes:
      name: of the corpus.
      source: where the pairs come from, as Markdown.
      licence: a licence identifier of the Hugging Face Hub, e.g. cc-by-4.0; the source's at most.
      languages: ISO 639 codes; () if unknown.
      config: the resolved config as nested dicts, without secrets.
      command: the command line that made the corpus.
      files: split -> path of its file relative to the card; "train", optionally "dev".
    """

    name: str
    source: str
    licence: str = "unknown"
    languages: tuple[str, ...] = ()
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    command: str = ""
    files: dict[str, str] = dataclasses.field(
        default_factory=lambda: {"train": "corpus/train.jsonl"}
    )


def write_data_card(path: Path, report: dict[str, Any], info: CardInfo) -> None:
    """Writes the card atomically; raises UserError if it cannot be written."""
    atomic_write(path, data_card(report, info))


def data_card(report: dict[str, Any], info: CardInfo) -> str:
    """Markdown with YAML front matter.

    Args:
      report: from `summary.summarise`.
      info: the rest.
    """
    from huggingface_hub import DatasetCard, DatasetCardData

    files = [{"split": split, "path": path} for split, path in info.files.items()]
    data = DatasetCardData(
        pretty_name=info.name,
        license=info.licence,
        language=list(info.languages) or None,
        task_categories=["text-retrieval"],
        size_categories=[next((name for most, name in _SIZES if report["kept"] < most), "n>1M")],
        tags=["instruction-following", "synthetic", "inf_jax"],
        configs=[{"config_name": "default", "data_files": files}],
    )
    card = DatasetCard.from_template(
        data,
        template_path=str(_TEMPLATE),
        report=report,
        info=info,
        json=functools.partial(json.dumps, ensure_ascii=False),
        rewritten=percentage(report["rewritten"]["kept"], report["kept"]),
        provenance=_provenance(report),
        relevance=_relevance(report),
        kappa=kappa(report["agreement"]),
        reviewed=_reviewed(report["review"]),
        pairs=_pairs(report),
        types=_types(report),
        lengths=_lengths(report),
        length_ratio=_length_ratio(report),
        cost=_cost(report),
    )
    return f"{card.content}\n"


def _provenance(report: dict[str, Any]) -> str:
    rows = [
        (
            stage,
            made["model"],
            f"{made['prompt']} ({made['prompt_hash']})" if made.get("prompt") else "",
            f"{made['items']:,}",
        )
        for stage, all_made in report["provenance"].items()
        for made in all_made
    ]
    return _table(("stage", "model", "prompt", "pairs"), rows, texts=3)


def _relevance(report: dict[str, Any]) -> str:
    rows = [
        (f"({query}, {passage})", *shares, "relevant" if expected else "not relevant")
        for query, passage, shares, expected in relevance_rows(report)
    ]
    return _table(("combination", *report["relevance"], "expected"), rows)


def _reviewed(review: dict[str, int]) -> dict[str, str]:
    accepted, rejected, over = (review.get(v, 0) for v in ("accept", "reject", "accept_over_drop"))
    return {
        "all": f"{accepted + over + rejected:,}",
        "accepted": f"{accepted + over:,}",
        "overridden": f", {over:,} of them against a judge or the score" if over else "",
        "rejected": f"{rejected:,}",
    }


def _pairs(report: dict[str, Any]) -> str:
    rows = [("pairs", f"{report['pairs']:,}", "")]
    for stage in report["stages"]:
        name = stage["stage"]
        rows.append((f"dropped: {name}", f"{stage['dropped']:,}", ""))
        rows += [("", f"{n:,}", f"`{why}`") for why, n in report["reasons"][name].items()]
    rows.append(("**kept**", f"**{report['kept']:,}**", ""))
    return _table(("", "pairs", "reason"), rows)


def _types(report: dict[str, Any]) -> str:
    rows = [(name, f"{n['made']:,}", f"{n['kept']:,}") for name, n in report["types"].items()]
    return _table(("instruction type", "made", "kept"), rows)


def _lengths(report: dict[str, Any]) -> str:
    rows = [
        (kind, f"{n['count']:,}", f"{n['mean']:.1f}", f"{n['least']:,}", f"{n['most']:,}")
        for kind, n in report["lengths"].items()
        if n["count"]
    ]
    return _table(("words of a kept", "texts", "mean", "least", "most"), rows) if rows else ""


def _length_ratio(report: dict[str, Any]) -> str:
    positive, negative = (report["lengths"][f"{name} passage"] for name in ("positive", "negative"))
    if not (positive["count"] and negative["count"]):
        return ""
    return f"{negative['mean'] / positive['mean']:.2f}"


def _cost(report: dict[str, Any]) -> str:
    usage = report["usage"]
    rows = [
        (
            stage,
            f"{one['requests']:,}",
            f"{one['prompt_tokens']:,}",
            f"{one['completion_tokens']:,}",
            f"{one['usd']:.4f}",
        )
        for stage, one in usage["stages"].items()
    ]
    rows.append(("**total**", "", "", "", f"**{usage['usd']:.4f}**"))
    return _table(("stage", "requests", "tokens in", "tokens out", "USD"), rows)


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]], *, texts: int = 1) -> str:
    """A Markdown table whose first `texts` columns are left-aligned, the others right-aligned."""
    rules = ("---",) * texts + ("---:",) * (len(header) - texts)
    lines = [header, rules, *(tuple(c.replace("|", "\\|") for c in row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
