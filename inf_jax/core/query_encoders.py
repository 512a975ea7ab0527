"""The query encoders: query and instruction as one text ("joint") or as two ("attention").

Only `query_encoder(name)` compares the values of `model.query_encoder`; whatever differs is an
attribute or a method of `Joint` and `Attention`: `tokenise` and `encode` for the retriever and
evaluation, `instructed` for the train step, the others for the loader. Tokenizer, encoder and
records are objects of higher packages that are handed in.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from inf_jax.core.errors import UserError

# Columns: the texts of a pair. What the ones from FIRST_EXTRA on are, the query encoder decides.
QUERY, PASSAGE, FIRST_EXTRA = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class Joint:
    """Query and instruction are one text.

    Columns: 0 instructed query, 1 passage, 2... the query under each sampled instruction (block I),
    then the hard negatives of the pair.

    Attributes:
      stored: columns whose texts records hold as they are.
      samples_instructions: block I takes the poisoned instruction and sampled ones, each a text of
        its own; otherwise it takes all instructions of the chunk, which cost no text.
      pooled: queries are pooled like passages, so that other libraries can encode them too.
    """

    name: ClassVar[str] = "joint"
    stored: ClassVar[tuple[int, ...]] = (QUERY, PASSAGE)
    texts_per_query: ClassVar[int] = 1
    samples_instructions: ClassVar[bool] = True
    pooled: ClassVar[bool] = True

    def first_negative(self, sampled: int) -> int:
        """The column of the first hard negative, after all texts of a pair's queries."""
        return FIRST_EXTRA + sampled

    def grids(self, towers: str, sampled: int, negatives: int = 0) -> list[list[list[int]]]:
        """For each grid the groups of columns that follow each other in a chunk; a group holds its
        texts pair by pair. One grid for shared towers; queries and passages for separate ones."""
        first = self.first_negative(sampled)
        extra, hard = list(range(FIRST_EXTRA, first)), list(range(first, first + negatives))
        if towers == "shared":
            return [[[QUERY], [PASSAGE], extra, hard]]
        return [[[QUERY], extra], [[PASSAGE], hard]]

    def text_lengths(
        self, texts, parts, drawn, instructions, *, special: int, limit: int
    ) -> np.ndarray:
        """int[p, columns], tokens of each text of p pairs; 0 where it is absent.

        Args:
          texts: int[p, 2], tokens of instructed query and passage; 0 where absent.
          parts: int[p, 3], tokens of the instructed query before truncation, of its query and of
            its instruction.
          drawn: bool[p, m], whether an instruction is sampled.
          instructions: int[p, m], tokens of these.
          special, limit: special tokens around a text, and the most tokens of one.
        """
        whole, _, instruction = parts.T
        crossed = (whole - instruction)[:, None] + instructions
        return np.hstack([texts, np.where(drawn, np.minimum(crossed, limit), 0)])

    def text(self, texts: Any, pair: int, column: int) -> np.ndarray:
        """int32[tokens] of a text that is not `stored`; `texts` is `data.layout.StepTexts`."""
        return texts.under_sampled_instruction(pair, column - FIRST_EXTRA)

    def splicing(self, sampled: int) -> str | None:
        """The field of `text.splice_check.Composition` that must be 0, if any."""
        return "crossed" if sampled else None

    def candidates(self, pairs: int, sampled: int) -> int:
        """Candidates of a row in block I, before identity masks, in a chunk of `pairs` pairs."""
        return 1 + sampled

    def tokenise(self, tokenizer: Any, queries: Any, text: Any) -> tuple[list, list | None]:
        """(texts, instructions) of (query, instruction) pairs, token ids int32[tokens] each."""
        return tokenizer.queries(queries, text), None

    def encode(self, encoder: Any) -> Callable:
        """The function of an `Encoder` for what `tokenise` gives."""
        return encoder.encode

    def instructed(self, encoder: Any) -> Callable | None:
        """The function of an `Encoder` that encodes queries in training; None is `encode`."""
        return None


@dataclasses.dataclass(frozen=True)
class Attention:
    """Query and instruction are texts of their own, combined after encoding.

    Columns: 0 query, 1 passage, 2 instruction, 3... hard negatives. Attributes and methods as in
    `Joint`.
    """

    name: ClassVar[str] = "attention"
    stored: ClassVar[tuple[int, ...]] = (PASSAGE,)
    texts_per_query: ClassVar[int] = 2
    samples_instructions: ClassVar[bool] = False
    pooled: ClassVar[bool] = False

    def first_negative(self, sampled: int) -> int:
        return FIRST_EXTRA + 1

    def grids(self, towers: str, sampled: int, negatives: int = 0) -> list[list[list[int]]]:
        first = self.first_negative(sampled)
        queries = [[FIRST_EXTRA], [QUERY]]
        passages = [[PASSAGE], list(range(first, first + negatives))]
        return [[*queries, *passages]] if towers == "shared" else [queries, passages]

    def text_lengths(
        self, texts, parts, drawn, instructions, *, special: int, limit: int
    ) -> np.ndarray:
        alone = np.minimum(special + parts[:, 1:], limit) * (texts[:, QUERY, None] > 0)
        return np.stack([alone[:, 0], texts[:, PASSAGE], alone[:, 1]], 1)

    def text(self, texts: Any, pair: int, column: int) -> np.ndarray:
        return texts.alone(pair, "query" if column == QUERY else "instruction")

    def splicing(self, sampled: int) -> str | None:
        return "alone"

    def candidates(self, pairs: int, sampled: int) -> int:
        return pairs - 1

    def tokenise(self, tokenizer: Any, queries: Any, text: Any) -> tuple[list, list]:
        instructions, texts = tokenizer.separate_texts(queries, text)
        return texts, instructions

    def encode(self, encoder: Any) -> Callable:
        return encoder.encode_queries

    def instructed(self, encoder: Any) -> Callable | None:
        return encoder.encode_instructed


QueryEncoder = Joint | Attention
_BY_NAME = {each.name: each for each in (Joint, Attention)}


def query_encoder(name: str) -> QueryEncoder:
    """The query encoder of a value of `model.query_encoder`. UserError if there is no such."""
    if name not in _BY_NAME:
        raise UserError(f"query_encoder={name!r}: choose one of {', '.join(_BY_NAME)}")
    return _BY_NAME[name]()
