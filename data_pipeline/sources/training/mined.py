"""Looks up the negatives that a file names by the ids of queries and passages.

The lists of ids are held in memory, the texts are in a temporary database.
"""

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from data_pipeline.sources.files import Row, file_type, id_field, lines_of, read_rows
from data_pipeline.sources.qrels import Text, comparable_id
from data_pipeline.sources.tables import read_table, wrong_columns
from data_pipeline.sources.training.formats import teacher_scores
from inf_jax.core.errors import UserError

_QUERY, _POSITIVE, _NEGATIVE = (
    ("query_id", "qid"),
    ("positive_id", "pos_id"),
    ("negative_id", "neg_id"),
)
_TRIPLE, _RUN = ("query", "relevant passage", "other"), 6  # columns of a table


class _Mined(NamedTuple):
    """One query's negatives, of one of its relevant passages or of all ("")."""

    query: str
    positive: str
    negatives: list[str]
    margins: tuple[float, ...]  # score of the passage minus that of each negative, or ()


def lookup(
    path: str | Path, passages: Iterable[Text], *, most: int
) -> Callable[[str, str], tuple[tuple[str, ...], tuple[float, ...]]]:
    """Returns a function from the ids of a query and a relevant passage to its negatives and scores
    as of `SourcePair`; "" for a negative without passage.

    Args:
      path: one of
        - a table of the ids of query, relevant passage and other passage, as MS MARCO's
          qidpidtriples, perhaps with the margin, as GPL's gpl-training-data;
        - a run of TREC, with six columns: query, Q0, passage, rank, score, tag;
        - rows with query_id, positive_id, negative_id and optionally score, the margin;
        - rows with qid, pos, neg, ids by system, as the msmarco-hard-negatives of
          sentence-transformers.
      passages: all.
      most: negatives held for a pair, the first ones; 0 for all.

    Raises:
      UserError: the file is missing or damaged, or names no passage that there is.
    """
    found: dict[tuple[str, str], tuple[list[str], list[float]]] = {}
    interned: dict[str, str] = {}
    for mined in _read(Path(path)):
        ids, scores = found.setdefault((mined.query, mined.positive), ([], []))
        room = most - len(ids) if most else len(mined.negatives)
        ids += [interned.setdefault(id, id) for id in mined.negatives[: max(room, 0)]]
        scores += mined.margins[: max(room, 0)]
    texts = sqlite3.connect("")  # a temporary file
    texts.execute("PRAGMA journal_mode = OFF")
    texts.execute("CREATE TABLE passages (id TEXT PRIMARY KEY, text TEXT) WITHOUT ROWID")
    rows = ((passage.id, passage.text) for passage in passages if passage.id in interned)
    texts.executemany("INSERT OR IGNORE INTO passages VALUES (?, ?)", rows)
    if not texts.execute("SELECT 1 FROM passages LIMIT 1").fetchone():
        raise UserError(f"{path}: none of its negatives is among the passages; check its ids")

    def text(id: str) -> str:
        row = texts.execute("SELECT text FROM passages WHERE id = ?", (id,)).fetchone()
        return row[0] if row else ""

    def negatives(query: str, positive: str) -> tuple[tuple[str, ...], tuple[float, ...]]:
        ids, margins = found.get((query, positive)) or found.get((query, "")) or ([], [])
        others = [n for n, id in enumerate(ids) if id != positive]
        scores = (0.0, *(-margins[n] for n in others)) if margins else ()
        return tuple(text(ids[n]) for n in others), scores

    return negatives


def _read(path: Path) -> Iterator[_Mined]:
    if file_type(path) in (".tsv", ".txt", ".trec", ".run"):
        yield from _read_table(path)
        return
    for row in read_rows(path):
        query = comparable_id(id_field(row, *_QUERY))
        if any(name in row.values for name in _NEGATIVE):
            positive, negative = (comparable_id(id_field(row, *n)) for n in (_POSITIVE, _NEGATIVE))
            scored = row.values.get("score") is not None
            parts = {"margins": (row, "score")} if scored else {}
            margins = tuple(-score for score in teacher_scores(parts, (0, 1), 1)[1:])
            yield _Mined(query, positive, [negative], margins)
        else:
            yield _Mined(query, "", list(dict.fromkeys(_ids(row))), ())


def _read_table(path: Path) -> Iterator[_Mined]:
    first = next((data for _, data in lines_of(path)), b"")
    if len(first.split()) == _RUN:
        for where, data in lines_of(path):
            cells = data.decode(errors="replace").split()
            if len(cells) != _RUN:
                raise wrong_columns(
                    where, len(cells), ("query", "Q0", "passage", "rank", "score", "tag")
                )
            yield _Mined(comparable_id(cells[0]), "", [comparable_id(cells[2])], ())
        return
    columns = _TRIPLE if first.count(b"\t") < len(_TRIPLE) else (*_TRIPLE, "margin")
    for row in read_table(path, columns):
        query, positive, other = (comparable_id(row.values[name]) for name in _TRIPLE)
        yield _Mined(query, positive, [other], _margin(row))


def _margin(row: Row) -> tuple[float, ...]:
    """The number in the column "margin", if there is one."""
    if "margin" not in row.values:
        return ()
    try:
        number: Any = float(row.values["margin"])
    except ValueError:
        number = row.values["margin"]
    scores = teacher_scores({"margins": (Row(row.where, {"margin": number}), "margin")}, (0, 1), 1)
    return (-scores[1],)


def _ids(row: Row) -> Iterator[str]:
    """The ids of a field "neg", lists of them by system in turn."""
    groups: Any = row.values.get("neg")
    lists = [*groups.values()] if isinstance(groups, Mapping) else [groups]
    for each in lists:
        if each is None:
            continue
        if not isinstance(each, list):
            raise UserError(
                f"{row.where}: no negative_id, and no list of ids in 'neg'; the row has: "
                f"{', '.join(row.values) or 'no fields'}"
            )
        for number, id in enumerate(each):
            id = id.get("pid") if isinstance(id, Mapping) else id
            name = f"neg[{number}]"
            yield comparable_id(id_field(Row(row.where, {name: id}), name))
