"""The released InF-IR corpus (arXiv 2505.21439), or any file with its field names.

Columns beyond those of `inf_jax.records.FIELDS` are ignored. The corpus' authors name the positive
passage `document_positive` in the release and `document` in their earlier MS MARCO set; both are
read.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.sources.files import read_rows, text_field
from inf_jax.records import FIELDS, Example

_OTHER_NAMES = {"document_positive": ("document",)}


def read(path: str | Path, *, dropped: Counter[str] | None = None) -> Iterator[Example]:
    """One example a row, in the file's order; the id is `<file name>:<line or row number>`.

    A null or empty text stays `""`: an absent poison, or an empty field for `validate` to drop.

    Args:
      path: a jsonl, jsonl.gz or parquet file, or a directory of them.
      dropped: not touched; every row becomes an example.

    Raises:
      UserError: no such file, a damaged row, a missing field, a field that holds no text.
    """
    del dropped
    for row in read_rows(path):
        texts = {name: text_field(row, name, *_OTHER_NAMES.get(name, ())) for name in FIELDS}
        yield Example(id=Path(row.where).name, **texts)
