"""The (query, passage) pair that every source yields, for training and for the triplet factory."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class SourcePair:
    """A query and a passage that answers it.

    Attributes:
      id: unique within the source and the same in every run, e.g. `<query id>:<passage id>`.
      query: "" if the source has passages only; the factory then generates one.
      passage: the text that the query must retrieve; its first line is the title, if any.
      instruction: "" for none; the factory writes its own.
      negatives: passages that do not answer the query, in the form of `passage`.
      scores: a teacher's of the passage, then of each negative; () for none.
      relevant: False for a passage that the source says is a negative of all pairs of the query.
    """

    id: str
    query: str
    passage: str
    instruction: str = ""
    negatives: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    relevant: bool = True


def titled(title: str, text: str) -> str:
    """The passage with its title as the first line; the title alone if there is no text."""
    return f"{title}\n{text}" if title and text else title or text
