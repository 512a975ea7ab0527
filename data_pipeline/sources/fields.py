"""Reads pairs from any jsonl, parquet or JSON array file, given its field names."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.sources.files import Row, id_field, read_rows, text_field, title_field
from data_pipeline.sources.pairs import SourcePair, titled
from data_pipeline.sources.tables import one_split
from data_pipeline.sources.training.formats import LISTS, known_fields, numbered, unread
from data_pipeline.sources.training.scores import TEACHER, labels, teacher_scores
from inf_jax.core.errors import UserError

_OPTIONAL = ("title", "instruction", "negatives", "labels", *TEACHER)  # a row may lack them
_PARTS = ("id", "query", "passage", *_OPTIONAL)
_TEXT, _TITLE = "text", "title"  # of a passage that is an object (Tevatron, DPR)
_MISSING = object()
_QUOTED_LIST = re.compile(r"\[\s*(\".*\"|'.*'|\{.*\})\s*\]", re.DOTALL)


def read(
    path: str | Path,
    *,
    fields: Mapping[str, str | Sequence[str]] | None,
    dropped: Counter[str] | None = None,
    noted: Counter[str] | None = None,
) -> Iterator[SourcePair]:
    """Yields one pair per row in file order, or one per list element if the passage is a list.

    So the rows of Tevatron (passage: positive_passages, negatives: negative_passages), DPR (query:
    question, passage: positive_ctxs, negatives: hard_negative_ctxs), FlagEmbedding (passage: pos,
    negatives: neg) and sentence-transformers (query: anchor, passage: positive, negatives:
    negative_*) are read.

    Args:
      path: a file, or a directory of jsonl and parquet files.
      fields: "passage" and optionally other parts -> the field's name, or several names, of which
        the first that a row has is used. "a.b" is field b of the object a, or of each object of the
        list a; "a_*" is a list of the fields a_1, a_2, ... A passage that is an object is its field
        "text" under its "title". None for `known_fields` of each row.
          query: without it, the pairs have passages only.
          id: without it, ids are `<file name>:<line or row number>`. The passages of a list get
            `:0`, `:1`, ... appended to their id.
          title: of the passage.
          instruction: of the query.
          negatives: passages that do not fit the query, one or a list; each passage gets all.
          labels: 1 for a passage that fits the query, 0 for a negative; those of a row without a
            passage that fits are negatives of all rows of the query.
          scores, passage_scores, negative_scores, margins: see `teacher_scores`.
      dropped: incremented for each row whose query is empty, that has no passage, or that repeats
        an earlier one with the same id.
      noted: incremented for each field of a row that is not read.

    Raises:
      UserError: `fields` names no passage or an unknown part, a row lacks a field (but for id,
        query and passage: all rows lack it), the field holds no text or number, different rows have
        the same id, or the directory has several splits; or as `read_rows`.
    """
    given = fields or {"passage": "passage"}
    names = {part: (n,) if isinstance(n, str) else tuple(n) for part, n in given.items()}
    if unknown := [part for part in names if part not in _PARTS]:
        raise UserError(f"fields: no part {unknown[0]!r}; name the fields of {', '.join(_PARTS)}")
    if not names.get("passage"):
        raise UserError("fields: no field is named for 'passage'; add {'passage': '<its name>'}")
    one_split(path)
    dropped = Counter() if dropped is None else dropped
    noted = Counter() if noted is None else noted
    seen: dict[str, int] = {}  # id -> hash of the pair
    wanting = [part for part in _OPTIONAL if part in names]  # a name may be a wrong one
    for row in read_rows(path):
        row = numbered(row)
        if fields is None:
            row, names = known_fields(row)
        noted.update(f"field {name} is not read" for name in unread(row, names))
        wanting = [part for part in wanting if not _has(row, names[part], null=True)]
        for pair in _pairs(row, names, dropped):
            if "id" in names:
                identity = hash(pair)
                if seen.get(pair.id) == identity:
                    dropped["repeated row"] += 1
                    continue
                if seen.setdefault(pair.id, identity) != identity:
                    raise UserError(
                        f"{row.where}: id {pair.id!r} occurs a second time with other texts; name "
                        "a field whose values are unique, or none, and rows are numbered"
                    )
            yield pair
    for part in wanting:
        raise UserError(
            f"{path}: no row has the field {' or '.join(names[part])!r}; name the field of the "
            f"pairs' {part}, or none"
        )


def _pairs(
    row: Row, names: Mapping[str, Sequence[str]], dropped: Counter[str]
) -> Iterator[SourcePair]:
    optional = [part for part in _OPTIONAL if part in names and not _has(row, names[part])]
    parts = {part: _select(row, *names[part]) for part in names if part not in optional}
    query = text_field(*parts["query"]) if "query" in parts else ""
    if "query" in parts and not query:  # for an item without a query one would be generated
        dropped["empty query"] += 1
        return
    whole, name = parts["passage"]
    passages, several = passages_in(whole, name), isinstance(whole.values.get(name), list)
    if several and not passages:
        dropped["no passage"] += 1
    instruction = text_field(*parts["instruction"]) if "instruction" in parts else ""
    found = passages_in(*parts["negatives"]) if "negatives" in parts else []
    _check_texts(passages if name in LISTS else [], whole, name)
    _check_texts(found, *parts.get("negatives", (row, "")))
    flags = labels(*parts["labels"], len(passages)) if "labels" in parts else [True] * len(passages)
    teacher = {part: parts[part] for part in TEACHER if part in parts}
    if teacher and not all(flags):
        raise UserError(
            f"{row.where}: has both labels and {' and '.join(teacher)}; name one of them"
        )
    texts = []
    for number, (title, text) in enumerate(passages):
        if "title" in parts:
            title = title_field(*_matching(*parts["title"], number, len(passages)))
        texts.append(titled(title, text))
    others = [text for text, flag in zip(texts, flags, strict=True) if not flag]
    negatives = (*others, *(titled(*each) for each in found))
    for number, (text, relevant) in enumerate(zip(texts, flags, strict=True)):
        if not relevant and any(flags):
            continue
        if several:
            id = _id(row, parts, number, len(passages))
        else:
            id = id_field(*parts["id"]) if "id" in parts else Path(row.where).name
        place = number, len(passages)
        scores = teacher_scores(teacher, place, len(negatives)) if relevant else ()
        own = negatives if relevant else ()
        yield SourcePair(id, query, text, instruction, own, scores, relevant)


def _check_texts(passages: list[tuple[str, str]], row: Row, name: str) -> None:
    """Raises UserError where a passage is a list that was written into a text."""
    for _, text in passages:
        if _QUOTED_LIST.fullmatch(text):
            raise UserError(
                f"{row.where}: field {name!r} holds the text {text!r:.40}, which looks like a "
                "list; write the file again with lists as lists, as jsonl or parquet"
            )


def passages_in(row: Row, name: str) -> list[tuple[str, str]]:
    """Title ("" for none) and text of the passage in a field, or of each in a list of passages.

    Raises:
      UserError: there is no such field, or a passage is neither a text nor an object with one.
    """
    several = isinstance(row.values.get(name), list)
    return [_passage(*each) for each in (_elements(row, name) if several else [(row, name)])]


def _has(row: Row, names: Sequence[str], *, null: bool = False) -> bool:
    """Whether a row has one of the fields; `null`: also if it is null."""
    values = (_value(row.values, name) for name in names)
    return any(value is not _MISSING and (null or value is not None) for value in values)


def _id(row: Row, parts: Mapping[str, tuple[Row, str]], number: int, count: int) -> str:
    """The id of a passage in a list: its own, or that of the row with its number."""
    if "id" not in parts:
        return f"{Path(row.where).name}:{number}"
    whole, name = parts["id"]
    id = id_field(*_matching(whole, name, number, count))
    return id if isinstance(whole.values.get(name), list) else f"{id}:{number}"


def _select(row: Row, *names: str) -> tuple[Row, str]:
    """A row reduced to the first of the fields that it has, not null if possible, and that field's
    name."""
    found = {name: v for name in names if (v := _value(row.values, name)) is not _MISSING}
    if not found:
        return row, " or ".join(names)  # text_field's error lists the fields that exist
    name = next((name for name, value in found.items() if value is not None), next(iter(found)))
    return Row(row.where, {name: found[name]}), name


def _value(values: Mapping[str, Any], name: str) -> Any:
    if name in values:
        return values[name]
    first, _, rest = name.partition(".")
    inner = values.get(first)
    if rest and first in values and inner is None:
        return None
    if rest and isinstance(inner, Mapping):
        return _value(inner, rest)
    if rest and isinstance(inner, list) and all(isinstance(each, Mapping) for each in inner):
        found = [_value(each, rest) for each in inner]
        if not found or any(value is not _MISSING for value in found):
            return [None if value is _MISSING else value for value in found]
    return _MISSING


def _elements(row: Row, name: str) -> list[tuple[Row, str]]:
    """The elements of a list, as rows of one field each."""
    labels = (f"{name}[{number}]" for number in range(len(row.values[name])))
    return [
        (Row(row.where, {label: value}), label)
        for label, value in zip(labels, row.values[name], strict=True)
    ]


def _matching(row: Row, name: str, number: int, count: int) -> tuple[Row, str]:
    """The element of a list that belongs to a passage's number; what is no list belongs to all."""
    value = row.values.get(name)
    if not isinstance(value, list):
        return row, name
    if len(value) != count:
        raise UserError(
            f"{row.where}: field {name!r} has {len(value)} elements for {count} passages; correct "
            "the row or remove it"
        )
    return _elements(row, name)[number]


def _passage(row: Row, name: str) -> tuple[str, str]:
    """Title and text of a field that holds a text or an object with these."""
    value = row.values.get(name)
    if not isinstance(value, Mapping) or _TEXT not in value:
        return "", text_field(row, name)
    inner = Row(row.where, {f"{name}.{key}": each for key, each in value.items()})
    return title_field(inner, f"{name}.{_TITLE}"), text_field(inner, f"{name}.{_TEXT}")
