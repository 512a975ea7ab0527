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
from inf_jax.data.mixture.dataset import MixtureDataset, example_tokens
from inf_jax.data.negatives import instruction_ids, of_chunk, of_rows, sibling_slots
from inf_jax.data.packing_plan import plan_packing
from inf_jax.data.records import text_hash
from inf_jax.data.sampler import ORDER, StepAssignment, assign_step
from inf_jax.data.tokenised.dataset import TokenisedDataset
from inf_jax.data.tokenised.varied import VariedDataset
from inf_jax.data.windows import WindowedOrder, WindowReader
from inf_jax.distributed.mesh import batch_devices, batch_sharding, local_parts

_NO_INSTRUCTION = np.uint64(text_hash(""))


class Loader:
    """Batches of a tokenised dataset by step number; threads may share it.

    Args:
      seed: of the order and the samples.
      steps: steps of the run, for the plan.
      mine: numbers of this host's chunks, ascending; None is all.
      order: a key of `example_order.ORDERS`.
      measured: whether the split is not trained on: what the layout has and none of its pairs, such
        as hard negatives, is masked then instead of refused.

    Attributes:
      dataset: without its other wordings.
      plan: the shape of the grids and what fills it.
      example_order: `ExampleOrder`, or the `MixtureOrder` of a mixture.

    Raises:
      UserError: a text is longer than a row, the dataset is empty or lacks the instructions or
        negatives that the layout needs, texts cannot be spliced, or the order is not known.
    """

    def __init__(
        self,
        dataset: TokenisedDataset | MixtureDataset | VariedDataset,
        layout: BatchLayout,
        *,
        seed: int,
        steps: int,
        mine: Sequence[int] | None = None,
        order: int = ORDER,
        measured: bool = False,
    ):
        self._varied = dataset
        dataset = dataset.base if isinstance(dataset, VariedDataset) else dataset
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
        if layout.mixture != isinstance(dataset, MixtureDataset):
            raise ValueError(f"layout.mixture={layout.mixture} for a {type(dataset).__name__}")
        _check_instructions(self._varied, layout, measured=measured)
        if not measured:
            _check_negatives(dataset, layout)
        if splicing := layout.query_encoder.splicing(layout.sampled):
            self._varied.check_composition(splicing)
        self.dataset, self.layout, self.seed, self.steps = dataset, layout, seed, steps
        self.order = order
        self._mine = np.arange(layout.chunks) if mine is None else np.asarray(mine)
        self._groups, self._reader = 1, None
        if layout.mixture:
            self.example_order = dataset.order(layout, seed=seed, order=order)
            self.example_order.check(steps)
        elif dataset.windowed:
            tokens = functools.partial(dataset.tokens_of, negatives=layout.negatives)
            order_of = {"seed": seed, "batch_size": layout.batch_size, "order": order}
            self.example_order = WindowedOrder(dataset.shard_sizes, tokens=tokens, **order_of)
            self._groups = self.example_order.groups(layout.chunks)
            # sampled instructions are from all of the step
            read = np.arange(layout.chunks) if layout.sampled else self._mine
            lanes = self.example_order.lanes_of(read, layout.chunks)
            self._reader = WindowReader(dataset, self.example_order, lanes=lanes, steps=steps)
        else:
            tokens = example_tokens(dataset, layout.negatives)
            of_size = {"seed": seed, "batch_size": layout.batch_size}
            self.example_order = ORDERS[order](tokens, **of_size)
        self.plan = plan_packing(self.assignment, layout, steps=steps, refit=order > 2)

    def example_indices(self, step: int) -> np.ndarray:
        """int64[batch_size], the examples of a step; of a mixture [batch_size, m], its units."""
        return self.example_order.examples(step)

    @property
    def fingerprint(self) -> str:
        """Of the dataset with all of its wordings."""
        return self._varied.fingerprint

    def examples_by_source(self) -> list[float]:
        """Examples of a step, the mean of the run, of each of the dataset's sources."""
        if not self.layout.mixture:
            return [float(self.layout.batch_size)]
        epochs = self.example_order.epochs(self.steps)
        sizes = [one.num_examples for one in self.dataset.sources]
        return [e * n / self.steps for e, n in zip(epochs, sizes, strict=True)]

    def host_batch(self, step: int) -> Batch:
        """This host's chunks of the batch of `step`, in numpy; leading axes hold its share only.

        Raises:
          CorruptRecordError: a record is damaged; names file and record.
        """
        layout, assignment = self.layout, self.assignment(step)
        if self._reader:
            self._reader.prepare(step)
        mine = assignment.of_host(self._mine)
        present = mine >= 0
        texts = StepTexts(
            self._varied,
            layout,
            examples=assignment.examples,
            needed=mine[present],
            drawn=assignment.drawn,
            negatives=assignment.negatives,
        )
        pairs_of_host = mine.ravel()
        hashes = texts.hashes(pairs_of_host)
        row = {"row_tokens": layout.row_tokens, "texts_per_row": layout.texts_per_row}

        def packed(rows: tuple[int, ...]) -> list[packing.Packed]:
            grids = []
            for grid, r in enumerate(rows):
                pairs, columns = layout.grid_texts(mine, grid)
                source, *where = texts.texts(pairs, columns)
                ids = layout.text_ids(pairs, columns, count=len(assignment.lengths))
                grids.append(packing.empty_chunks(*pairs.shape, rows=r, **row))
                of_chunks = packing.split_chunks(grids[-1])
                for chunk, *text in zip(of_chunks, *where, ids, strict=True):
                    packing.pack_texts(source, *text, into=chunk)
            return grids

        # A host that packs all chunks sees whether they fit; it need not count their rows before.
        if self.plan.refit and len(mine) == layout.chunks:
            try:
                grids = packed(self.plan.rows)
            except packing.TooFewRowsError:
                grids = packed(self.plan.rows_for(assignment, layout))
        else:
            grids = packed(self.plan.rows_for(assignment, layout))
        return Batch(
            texts=grids[0] if len(grids) == 1 else tuple(grids),
            ids=text_ids(hashes),
            valid=present.reshape(-1),
            negatives=self._negatives(assignment) if layout.block_i else None,
            passage_valid=texts.passage_valid(pairs_of_host) if layout.negatives else None,
            teacher_scores=texts.teacher_scores(pairs_of_host) if layout.teacher else None,
            sources=self._sources(assignment, pairs_of_host) if layout.mixture else None,
            queries_alone=hashes[:, 0] == _NO_INSTRUCTION if layout.queries_alone else None,
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
        examples, drawn = self.example_indices(step), {"seed": self.seed, "step": step}
        if isinstance(self._varied, VariedDataset):
            examples = self._varied.units(examples, **drawn)
        options = {"order": self.order, "groups": self._groups} | drawn
        return assign_step(self._varied, self.layout, examples, **options)

    def _sources(self, assignment: StepAssignment, pairs: np.ndarray) -> np.ndarray:
        """int32[b], the source's number of each pair; -1 for the pair -1 of an empty slot."""
        numbers = self._varied.source_numbers(assignment.examples)
        found = numbers[np.maximum(pairs, 0) // self.layout.pairs_per_example]
        return np.where(pairs >= 0, found, -1).astype(np.int32)

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


def larger_than_data(loader: Loader) -> str:
    """What is said of steps that are larger than the data; "" if they are not."""
    layout, examples = loader.layout, loader.dataset.num_examples
    if layout.mixture:
        return loader.example_order.larger()
    if layout.batch_size <= examples:
        return ""
    least, most = layout.batch_size // examples, -(-layout.batch_size // examples)
    times = f"{most}" if least == most else f"{least} or {most}"
    return (
        f"train.batch_size={layout.pairs:,} is larger than the data: a step holds each of the "
        f"{examples:,} examples {times} times; lower it, or add data"
    )


def _check_instructions(
    dataset: TokenisedDataset | MixtureDataset | VariedDataset,
    layout: BatchLayout,
    *,
    measured: bool,
) -> None:
    if not (layout.block_i or layout.query_encoder.texts_per_query > 1):
        return
    some = any(one.instructions[0] for one in dataset.sources)
    if layout.block_i and not some and not measured:
        raise UserError(
            f"{dataset.directory}: no pair has an instruction, so there are no negatives of block "
            "I; leave it out of loss.objective, as in multi(P,IQ)"
        )
    alone, empty = layout.query_encoder.texts_per_query > 1, not sum(map(len, dataset.special))
    for one in dataset.sources if alone and empty else ():
        if one.instructions[1]:
            raise UserError(
                f"{one.directory}: some pairs have no instruction, and this tokenizer adds no "
                "special tokens that could stand for it as a text of its own; train with "
                'model.query_encoder="joint"'
            )


def _check_negatives(dataset: TokenisedDataset | MixtureDataset, layout: BatchLayout) -> None:
    if layout.negatives and dataset.negative_counts is None:
        raise UserError(
            f"{dataset.directory}: no pair has hard negatives, but loss.negatives="
            f"{layout.negatives}; set it to 0, or build the dataset from a source with negatives"
        )
    if layout.teacher and not dataset.scored:
        raise UserError(
            f"{dataset.directory}: no pair has a teacher's scores, which loss.objective "
            "needs; leave it out, build the dataset from a source with scores, or name a model "
            "that gives them, loss.teacher"
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
