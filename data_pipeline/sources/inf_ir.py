"""The released InF-IR corpus (arXiv 2505.21439), or any file with its field names.

Columns beyond `id` and those of `data.records.FIELDS` are ignored. The corpus' authors name the
positive passage `document_positive` in the release and `document` in their earlier MS MARCO set;
both are read.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.sources.files import Row, read_rows, text_field
from inf_jax.core.errors import UserError
from inf_jax.data.records import FIELDS, Example

_OTHER_NAMES = {"document_positive": ("document",)}


def read(path: str | Path, *, dropped: Counter[str] | None = None) -> Iterator[Example]:
    """One example a row, in the file's order.

    Args:
      path: a jsonl, jsonl.gz or parquet file, or a directory of them.
      dropped: not touched; every row becomes an example.

    Raises:
      UserError: no such file; as `example`; two rows have the same `id`.
    """
    del dropped
    ids: set[str] = set()
    for row in read_rows(path):
        found = example(row)
        if "id" in row.values:
            if found.id in ids:
                raise repeated_id(row.where, found.id)
            ids.add(found.id)
        yield found


def example(row: Row) -> Example:
    """The example of one row.

    Its id is the row's own (text or a whole number) or, where it has none, `<file name>:<line or
    row number>`. A null or empty text stays `""`: an absent poison, or an empty field for
    `validate` to drop.

    Raises:
      UserError: a missing field, a field that holds no text.
    """
    texts = {name: text_field(row, name, *_OTHER_NAMES.get(name, ())) for name in FIELDS}
    own = row.values.get("id")
    if isinstance(own, int) and not isinstance(own, bool):
        own = str(own)
    elif own is not None:
        own = text_field(row, "id")
    return Example(id=own or Path(row.where).name, **texts)


def repeated_id(where: str, name: str) -> UserError:
    """What to raise at a row whose id an earlier row has."""
    return UserError(
        f"{where}: an earlier row has the id {name!r} too; give each row its own, or leave the "
        "field 'id' out"
    )
