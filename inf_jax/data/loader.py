"""(seed, step) -> the global batch: a pure function, without iterator state to save or to lose.

A step's examples (data.sampler) give pairs, and a pair gives texts (data.layout); the pairs are
dealt to chunks of equal size and near equal length, and each chunk is packed into one grid shape
that is known before step 0. Every host computes the same deal from the index alone and reads only
the records of its own chunks and of the instructions drawn for them.
"""

import functools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np

from inf_jax.core import packing
from inf_jax.core.batch import Batch, InstructionNegatives, split_hashes, text_ids
from inf_jax.core.errors import UserError
from inf_jax.data.layout import FIRST_EXTRA, Layout, StepTexts
from inf_jax.data.negatives import draw, free_places, instruction_ids, of_chunk, of_rows, siblings
from inf_jax.data.records import PAIRS_PER_EXAMPLE
from inf_jax.data.sampler import Order
from inf_jax.data.tokenised import TokenisedDataset
from inf_jax.distributed.mesh import batch_devices, batch_sharding, local_parts

PLANNED_TEXTS = 2_000_000  # above this many texts the shape is planned on a sample of the steps
SAMPLED_STEPS = 64
MARGIN = 1.03  # rows added to the largest sampled need


class Plan(NamedTuple):
    """The one shape of all steps, and how full it is.

    Attributes:
      rows: rows of a chunk's grid, one number a grid (one grid for shared towers, two for
        separate).
      exact: all steps were walked; else a sample, and a rare step may take a larger shape.
      fill: mean share of token slots that hold a token.
      tokens: mean real tokens of a step, over the whole mesh.
      pairs: mean pairs of a step.
      sampled_tokens: mean tokens of the instruction negatives that are drawn for a step.
      sampled: mean instruction negatives drawn for a pair.
      poisons: mean instruction negatives of a pair that are free.
    """

    rows: tuple[int, ...]
    exact: bool
    fill: float
    tokens: float
    pairs: float
    sampled_tokens: float
    sampled: float
    poisons: float


class Deal(NamedTuple):
    """What every host knows of a step without reading a record; p pairs of B examples.

    Attributes:
      examples: int64[B].
      chunks: int64[c, n], the pairs of each chunk; -1 for an empty slot.
      lengths: int64[p, columns], tokens of each text (`Layout`).
      hashes: uint64[p], of each pair's instruction.
      sibling: int64[p], the pair with the same query and the other instruction, or its own number.
      drawn: int64[p, m], the pair whose instruction is drawn; -1 for none.
    """

    examples: np.ndarray
    chunks: np.ndarray
    lengths: np.ndarray
    hashes: np.ndarray
    sibling: np.ndarray
    drawn: np.ndarray


