"""Reads pairs from MS MARCO's passage ranking files (arXiv 1611.09268) and sets of that layout.

The directory holds `collection.tsv` (passage id, text), `queries.<split>.tsv` (query id, text) and
`qrels.<split>.tsv` (query id, 0, passage id, score) without headers, each optionally compressed.
Texts are not repaired; some of the collection are known to be UTF-8 encoded twice.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.sources.files import file_type
from data_pipeline.sources.pairs import SourcePair
from data_pipeline.sources.qrels import (
    Text,
    comparable_id,
    find_qrels,
    join,
    judgements,
    read_judgements,
)
from data_pipeline.sources.tables import find_file, read_table
from data_pipeline.sources.training import mined
from inf_jax.core.errors import UserError


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
    """As `beir.read`; splits have the names in the files: "train", "dev", "dev.small".

    Args:
      path: the directory, or a table of texts: query, passage, negative (triples.train.small.tsv),
        whose ids are `<file name>:<line>` and to which no option applies.

    Raises:
      UserError: as `beir.read`, or an option is given for a table of texts.
    """
    if Path(path).is_file() and file_type(Path(path)) in (".tsv", ".txt"):
        if negatives or passages_only or (split, min_score) != ("train", 1):
            raise UserError(
                f"{path}: is a table of texts, without judgements: --split, --dev-split, "
                "--min-score and --negatives do not apply to it; leave them out, or give the "
                "directory with the collection"
            )
        yield from _triples(Path(path))
        return
    collection = find_file(path, "collection.tsv")
    passages = _texts(collection)
    if passages_only:
        yield from (SourcePair(passage.id, "", passage.text) for passage in passages)
        return
    qrels = find_qrels(path, f"qrels.{split}")
    queries = _texts(find_file(path, f"queries.{split}.tsv"))
    options = {"min_score": min_score, "dropped": dropped}
    if negatives:
        judged = judgements(read_judgements(qrels, headerless=(4,)), min_score=min_score)
        known = {"judged": judged, "most": max_negatives, "noted": noted}
        options["negatives"] = mined.lookup(negatives, _texts(collection), **known)
        del judged, known  # memory
    rows = read_judgements(qrels, headerless=(4,))
    yield from join(qrels[0], rows, queries, passages, **options)


def _texts(file: Path) -> Iterator[Text]:
    for row in read_table(file, ("id", "text")):
        yield Text(row.where, comparable_id(row.values["id"]), row.values["text"].strip())


def _triples(path: Path) -> Iterator[SourcePair]:
    for row in read_table(path, ("query", "passage", "negative")):
        query, passage, negative = (text.strip() for text in row.values.values())
        yield SourcePair(Path(row.where).name, query, passage, negatives=(negative,))
