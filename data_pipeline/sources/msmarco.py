"""Reads pairs from MS MARCO's passage ranking files (arXiv 1611.09268) and sets of that layout.

The directory holds `collection.tsv` (passage id, text), `queries.<split>.tsv` (query id, text) and
`qrels.<split>.tsv` (query id, 0, passage id, score) without headers, each optionally compressed.
Texts are not repaired; some of the collection are known to be UTF-8 encoded twice.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.sources.pairs import SourcePair
from data_pipeline.sources.qrels import Text, comparable_id, find_qrels, join, read_judgements
from data_pipeline.sources.tables import find_file, read_table


def read(
    path: str | Path,
    *,
    dropped: Counter[str] | None = None,
    split: str = "train",
    min_score: int = 1,
    passages_only: bool = False,
) -> Iterator[SourcePair]:
    """As `beir.read`; splits have the names in the files: "train", "dev", "dev.small"."""
    passages = _texts(find_file(path, "collection.tsv"))
    if passages_only:
        yield from (SourcePair(passage.id, "", passage.text) for passage in passages)
        return
    qrels = find_qrels(path, f"qrels.{split}")
    rows = read_judgements(qrels, headerless=(4,))
    queries = _texts(find_file(path, f"queries.{split}.tsv"))
    yield from join(qrels[0], rows, queries, passages, min_score=min_score, dropped=dropped)


def _texts(file: Path) -> Iterator[Text]:
    for row in read_table(file, ("id", "text")):
        yield Text(row.where, comparable_id(row.values["id"]), row.values["text"].strip())
