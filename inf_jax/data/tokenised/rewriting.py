"""Changes the pairs of examples before they are tokenised."""

import dataclasses
from typing import Any

from inf_jax.data.records import AnyExample, Pair, pairs
from inf_jax.text.noise import perturbed


@dataclasses.dataclass(frozen=True)
class Rewriting:
    """What is changed.

    Attributes:
      wording: the number of a paraphrase by rule (`text.noise`), which takes the place of each
        instruction; 0: as written. The hash of an instruction stays that of what is written: all
        its wordings are the same one to the masks of the loss.
      instructions: whether pairs keep theirs; without, they are as those of a source that has none.
      poisoned: whether an example keeps its pairs after the first, the original one.
      query_alone: whether an example has one pair more: the query of the first one without its
        instruction, and its passage. It has no hard negatives of its own, which may answer the
        query under no instruction.
    """

    wording: int = 0
    instructions: bool = True
    poisoned: bool = True
    query_alone: bool = False

    @property
    def recipe(self) -> dict[str, Any]:
        """What differs from the records as they are; `Rewriting(**recipe)` is equal."""
        default = Rewriting()
        fields = dataclasses.asdict(self).items()
        return {name: value for name, value in fields if value != getattr(default, name)}

    def pairs(self, example: AnyExample) -> tuple[Pair | None, ...]:
        """The pairs of an example, None where one is absent; their instructions as written."""
        found = pairs(example)
        if not self.poisoned:
            found = tuple(pair for pair in found if pair)[:1]
        if self.query_alone:
            first = next(pair for pair in found if pair)
            found = (*found, Pair("", first.query, first.passage))
        if not self.instructions:
            found = tuple(pair and pair._replace(instruction="") for pair in found)
        return found

    def count(self, pairs: int) -> int:
        """The pairs of an example that has so many as written."""
        return (pairs if self.poisoned else 1) + self.query_alone

    def instruction(self, pair: Pair) -> str:
        """The wording of a pair's instruction."""
        if not self.wording or not pair.instruction.strip():
            return pair.instruction
        return perturbed(pair.instruction, "paraphrase", f"{self.wording}")


AS_WRITTEN = Rewriting()
