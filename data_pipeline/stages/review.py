"""A human's review, as the audit page exports it, applied to the items it is of."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from data_pipeline.items import Fingerprint, Item, example_hash
from inf_jax.core.errors import UserError

STAGE = "review"
OVERRIDDEN = ("judge", "judge_2", "score")  # stages whose drop is an opinion; the others' are facts
_SHOWN = 5


class Decision(BaseModel):
    """What was decided on one example.

    Attributes:
      verdict: None where there is a note alone.
      note: free text.
      example: `items.example_hash` of what was seen; "" in a review not made by the page.
    """

    model_config = ConfigDict(extra="forbid")
    verdict: Literal["accept", "reject"] | None
    note: str = ""
    example: str = ""


class Review(BaseModel):
    """The contents of `review.json`.

    Attributes:
      corpus: `items.Fingerprint` of the corpus that was reviewed.
      decisions: by id.
    """

    model_config = ConfigDict(extra="forbid")
    corpus: str
    decisions: dict[str, Decision]


def read_review(path: str | Path) -> Review:
    """The review in a file.

    Raises:
      UserError: no such file, or it is no review: names the entry.
    """
    try:
        values = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"cannot read the review {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(
            f"{path} is no JSON ({error}); export the decisions from the audit page again"
        ) from error
    try:
        return Review.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = " / ".join(map(str, first["loc"])) or "the whole"
        raise UserError(
            f"{path}: {where}: {first['msg']}; correct it, or export the decisions from the audit "
            "page again"
        ) from error


def apply_review(
    items: Iterable[Item], review: Review, *, accept_overrides: bool = False
) -> Iterator[Item]:
    """The items with the human's word on them.

    A rejected one is dropped, `review:rejected`. An accepted one stays as it is; with
    `accept_overrides` it comes back where nothing but a judge or the score spoke against it.
    The verdict is kept in the item's provenance.

    Whether the review fits is known at the end: a caller writes the items to a file that appears
    only when all have come.

    Args:
      items: all of the corpus, in their order.
      review: of this corpus. One of a smaller corpus that has grown since fits too, as long as all
        its examples are in it unchanged.
      accept_overrides: see above.

    Raises:
      UserError: the review is of another corpus, or of ids that are not there.
    """
    waiting, changed, corpus = dict(review.decisions), [], Fingerprint()
    for item in items:
        corpus.add(item)
        decision = waiting.pop(item.id, None)
        if decision:
            if decision.example and decision.example != example_hash(item):
                changed.append(item.id)
            elif decision.verdict:
                _decide(item, decision, accept_overrides)
        yield item
    _check(review, str(corpus), changed, list(waiting))


def _decide(item: Item, decision: Decision, accept_overrides: bool) -> None:
    made = {"verdict": decision.verdict, "note": decision.note}
    if decision.verdict == "reject":
        item.drop(STAGE, "rejected")
    elif accept_overrides and item.example and item.reasons and _all_opinions(item.reasons):
        made["overrides"] = ", ".join(item.reasons)
        item.reasons = []
    item.provenance[STAGE] = made


def _all_opinions(reasons: list[str]) -> bool:
    return all(reason.partition(":")[0] in OVERRIDDEN for reason in reasons)


def _check(review: Review, corpus: str, changed: list[str], unknown: list[str]) -> None:
    if changed:
        raise UserError(
            f"the review is of other examples: since it was made, {_some(changed)} have changed; "
            "review the new audit page"
        )
    unsure = any(not decision.example for decision in review.decisions.values())
    if review.corpus != corpus and (unsure or len(unknown) == len(review.decisions)):
        raise UserError(
            f"the review is of another corpus ({review.corpus}, this is {corpus}); review this "
            "corpus' own audit page"
        )
    if unknown:
        raise UserError(
            f"the review decides on pairs that are not in this corpus: {_some(unknown)}; remove "
            "them from the review, or give the corpus that it is of"
        )


def _some(ids: list[str]) -> str:
    more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    return ", ".join(ids[:_SHOWN]) + more
