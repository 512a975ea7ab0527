"""Looks up the negatives that a file names by the ids of queries and passages.

The lists of ids are held in memory, the texts are in a temporary database.
"""

import itertools
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from data_pipeline.sources.files import Row, file_type, id_field, lines_of, read_rows
from data_pipeline.sources.qrels import JudgedPairs, Text, comparable_id
from data_pipeline.sources.tables import read_table, wrong_columns
from data_pipeline.sources.training.formats import numbered
from data_pipeline.sources.training.scores import teacher_scores
from inf_jax.core.errors import UserError

_QUERY = ("query_id", "qid", "query")
_POSITIVE = ("positive_id", "pos_id", "positive")
_NEGATIVE = ("negative_id", "neg_id", "negative", "negative_id_*", "neg_id_*", "negative_*")
_MARGIN = ("score", "scores", "margin", "margins", "label")
_TRIPLE = ("query", "relevant passage", "other")  # columns of a table
_TREC = ("query", "Q0", "passage", "rank", "score", "tag")
_TEACHER = "ce-score"  # of the cross-encoder of msmarco-hard-negatives
_LOOKED_AT = 10_000  # lines of a table, for what it is
_RESERVE = 2  # times the limit are held of a list: others take the place of what rules drop


class _Mined(NamedTuple):
    """One row: negatives of one of a query's relevant passages or of all ("")."""

    where: str
    query: str
    positive: str
    negatives: list[str]
    margins: tuple[float, ...] = ()  # score of the passage minus that of each negative, or ()


def lookup(
    path: str | Path,
    passages: Iterable[Text],
    *,
    judged: JudgedPairs,
    most: int,
    noted: Counter[str] | None = None,
) -> Callable[[str, str], tuple[tuple[str, ...], tuple[float, ...]]]:
    """Returns a function from the ids of a query and a relevant passage to its negatives and scores
    as of `SourcePair`; "" for a negative without passage.

    Args:
      path: one of
        - a table of the ids of query, relevant passage and other passage, as MS MARCO's
          qidpidtriples, perhaps with the margin, as GPL's gpl-training-data;
        - a run: query, passage and rank with tabs, as MS MARCO's, or TREC's six columns;
        - rows with query_id, positive_id, negative_id (or negative_id_1, ...) and optionally score,
          the margin, as sentence-transformers' msmarco sets of ids;
        - rows with qid, pos, neg, ids by system, as its msmarco-hard-negatives; of limited lists
          systems take turns. A margin is the difference of "ce-score" where ids have one.
      passages: all.
      judged: the judgements, whose relevant passages are no negatives.
      most: negatives of a pair that will be kept; more are given, 0 for all.
      noted: incremented by reason for rows and negatives that are left out.

    Raises:
      UserError: the file is missing or damaged, or names no passage that there is; most rows name
        pairs that are not judged; or some of a pair's rows have scores and others none.
    """
    noted = Counter() if noted is None else noted
    found: dict[tuple[str, str], tuple[list[str], list[float]]] = {}
    interned: dict[str, str] = {}
    rows: Counter[bool] = Counter()  # that name a pair of a judged query: is it judged?
    for mined in _read(Path(path)):
        known = judged.get(mined.query)
        if known is None:
            noted["rows of --negatives whose query is not judged"] += 1
            continue
        if mined.positive:
            rows[mined.positive in known] += 1
            if not known.get(mined.positive):
                noted["rows of --negatives whose passage is not judged relevant"] += 1
                continue
        if not mined.negatives:
            noted["rows of --negatives without a negative"] += 1
            continue
        ids, margins = found.setdefault((mined.query, mined.positive), ([], []))
        if ids and bool(margins) != bool(mined.margins):
            raise UserError(
                f"{mined.where}: {'has a' if mined.margins else 'has no'} score, unlike earlier "
                "rows of this query and passage; give all a score or none"
            )
        for number, id in enumerate(mined.negatives):
            if known.get(id):
                noted["negatives that are judged relevant"] += 1
            elif not most or len(ids) < _RESERVE * most:
                ids.append(interned.setdefault(id, id))
                margins += mined.margins[number : number + 1]
    if rows[False] > rows[True]:
        raise UserError(
            f"{path}: {rows[False]:,} of {rows.total():,} rows on judged queries name a relevant "
            "passage that is not judged for the query; give a table of query, relevant and other "
            "passage of these judgements, or a run: query, passage and rank (1, 2, ... in each "
            "query), or TREC's six columns"
        )
    texts = _texts_of(passages, interned)
    if interned and not texts.execute("SELECT 1 FROM passages LIMIT 1").fetchone():
        raise UserError(f"{path}: none of its negatives is among the passages; check its ids")

    def text(id: str) -> str:
        row = texts.execute("SELECT text FROM passages WHERE id = ?", (id,)).fetchone()
        return row[0] if row else ""

    def negatives(query: str, positive: str) -> tuple[tuple[str, ...], tuple[float, ...]]:
        ids, margins = found.get((query, positive)) or found.get((query, "")) or ([], [])
        scores = (0.0, *(-margin for margin in margins)) if margins else ()
        return tuple(map(text, ids)), scores

    return negatives


def _texts_of(passages: Iterable[Text], ids: Mapping[str, str]) -> sqlite3.Connection:
    texts = sqlite3.connect("")  # a temporary file
    texts.execute("PRAGMA journal_mode = OFF")
    texts.execute("CREATE TABLE passages (id TEXT PRIMARY KEY, text TEXT) WITHOUT ROWID")
    if ids:
        rows = ((passage.id, passage.text) for passage in passages if passage.id in ids)
        texts.executemany("INSERT OR IGNORE INTO passages VALUES (?, ?)", rows)
    return texts


