"""The records of the triplet factory: items, judgements, and hashes that identify them.

Each (query, passage) pair of the source becomes one item. A stage maps a stream of items to as many
items in the same order; a dropped item stays in the stream with its reasons, so that every pair has
exactly one outcome.
"""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from inf_jax.core.errors import UserError, first_line
from inf_jax.data.records import FIELDS, Example

# Rows and columns of an example's relevance table. Only the combinations on the diagonal are
# relevant: (I+Q+, P+), (I-Q+, P-1), (I+Q-, P-2).
INSTRUCTED_QUERIES = ("I+Q+", "I-Q+", "I+Q-")
PASSAGES = ("P+", "P-1", "P-2")
RELEVANT = dict(zip(INSTRUCTED_QUERIES, PASSAGES, strict=True))
COMBINATIONS = tuple(itertools.product(INSTRUCTED_QUERIES, PASSAGES))
# The two kinds of hard negative, and the field of each one's passage.
NEGATIVES = {
    "poisoned_instruction": "hard_negative_document_1",
    "poisoned_query": "hard_negative_document_2",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Judgement:
    """One judge's answer on one combination of instructed query and passage.

    Attributes:
      judge: "judge" or "judge_2".
      query: one of INSTRUCTED_QUERIES.
      passage: one of PASSAGES.
      relevant: the answer.
      reason: the judge's explanation.
    """

    judge: str
    query: str
    passage: str
    relevant: bool
    reason: str

    @property
    def expected(self) -> bool:
        """The answer with which the example is kept."""
        return RELEVANT[self.query] == self.passage


@dataclasses.dataclass(slots=True)
class Item:
    """One pair and the results of the stages so far.

    Attributes:
      id: of the pair.
      query: from the source; "" if the source has passages only.
      passage: from the source.
      instruction_type: one of `schemas.INSTRUCTION_TYPES`; "" before the stage generate.
      example: the generated example; None before the stage generate, or if it failed.
      provenance: stage -> model, prompt, prompt_hash.
      judgements: in the order in which they were requested.
      scores: by name, e.g. the cosines of the stage score.
      reasons: why the item is dropped, as `stage:reason`; empty if it is not.
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
        """Whether no stage has dropped the item."""
        return not self.reasons

    def drop(self, stage: str, *reasons: str) -> "Item":
        """Adds reasons; returns the item itself."""
        self.reasons += [f"{stage}:{reason}" for reason in reasons]
        return self

    def to_json(self) -> str:
        """One line of JSON, without the line break."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str | bytes) -> "Item":
        """Inverse of `to_json`.

        Raises:
          ValueError, KeyError, TypeError, RecursionError: other input.
        """
        values: dict[str, Any] = json.loads(line)
        if values["example"] is not None:
            values["example"] = Example(**values["example"])
        values["judgements"] = [Judgement(**each) for each in values["judgements"]]
        return cls(**values)


def read_items(path: Path) -> Iterator[Item]:
    """Reads the items of a stage's file, in order.

    Raises:
      UserError: the file is missing or a line is not an item; names file and line.
    """
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield Item.from_json(line)
                except (ValueError, KeyError, TypeError, RecursionError) as error:
                    raise UserError(
                        f"{path}:{number}: not an item of the factory ({first_line(error)}); "
                        "delete the file and run its stage again: it is rebuilt from the previous "
                        "stage and the journal"
                    ) from error
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}; run the stage that writes it"
        ) from error


def example_hash(item: Item) -> str:
    """Hash of an item's pair and example, 16 hex digits; outcome and scores are not part of it."""
    texts = [item.id, item.query, item.passage]
    if item.example:
        texts += [getattr(item.example, name) for name in FIELDS]
    return hashlib.blake2b(json.dumps(texts).encode(), digest_size=8).hexdigest()


class Fingerprint:
    """Hash of a corpus: of its items in order, whatever their outcomes; `str` gives 16 hex digits.

    A review names by it the corpus that was reviewed.
    """

    def __init__(self, items: Iterable[Item] = ()):
        self._digest = hashlib.blake2b(digest_size=8)
        for item in items:
            self.add(item)

    def add(self, item: Item) -> None:
        """Appends an item."""
        self._digest.update(bytes.fromhex(example_hash(item)))

    def __str__(self) -> str:
        return self._digest.hexdigest()
