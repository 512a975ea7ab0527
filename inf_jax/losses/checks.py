"""Checks the arguments of `contrastive_loss`; each mistake gives one clear UserError."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh

from inf_jax.core.errors import UserError
from inf_jax.losses.by_score import ByScore
from inf_jax.losses.candidates import RowTexts
from inf_jax.losses.objective import ENGINES, HARDNESS_OF, MASKS, TAUGHT, Objective

MOST_HARDNESS = 64  # exp(64) times the candidates of a batch is far from float32's end


def check_texts(objective: Objective, rows: RowTexts) -> None:
    """Shapes and dtypes of the embeddings and of `valid`; passages are [b, 1 + h, e]."""
    queries, passages, valid = rows.queries, rows.passages, rows.valid
    if queries.ndim != 2 or passages.ndim != 3 or queries.shape != passages[:, 0].shape:
        raise UserError(
            f"queries {queries.shape} and passages {passages.shape}: expected [b, e] and [b, e] or "
            "[b, 1 + h, e]"
        )
    if not all(jnp.issubdtype(x.dtype, jnp.floating) for x in (queries, passages)):
        raise UserError(f"embeddings of {queries.dtype} and {passages.dtype}: expected floats")
    if valid is not None and (valid.shape != queries.shape[:1] or valid.dtype != bool):
        raise UserError(f"valid is {valid.dtype}{valid.shape}: expected bool{queries.shape[:1]}")
    there, shape = rows.passage_valid, passages.shape[:2]
    if there is not None and (there.shape != shape or there.dtype != bool):
        raise UserError(f"passage_valid is {there.dtype}{there.shape}: expected bool{shape}")
    alone = rows.alone
    if alone is not None and (alone.shape != queries.shape[:1] or alone.dtype != bool):
        expected = f"bool{queries.shape[:1]}"
        raise UserError(f"queries_alone is {alone.dtype}{alone.shape}: expected {expected}")
    if "I" in objective.blocks:
        _check_instruction_negatives(objective, rows)


def _check_instruction_negatives(objective: Objective, rows: RowTexts) -> None:
    if rows.instruction_negatives is None:
        raise UserError(f"objective {objective} has block I: give instruction_negatives [b, m, e]")
    b, e = rows.queries.shape
    shape = rows.instruction_negatives.shape
    if len(shape) != 3 or (shape[0], shape[2]) != (b, e) or not shape[1]:
        raise UserError(f"instruction_negatives {shape}: expected [{b}, m, {e}] with m above 0")
    filled = rows.instruction_negative_valid
    if filled is not None and (filled.shape != shape[:2] or filled.dtype != bool):
        raise UserError(
            f"instruction_negative_valid is {filled.dtype}{filled.shape}: expected bool{shape[:2]}"
        )


def check_sources(rows: int, sources: jax.Array | None, names: Sequence[str]) -> None:
    """A number of each row, and names for the numbers."""
    if (sources is None) != (not names):
        raise UserError("give both, sources and source_names, or neither")
    if sources is not None and (sources.shape != (rows,) or sources.dtype != jnp.int32):
        raise UserError(f"sources is {sources.dtype}{sources.shape}: expected int32({rows},)")


def check_mask(objective: Objective, rows: RowTexts, mask: str) -> None:
    """The mask's name, and the hashes that the identity mask needs."""
    if mask not in MASKS:
        raise UserError(f"mask={mask!r}; choose one of {', '.join(MASKS)}")
    if mask != "identity" or not objective.blocks:
        return
    if rows.ids is None:
        raise UserError(
            'mask="identity" needs the hashes of the texts: give ids=TextIds(...), or '
            'mask="faithful" to use indices (duplicates of a positive then count as negatives)'
        )
    b, n = rows.passages.shape[:2]
    expected = {"instruction": (b, 2), "query": (b, 2), "passage": (b, n, 2)}
    hashes = {f"ids.{name}": (getattr(rows.ids, name), shape) for name, shape in expected.items()}
    if "I" in objective.blocks:
        if rows.instruction_negative_ids is None:
            raise UserError(
                f'objective {objective} with mask="identity" needs instruction_negative_ids, '
                "the hashes of the instructions of instruction_negatives, uint32[b, m, 2]"
            )
        shape = (*rows.instruction_negatives.shape[:2], 2)
        hashes["instruction_negative_ids"] = (rows.instruction_negative_ids, shape)
    for name, (array, shape) in hashes.items():
        if array.shape != shape or array.dtype != jnp.uint32:
            raise UserError(f"{name} is {array.dtype}{array.shape}: expected uint32{shape}")


