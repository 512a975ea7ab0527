"""Gives the shapes and mean sizes of a step's batch without making one.

They are measured on the dataset where it exists (`Loader.plan`); otherwise lengths are assumed.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from inf_jax.config.sections import RunConfig
from inf_jax.core import packing
from inf_jax.core.batch import Batch, InstructionNegatives, TextIds
from inf_jax.core.errors import UserError
from inf_jax.core.query_encoders import PASSAGE
from inf_jax.data.from_config import (
    batch_layout,
    check_datasets,
    dataset_dir,
    make_loader,
    source_configs,
    wordings_of,
)
from inf_jax.data.layout import BatchLayout
from inf_jax.data.loader import Loader, larger_than_data
from inf_jax.data.packing_plan import planned_rows
from inf_jax.data.tokenised.plans import source_files
from inf_jax.data.tokenised.shuffle import INDEX_BYTES, INDEX_LIMIT, is_large
from inf_jax.losses.objective import Objective
from inf_jax.text.tokenizer import TextTokenizer

_FULLEST = 1.01  # tokens of a step's fullest chunk, over their mean


class StepInputs(NamedTuple):
    """A step's input, over the whole mesh.

    Attributes:
      chunks, rows, pairs, tokens, fill: see `BatchLayout` and `PackingPlan`.
      pairs_per_example: of the dataset; without one 3, as InF-IR has, if that divides the batch.
      examples: of a step, the mean.
      squares: mean sum over the texts of a step of tokens^2.
      instructions: candidates of a row in block I.
      hard_negatives: mean number in a step.
      note: where lengths and fill are from, for people.
      measured: whether they are the dataset's own.
      warning: about a step that is larger than the data, or an index that is; "" for none.
    """

    chunks: int
    rows: tuple[int, ...]
    pairs: float
    tokens: float
    squares: float
    fill: float
    instructions: int
    hard_negatives: float
    note: str
    measured: bool
    pairs_per_example: int
    examples: float
    warning: str = ""

    def candidates(self, objective: Objective) -> float:
        """Candidates of a row that the objective scores beyond one text of each pair."""
        used = objective.blocks
        return self.instructions * ("I" in used) + self.hard_negatives * ("P" in used)


def plan_inputs(
    config: RunConfig,
    tokenizer: Callable[[], TextTokenizer],
    *,
    devices: int,
    query_tokens: float,
    passage_tokens: float,
) -> StepInputs:
    """The input of a step on this many devices; UserError as of `BatchLayout`.

    Args:
      tokenizer: loads the tokenizer; called where there is a dataset to measure.
      query_tokens, passage_tokens: mean lengths, assumed where dataset or tokenizer are missing.
    """
    try:
        check_datasets(config)
        loaded = tokenizer()
    except UserError as error:
        return _assumed(config, devices, query_tokens, passage_tokens, why=str(error))
    inputs = loader_inputs(make_loader(config, loaded, devices=devices))
    return inputs._replace(warning="; ".join(filter(None, (inputs.warning, index_warning(config)))))


def index_warning(config: RunConfig) -> str:
    """What is said of a global order of the training split whose index takes much of a host's
    memory; "" if it does not. Reads nothing but the number of examples."""
    records = 0
    for wording, _ in wordings_of(config):
        for each in source_configs(wording):
            directory, shuffle = dataset_dir(each), each.data.shuffle
            count = sum(n for _, n in source_files(directory, config.data.train_split))
            large = is_large(count, directory, batch=config.train.batch_size)
            records += count * (shuffle == "global" or (shuffle == "auto" and not large))
    if records * INDEX_BYTES <= INDEX_LIMIT:
        return ""
    several = len(wordings_of(config)) > 1 or config.data.mixture.strip()
    remedy = "data.shuffle=windows leaves it on the disk"
    if several:
        remedy += ", without mixtures and with one wording of the instructions alone"
    return (
        f"the global order keeps an index of about {records * INDEX_BYTES / 2**30:.0f} GiB in each "
        f"host's memory, {INDEX_BYTES} bytes for each of {records:,} examples, sources and "
        f"wordings added up; {remedy}"
    )


def loader_inputs(loader: Loader) -> StepInputs:
    """The mean input of a loader's steps, measured on its dataset."""
    plan, counts = loader.plan, loader.examples_by_source()
    squares, queries = 0.0, np.zeros(2)  # of queries: their tokens and the sum of tokens^2
    for one, count in zip(loader.dataset.sources, counts, strict=True):
        every = max(1, one.num_examples >> 20)  # of many, a million are enough
        lengths = one.text_lengths[::every].astype(np.float64)
        share = count / len(lengths)
        squares += share * np.square(lengths).sum()
        queries += [share * (lengths[:, ::2] ** power).sum() for power in (1, 2)]
    sampled = plan.sampled_tokens * queries[1] / queries[0]
    return StepInputs(
        chunks=loader.layout.chunks,
        rows=plan.rows,
        pairs=plan.pairs,
        tokens=plan.tokens,
        squares=float(squares + sampled + plan.negative_squares),
        fill=plan.fill,
        instructions=loader.layout.instruction_candidates,
        hard_negatives=plan.negatives * plan.pairs,
        note=f"measured on {loader.dataset.directory}",
        measured=True,
        pairs_per_example=loader.layout.pairs_per_example,
        examples=sum(counts),
        warning=larger_than_data(loader),
    )


