"""Makes the global batch of a step: a pure function of (seed, step), with no state to save.

The index of the dataset gives a step's examples and chunks (data.sampler); each chunk is packed
into one grid shape known before step 0 (data.packing_plan). A host reads only the records of its
own chunks and of the instructions sampled for them.
"""

import functools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

from inf_jax.core import packing
from inf_jax.core.batch import Batch, InstructionNegatives, split_hashes, text_ids
from inf_jax.core.errors import UserError
from inf_jax.data.example_order import ORDERS
from inf_jax.data.layout import BatchLayout, StepTexts
from inf_jax.data.negatives import instruction_ids, of_chunk, of_rows, sibling_slots
from inf_jax.data.packing_plan import plan_packing
from inf_jax.data.sampler import ORDER, StepAssignment, assign_step
from inf_jax.data.tokenised.dataset import TokenisedDataset
from inf_jax.distributed.mesh import batch_devices, batch_sharding, local_parts


class Loader:
    """Batches of a tokenised dataset by step number; threads may share it.

    Args:
      seed: of the order and the samples.
      steps: steps of the run, for the plan.
      mine: numbers of this host's chunks, ascending; None is all.
      order: a key of `example_order.ORDERS`.

    Attributes:
      plan: the shape of the grids and what fills it.

    Raises:
      UserError: a text is longer than a row, the dataset is empty or lacks the instructions or
        negatives that the layout needs, texts cannot be spliced, or the order is not known.
    """

    def __init__(
        self,
        dataset: TokenisedDataset,
        layout: BatchLayout,
        *,
        seed: int,
        steps: int,
        mine: Sequence[int] | None = None,
        order: int = ORDER,
    ):
        if not dataset.num_examples:
            raise UserError(f"{dataset.directory} holds no example")
        if order not in ORDERS:
            known = ", ".join(map(str, ORDERS))
            raise UserError(
                f"the run began with order {order} of its examples, this version knows {known}: "
                "continue with the version that began it, or give a new out_dir"
            )
        if layout.pairs_per_example != dataset.pairs_per_example:
            raise ValueError(f"a layout for {layout.pairs_per_example} pairs an example")
        _check_instructions(dataset, layout)
        _check_negatives(dataset, layout)
        if splicing := layout.query_encoder.splicing(layout.sampled):
            dataset.check_composition(splicing)
        self.dataset, self.layout, self.seed, self.steps = dataset, layout, seed, steps
        self.order = order
        self._mine = np.arange(layout.chunks) if mine is None else np.asarray(mine)
        tokens = dataset.text_lengths.sum(1) + dataset.drawn_tokens(layout.negatives)
        self._examples = ORDERS[order](tokens, seed=seed, batch_size=layout.batch_size).examples
        self.plan = plan_packing(self.assignment, layout, steps=steps, refit=order > 2)

    def example_indices(self, step: int) -> np.ndarray:
        """int64[batch_size], the examples of a step."""
        return self._examples(step)

    def host_batch(self, step: int) -> Batch:
        """This host's chunks of the batch of `step`, in numpy; leading axes hold its share only.

        Raises:
          CorruptRecordError: a record is damaged; names file and record.
        """
        layout, assignment = self.layout, self.assignment(step)
        mine = assignment.of_host(self._mine)
        present = mine >= 0
        texts = StepTexts(
            self.dataset,
            layout,
            examples=assignment.examples,
            needed=mine[present],
            drawn=assignment.drawn,
            negatives=assignment.negatives,
        )
        pairs_of_host = mine.ravel()

        def pack(chunk: np.ndarray, grid: int, rows: int) -> packing.Packed:
            pairs, columns = layout.grid_texts(chunk, grid)
            return packing.pack_texts(
                *texts.texts(pairs, columns),
                layout.text_ids(pairs, columns, count=len(assignment.lengths)),
                rows=rows,
                row_tokens=layout.row_tokens,
                texts_per_row=layout.texts_per_row,
            )

        def packed(rows: tuple[int, ...]) -> list[packing.Packed]:
            return [
                packing.stack_chunks([pack(chunk, grid, r) for chunk in mine])
                for grid, r in enumerate(rows)
            ]

        if self.plan.refit and len(mine) == layout.chunks:  # packing them all is the check
            try:
                grids = packed(self.plan.rows)
            except UserError:
                grids = packed(self.plan.rows_for(assignment, layout))
        else:
            grids = packed(self.plan.rows_for(assignment, layout))
        return Batch(
            texts=grids[0] if len(grids) == 1 else tuple(grids),
            ids=text_ids(texts.hashes(pairs_of_host)),
            valid=present.reshape(-1),
            negatives=self._negatives(assignment) if layout.block_i else None,
            passage_valid=texts.passage_valid(pairs_of_host) if layout.negatives else None,
            teacher_scores=texts.teacher_scores(pairs_of_host) if layout.teacher else None,
        )

    def batches(
        self, first: int, last: int, *, to_device: Callable[[Batch], Batch], prefetch: int = 2
    ) -> Iterator[Batch]:
        """Device batches of steps first..last-1, prepared `prefetch` steps ahead in a thread."""
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

    def assignment(self, step: int) -> StepAssignment:
        """The pairs of a step and their chunks, on all hosts."""
        examples = self.example_indices(step)
        options = {"seed": self.seed, "step": step, "order": self.order}
        return assign_step(self.dataset, self.layout, examples, **options)

    def _negatives(self, assignment: StepAssignment) -> InstructionNegatives:
        mine, instructions = assignment.of_host(self._mine), assignment.instructions
        rows = mine.ravel()
        if self.layout.query_encoder.samples_instructions:
            poison = sibling_slots(mine, instructions.sibling).ravel()
            sources, valid = of_rows(rows, instructions.sibling, assignment.drawn)
        else:
            poison, (sources, valid) = None, of_chunk(mine, instructions.usable)
        ids = instruction_ids(rows, sources, instructions.hashes, instructions.known)
        return InstructionNegatives(split_hashes(ids), poison, valid)


