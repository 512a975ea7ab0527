"""What a step's batch looks like before there is a batch: shapes from a config, and its tokens.

Where the dataset is there, its own lengths count (`Loader.plan`); else stated ones are assumed.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from inf_jax.config.sections import RunConfig
from inf_jax.core import packing
from inf_jax.core.batch import Batch, InstructionNegatives, TextIds
from inf_jax.core.errors import UserError
from inf_jax.data.from_config import dataset_dir
from inf_jax.data.layout import PASSAGE, grids
from inf_jax.data.loader import MARGIN, Loader, pairs_per_chunk
from inf_jax.data.records import PAIRS_PER_EXAMPLE
from inf_jax.losses.objective import parse_objective
from inf_jax.models.hf.backbone import run_tokenizer
from inf_jax.training.setup import make_loader


class Inputs(NamedTuple):
    """A step's input.

    Attributes:
      chunks: c, over the whole mesh.
      rows: of a chunk's grid, one number a grid.
      pairs: of a step.
      tokens: real ones of a step.
      squares: sum over the texts of tokens^2.
      fill: share of the grids' slots that hold a token.
      instructions: candidates of a row in block I.
      note: where lengths and fill are from.
      measured: they are the dataset's own.
    """

    chunks: int
    rows: tuple[int, ...]
    pairs: float
    tokens: float
    squares: float
    fill: float
    instructions: int
    note: str
    measured: bool


def plan_inputs(
    config: RunConfig, *, devices: int, query_tokens: float, passage_tokens: float
) -> Inputs:
    """The input of a step on so many devices.

    Args:
      query_tokens, passage_tokens: mean lengths, assumed where there is no dataset to measure.

    Raises:
      UserError: the batch cannot be dealt to the devices.
    """
    try:
        dataset_dir(config)
        tokenizer = run_tokenizer(config)
    except UserError as error:
        return _assumed(config, devices, query_tokens, passage_tokens, why=str(error))
    return loader_inputs(make_loader(config, tokenizer, devices=devices))


def loader_inputs(loader: Loader) -> Inputs:
    """The mean input of a loader's steps, measured on its dataset."""
    plan, lengths = loader.plan, loader.dataset.text_lengths.astype(np.float64)
    squares = loader.batch_size * np.square(lengths).sum(1).mean()
    queries = lengths[:, ::2][lengths[:, ::2] > 0]
    drawn = plan.sampled_tokens * np.square(queries).sum() / queries.sum()
    return Inputs(
        chunks=loader.chunks,
        rows=plan.rows,
        pairs=plan.pairs,
        tokens=plan.tokens,
        squares=float(squares + drawn),
        fill=plan.fill,
        instructions=loader.instruction_candidates,
        note=f"measured on {loader.dataset.directory}",
        measured=True,
    )


def _assumed(
    config: RunConfig, devices: int, query_tokens: float, passage_tokens: float, *, why: str
) -> Inputs:
    data, loss, encoder = config.data, config.loss, config.model.query_encoder
    block_i = "I" in parse_objective(loss.objective).blocks
    sampled = loss.instruction_negatives if block_i and encoder == "joint" else 0
    chunks = devices * config.train.chunks_per_device
    batch_size = config.train.batch_size
    n = pairs_per_chunk(batch_size, chunks, whole_examples=block_i)
    half = encoder == "attention"  # query and instruction are texts of their own
    queries = _spread(query_tokens / (2 if half else 1), data.max_query_tokens, n)
    passages = _spread(passage_tokens, data.max_passage_tokens, n)
    rows, tokens, squares = [], 0.0, 0.0
    for groups in grids(towers=config.model.towers, query_encoder=encoder, sampled=sampled):
        columns = [column for group in groups for column in group]
        texts = np.concatenate([passages if c == PASSAGE else queries for c in columns])
        needed = packing.rows_needed(texts, data.row_tokens, data.texts_per_row)
        rows.append(int(np.ceil(needed * MARGIN)))
        tokens += float(texts.sum()) / n
        squares += float(np.square(texts).sum()) / n
    pairs = batch_size * PAIRS_PER_EXAMPLE
    instructions = (n - 1 if half else 1 + sampled) if block_i else 0
    return Inputs(
        chunks=chunks,
        rows=tuple(rows),
        pairs=float(pairs),
        tokens=tokens * pairs,
        squares=squares * pairs,
        fill=tokens * pairs / (chunks * sum(rows) * data.row_tokens),
        instructions=instructions,
        note=(
            f"ASSUMED: queries of {query_tokens:g} tokens and passages of {passage_tokens:g} in "
            f"the mean (--query-tokens, --passage-tokens); {why}"
        ),
        measured=False,
    )


def _spread(mean: float, longest: int, count: int) -> np.ndarray:
    """int64[count] lengths, evenly from half the mean to one and a half, cut at the longest."""
    places = (np.arange(count) + 0.5) / count
    return np.clip(np.rint(mean * (0.5 + places)), 1, longest).astype(np.int64)


def batch_shapes(
    config: RunConfig, inputs: Inputs, *, sharding: jax.sharding.Sharding | None
) -> Batch:
    """The batch that `Loader` and `to_mesh` give, as ShapeDtypeStructs."""
    objective, loss = parse_objective(config.loss.objective), config.loss
    encoder, data, c = config.model.query_encoder, config.data, inputs.chunks
    block_i = "I" in objective.blocks
    sampled = loss.instruction_negatives if block_i and encoder == "joint" else 0
    n = pairs_per_chunk(config.train.batch_size, c, whole_examples=block_i)

    def array(*shape: int, dtype=jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    packed = []
    all_grids = grids(towers=config.model.towers, query_encoder=encoder, sampled=sampled)
    for rows, groups in zip(inputs.rows, all_grids, strict=True):
        grid = array(c, rows, data.row_tokens)
        texts = n * sum(map(len, groups))
        ids = array(c, rows, data.texts_per_row, dtype=jnp.uint32)
        packed.append(packing.Packed(grid, grid, grid, ids, array(c, texts)))
    negatives = None
    if block_i:
        candidates = n if encoder == "attention" else 1 + sampled
        negatives = InstructionNegatives(
            ids=array(c * n, candidates, 2, dtype=jnp.uint32),
            poison=None if encoder == "attention" else array(c * n),
            valid=array(c * n, candidates, dtype=jnp.bool_),
        )
    return Batch(
        texts=packed[0] if len(packed) == 1 else (packed[0], packed[1]),
        ids=TextIds(*(array(c * n, 2, dtype=jnp.uint32) for _ in TextIds._fields)),
        valid=array(c * n, dtype=jnp.bool_),
        negatives=negatives,
    )