def _read(path: Path) -> Iterator[_Mined]:
    if file_type(path) in (".tsv", ".txt", ".trec", ".run"):
        yield from _read_table(path)
        return
    for row in read_rows(path):
        row = numbered(row)
        query = comparable_id(id_field(row, *_QUERY))
        if any(name in row.values for name in _NEGATIVE):
            yield _triple(row, query)
        else:
            yield from _by_system(row, query)


def _triple(row: Row, query: str) -> _Mined:
    """A row with ids of a relevant passage and of one negative or several."""
    name = next(name for name in _NEGATIVE if name in row.values)
    value: Any = row.values[name]
    values = value if isinstance(value, list) else [value]
    if name.endswith("*"):  # a parquet file has nulls where a row has fewer
        values = [each for each in values if each is not None]
    negatives = [*_ids(row, name, values)]
    scored = [name for name in _MARGIN if row.values.get(name) is not None]
    if len(scored) > 1:
        raise UserError(
            f"{row.where}: has {' and '.join(scored)}; remove all but the field of the margins"
        )
    parts = {}
    if scored:
        value = row.values[scored[0]]
        whole = isinstance(value, list) and len(value) == 1 + len(negatives)
        parts = {"scores" if whole else "margins": (row, scored[0])}
    scores = teacher_scores(parts, (0, 1), len(negatives))
    margins = tuple(scores[0] - score for score in scores[1:])
    return _Mined(row.where, query, comparable_id(id_field(row, *_POSITIVE)), negatives, margins)


def _by_system(row: Row, query: str) -> Iterator[_Mined]:
    """A row with lists of ids; one for each passage whose teacher's score there is."""
    if "neg" not in row.values:
        raise UserError(
            f"{row.where}: no negative_id, and no list of ids in 'neg'; the row has: "
            f"{', '.join(row.values) or 'no fields'}"
        )
    groups: Any = row.values["neg"]
    lists = [*groups.values()] if isinstance(groups, Mapping) else [groups]
    if wrong := [each for each in lists if not isinstance(each, list | None)]:
        raise UserError(
            f"{row.where}: field 'neg' holds {wrong[0]!r:.40}, expected a list of ids, or one for "
            "each system"
        )
    turns = itertools.zip_longest(*(each or [] for each in lists))
    entries = [each for turn in turns for each in turn if each is not None]
    chosen = dict(zip(_ids(row, "neg", entries), entries, strict=True))
    positives = row.values.get("pos")
    positives = positives if isinstance(positives, list) else []
    scored = [isinstance(each, Mapping) and _TEACHER in each for each in chosen.values()]
    if not any(scored) or not all(isinstance(p, Mapping) and _TEACHER in p for p in positives):
        yield _Mined(row.where, query, "", [*chosen])
        return
    others = [each.get(_TEACHER) if isinstance(each, Mapping) else None for each in chosen.values()]
    for id, positive in zip(_ids(row, "pos", positives), positives, strict=True):
        own = Row(row.where, {_TEACHER: [positive[_TEACHER], *others]})
        scores = teacher_scores({"scores": (own, _TEACHER)}, (0, 1), len(chosen))
        margins = tuple(scores[0] - score for score in scores[1:])
        yield _Mined(row.where, query, id, [*chosen], margins)


def _ids(row: Row, name: str, values: list) -> Iterator[str]:
    """The ids in a list of ids or of objects with a "pid"."""
    for number, value in enumerate(values):
        id = value.get("pid") if isinstance(value, Mapping) else value
        label = f"{name}[{number}]"
        yield comparable_id(id_field(Row(row.where, {label: id}), label))


def _read_table(path: Path) -> Iterator[_Mined]:
    first = next((data for _, data in lines_of(path)), b"")
    if len(first.split()) == len(_TREC):
        for where, data in lines_of(path):
            cells = data.decode(errors="replace").split()
            if len(cells) != len(_TREC):
                raise wrong_columns(where, len(cells), _TREC)
            yield _Mined(where, comparable_id(cells[0]), "", [comparable_id(cells[2])])
        return
    several = first.count(b"\t") >= len(_TRIPLE)
    if _counts_ranks(path):
        columns = ("query", "passage", "rank", *(("score",) if several else ()))
        for row in read_table(path, columns):
            query, passage = (comparable_id(row.values[name]) for name in columns[:2])
            yield _Mined(row.where, query, "", [passage])
        return
    columns = (*_TRIPLE, "margin") if several else _TRIPLE
    for row in read_table(path, columns):
        query, positive, other = (comparable_id(row.values[name]) for name in _TRIPLE)
        parts = {"margins": (row, "margin")} if several else {}
        scores = teacher_scores(parts, (0, 1), 1)
        yield _Mined(row.where, query, positive, [other], tuple(-s for s in scores[1:]))


def _counts_ranks(path: Path) -> bool:
    """Whether the third column of a table counts each query's lines from 0 or 1, as in a run."""
    lines: Counter[bytes] = Counter()
    first = {0, 1}
    for _, data in itertools.islice(lines_of(path), _LOOKED_AT):
        query, _, *rest = (*data.split(b"\t"), b"", b"")
        if not (rank := rest[0].strip()).isdigit():
            return False
        first &= {int(rank) - lines[query]}
        if not first:
            return False
        lines[query] += 1
    return max(lines.values(), default=0) > 1
