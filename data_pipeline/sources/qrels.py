"""Joins relevance judgements (qrels) with their queries and passages, for BEIR and MS MARCO.

Judgements and the judged queries are held in memory; passages, by far the largest part, are
streamed.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from data_pipeline.sources.files import Row
from data_pipeline.sources.pairs import SourcePair
from data_pipeline.sources.tables import int_field
from inf_jax.core.errors import UserError

COLUMNS = ("query-id", "corpus-id", "score")


class Text(NamedTuple):
    """A query or a passage; `where` is `file:line`."""

    where: str
    id: str
    text: str


def join(
    file: Path,
    qrels: Iterable[Row],
    queries: Iterable[Text],
    passages: Iterable[Text],
    *,
    min_score: int,
    dropped: Counter[str] | None,
) -> Iterator[SourcePair]:
    """Yields one pair per judgement, in the order of the passages, then of the judgements.

    Args:
      file: the file of the judgements, for the error message.
      qrels: its rows, with the COLUMNS.
      queries, passages: read once each, queries first.
      min_score, dropped: as for `beir.read`.

    Raises:
      UserError: a score is not an integer, a judged id occurs twice, or there is no pair.
    """
    dropped = Counter() if dropped is None else dropped
    wanted: dict[str, list[str]] = {}  # passage id -> query ids; emptied when the passage is read
    needed: dict[str, str] = {}  # interned query ids: one string each, however often it is judged
    count = 0
    for count, row in enumerate(qrels, 1):  # noqa: B007 (used in the error)
        if int_field(row, "score") < min_score:
            dropped[f"score under {min_score}"] += 1
            continue
        query_id = needed.setdefault(row.values["query-id"], row.values["query-id"])
        wanted.setdefault(row.values["corpus-id"], []).append(query_id)
    texts: dict[str, str] = {}
    for query in queries:
        if query.id in texts:
            raise _repeated(query)
        if query.id in needed:
            texts[query.id] = query.text
    matched = False
    for passage in passages:
        query_ids = wanted.get(passage.id)
        if query_ids is None:
            continue
        if not query_ids:
            raise _repeated(passage)
        wanted[passage.id] = []
        for id in _unique(query_ids, dropped):
            if texts.get(id):
                matched = True
                yield SourcePair(f"{id}:{passage.id}", texts[id], passage.text)
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


def _repeated(text: Text) -> UserError:
    return UserError(
        f"{text.where}: id {text.id!r} occurs a second time; give each text a unique id"
    )


def _unique(query_ids: list[str], dropped: Counter[str]) -> list[str]:
    unique = list(dict.fromkeys(query_ids))
    if len(unique) < len(query_ids):
        dropped["repeated qrel"] += len(query_ids) - len(unique)
    return unique
