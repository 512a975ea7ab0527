"""The cards of a page: a query with two rankings of passages, side by side."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from inf_jax.inspection.changes import RankChange
from inf_jax.inspection.rankings import Ranking
from inf_jax.inspection.words import Parts, marked

_SHOWN = 5  # passages of a ranking
_BESIDES = 3  # interesting ones that are not among those
_VISIBLE, _MOST = 280, 4000  # characters of a passage: at once, and at all


@dataclasses.dataclass(frozen=True)
class Passage:
    """A passage of a ranking: its place here and in the other, its score, "" if not known, what it
    is to the query, and its text, of which `more` is hidden at first."""

    place: str
    elsewhere: str
    score: str
    label: str
    main: bool
    text: str
    more: str


@dataclasses.dataclass(frozen=True)
class CardSide:
    """One of the two rankings: an instruction in parts, and passages."""

    instruction: Parts
    passages: Sequence[Passage]


@dataclasses.dataclass(frozen=True)
class Card:
    """A query whose ranks changed; `instruction` is the first side's."""

    query: str
    instruction: str
    task: str
    ids: Sequence[str]
    document: str
    places: tuple[str, str]
    sides: tuple[CardSide, CardSide]
    same: bool  # whether both have one instruction


@dataclasses.dataclass(frozen=True)
class TaskTexts:
    """What the cards show of a task.

    Attributes:
      queries: query id -> (query, instruction).
      corpus: document id -> text.
      label: what a document is to a query, of their ids.
    """

    queries: Mapping[str, tuple[str, str]]
    corpus: Mapping[str, str]
    label: Callable[[str, str], str]


def card_of(change: RankChange, texts: TaskTexts, before: Ranking, after: Ranking) -> Card:
    """The card of a change.

    Args:
      before, after: the rankings of its two queries.
    """
    (query, first), (_, second) = (texts.queries[qid] for qid in change.queries)
    parts = marked(first, second)
    sides = (
        CardSide(parts[0], _passages(change, change.queries[0], texts, before, after)),
        CardSide(parts[1], _passages(change, change.queries[1], texts, after, before)),
    )
    return Card(
        query=query,
        instruction=first,
        task=change.task,
        ids=list(dict.fromkeys(change.queries)),
        document=change.document,
        places=(before.place(change.document), after.place(change.document)),
        sides=sides,
        same=first == second,
    )


def _passages(
    change: RankChange, qid: str, texts: TaskTexts, here: Ranking, there: Ranking
) -> list[Passage]:
    """The first of a ranking, and the interesting ones behind them."""
    shown = list(here.first)[:_SHOWN]
    rest = sorted((d for d in here.ranks if d not in shown), key=lambda d: (here.ranks[d], d))
    rest = [d for d in rest if d in texts.corpus][:_BESIDES]
    if change.document not in (*shown, *rest) and change.document in texts.corpus:
        rest[_BESIDES - 1 :] = [change.document]
    found = []
    for document in (*shown, *rest):
        text = texts.corpus[document].strip()
        cut = len(text)
        if cut > _VISIBLE + 40:  # at a space, not for a few letters
            cut = max(text.rfind(" ", 0, _VISIBLE), _VISIBLE // 2)
        more = text[cut:_MOST] + (" […]" if len(text) > _MOST else "")
        score = here.first.get(document)
        found.append(
            Passage(
                place=here.place(document),
                elsewhere=there.place(document),
                score="" if score is None else f"{score:.3f}",
                label=texts.label(qid, document),
                main=document == change.document,
                text=text[:cut],
                more=more,
            )
        )
    return found
