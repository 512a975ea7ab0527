"""Reads pairs from BEIR's directory layout (arXiv 2104.08663), common among retrieval datasets.

The directory holds `corpus.jsonl` (_id, title, text), `queries.jsonl` (_id, text, perhaps
instruction) and `qrels/<split>.tsv` (query-id, corpus-id, score), each optionally compressed.
Instead of jsonl there may be parquet, a directory of such files as on the Hub too (`corpus/`,
`queries/`); instead of tsv, all that `qrels.find_qrels` finds and `qrels.read_judgements` reads.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.sources.files import id_field, read_rows, text_field, title_field
from data_pipeline.sources.pairs import SourcePair, titled
from data_pipeline.sources.qrels import (
    Text,
    comparable_id,
    find_qrels,
    join,
    judgements,
    read_judgements,
)
from data_pipeline.sources.tables import find_file
from data_pipeline.sources.training import mined


def read(
    path: str | Path,
    *,
    dropped: Counter[str] | None = None,
    split: str = "train",
    min_score: int = 1,
    passages_only: bool = False,
    negatives: str | Path = "",
    max_negatives: int = 0,
    noted: Counter[str] | None = None,
) -> Iterator[SourcePair]:
    """Yields one pair per relevance judgement, in corpus order, with id `<query id>:<passage id>`.

    Args:
      dropped: incremented, by reason, for each judgement that yields no pair.
      split: which qrels file.
      min_score: judgements with a lower score yield no pair.
      passages_only: yield one pair per passage instead, with the passage's id and without a query;
        queries and qrels are not read.
      negatives: a file of ids, as of `training.mined.lookup`; "" for none.
      max_negatives: of a pair; 0 for all. More are given, since later rules drop some.
      noted: incremented, by reason, for rows of the negatives' file that are left out.

    Raises:
      UserError: a file is missing, empty or damaged, has an unexpected header or a malformed row,
        two rows contradict each other, or no judgement yields a pair.
    """
    corpus = find_file(path, "corpus.jsonl", "corpus.parquet", "corpus")
    passages = _texts(corpus)
    if passages_only:
        yield from (SourcePair(passage.id, "", passage.text) for passage in passages)
        return
    qrels = find_qrels(path, f"qrels/{split}")
    queries = _texts(find_file(path, "queries.jsonl", "queries.parquet", "queries"))
    options = {"min_score": min_score, "dropped": dropped}
    if negatives:
        judged = judgements(read_judgements(qrels), min_score=min_score)
        known = {"judged": judged, "most": max_negatives, "noted": noted}
        options["negatives"] = mined.lookup(negatives, _texts(corpus), **known)
        del judged, known  # memory
    rows = read_judgements(qrels)
    yield from join(qrels[0], rows, queries, passages, **options)


def _texts(file: Path) -> Iterator[Text]:
    for row in read_rows(file):
        passage = titled(title_field(row, "title"), text_field(row, "text"))
        id = comparable_id(id_field(row, "_id", "id"))
        yield Text(row.where, id, passage, title_field(row, "instruction"))
