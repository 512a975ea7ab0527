"""What goes through the triplet factory: one item a pair, from its source to its outcome.

A stage takes items and gives as many, in the same order. An item that is dropped stays in the
stream with its reasons, so that every pair has exactly one outcome at the end.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from inf_jax.core.errors import UserError
from inf_jax.data.records import Example

# The instructed queries and the passages of an example's relevance table. Only the combinations on
# the diagonal are relevant: (I+Q+, P+), (I-Q+, P-1), (I+Q-, P-2).
INSTRUCTED_QUERIES = ("I+Q+", "I-Q+", "I+Q-")
PASSAGES = ("P+", "P-1", "P-2")


@dataclasses.dataclass(frozen=True, slots=True)
class Judgement:
    """One judge's answer on one combination.

    Attributes:
      judge: "judge", or "judge_2" for the second one.
      query: of INSTRUCTED_QUERIES.
      passage: of PASSAGES.
      relevant: the answer.
      reason: the judge's own words.
    """

    judge: str
    query: str
    passage: str
    relevant: bool
    reason: str

    @property
    def expected(self) -> bool:
        """What the answer must be for the example to be kept."""
        return INSTRUCTED_QUERIES.index(self.query) == PASSAGES.index(self.passage)


@dataclasses.dataclass(slots=True)
class Item:
    """One pair and what has become of it so far.

    Attributes:
      id: the pair's.
      query: as the source gave it, "" where it has passages only.
      passage: as the source gave it.
      instruction_type: of `schemas.INSTRUCTION_TYPES`; "" before the stage generate.
      example: what was generated; None before that, or where it failed.
      provenance: stage -> model, prompt, prompt_hash.
      judgements: in the order in which they were asked for.
      scores: by name, e.g. the cosines of the stage score.
      reasons: `stage:reason` of all that speaks against it; not empty means dropped.
    """

    id: str
    query: str
    passage: str
    instruction_type: str = ""
    example: Example | None = None
    provenance: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)
    judgements: list[Judgement] = dataclasses.field(default_factory=list)
    scores: dict[str, float] = dataclasses.field(default_factory=dict)
    reasons: list[str] = dataclasses.field(default_factory=list)

    @property
    def alive(self) -> bool:
        """Whether nothing speaks against it so far."""
        return not self.reasons

    def drop(self, stage: str, *reasons: str) -> "Item":
        """Adds reasons; returns the item itself."""
        self.reasons += [f"{stage}:{reason}" for reason in reasons]
        return self

    def to_json(self) -> str:
        """One line, without its end."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str | bytes) -> "Item":
        """Inverse of `to_json`; raises ValueError, KeyError or TypeError for anything else."""
        values: dict[str, Any] = json.loads(line)
        if values["example"] is not None:
            values["example"] = Example(**values["example"])
        values["judgements"] = [Judgement(**each) for each in values["judgements"]]
        return cls(**values)


def read_items(path: Path) -> Iterator[Item]:
    """The items of a stage's file, in order.

    Raises:
      UserError: the file is missing or a line is no item: names file and line.
    """
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield Item.from_json(line)
                except (ValueError, KeyError, TypeError) as error:
                    raise UserError(
                        f"{path}:{number}: no item of the triplet factory ({error!r}); delete the "
                        "file and run its stage again: it is made from the stage before and the "
                        "journal"
                    ) from error
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}; run the stage that makes it"
        ) from error
