"""Any jsonl, jsonl.gz, parquet or JSON array file, by the names of its fields."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.sources.files import Row, id_field, read_rows, text_field
from data_pipeline.sources.pairs import SourcePair, titled
from inf_jax.core.errors import UserError

_PARTS = ("id", "query", "passage", "title")
_ABSENT = object()


def read(
    path: str | Path,
    *,
    fields: Mapping[str, str | Sequence[str]],
    dropped: Counter[str] | None = None,
) -> Iterator[SourcePair]:
    """One pair a row, in the file's order; one for each text where the passage is a list of texts.

    Args:
      path: a file, or a directory of jsonl and parquet files.
      fields: "passage", and if there are such, "query", "id", "title" -> the field's name, or
        several names, of which the first that a row has is taken. "a.b" is field b of the object
        a. Without "query", the pairs have passages only. Without "id", it is `<file name>:<line or
        row number>`. The passages of a list get `:0`, `:1`, ... behind their id.
      dropped: counts here the rows whose query is empty.

    Raises:
      UserError: `fields` names no passage or an unknown part, a row lacks a field, or it holds no
        text; as `read_rows` besides.
    """
    names = {part: (n,) if isinstance(n, str) else tuple(n) for part, n in fields.items()}
    if unknown := [part for part in names if part not in _PARTS]:
        raise UserError(f"fields: no part {unknown[0]!r}; name the fields of {', '.join(_PARTS)}")
    if not names.get("passage"):
        raise UserError("fields: no field is named for 'passage'; add {'passage': '<its name>'}")
    for row in read_rows(path):
        found = {part: _found(row, *alternatives) for part, alternatives in names.items()}
        query = text_field(*found["query"]) if "query" in found else ""
        if "query" in found and not query:  # an item without a query would have one generated
            if dropped is not None:
                dropped["empty query"] += 1
            continue
        title = text_field(*found["title"]) if "title" in found else ""
        id = id_field(*found["id"]) if "id" in found else Path(row.where).name
        for suffix, passage in _texts(*found["passage"]):
            yield SourcePair(id + suffix, query, titled(title, passage))


def _found(row: Row, *names: str) -> tuple[Row, str]:
    """A row with the first of the fields that is there, under its name; and that name."""
    for name in names:
        value = _value(row.values, name)
        if value is not _ABSENT:
            return Row(row.where, {name: value}), name
    return row, " or ".join(names)  # text_field says what is there instead


def _value(values: Mapping[str, Any], name: str) -> Any:
    if name in values:
        return values[name]
    first, _, rest = name.partition(".")
    inner = values.get(first)
    return _value(inner, rest) if rest and isinstance(inner, Mapping) else _ABSENT


def _texts(row: Row, name: str) -> Iterator[tuple[str, str]]:
    value = row.values.get(name)
    if not isinstance(value, list):
        yield "", text_field(row, name)
        return
    for number, text in enumerate(value):
        part = f"{name}[{number}]"
        yield f":{number}", text_field(Row(row.where, {part: text}), part)
