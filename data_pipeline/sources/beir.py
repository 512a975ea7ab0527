"""Reads pairs from BEIR's directory layout (arXiv 2104.08663), common among retrieval datasets.

The directory holds `corpus.jsonl` (_id, title, text), `queries.jsonl` (_id, text) and
`qrels/<split>.tsv` (header query-id, corpus-id, score), each optionally as .gz.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.sources.files import id_field, read_rows, text_field
from data_pipeline.sources.pairs import SourcePair, titled
from data_pipeline.sources.qrels import COLUMNS, Text, join
from data_pipeline.sources.tables import find_file, read_table


def read(
    path: str | Path,
    *,
    dropped: Counter[str] | None = None,
    split: str = "train",
    min_score: int = 1,
    passages_only: bool = False,
) -> Iterator[SourcePair]:
    """Yields one pair per relevance judgement, in corpus order, with id `<query id>:<passage id>`.

    Args:
      dropped: incremented, by reason, for each judgement that yields no pair.
      split: which qrels file.
      min_score: judgements with a lower score yield no pair.
      passages_only: yield one pair per passage instead, with the passage's id and without a query;
        queries and qrels are not read.

    Raises:
      UserError: a file is missing or damaged, has an unexpected header or a malformed row, an id
        occurs twice, or no judgement yields a pair.
    """
    passages = _texts(find_file(path, "corpus.jsonl"))
    if passages_only:
        yield from (SourcePair(passage.id, "", passage.text) for passage in passages)
        return
    qrels = find_file(path, f"qrels/{split}.tsv")
    rows = read_table(qrels, COLUMNS, header=True, quoted=True)
    queries = _texts(find_file(path, "queries.jsonl"))
    yield from join(qrels, rows, queries, passages, min_score=min_score, dropped=dropped)


def _texts(file: Path) -> Iterator[Text]:
    for row in read_rows(file):
        title = text_field(row, "title") if "title" in row.values else ""
        yield Text(row.where, id_field(row, "_id"), titled(title, text_field(row, "text")))
