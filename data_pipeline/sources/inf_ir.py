"""Reads examples from the released InF-IR corpus (arXiv 2505.21439) or files with its field names.

Columns other than `id` and `data.records.FIELDS` are ignored. The corpus's authors name the
positive passage `document_positive` in the release and `document` in their earlier MS MARCO set,
and queries and instructions with the suffix `_fewshot` where examples were in the prompt that wrote
them; all are accepted.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.sources.files import Row, id_field, read_rows, text_field
from data_pipeline.sources.tables import one_split
from inf_jax.core.errors import UserError
from inf_jax.data.records import FIELDS, Example

_NAMES = {
    name: (name, *(["document"] if name == "document_positive" else []), f"{name}_fewshot")
    for name in FIELDS
}
REPEATED = "repeated row"  # the reason for an identical row with the same id


def read(path: str | Path, *, dropped: Counter[str] | None = None) -> Iterator[Example]:
    """Yields one example per row, in file order.

    Args:
      path: a jsonl or parquet file, or a directory of them.
      dropped: incremented for each row that repeats an earlier one with the same id.

    Raises:
      UserError: the file is missing or empty, the directory has several splits, two different rows
        have the same id, or as `example`.
    """
    one_split(path)
    dropped = Counter() if dropped is None else dropped
    seen: dict[str, int] = {}  # all ids: a generated one may be another row's own
    for row in read_rows(path):
        result = example(row)
        identity = hash(result)
        known = seen.get(result.id)
        if known == identity:
            dropped[REPEATED] += 1
            continue
        if known is not None:
            raise repeated_id(row.where, result.id)
        seen[result.id] = identity
        yield result


def example(row: Row) -> Example:
    """Converts a row to an example.

    The id is the row's own (text or a whole number), else `<file name>:<line or row number>`. A
    null or empty text becomes "": an absent poison, or an empty field, which `validate` reports.

    Raises:
      UserError: a field is missing or holds no text.
    """
    texts = {name: text_field(row, *_NAMES[name]) for name in FIELDS}
    own = id_field(row, "id") if row.values.get("id") not in (None, "") else ""
    return Example(id=own or Path(row.where).name, **texts)


def repeated_id(where: str, name: str) -> UserError:
    """The error for a row whose id an earlier, different row has."""
    return UserError(
        f"{where}: an earlier row has the id {name!r} too, with other texts; make ids unique, or "
        "remove the field 'id'"
    )
