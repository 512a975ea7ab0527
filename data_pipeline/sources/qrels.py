"""Relevance judgements (qrels) joined with their queries and passages.

What the layouts of BEIR and MS MARCO have in common. Judgements and the queries that they name are
held in memory; the passages, by far the most, stream by.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
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
    qrels: Iterable[Row],
    *,
    file: Path,
    queries: Iterable[Text],
    passages: Iterable[Text],
    min_score: int,
    dropped: Counter[str],
) -> Iterator[SourcePair]:
    """One pair a judgement, in the order of the passages, then of the judgements.

    Args:
      qrels: rows with the COLUMNS.
      file: where they are from, for the error.
      queries, passages: read once each, queries first.
      min_score: judgements below it give no pair.
      dropped: counts here, by reason, the judgements that give no pair.

    Raises:
      UserError: a score is no whole number, an id that is needed occurs twice, or no pair is left.
    """
    wanted: dict[str, list[str]] = {}  # passage id -> query ids; emptied once it has streamed by
    needed: dict[str, str] = {}  # one copy of each query id, however often it is judged
    count = 0
    for count, row in enumerate(qrels, 1):  # noqa: B007 (told in the error)
        if int_field(row, "score") < min_score:
            dropped[f"score under {min_score}"] += 1
            continue
        query = needed.setdefault(row.values["query-id"], row.values["query-id"])
        wanted.setdefault(row.values["corpus-id"], []).append(query)
    texts = _by_id(queries, needed)
    matched = False
    for passage in passages:
        query_ids = wanted.get(passage.id)
        if query_ids is None:
            continue
        if not query_ids:
            raise _repeated(passage)
        wanted[passage.id] = []
        for query in _unique(query_ids, dropped):
            if query not in texts:
                dropped["no such query"] += 1
            elif not texts[query]:
                dropped["empty query"] += 1
            else:
                matched = True
                yield SourcePair(f"{query}:{passage.id}", texts[query], passage.text)
    for query_ids in wanted.values():
        if query_ids:
            dropped["no such passage"] += len(_unique(query_ids, dropped))
    if not matched:
        why = ", ".join(f"{number} for {reason!r}" for reason, number in dropped.most_common(3))
        raise UserError(
            f"{file}: none of its {count} rows gives a pair"
            f"{'; dropped: ' + why if why else ''}; give the queries and passages that it is about"
        )


def _by_id(queries: Iterable[Text], needed: Collection[str]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for query in queries:
        if query.id in texts:
            raise _repeated(query)
        if query.id in needed:
            texts[query.id] = query.text
    return texts


def _repeated(text: Text) -> UserError:
    return UserError(
        f"{text.where}: id {text.id!r} occurs a second time; give each text an id of its own"
    )


def _unique(query_ids: list[str], dropped: Counter[str]) -> list[str]:
    unique = list(dict.fromkeys(query_ids))
    if len(unique) < len(query_ids):
        dropped["repeated qrel"] += len(query_ids) - len(unique)
    return unique