def _check_instructions(dataset: TokenisedDataset, layout: BatchLayout) -> None:
    has = dataset.part_lengths[:, :, 2] > 0
    if layout.block_i and not has.any():
        raise UserError(
            f"{dataset.directory}: no pair has an instruction, so there are no negatives of block "
            "I; leave it out of loss.objective, as in multi(P,IQ)"
        )
    alone, empty = layout.query_encoder.texts_per_query > 1, not sum(map(len, dataset.special))
    if alone and empty and (~has & (dataset.text_lengths[:, ::2] > 0)).any():
        raise UserError(
            f"{dataset.directory}: some pairs have no instruction, and this tokenizer adds no "
            "special tokens that could stand for it as a text of its own; train with "
            'model.query_encoder="joint"'
        )


def _check_negatives(dataset: TokenisedDataset, layout: BatchLayout) -> None:
    if layout.negatives and dataset.negative_counts is None:
        raise UserError(
            f"{dataset.directory}: no pair has hard negatives, but loss.negatives="
            f"{layout.negatives}; set it to 0, or build the dataset from a source with negatives"
        )
    if layout.teacher and not dataset.scored:
        raise UserError(
            f"{dataset.directory}: no pair has a teacher's scores, which loss.objective "
            "needs; leave it out, or build the dataset from a source with scores"
        )


def to_mesh(mesh: jax.sharding.Mesh) -> Callable[[Batch], Batch]:
    """Host batches, of the chunks of `local_parts`, -> global arrays split over the mesh."""
    sharding, parts = batch_sharding(mesh), local_parts(mesh)

    def put(x: np.ndarray) -> jax.Array:
        size = len(x) // len(parts)
        mine = {number * size: x[i * size : (i + 1) * size] for i, number in enumerate(parts)}
        shape = (size * batch_devices(mesh), *x.shape[1:])
        return jax.make_array_from_callback(shape, sharding, lambda at: mine[at[0].start or 0])

    return functools.partial(jax.tree.map, put)