def pairs_per_chunk(batch_size: int, chunks: int, *, whole_examples: bool) -> int:
    """Pairs of a chunk, n; `whole_examples` (block I) keeps an example's pairs together.

    Raises:
      UserError: there are more chunks than pairs.
    """
    if batch_size * PAIRS_PER_EXAMPLE < chunks:
        raise UserError(
            f"train.batch_size={batch_size} gives fewer pairs than there are chunks "
            f"({chunks}): raise it or lower train.chunks_per_device"
        )
    if whole_examples:
        return -(-batch_size // chunks) * PAIRS_PER_EXAMPLE
    return -(-batch_size * PAIRS_PER_EXAMPLE // chunks)


class Loader:
    """Batches of a tokenised dataset by step number; threads may share it.

    Args:
      dataset: the tokenised examples.
      seed: of the order.
      batch_size: examples a step, over all hosts.
      chunks: c, over all hosts.
      steps: steps of the run, for the plan.
      row_tokens, texts_per_row: the grid's t and s.
      towers: "shared" (one grid) or "separate" (one for queries, one for passages).
      instruction_negatives: m, instruction negatives drawn for a pair beside its poison; None where
        the objective has no block I.
      query_encoder: "joint" (instruction and query in one text) or "attention" (apart; then a
        chunk's instructions are each other's negatives, and none is drawn).
      mine: numbers of this host's chunks, ascending; None is all.

    Raises:
      UserError: a text is longer than a row, the
        dataset is empty, or the tokenizer does not let texts be put together.
    """

    def __init__(
        self,
        dataset: TokenisedDataset,
        *,
        seed: int,
        batch_size: int,
        chunks: int,
        steps: int,
        row_tokens: int,
        texts_per_row: int,
        towers: str = "shared",
        instruction_negatives: int | None = None,
        query_encoder: str = "joint",
        mine: Sequence[int] | None = None,
    ):
        if not dataset.num_examples:
            raise UserError(f"{dataset.directory} holds no example")
        self.dataset, self.seed, self.batch_size = dataset, seed, batch_size
        self.chunks = chunks
        self.pairs_per_chunk = pairs_per_chunk(
            batch_size, chunks, whole_examples=instruction_negatives is not None
        )
        self.row_tokens, self.texts_per_row = row_tokens, texts_per_row
        self.query_encoder, self.block_i = query_encoder, instruction_negatives is not None
        self.sampled = instruction_negatives or 0
        self._check_query_encoder()
        self.layout = Layout(
            dataset, towers=towers, query_encoder=query_encoder, sampled=self.sampled
        )
        self._mine = np.arange(chunks) if mine is None else np.asarray(mine)
        self._order = Order(dataset.text_lengths.sum(1), seed=seed, batch_size=batch_size)
        self.plan = self._plan(steps)

    @property
    def instruction_candidates(self) -> int:
        """Candidates of a row in block I, before identity masks; 0 where there is no such block."""
        if not self.block_i:
            return 0
        if self.query_encoder == "attention":
            return self.pairs_per_chunk - 1
        return 1 + self.sampled

    def example_indices(self, step: int) -> np.ndarray:
        """int64[batch_size], the examples of a step, as `Order` has them."""
        return self._order.examples(step)

    def host_batch(self, step: int) -> Batch:
        """This host's chunks of the batch of `step`, in numpy; leading axes hold its share only.

        Raises:
          CorruptRecordError: a record is damaged; names file and record.
        """
        deal = self._deal(step)
        rows = self.plan.rows if self.plan.exact else self._rows_with_fallback(deal)
        mine = deal.chunks[self._mine]
        present = mine >= 0
        read = self.layout.read(deal.examples, mine[present], deal.drawn)
        grids = []
        for number, r in enumerate(rows):
            chunks = []
            for chunk in mine:
                pairs, columns = self.layout.names(chunk, number)
                chunks.append(
                    packing.pack_chunk(
                        list(map(read.text, pairs.tolist(), columns.tolist())),
                        self.layout.text_ids(pairs, columns, count=len(deal.lengths)),
                        rows=r,
                        row_tokens=self.row_tokens,
                        texts_per_row=self.texts_per_row,
                    )
                )
            grids.append(packing.stack_chunks(chunks))
        return Batch(
            texts=grids[0] if len(grids) == 1 else (grids[0], grids[1]),
            ids=text_ids(np.stack([read.hashes(p) for p in mine.ravel().tolist()])),
            valid=present.reshape(-1),
            negatives=self._block_i(deal, read) if self.block_i else None,
        )

    def batches(
        self, first: int, last: int, *, to_device: Callable[[Batch], Batch], prefetch: int = 2
    ) -> Iterator[Batch]:
        """Device batches of steps first..last-1, made ready `prefetch` steps ahead in a thread."""
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader") as pool:
            ahead: deque = deque()
            try:
                for step in range(first, last + prefetch):
                    if step < last:
                        ahead.append(pool.submit(lambda s=step: to_device(self.host_batch(s))))
                    if step >= first + prefetch:
                        yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()

    def _deal(self, step: int) -> Deal:
        examples = self.example_indices(step)
        present = self.dataset.text_lengths[examples, ::2].ravel() > 0
        hashes = self.dataset.instruction_hashes[examples].ravel()
        sibling = siblings(present)
        drawn = draw(
            hashes,
            self.dataset.part_lengths[examples, :, 2].ravel() > 0,
            sibling,
            count=self.sampled,
            seed=self.seed,
            step=step,
        )
        lengths = self.layout.lengths(examples, drawn)
        chunks = self._deal_pairs(present, lengths.sum(1))
        return Deal(examples, chunks, lengths, hashes, sibling, drawn)

    def _deal_pairs(self, present: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """int64[c, n] of the pairs (bool and int64[p]); -1 for an empty slot."""
        if not self.block_i:
            pairs = np.flatnonzero(present)
            padded = np.full(self.chunks * self.pairs_per_chunk, -1)
            padded[: len(pairs)] = pairs
            weight = np.where(padded >= 0, tokens[padded], 0)
            return padded[packing.assign_to_chunks(weight, self.chunks)]
        # whole examples: a query under its other instruction is in the chunk, no other device's
        padded = np.full(self.chunks * (self.pairs_per_chunk // PAIRS_PER_EXAMPLE), -1)
        padded[: self.batch_size] = np.arange(self.batch_size)
        whole = (tokens * present).reshape(-1, PAIRS_PER_EXAMPLE).sum(1)
        weight = np.where(padded >= 0, whole[padded], 0)
        examples = padded[packing.assign_to_chunks(weight, self.chunks)][:, :, None]
        pairs = PAIRS_PER_EXAMPLE * examples + np.arange(PAIRS_PER_EXAMPLE)[None, None]
        return np.where((examples >= 0) & present[pairs], pairs, -1).reshape(self.chunks, -1)

    def _block_i(self, deal: Deal, read: StepTexts) -> InstructionNegatives:
        mine = deal.chunks[self._mine]
        rows = mine.ravel()
        if self.query_encoder == "attention":
            poison = None
            has_instruction = self.dataset.part_lengths[deal.examples, :, 2].ravel() > 0
            sources, valid = of_chunk(mine, has_instruction)
        else:
            poison = free_places(mine, deal.sibling).ravel()
            sources, valid = of_rows(rows, deal.sibling, deal.drawn)
        hashes = np.zeros((len(deal.lengths), 3), np.uint64)
        for pair in np.unique(sources[sources >= 0]).tolist():
            hashes[pair] = read.hashes(pair)
        ids = instruction_ids(rows, sources, hashes)
        return InstructionNegatives(split_hashes(ids), poison, valid)

    def _needs(self, deal: Deal) -> list[int]:
        """Rows that the fullest chunk needs, one number a grid."""
        needs = []
        for chunk in deal.chunks:
            names = [self.layout.names(chunk, grid) for grid in range(len(self.layout.grids))]
            lengths = [np.where(pairs >= 0, deal.lengths[pairs, at], 0) for pairs, at in names]
            needs.append(
                [packing.rows_needed(x, self.row_tokens, self.texts_per_row) for x in lengths]
            )
        return np.max(needs, axis=0).tolist()

    def _plan(self, steps: int) -> Plan:
        texts_a_step = self.layout.columns * PAIRS_PER_EXAMPLE * self.batch_size
        exact = steps * texts_a_step <= PLANNED_TEXTS
        sample = (
            np.arange(steps)
            if exact
            else np.unique(np.linspace(0, steps - 1, SAMPLED_STEPS).astype(int))
        )
        rows, counts = [], []
        for step in sample.tolist():
            deal = self._deal(step)
            rows.append(self._needs(deal))
            poisons = deal.hashes[deal.sibling] != deal.hashes
            extra = deal.lengths[:, FIRST_EXTRA:] * (self.query_encoder == "joint")
            pairs = np.count_nonzero(deal.lengths[:, 0])
            counts.append(
                (deal.lengths.sum(), pairs, extra.sum(), (deal.drawn >= 0).sum(), poisons.sum())
            )
        most = np.max(rows, axis=0)
        if not exact:
            most = np.ceil(most * MARGIN).astype(int)
        capacity = self.chunks * most.sum() * self.row_tokens
        tokens, pairs, sampled_tokens, sampled, poisons = np.mean(counts, axis=0).tolist()
        return Plan(
            rows=tuple(int(r) for r in most),
            exact=exact,
            fill=float(tokens / capacity),
            tokens=tokens,
            pairs=pairs,
            sampled_tokens=sampled_tokens,
            sampled=sampled / pairs,
            poisons=poisons / pairs,
        )

    def _rows_with_fallback(self, deal: Deal) -> tuple[int, ...]:
        """The planned rows, or where a step needs more, the next of a few larger shapes (a
        recompilation)."""
        larger = []
        for need, planned in zip(self._needs(deal), self.plan.rows, strict=True):
            stride = max(1, planned // 8)
            larger.append(planned + -(-max(0, need - planned) // stride) * stride)
        return tuple(larger)

    def _check_query_encoder(self) -> None:
        if self.query_encoder == "attention":
            if self.sampled:
                raise UserError(
                    f"loss.instruction_negatives={self.sampled}: with model.query_encoder="
                    "\"attention\" a chunk's instructions are each other's negatives and none is "
                    "drawn; set it to 0"
                )
            self.dataset.check_composition("alone")
        elif self.sampled:
            self.dataset.check_composition("crossed")


def to_mesh(mesh: jax.sharding.Mesh) -> Callable[[Batch], Batch]:
    """Host batches, of the chunks of `local_parts`, -> global arrays split over the mesh."""
    sharding, parts = batch_sharding(mesh), local_parts(mesh)

    def put(x: np.ndarray) -> jax.Array:
        size = len(x) // len(parts)
        mine = {number * size: x[i * size : (i + 1) * size] for i, number in enumerate(parts)}
        shape = (size * batch_devices(mesh), *x.shape[1:])
        return jax.make_array_from_callback(shape, sharding, lambda at: mine[at[0].start or 0])

    return functools.partial(jax.tree.map, put)
