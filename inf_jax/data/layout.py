"""Lays out the texts of a step's pairs in packed grids.

A text is named by its pair's number in the step (on any mesh) and column (`core.query_encoders`).
"""

import dataclasses
import functools

import numpy as np

from inf_jax.core.errors import UserError
from inf_jax.core.query_encoders import FIRST_EXTRA, Joint, QueryEncoder
from inf_jax.data.tokenised.dataset import TokenisedDataset
from inf_jax.data.tokenised.records import decode_tokenised
from inf_jax.data.tokenised.varied import VariedDataset
from inf_jax.text.query_parts import QueryParts, as_own_text, truncate, with_instruction


@dataclasses.dataclass(frozen=True)
class BatchLayout:
    """The shapes of a global batch, all but the rows of its grids (`data.packing_plan`).

    Attributes:
      batch_size: examples of a step, over all hosts.
      pairs_per_example: k, of the dataset.
      chunks: c, over all hosts.
      row_tokens: t, tokens of a row.
      texts_per_row: s, most texts of a row.
      towers: "shared" (one grid) or "separate" (one for queries, one for passages).
      query_encoder: what texts a pair has.
      instruction_negatives: m, sampled instruction negatives per pair, besides its poisoned
        instruction; None where the objective has no block I.
      negatives: h, hard negatives drawn for a pair from its list.
      teacher: whether batches hold a teacher's scores, of the records.
      mixture: whether batches hold the number of each pair's source. An "example" is then a unit
        of `data.mixture.order`.
      queries_alone: whether batches say which pairs have no instruction (`Batch.queries_alone`).

    Raises:
      UserError: more chunks than pairs, or negatives that the query encoder cannot sample.
    """

    batch_size: int
    chunks: int
    row_tokens: int
    texts_per_row: int
    towers: str = "shared"
    query_encoder: QueryEncoder = dataclasses.field(default_factory=Joint)
    instruction_negatives: int | None = None
    pairs_per_example: int = 3
    negatives: int = 0
    teacher: bool = False
    mixture: bool = False
    queries_alone: bool = False

    def __post_init__(self):
        if self.pairs < self.chunks:
            raise UserError(
                f"train.batch_size={self.pairs} gives fewer pairs than there are chunks "
                f"({self.chunks}): raise it or lower train.chunks_per_device"
            )
        if self.sampled and not self.query_encoder.samples_instructions:
            raise UserError(
                f"loss.instruction_negatives={self.sampled}: with model.query_encoder="
                f'"{self.query_encoder.name}" the negatives are the other instructions of the '
                "chunk and none is sampled; set it to 0"
            )

    @property
    def block_i(self) -> bool:
        """Whether the objective has block I."""
        return self.instruction_negatives is not None

    @property
    def sampled(self) -> int:
        """m, 0 without block I."""
        return self.instruction_negatives or 0

    @property
    def pairs(self) -> int:
        """Pairs of a step, absent ones included."""
        return self.batch_size * self.pairs_per_example

    @property
    def pairs_per_chunk(self) -> int:
        """n; block I keeps the pairs of an example in one chunk."""
        if self.block_i:
            return -(-self.batch_size // self.chunks) * self.pairs_per_example
        return -(-self.pairs // self.chunks)

    @property
    def instruction_candidates(self) -> int:
        """Candidates of a row in block I, before identity masks; 0 without block I."""
        if not self.block_i:
            return 0
        return self.query_encoder.candidates(self.pairs_per_chunk, self.sampled)

    @functools.cached_property
    def grids(self) -> list[list[list[int]]]:
        """The columns of each grid, see `Joint.grids`."""
        return self.query_encoder.grids(self.towers, self.sampled, self.negatives)

    @property
    def first_negative(self) -> int:
        """The column of the first hard negative."""
        return self.query_encoder.first_negative(self.sampled)

    @functools.cached_property
    def columns(self) -> int:
        """Texts of a pair."""
        return sum(len(group) for grid in self.grids for group in grid)

    def grid_texts(self, chunks: np.ndarray, grid: int) -> tuple[np.ndarray, np.ndarray]:
        """(pairs, columns), int64[h, k] each: the texts of the pairs int64[h, n] of some chunks in
        one grid."""
        groups = [np.array(group, np.int64) for group in self.grids[grid]]
        pairs = np.hstack([np.repeat(chunks, len(group), axis=1) for group in groups])
        columns = np.concatenate([np.tile(group, chunks.shape[1]) for group in groups])
        return pairs, np.broadcast_to(columns, pairs.shape)

    def text_ids(self, pairs: np.ndarray, columns: np.ndarray, *, count: int) -> np.ndarray:
        """int64[...], ids of texts, unique among those of the `count` pairs of a step."""
        extra = 2 * count + pairs * (self.columns - FIRST_EXTRA) + columns - FIRST_EXTRA
        return np.where(columns < FIRST_EXTRA, 2 * pairs + columns, extra)

    def text_lengths(
        self,
        dataset: TokenisedDataset | VariedDataset,
        examples: np.ndarray,
        drawn: np.ndarray,
        negatives: np.ndarray,
    ) -> np.ndarray:
        """int[p, columns], tokens of each text of a step; 0 where it is absent.

        `examples` are those of the step, int64[p / k]; `drawn` as of `sample_instructions`,
        `negatives` as of `draw_negatives`.
        """
        stored = dataset.text_lengths.take(examples, axis=0).reshape(-1, 2)
        if self.first_negative == len(self.query_encoder.stored):  # there are no other texts
            lengths = stored
        else:
            parts = dataset.part_lengths[examples].reshape(-1, 3)
            if isinstance(dataset, VariedDataset):
                instructions = dataset.sampled_lengths(examples, drawn)
            else:
                instructions = parts[:, 2][drawn]
            lengths = self.query_encoder.text_lengths(
                stored,
                parts,
                drawn >= 0,
                instructions,
                special=sum(map(len, dataset.special)),
                limit=dataset.max_query_tokens,
            )
        if not self.negatives:
            return lengths
        hard = np.zeros(negatives.shape, np.int64)
        if (negatives >= 0).any():
            hard = dataset.negative_lengths(examples, negatives)
        return np.hstack([lengths, hard])


class StepTexts:
    """Texts and hashes of some pairs of a step, read from the dataset.

    Args:
      layout: what a column holds.
      examples, drawn, negatives: see `BatchLayout.text_lengths`.
      needed: int64[...], the pairs that are read, with those whose instructions they sample.

    Raises:
      CorruptRecordError: a record is damaged; names file and record.
    """

    def __init__(
        self,
        dataset: TokenisedDataset | VariedDataset,
        layout: BatchLayout,
        *,
        examples: np.ndarray,
        needed: np.ndarray,
        drawn: np.ndarray,
        negatives: np.ndarray,
    ):
        sources, pairs = drawn[needed], needed.ravel()
        if isinstance(dataset, VariedDataset):
            self._sampled = dataset.sampled_instructions(examples, needed, drawn)
        else:
            pairs = np.concatenate([pairs, sources[sources >= 0]])
            self._sampled = lambda _, source: self._parts(source).ids_of("instruction")
        self._k = dataset.pairs_per_example
        numbers = np.unique(pairs // self._k)
        self._place = np.full(len(examples), -1)
        self._place[numbers] = np.arange(len(numbers))
        hard = layout.negatives > 0
        self._batch = dataset.read_batch(examples[numbers], negatives=hard)
        self._starts = self._batch.text_starts()
        self._tokens = self._batch.tokens
        if self._batch.negatives is not None:
            self._tokens = np.concatenate([self._tokens, self._batch.negatives.tokens])
        self._layout, self._drawn, self._negatives = layout, drawn, negatives
        if hard:
            found = self._batch.negatives
            self._first = np.cumsum(found.counts).reshape(found.counts.shape) - found.counts
            self._negative_starts = np.cumsum(found.lengths, dtype=np.int64) - found.lengths
        self._limits = {"special": dataset.special, "limit": dataset.max_query_tokens}
        self._record = functools.cache(lambda number: decode_tokenised(self._batch.data[number]))

    def texts(
        self, pairs: np.ndarray, columns: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where the tokens of some texts are; absent ones and those of the pair -1 have none.

        Args:
          pairs, columns: int64[...].

        Returns:
          int32[m], tokens; int64[...] twice, the first one of each text and their number.
        """
        shape, pairs, columns = pairs.shape, pairs.ravel(), columns.ravel()
        encoder, hard = self._layout.query_encoder, columns >= self._layout.first_negative
        stored = np.isin(columns, encoder.stored)
        other = ~(stored | hard)
        spliced = [
            encoder.text(self, *text) if text[0] >= 0 else np.empty(0, np.int32)
            for text in zip(pairs[other].tolist(), columns[other].tolist(), strict=True)
        ]
        source = self._tokens
        if spliced:
            source = np.concatenate([source, *spliced])
        number, place = np.divmod(np.maximum(pairs[stored], 0), self._k)
        at = self._place[number], 2 * place + columns[stored]
        lengths, starts = np.zeros((2, len(pairs)), np.int64)
        lengths[stored] = np.where(pairs[stored] >= 0, self._batch.lengths[at], 0)
        starts[stored] = self._starts[at]
        if hard.any():
            chosen = columns[hard] - self._layout.first_negative
            number, there = self._numbers(pairs[hard], chosen)
            lengths[hard] = np.where(there, _of(self._batch.negatives.lengths, number), 0)
            starts[hard] = len(self._batch.tokens) + _of(self._negative_starts, number)
        lengths[other] = [len(text) for text in spliced]
        starts[other] = len(source) - np.cumsum(lengths[other][::-1])[::-1]
        return source, starts.reshape(shape), lengths.reshape(shape)

    def under_sampled_instruction(self, pair: int, number: int) -> np.ndarray:
        """The query with the instruction that was sampled as its n-th; empty where none was."""
        source = int(self._drawn[pair, number])
        if source < 0:
            return np.empty(0, np.int32)
        instruction = self._sampled(pair, source)
        return truncate(with_instruction(self._parts(pair), instruction), **self._limits)

    def alone(self, pair: int, part: str) -> np.ndarray:
        """The "query" or the "instruction" as a text of its own."""
        return as_own_text(self._parts(pair).ids_of(part), **self._limits)

    def hashes(self, pairs: np.ndarray) -> np.ndarray:
        """uint64[b, 3 + h], of instruction, query, passage and hard negatives of the pairs
        int64[b]; 0 for the pair -1 of an empty slot, and for a negative that is not there."""
        number, place = np.divmod(np.maximum(pairs, 0), self._k)
        found = self._batch.hashes[self._place[number], place]
        found = np.where(pairs[:, None] >= 0, found, 0)
        if not self._layout.negatives:
            return found
        negatives, there = self._numbers(pairs[:, None], np.arange(self._layout.negatives))
        hard = np.where(there, _of(self._batch.negatives.hashes, negatives), 0)
        return np.hstack([found, hard])

    def passage_valid(self, pairs: np.ndarray) -> np.ndarray:
        """bool[b, 1 + h], whether each passage of the pairs int64[b] is there."""
        there = self._numbers(pairs[:, None], np.arange(self._layout.negatives))[1]
        return np.hstack([pairs[:, None] >= 0, there])

    def teacher_scores(self, pairs: np.ndarray) -> np.ndarray:
        """float32[b, 1 + h], of each passage of the pairs int64[b]; -inf where there is none."""
        number, place = np.divmod(np.maximum(pairs, 0), self._k)
        found = self._batch.negatives
        own = np.where(pairs >= 0, found.positive_scores[self._place[number], place], np.nan)
        negatives, there = self._numbers(pairs[:, None], np.arange(self._layout.negatives))
        hard = np.where(there, _of(found.scores, negatives), np.nan)
        scores = np.hstack([own[:, None], hard]).astype(np.float32)
        return np.where(np.isnan(scores), np.float32(-np.inf), scores)

    def _numbers(self, pairs: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """int64[...] and bool[...], the places in the batch's negatives of those chosen as n-th for
        the pairs, and whether they are there."""
        drawn = np.where(pairs >= 0, self._negatives[np.maximum(pairs, 0), chosen], -1)
        number, place = np.divmod(np.maximum(pairs, 0), self._k)
        first = self._first[self._place[number], place]
        return np.where(drawn >= 0, first + drawn, 0), drawn >= 0

    def _parts(self, pair: int) -> QueryParts:
        number, place = divmod(pair, self._k)
        record, inside = self._batch.record_of(int(self._place[number]), place)
        return self._record(record).query_parts(inside)


def _of(values: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """values[numbers]; zeros where there is no value, as in a batch without hard negatives."""
    return values[numbers] if values.size else np.zeros(numbers.shape, values.dtype)
