"""Applies a human review, exported from the audit page, to the items of its corpus."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from data_pipeline.items import Fingerprint, Item, example_hash
from inf_jax.core.errors import UserError
from inf_jax.io.json_files import read_json

_STAGE = "review"
OVERRIDDEN = {"judge", "judge_2", "score"}  # stages whose reasons a human may override
_SHOWN = 5


class Decision(BaseModel):
    """The decision on one example."""

    model_config = ConfigDict(extra="forbid")
    verdict: Literal["accept", "reject"] | None  # None for a note without a decision
    note: str = ""
    example: str = ""  # `items.example_hash` of the one seen; "" if not from the audit page


class Review(BaseModel):
    """The contents of `review.json`."""

    model_config = ConfigDict(extra="forbid")
    corpus: str  # `items.Fingerprint`
    decisions: dict[str, Decision]  # by the item's id


def read_review(path: str | Path) -> Review:
    """Reads a review.

    Raises:
      UserError: the file cannot be read or is not a review; names the entry.
    """
    remedy = "export the decisions from the audit page again"
    try:
        return Review.model_validate(read_json(Path(path), remedy=remedy))
    except ValidationError as error:  # a kind of ValueError
        first = error.errors()[0]
        where = " / ".join(map(str, first["loc"])) or "top level"
        raise UserError(f"{path}: {where}: {first['msg']}; correct it, or {remedy}") from error


def apply_review(
    items: Iterable[Item], review: Review, *, accept_overrides: bool = False
) -> Iterator[Item]:
    """Yields the items with the review's decisions applied.

    A rejected item is dropped, `review:rejected`. An accepted one is unchanged; with
    `accept_overrides` it is kept if only judges or the score dropped it. The verdict goes into the
    item's provenance.

    Errors are raised after the last item: callers write to a file that appears only at the end.

    Args:
      items: the whole corpus, in order.
      review: of this corpus, or of a smaller one whose examples it contains unchanged.
      accept_overrides: see above.

    Raises:
      UserError: the review is of another corpus, or decides on unknown ids.
    """
    pending, changed, corpus = dict(review.decisions), [], Fingerprint()
    for item in items:
        corpus.add(item)
        if decision := pending.pop(item.id, None):
            if decision.example and decision.example != example_hash(item):
                changed.append(item.id)
            elif decision.verdict:
                _decide(item, decision, accept_overrides)
        yield item
    _check(review, str(corpus), changed, list(pending))


def _decide(item: Item, decision: Decision, accept_overrides: bool) -> None:
    made = {"verdict": decision.verdict, "note": decision.note}
    dropped_by = {reason.partition(":")[0] for reason in item.reasons}
    if decision.verdict == "reject":
        item.drop(_STAGE, "rejected")
    elif accept_overrides and item.example and dropped_by and dropped_by <= OVERRIDDEN:
        made["overrides"] = ", ".join(item.reasons)
        item.reasons = []
    item.provenance[_STAGE] = made


def _check(review: Review, corpus: str, changed: list[str], unknown: list[str]) -> None:
    if changed:
        outdated = f"the review is outdated: {_some(changed)} have changed since"
        raise UserError(f"{outdated}; review the new audit page")
    unverified = any(not decision.example for decision in review.decisions.values())
    if review.corpus != corpus and (unverified or len(unknown) == len(review.decisions)):
        raise UserError(
            f"the review is of another corpus ({review.corpus}, this is {corpus}); review this "
            "corpus' audit page"
        )
    if unknown:
        raise UserError(
            f"the review decides on pairs that are not in this corpus: {_some(unknown)}; remove "
            "them from the review, or use the corpus that was reviewed"
        )


def _some(ids: list[str]) -> str:
    more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    return ", ".join(ids[:_SHOWN]) + more