def check_by_score(rules: ByScore, spread: float) -> None:
    """Score mask, hardness and spread."""
    if rules.margin is not None and not math.isfinite(rules.margin):
        raise UserError(f"mask_margin={rules.margin}: expected a number, or None")
    if rules.hardness_of not in HARDNESS_OF:
        raise UserError(
            f"hardness_of={rules.hardness_of!r}; choose one of {', '.join(HARDNESS_OF)}"
        )
    for name, value in {"hardness": rules.hardness, "spread": spread}.items():
        if not 0 <= value < math.inf:
            raise UserError(f"{name}={value}: expected a number of at least 0")
    if rules.hardness > MOST_HARDNESS:
        raise UserError(
            f"hardness={rules.hardness}: weights of exp({rules.hardness:g}) leave no room in "
            f"float32's sums; give at most {MOST_HARDNESS}"
        )


def check_coefficients(scale: float | jax.Array, bias: float | jax.Array) -> None:
    """Scale and bias of the logits."""
    if jnp.ndim(scale) or (isinstance(scale, int | float) and not scale > 0):
        raise UserError(f"scale={scale}: expected one number above 0")
    if jnp.ndim(bias):
        raise UserError(f"bias={bias}: expected one number")


def check_teacher(
    objective: Objective, passages: jax.Array, teacher_scores: jax.Array | None
) -> None:
    """Passages and teacher scores of a distil or margin term."""
    if not objective.has(*TAUGHT):
        return
    if passages.shape[1] < 2:
        raise UserError(
            f"objective {objective}: distillation needs at least two passages per row; give "
            "passages [b, 1 + h, e] with hard negatives"
        )
    shape, expected = getattr(teacher_scores, "shape", None), passages.shape[:2]
    if shape != expected:
        raise UserError(
            f"objective {objective}: teacher_scores are {shape}, expected {expected}, a score for "
            "each passage of a row"
        )


def check_dims(width: int, dims: Sequence[int], weights: Sequence[float]) -> None:
    """Matryoshka dimensions of embeddings of `width` entries, and their weights."""
    if any(d != int(d) or not 0 < d <= width for d in dims) or len(set(dims)) < len(dims):
        raise UserError(f"dims={tuple(dims)}: expected different numbers from 1 to {width}")
    if weights and (len(weights) != len(dims) or not all(w > 0 for w in weights)):
        given = f"dim_weights={tuple(weights)}"
        raise UserError(f"{given}: expected a number above 0 for each of dims={dims}")


def check_engine(
    engine: str, mesh: Mesh | None, tile: tuple[int, int] | None, tile_dtype: str | None
) -> None:
    """The engine (not "auto"), and what it needs."""
    if engine not in ENGINES:
        raise UserError(f"engine={engine!r}; choose one of auto, {', '.join(ENGINES)}")
    if engine in ("ring", "gather") and mesh is None:
        raise UserError(f"engine={engine!r} needs the mesh that the batch is split over")
    if engine == "blockwise" and mesh is not None and mesh.size > 1:
        raise UserError(f"engine='blockwise' is for one device, the mesh has {mesh.size}: use ring")
    if engine in ("ring", "gather") and AxisType.Explicit in mesh.axis_types:
        raise UserError(f"engine={engine!r}: use a mesh whose axis_types are Auto, not Explicit")
    if tile is not None and not (len(tile) == 2 and all(n > 0 for n in tile)):
        raise UserError(f"tile={tile}: expected (rows, columns), both above 0")
    if tile_dtype not in (None, "bfloat16"):
        raise UserError(f"tile_dtype={tile_dtype!r}: expected 'bfloat16' or None")
