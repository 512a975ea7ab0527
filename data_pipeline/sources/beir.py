"""The layout of BEIR (arXiv 2104.08663), in which most public retrieval sets can be had.

A directory with `corpus.jsonl` (_id, title, text), `queries.jsonl` (_id, text) and
`qrels/<split>.tsv` (header query-id, corpus-id, score); each may be a .gz.
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
    """One pair a judgement, in the corpus' order; the id is `<query id>:<passage id>`.

    Args:
      path: the directory.
      dropped: counts here, by reason, the judgements that give no pair.
      split: which qrels.
      min_score: judgements below it give no pair.
      passages_only: one pair a passage instead, under its id and without a query; queries and
        qrels are not read.

    Raises:
      UserError: a file is missing or damaged, has another header or a row that is none, an id
        occurs twice, or no judgement gives a pair.
    """
    passages = _texts(find_file(path, "corpus.jsonl"))
    if passages_only:
        yield from (SourcePair(passage.id, "", passage.text) for passage in passages)
        return
    qrels = find_file(path, f"qrels/{split}.tsv")
    yield from join(
        read_table(qrels, COLUMNS, header=True, quoted=True),
        file=qrels,
        queries=_texts(find_file(path, "queries.jsonl")),
        passages=passages,
        min_score=min_score,
        dropped=Counter() if dropped is None else dropped,
    )


def _texts(file: Path) -> Iterator[Text]:
    for row in read_rows(file):
        title = text_field(row, "title") if "title" in row.values else ""
        yield Text(row.where, id_field(row, "_id"), titled(title, text_field(row, "text")))
