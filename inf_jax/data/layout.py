"""Which texts each pair brings to a step, and where they lie in the chunks' grids.

A text is named by its pair (its number among the pairs of the step's examples, whatever the mesh)
and its column:

| column | query encoder "joint"              | query encoder "attention" |
|--------|------------------------------------|---------------------------|
| 0      | instructed query                   | query alone               |
| 1      | passage                            | passage                   |
| 2, ... | n_ik, its query under I_k, m times | instruction alone         |
"""

import numpy as np

from inf_jax.data.records import PAIRS_PER_EXAMPLE, TokenisedRecord
from inf_jax.data.tokenised import TokenisedDataset
from inf_jax.text.query_parts import QueryParts, alone, cut, with_instruction

QUERY, PASSAGE, FIRST_EXTRA = 0, 1, 2


def grids(*, towers: str, query_encoder: str, sampled: int) -> list[list[list[int]]]:
    """`Layout.grids`; arguments as there."""
    joint = query_encoder == "joint"
    extra = list(range(FIRST_EXTRA, FIRST_EXTRA + (sampled if joint else 1)))
    if joint:
        shared, queries = [[QUERY], [PASSAGE], extra], [[QUERY], extra]
    else:
        shared, queries = [extra, [QUERY], [PASSAGE]], [extra, [QUERY]]
    return [shared] if towers == "shared" else [queries, [[PASSAGE]]]


class Layout:
    """The columns of one run.

    Args:
      dataset: the tokenised examples.
      towers: "shared" (one grid) or "separate" (one for queries, one for passages).
      query_encoder: "joint" or "attention".
      sampled: m, instruction negatives that are drawn for each pair ("joint").

    Attributes:
      grids: for each grid the groups of columns that follow each other in a chunk; a group's texts
        go pair by pair.
      columns: texts of a pair.
    """

    def __init__(self, dataset: TokenisedDataset, *, towers: str, query_encoder: str, sampled: int):
        self._dataset, self._joint = dataset, query_encoder == "joint"
        self.grids = grids(towers=towers, query_encoder=query_encoder, sampled=sampled)
        self.columns = sum(len(group) for grid in self.grids for group in grid)

    def lengths(self, examples: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        """int64[p, columns], tokens of each text; 0 where it is absent.

        Args:
          examples: int64[p / 3], the examples of a step.
          drawn: int64[p, m], the pair whose instruction is drawn (`inf_jax.data.negatives.draw`).
        """
        both = self._dataset.text_lengths[examples].reshape(-1, 2).astype(np.int64)
        whole, query, instruction = self._dataset.part_lengths[examples].reshape(-1, 3).T
        limit = self._dataset.max_query_tokens
        if self._joint:
            crossed = (whole - instruction)[:, None] + instruction[drawn]
            return np.hstack([both, np.where(drawn >= 0, np.minimum(crossed, limit), 0)])
        special = sum(map(len, self._dataset.special))
        query, instruction = (
            np.where(both[:, QUERY] > 0, np.minimum(special + x, limit), 0)
            for x in (query, instruction)
        )
        return np.stack([query, both[:, PASSAGE], instruction], 1)

    def names(self, chunk: np.ndarray, grid: int) -> tuple[np.ndarray, np.ndarray]:
        """(pairs, columns), int64[k] each: the texts of a chunk's pairs int64[n] in one grid, in
        order; pair -1 in an empty slot."""
        groups = [np.array(group, np.int64) for group in self.grids[grid]]
        pairs = np.concatenate([np.repeat(chunk, len(group)) for group in groups])
        return pairs, np.concatenate([np.tile(group, len(chunk)) for group in groups])

    def text_ids(self, pairs: np.ndarray, columns: np.ndarray, *, count: int) -> np.ndarray:
        """int64[k], ids of texts, unique among those of the `count` pairs of a step."""
        extra = 2 * count + pairs * (self.columns - FIRST_EXTRA) + columns - FIRST_EXTRA
        return np.where(columns < FIRST_EXTRA, 2 * pairs + columns, extra)

    def read(self, examples: np.ndarray, needed: np.ndarray, drawn: np.ndarray) -> "StepTexts":
        """Reads the records of int64[...] `needed` pairs of a step, and of the instructions drawn
        for them; the other arguments are those of `lengths`."""
        sources = drawn[needed]
        pairs = np.concatenate([needed.ravel(), sources[sources >= 0]])
        numbers = np.unique(pairs // PAIRS_PER_EXAMPLE)
        records = self._dataset.read(examples[numbers])
        return StepTexts(
            dict(zip(numbers.tolist(), records, strict=True)),
            drawn,
            joint=self._joint,
            special=self._dataset.special,
            limit=self._dataset.max_query_tokens,
        )


class StepTexts:
    """Texts and hashes of some pairs of a step.

    Args:
      records: by the example's number in the step.
      drawn: int64[p, m], see `Layout.lengths`.
      joint: the query encoder is "joint".
      special, limit: see `inf_jax.text.query_parts.cut`.
    """

    def __init__(
        self,
        records: dict[int, TokenisedRecord],
        drawn: np.ndarray,
        *,
        joint: bool,
        special: tuple[np.ndarray, np.ndarray],
        limit: int,
    ):
        self._records, self._drawn, self._joint = records, drawn, joint
        self._whole = {number: record.texts() for number, record in records.items()}
        self._how = {"special": special, "limit": limit}

    def text(self, pair: int, column: int) -> np.ndarray:
        """int32[tokens]; none where the text is absent, or for the pair -1 of an empty slot."""
        if pair < 0:
            return np.empty(0, np.int32)
        number, place = divmod(pair, PAIRS_PER_EXAMPLE)
        if column == PASSAGE or (self._joint and column == QUERY):
            return self._whole[number][2 * place + column]
        parts = self._parts(pair)
        if not self._joint:
            part = "query" if column == QUERY else "instruction"
            return alone(parts.ids_of(part), **self._how)
        source = int(self._drawn[pair, column - FIRST_EXTRA])
        if source < 0:
            return np.empty(0, np.int32)
        instruction = self._parts(source).ids_of("instruction")
        return cut(with_instruction(parts, instruction), **self._how)

    def hashes(self, pair: int) -> np.ndarray:
        """uint64[3], of instruction, query and passage; 0 for the pair -1 of an empty slot."""
        if pair < 0:
            return np.zeros(3, np.uint64)
        number, place = divmod(pair, PAIRS_PER_EXAMPLE)
        return self._records[number].hashes[place]

    def _parts(self, pair: int) -> QueryParts:
        number, place = divmod(pair, PAIRS_PER_EXAMPLE)
        return self._records[number].query_parts(place)
