"""Reads relevance judgements (qrels) and joins them with their queries and passages.

Judgements and the judged queries are held in memory; passages, by far the largest part, are
streamed.
"""

import csv
import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_pipeline.sources.files import (
    Row,
    decoded,
    file_type,
    id_field,
    lines_of,
    read_rows,
    text_field,
)
from data_pipeline.sources.pairs import SourcePair
from data_pipeline.sources.tables import find_file, wrong_columns
from inf_jax.core.errors import UserError
from inf_jax.data.records import text_hash

COLUMNS = ("query-id", "corpus-id", "score")
_TREC = (COLUMNS[0], "iteration", *COLUMNS[1:])
# a column's own name, then what others call it; compared in lower case, with "-" for "_"
_NAMES = {
    "query-id": ("query-id", "queryid", "qid", "query", "topic", "topic-id"),
    "corpus-id": ("corpus-id", "doc-id", "docid", "did", "document-id", "passage-id", "pid"),
    "score": ("score", "relevance", "rel", "label", "grade"),
}
_TABLES = (".tsv", ".txt", ".csv")
_TYPES = (*_TABLES, ".jsonl", ".parquet")
QRELS_DIRECTORIES = ("qrels", "default")  # BEIR's, and the Hub's name of what has no other
_PART = re.compile(r"-\d+-of-\d+$")  # of a split in several files
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}(\.0*)?")


# query's id -> judged passage's id -> whether it is relevant
JudgedPairs = dict[str, dict[str, bool]]


class Text(NamedTuple):
    """A query, with its instruction ("" for none), or a passage; `where` is `file:line`."""

    where: str
    id: str
    text: str
    instruction: str = ""


def find_qrels(directory: str | Path, stem: str) -> list[Path]:
    """The files of judgements: `<stem>.tsv`, or one of another of the types that are read, or the
    Hub's parquet files, `<stem>-00000-of-00001.parquet`, also in the directory `default`.

    Raises:
      UserError: as `find_file`.
    """
    try:
        return [find_file(directory, *(f"{stem}{suffix}" for suffix in _TYPES))]
    except UserError:
        folder, _, name = stem.rpartition("/")
        for place in (folder, *QRELS_DIRECTORIES[1:]) if folder else ():
            parts = sorted(
                f for f in Path(directory, place).glob("*.parquet") if _PART.sub("", f.stem) == name
            )
            if parts:
                return parts
        raise


def splits_of(directory: Path) -> set[str]:
    """The splits whose judgements BEIR's directory holds: its files' names without their types."""
    return {
        _PART.sub("", file.name[: file.name.lower().rindex(file_type(file))])
        for name in QRELS_DIRECTORIES
        for file in directory.glob(f"{name}/*")
        if file_type(file) in _TYPES and not file.name.startswith(".")
    }


def read_judgements(
    files: Iterable[Path], *, headerless: Collection[int] = (3, 4)
) -> Iterator[Row]:
    """Yields the judgements of files, with the COLUMNS as texts.

    Args:
      files: each jsonl or parquet with fields of these names (or common others, such as query_id,
        docid, relevance); or a table with commas (.csv), tabs or, if its first line has none, white
        space between the columns, which a header names or which are as `headerless` says.
      headerless: numbers of columns of a table whose first line may be a judgement: 3 for the
        COLUMNS, 4 for TREC's, with an iteration before the passage.

    Raises:
      UserError: a row or file is damaged, or lacks a column; names the row.
    """
    rows = (
        _table_rows(file, headerless) if file_type(file) in _TABLES else read_rows(file)
        for file in files
    )
    for row in itertools.chain.from_iterable(rows):
        values = {_plain(name): value for name, value in row.values.items()}
        row = Row(row.where, values)
        ids = {name: comparable_id(id_field(row, *_NAMES[name])) for name in COLUMNS[:2]}
        scores = [values[name] for name in _NAMES["score"] if name in values]
        if not scores:
            text_field(row, "score")  # raises
        yield Row(row.where, {**ids, "score": scores[0]})


def judgements(qrels: Iterable[Row], *, min_score: int) -> JudgedPairs:
    """All judgements; a passage with a score of `min_score` or more is relevant.

    Raises:
      UserError: a score is not an integer.
    """
    found: JudgedPairs = {}
    names: dict[str, str] = {}  # one string for each passage
    for row in qrels:
        query, passage = (row.values[name] for name in COLUMNS[:2])
        relevant = _score(row) >= min_score
        found.setdefault(query, {})[names.setdefault(passage, passage)] = relevant
    return found


