"""The <query, passage> pair that the triplet factory starts from."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class SourcePair:
    """A query and a passage that answers it.

    Attributes:
      id: unique within the source and the same in every run, e.g. `<query id>:<passage id>`.
      query: `""` where the source has passages only; the factory then has one generated.
      passage: the text that the query must retrieve; a title, where it has one, is its first line.
    """

    id: str
    query: str
    passage: str


def titled(title: str, text: str) -> str:
    """A passage's text with its title as the first line; a title alone makes no passage."""
    return f"{title}\n{text}" if title and text else text
