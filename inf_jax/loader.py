"""(seed, step) -> the global batch: a pure function, without iterator state to save or to lose.

Order is a permutation of the examples per epoch, drawn from (seed, epoch), cut into windows of a
few steps; a window's examples are dealt to its steps by length, so that all steps hold nearly as
many tokens. A step deals its pairs to equal chunks in the same way and packs each chunk into one
grid shape that is known before step 0. Every host computes the same deal from the index's text
lengths alone and reads only the records of its own chunks.
"""

import functools
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np

from inf_jax import packing
from inf_jax.blocks import text_ids
from inf_jax.errors import UserError
from inf_jax.mesh import batch_sharding
from inf_jax.packing import Packed
from inf_jax.records import PAIRS_PER_EXAMPLE
from inf_jax.step import Batch
from inf_jax.tokenised import TokenisedDataset

PLANNED_TEXTS = 2_000_000  # above this many texts the shape is planned on a sample of the steps
SAMPLED_STEPS = 64
MARGIN = 1.03  # rows added to the largest sampled need
WINDOW_STEPS = 16  # steps that share their examples' lengths evenly


class Plan(NamedTuple):
    """The one shape of all steps, and how full it is.

    Attributes:
      rows: rows of a chunk's grid, one number a grid (one grid for shared towers, two for
        separate).
      exact: all steps were walked; else a sample, and a rare step may take a larger shape.
      fill: mean share of token slots that hold a token.
      tokens: mean real tokens of a step, over the whole mesh.
      pairs: mean pairs of a step.
    """

    rows: tuple[int, ...]
    exact: bool
    fill: float
    tokens: float
    pairs: float


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
      process_index, process_count: which contiguous slice of the chunks is this host's.

    Raises:
      UserError: the chunks do not divide among the hosts, a text is longer than a row, or the
        dataset is empty.
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
        process_index: int = 0,
        process_count: int = 1,
    ):
        if chunks % process_count:
            raise UserError(f"{chunks} chunks do not divide among {process_count} hosts")
        if batch_size * PAIRS_PER_EXAMPLE < chunks:
            raise UserError(
                f"train.batch_size={batch_size} gives fewer pairs than there are chunks "
                f"({chunks}): raise it or lower train.chunks_per_device"
            )
        if not dataset.num_examples:
            raise UserError(f"{dataset.directory} holds no example")
        self.dataset, self.seed, self.batch_size = dataset, seed, batch_size
        self.chunks, self.pairs_per_chunk = chunks, -(-batch_size * PAIRS_PER_EXAMPLE // chunks)
        self.row_tokens, self.texts_per_row = row_tokens, texts_per_row
        self.shared = towers == "shared"
        each = chunks // process_count
        self._mine = range(process_index * each, (process_index + 1) * each)
        self._permutation = functools.lru_cache(maxsize=2)(self._epoch_order)
        self._window = functools.lru_cache(maxsize=4)(self._window_steps)
        self.plan = self._plan(steps)

    def example_indices(self, step: int) -> np.ndarray:
        """int64[batch_size], the examples of a step; epochs follow each other without a gap.

        Each window of WINDOW_STEPS * batch_size examples of the permuted stream is used once,
        whole.
        """
        window, inside = divmod(step, WINDOW_STEPS)
        return self._window(window)[inside]

    def host_batch(self, step: int) -> Batch:
        """This host's chunks of the batch of `step`, in numpy; leading axes hold its share only.

        Raises:
          CorruptRecordError: a record is damaged; names file and record.
        """
        examples, dealt, lengths = self._deal(step)
        rows = self.plan.rows if self.plan.exact else self._rows_with_fallback(dealt, lengths)
        mine = dealt[self._mine.start : self._mine.stop]
        present = mine >= 0
        which = np.where(present, mine, 0)
        wanted, inverse = np.unique(which // PAIRS_PER_EXAMPLE, return_inverse=True)
        records = self.dataset.read(examples[wanted])
        texts = [np.split(r.tokens, np.cumsum(r.lengths)[:-1]) for r in records]
        hashes = np.stack([r.hashes for r in records])

        inverse = inverse.reshape(which.shape)
        pair = which % PAIRS_PER_EXAMPLE
        grids: list[list[Packed]] = [[] for _ in rows]
        for chunk in range(len(mine)):
            queries, passages = (
                [
                    texts[inverse[chunk, j]][2 * pair[chunk, j] + role]
                    if present[chunk, j]
                    else np.empty(0, np.int32)
                    for j in range(self.pairs_per_chunk)
                ]
                for role in (0, 1)
            )
            ids = 2 * which[chunk]
            if self.shared:
                parts = [(queries + passages, np.concatenate([ids, ids + 1]))]
            else:
                parts = [(queries, ids), (passages, ids + 1)]
            for grid, (part, part_ids), r in zip(grids, parts, rows, strict=True):
                grid.append(
                    packing.pack_chunk(
                        part,
                        part_ids,
                        rows=r,
                        row_tokens=self.row_tokens,
                        texts_per_row=self.texts_per_row,
                    )
                )
        packed = tuple(packing.stack_chunks(grid) for grid in grids)
        return Batch(
            texts=packed[0] if self.shared else (packed[0], packed[1]),
            ids=text_ids(hashes[inverse, pair].reshape(-1, 3)),
            valid=present.reshape(-1),
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

    def _window_steps(self, window: int) -> np.ndarray:
        size = WINDOW_STEPS * self.batch_size
        epochs, inside = np.divmod(
            np.arange(window * size, (window + 1) * size), self.dataset.num_examples
        )
        examples = np.concatenate(
            [self._permutation(int(e))[inside[epochs == e]] for e in np.unique(epochs)]
        )
        tokens = self.dataset.text_lengths[examples].sum(1)
        return examples[packing.deal(tokens, WINDOW_STEPS)]

    def _epoch_order(self, epoch: int) -> np.ndarray:
        generator = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
        return generator.permutation(self.dataset.num_examples)

    def _deal(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(examples [B], pairs of each chunk [c, n] with -1 for an empty slot, lengths [3B, 2])."""
        examples = self.example_indices(step)
        lengths = self.dataset.text_lengths[examples].reshape(-1, 2)
        pairs = np.flatnonzero(lengths[:, 0])
        padded = np.full(self.chunks * self.pairs_per_chunk, -1)
        padded[: len(pairs)] = pairs
        weight = np.where(padded >= 0, lengths[padded].sum(1), 0)
        return examples, padded[packing.deal(weight, self.chunks)], lengths

    def _needs(self, dealt: np.ndarray, lengths: np.ndarray) -> list[int]:
        """Rows that the fullest chunk needs, one number a grid."""
        needs = []
        for chunk in dealt:
            both = np.where(chunk[:, None] >= 0, lengths[chunk], 0)
            grids = [both.ravel()] if self.shared else [both[:, 0], both[:, 1]]
            needs.append(
                [packing.rows_needed(g, self.row_tokens, self.texts_per_row) for g in grids]
            )
        return np.max(needs, axis=0).tolist()

    def _plan(self, steps: int) -> Plan:
        texts_a_step = 2 * PAIRS_PER_EXAMPLE * self.batch_size
        exact = steps * texts_a_step <= PLANNED_TEXTS
        sample = (
            np.arange(steps)
            if exact
            else np.unique(np.linspace(0, steps - 1, SAMPLED_STEPS).astype(int))
        )
        rows, tokens, pairs = [], [], []
        for step in sample.tolist():
            _, dealt, lengths = self._deal(step)
            rows.append(self._needs(dealt, lengths))
            tokens.append(lengths.sum())
            pairs.append(np.count_nonzero(lengths[:, 0]))
        most = np.max(rows, axis=0)
        if not exact:
            most = np.ceil(most * MARGIN).astype(int)
        capacity = self.chunks * most.sum() * self.row_tokens
        return Plan(
            rows=tuple(int(r) for r in most),
            exact=exact,
            fill=float(np.mean(tokens) / capacity),
            tokens=float(np.mean(tokens)),
            pairs=float(np.mean(pairs)),
        )

    def _rows_with_fallback(self, dealt: np.ndarray, lengths: np.ndarray) -> tuple[int, ...]:
        """The planned rows, or where a step needs more, the next of a few larger shapes (a
        recompilation)."""
        larger = []
        for need, planned in zip(self._needs(dealt, lengths), self.plan.rows, strict=True):
            stride = max(1, planned // 8)
            larger.append(planned + -(-max(0, need - planned) // stride) * stride)
        return tuple(larger)


def to_mesh(mesh: jax.sharding.Mesh) -> Callable[[Batch], Batch]:
    """Host batches -> global arrays split over the mesh."""
    sharding = batch_sharding(mesh)
    return lambda batch: jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, x), batch
    )
