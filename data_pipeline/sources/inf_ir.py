"""Reads examples from the released InF-IR corpus (arXiv 2505.21439) or files with its field names.

Columns other than `id` and `data.records.FIELDS` are ignored. The corpus's authors name the
positive passage `document_positive` in the release and `document` in their earlier MS MARCO set;
both names are accepted.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.sources.files import Row, read_rows, text_field
from inf_jax.core.errors import UserError
from inf_jax.data.records import FIELDS, Example

_ALIASES = {"document_positive": ("document",)}


def read(path: str | Path, *, dropped: Counter[str] | None = None) -> Iterator[Example]:
    """Yields one example per row, in file order.

    Args:
      path: a jsonl, jsonl.gz or parquet file, or a directory of them.
      dropped: unused; every row becomes an example.

    Raises:
      UserError: the file is missing, two rows have the same `id`, or as `example`.
    """
    del dropped
    ids: set[str] = set()
    for row in read_rows(path):
        result = example(row)
        if "id" in row.values:
            if result.id in ids:
                raise repeated_id(row.where, result.id)
            ids.add(result.id)
        yield result


def example(row: Row) -> Example:
    """Converts a row to an example.

    The id is the row's own (text or an integer), else `<file name>:<line or row number>`. A null or
    empty text becomes "": an absent poison, or an empty field, which `validate` reports.

    Raises:
      UserError: a field is missing or holds no text.
    """
    texts = {name: text_field(row, name, *_ALIASES.get(name, ())) for name in FIELDS}
    own = text_field(row, "id", integers=True) if "id" in row.values else ""
    return Example(id=own or Path(row.where).name, **texts)


def repeated_id(where: str, name: str) -> UserError:
    """The error for a row whose id an earlier row has."""
    return UserError(
        f"{where}: an earlier row has the id {name!r} too; make ids unique, or remove the "
        "field 'id'"
    )