def _assumed(
    config: RunConfig, devices: int, query_tokens: float, passage_tokens: float, *, why: str
) -> StepInputs:
    k, data = 1 if config.train.batch_size % 3 else 3, config.data
    layout = batch_layout(config, devices=devices, pairs_per_example=k)
    n = layout.pairs_per_chunk
    # the parts of a query that are texts of their own share its tokens
    queries = _spread(query_tokens / layout.query_encoder.texts_per_query, data.max_query_tokens, n)
    passages = _spread(passage_tokens, data.max_passage_tokens, n)
    rows, tokens, squares = [], 0.0, 0.0
    is_passage = lambda column: column == PASSAGE or column >= layout.first_negative  # noqa: E731
    for groups in layout.grids:
        columns = [column for group in groups for column in group]
        texts = np.concatenate([passages if is_passage(c) else queries for c in columns])
        fullest = int(np.ceil(_FULLEST * texts.sum() / layout.row_tokens))
        rows.append(max(fullest, planned_rows(texts, layout.row_tokens, layout.texts_per_row)))
        tokens += float(texts.sum()) / n
        squares += float(np.square(texts).sum()) / n
    pairs = layout.pairs
    return StepInputs(
        chunks=layout.chunks,
        rows=tuple(rows),
        pairs=float(pairs),
        tokens=tokens * pairs,
        squares=squares * pairs,
        fill=tokens * pairs / (layout.chunks * sum(rows) * layout.row_tokens),
        instructions=layout.instruction_candidates,
        hard_negatives=float(layout.negatives * pairs),
        note=(
            f"ASSUMED: queries of {query_tokens:g} tokens and passages of {passage_tokens:g} in "
            f"the mean (--query-tokens, --passage-tokens); {why}"
        ),
        measured=False,
        pairs_per_example=k,
        examples=float(layout.batch_size),
    )


def _spread(mean: float, longest: int, count: int) -> np.ndarray:
    """int64[count] lengths, evenly from half the mean to one and a half, cut at the longest."""
    quantiles = (np.arange(count) + 0.5) / count
    return np.clip(np.rint(mean * (0.5 + quantiles)), 1, longest).astype(np.int64)


def batch_shapes(
    layout: BatchLayout, rows: tuple[int, ...], *, sharding: jax.sharding.Sharding | None
) -> Batch:
    """The batch of `Loader` and `to_mesh` as ShapeDtypeStructs; `rows` as of a `PackingPlan`."""
    c, n = layout.chunks, layout.pairs_per_chunk

    def array(*shape: int, dtype=jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    passages = (1 + layout.negatives,) if layout.negatives else ()
    packed = []
    for r, groups in zip(rows, layout.grids, strict=True):
        grid = array(c, r, layout.row_tokens)
        ids = array(c, r, layout.texts_per_row, dtype=jnp.uint32)
        packed.append(packing.Packed(grid, grid, grid, ids, array(c, n * sum(map(len, groups)))))
    negatives = None
    if layout.block_i:
        samples = layout.query_encoder.samples_instructions
        columns = 1 + layout.sampled if samples else n  # of a chunk the row's own is one
        negatives = InstructionNegatives(
            ids=array(c * n, columns, 2, dtype=jnp.uint32),
            poison=array(c * n) if samples else None,
            valid=array(c * n, columns, dtype=jnp.bool_),
        )
    return Batch(
        texts=packed[0] if len(packed) == 1 else tuple(packed),
        ids=TextIds(*(array(c * n, *more, 2, dtype=jnp.uint32) for more in ((), (), passages))),
        valid=array(c * n, dtype=jnp.bool_),
        negatives=negatives,
        passage_valid=array(c * n, *passages, dtype=jnp.bool_) if passages else None,
        teacher_scores=array(c * n, *passages, dtype=jnp.float32) if layout.teacher else None,
        sources=array(c * n) if layout.mixture else None,
        queries_alone=array(c * n, dtype=jnp.bool_) if layout.queries_alone else None,
    )