def comparable_id(text: str) -> str:
    """An id as it is compared: with characters composed (NFC) and no white space around it."""
    text = text.strip()
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def join(
    file: Path,
    qrels: Iterable[Row],
    queries: Iterable[Text],
    passages: Iterable[Text],
    *,
    min_score: int,
    dropped: Counter[str] | None,
    negatives: Callable[[str, str], tuple[tuple[str, ...], tuple[float, ...]]] | None = None,
) -> Iterator[SourcePair]:
    """Yields one pair per judgement, in the order of the passages, then of the judgements.

    Repeated rows count once if they are identical.

    Args:
      file: the file of the judgements, for the error message.
      qrels: its rows, with the COLUMNS.
      queries, passages: read once each, queries first.
      min_score, dropped: as for `beir.read`.
      negatives: of the ids of a query and a passage: negatives and scores.

    Raises:
      UserError: a score is not an integer, a judged id occurs again with another text, a pair with
        a score on the other side of `min_score`, or there is no pair.
    """
    dropped = Counter() if dropped is None else dropped
    wanted: dict[str, list[str]] = {}  # passage id -> query ids
    needed: dict[str, str] = {}  # interned query ids: one string each, however often it is judged
    rejected: dict[int, str] = {}  # hash of a pair -> where it has a low score
    count = 0
    for count, row in enumerate(qrels, 1):  # noqa: B007 (used in the error)
        query_id, passage_id = (row.values[name] for name in COLUMNS[:2])
        if _score(row) < min_score:
            dropped[f"score under {min_score}"] += 1
            rejected[hash((query_id, passage_id))] = row.where
            continue
        query_id = needed.setdefault(query_id, query_id)
        wanted.setdefault(passage_id, []).append(query_id)
    texts: dict[str, tuple[str, str]] = {}
    for query in queries:
        both = query.text, query.instruction
        if query.id in needed and texts.setdefault(query.id, both) != both:
            raise _repeated(query)
    matched = False
    read: dict[str, int] = {}  # judged passage's id -> hash of its text
    for passage in passages:
        query_ids = wanted.get(passage.id)
        if query_ids is None:
            continue
        identity = text_hash(passage.text)
        if read.setdefault(passage.id, identity) != identity:
            raise _repeated(passage)
        wanted[passage.id] = []  # for an identical passage later
        for id in _unique(query_ids, dropped):
            if where := rejected.get(hash((id, passage.id))):
                raise UserError(
                    f"{where}: passage {passage.id!r} has a score under {min_score} for query "
                    f"{id!r} here and another in a further row; remove one of them"
                )
            text, instruction = texts.get(id, ("", ""))
            if text:
                matched = True
                others, scores = negatives(id, passage.id) if negatives else ((), ())
                pair_id = f"{id}:{passage.id}"
                yield SourcePair(pair_id, text, passage.text, instruction, others, scores)
            else:
                dropped["empty query" if id in texts else "no such query"] += 1
    for query_ids in filter(None, wanted.values()):
        dropped["no such passage"] += len(_unique(query_ids, dropped))
    if not matched:
        why = ", ".join(f"{number} for {reason!r}" for reason, number in dropped.most_common(3))
        raise UserError(
            f"{file}: none of its {count} rows yields a pair"
            f"{'; dropped: ' + why if why else ''}; give the queries and passages that it refers to"
        )


def _table_rows(file: Path, headerless: Collection[int]) -> Iterator[Row]:
    columns: Sequence[str] = ()
    separator = "," if file_type(file) == ".csv" else None
    for where, data in lines_of(file):
        text = decoded(data, where).rstrip()
        if not columns and not separator and "\t" in text:
            separator = "\t"
        cells = _cells(text, separator, where) if separator else text.split()
        if not columns:
            columns, is_header = _columns(where, cells, headerless)
            if is_header:
                continue
        if len(cells) != len(columns):
            raise wrong_columns(where, len(cells), columns)
        yield Row(where, dict(zip(columns, cells, strict=True)))


def _cells(text: str, separator: str, where: str) -> list[str]:
    """The separated cells; one may be in double quotes, as Python's csv module writes it."""
    if '"' not in text:
        return text.split(separator)
    try:
        return next(csv.reader([text], delimiter=separator))
    except csv.Error as error:
        raise UserError(f"{where}: {error}; correct the line or remove it") from error


def _columns(
    where: str, cells: Sequence[str], headerless: Collection[int]
) -> tuple[Sequence[str], bool]:
    """The columns of a table whose first line has these cells, and whether it is a header."""
    names = [_plain(cell) for cell in cells]
    if all(any(name in names for name in known) for known in _NAMES.values()):
        return names, True
    expected = _TREC if 4 in headerless and (len(cells) == 4 or 3 not in headerless) else COLUMNS
    if len(cells) != len(expected):
        raise wrong_columns(where, len(cells), expected)
    if any(letter.isdecimal() for letter in cells[-1]) or len(cells) == 4:
        return expected, False
    raise UserError(
        f"{where}: the header must name the columns {', '.join(COLUMNS)}, but is "
        f"{' '.join(cells)!r:.80}; insert a header before the first row"
    )


def _plain(name: str) -> str:
    return name.strip().lower().replace("_", "-")


def _score(row: Row) -> int:
    """The integer that a judgement's score states, also as 1.0; UserError if it is none."""
    value: Any = row.values["score"]
    if type(value) is int:
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and _WHOLE.fullmatch(value.strip()):
        return int(value.strip().partition(".")[0])
    raise UserError(
        f"{row.where}: score is {value!r:.40}, expected an integer; correct the row or remove it"
    )


def _repeated(text: Text) -> UserError:
    return UserError(
        f"{text.where}: id {text.id!r} occurs a second time with another text; give each text a "
        "unique id"
    )


def _unique(query_ids: list[str], dropped: Counter[str]) -> list[str]:
    unique = list(dict.fromkeys(query_ids))
    if len(unique) < len(query_ids):
        dropped["repeated qrel"] += len(query_ids) - len(unique)
    return unique
