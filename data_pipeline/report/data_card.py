"""Writes DATA_CARD.md, a Hugging Face dataset card, from the report of a corpus."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

from data_pipeline.report.tables import kappa, percentage, report_tables
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
    """The card as Markdown with YAML front matter; `report` is that of `summary.summarise`."""
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
        tables={name: table.markdown() for name, table in report_tables(report).items()},
        rewritten=percentage(report["rewritten"]["kept"], report["kept"]),
        kappa=kappa(report["agreement"]),
    )
    return f"{card.content}\n"
