"""Reads pairs from any jsonl, jsonl.gz, parquet or JSON array file, given its field names."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.sources.files import Row, id_field, read_rows, text_field
from data_pipeline.sources.pairs import SourcePair, titled
from inf_jax.core.errors import UserError

_PARTS = ("id", "query", "passage", "title")
_MISSING = object()


def read(
    path: str | Path,
    *,
    fields: Mapping[str, str | Sequence[str]],
    dropped: Counter[str] | None = None,
) -> Iterator[SourcePair]:
    """Yields one pair per row in file order, or one per list element if the passage is a list.

    Args:
      path: a file, or a directory of jsonl and parquet files.
      fields: "passage" and optionally "query", "id", "title" -> the field's name, or several names,
        of which the first that a row has is used. "a.b" is field b of the object a. Without
        "query", the pairs have passages only. Without "id", ids are `<file name>:<line or row
        number>`. The passages of a list get `:0`, `:1`, ... appended to their id.
      dropped: incremented for each row whose query is empty.

    Raises:
      UserError: `fields` names no passage or an unknown part, a row lacks a field, or the field
        holds no text; or as `read_rows`.
    """
    names = {part: (n,) if isinstance(n, str) else tuple(n) for part, n in fields.items()}
    if unknown := [part for part in names if part not in _PARTS]:
        raise UserError(f"fields: no part {unknown[0]!r}; name the fields of {', '.join(_PARTS)}")
    if not names.get("passage"):
        raise UserError("fields: no field is named for 'passage'; add {'passage': '<its name>'}")
    for row in read_rows(path):
        parts = {part: _select(row, *alternatives) for part, alternatives in names.items()}
        query = text_field(*parts["query"]) if "query" in parts else ""
        if "query" in parts and not query:  # for an item without a query one would be generated
            if dropped is not None:
                dropped["empty query"] += 1
            continue
        title = text_field(*parts["title"]) if "title" in parts else ""
        id = id_field(*parts["id"]) if "id" in parts else Path(row.where).name
        for suffix, passage in _texts(*parts["passage"]):
            yield SourcePair(id + suffix, query, titled(title, passage))


def _select(row: Row, *names: str) -> tuple[Row, str]:
    """A row reduced to the first of the fields that it has, and that field's name."""
    for name in names:
        value = _value(row.values, name)
        if value is not _MISSING:
            return Row(row.where, {name: value}), name
    return row, " or ".join(names)  # text_field's error lists the fields that exist


def _value(values: Mapping[str, Any], name: str) -> Any:
    if name in values:
        return values[name]
    first, _, rest = name.partition(".")
    inner = values.get(first)
    return _value(inner, rest) if rest and isinstance(inner, Mapping) else _MISSING


def _texts(row: Row, name: str) -> Iterator[tuple[str, str]]:
    value = row.values.get(name)
    if not isinstance(value, list):
        yield "", text_field(row, name)
        return
    for number, text in enumerate(value):
        part = f"{name}[{number}]"
        yield f":{number}", text_field(Row(row.where, {part: text}), part)
