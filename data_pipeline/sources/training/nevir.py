"""Reads NevIR (arXiv 2305.07614): two passages that differ by a negation, and a query for each."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.sources.files import id_field, read_rows, text_field
from data_pipeline.sources.pairs import SourcePair
from data_pipeline.sources.tables import one_split

_IDS = ("id", "_id")


def read(path: str | Path, *, dropped: Counter[str] | None = None) -> Iterator[SourcePair]:
    """Yields two pairs per row: (q1, doc1) with doc2 as its negative, and (q2, doc2) with doc1.

    Args:
      path: jsonl or parquet with the fields q1, q2, doc1, doc2 and optionally id.
      dropped: incremented for each pair without a query.

    Raises:
      UserError: as `files.read_rows`, or a field is missing or holds no text.
    """
    dropped = Counter() if dropped is None else dropped
    one_split(path)
    for row in read_rows(path):
        named = any(row.values.get(name) not in (None, "") for name in _IDS)
        id = id_field(row, *_IDS) if named else Path(row.where).name
        queries = [text_field(row, f"q{n}") for n in (1, 2)]
        passages = [text_field(row, f"doc{n}") for n in (1, 2)]
        for n, query in enumerate(queries):
            if query:
                own, other = passages[n], passages[1 - n]
                yield SourcePair(f"{id}:{n + 1}", query, own, negatives=(other,))
            else:
                dropped["empty query"] += 1
