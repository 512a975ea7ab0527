"""Counts the FLOPs of a training step, by formula or in a traced program.

The formula (`model_flops`) counts what any implementation must compute, two per multiply-add, for
real tokens only:

    encoder, forward = L (2 T (d k (2 h + 2 g) + n d f) + 4 h k S)
    loss, forward    = 2 b^2 e for each matrix of scores, 2 b c e for other candidates
    step             = 3 x forward (backward computes two products for each of forward's)

with L layers, d width, h heads of width k, g heads of keys and values, f ffn, n = 2 (gated: 3)
products of it, T tokens of a step, S the sum of the squares of the texts' lengths (attention within
a text, ignoring what a causal mask or a window skips), b pairs, e width of the embeddings, c
candidates of a row in block I and hard negatives of all pairs in block P. With adapters of P
parameters the kernels have no gradient, which saves one of backward's two products, and forward has
2 T P more; other frozen parameters count as if trained. A teacher (loss.teacher) adds its encoder's
forward, `encoder_flops`, once. Not counted: padding, rematerialisation,
the products of the optimiser and of the health metrics, embedding look-ups, pooling, and the
attention between query and instruction of query_encoder="attention". MFU is this over peak times
seconds.
"""

import math

from inf_jax.losses.blocks import BLOCKS
from inf_jax.losses.objective import Objective
from inf_jax.models.config import EncoderConfig


def encoder_flops(shape: EncoderConfig, *, tokens: float, squares: float) -> float:
    """Forward FLOPs of the encoder: `tokens` is T, `squares` S of the module's formula."""
    d, hk, gk = shape.width, shape.heads * shape.head_width, shape.kv_heads * shape.head_width
    products = 3 if shape.gated else 2
    weights = 2 * d * (hk + gk) + products * d * shape.ffn
    return shape.layers * (2 * tokens * weights + 4 * hk * squares)


def loss_flops(objective: Objective, *, pairs: float, width: int, candidates: float) -> float:
    """Forward FLOPs of an objective's scores: `pairs` is b, `width` e, `candidates` c."""
    blocks = [BLOCKS[name] for name in objective.blocks]
    matrices = {block.matrix for block in blocks if not block.per_row}
    return 2 * pairs * width * (pairs * len(matrices) + candidates)


def model_flops(
    shape: EncoderConfig,
    objective: Objective,
    *,
    tokens: float,
    squares: float,
    pairs: float,
    candidates: float = 0,
    dims: tuple[int, ...] = (),
    adapter: float = 0,
) -> float:
    """FLOPs of a step over the whole mesh, by the module's formula.

    Args:
      tokens, squares, pairs, candidates: T, S, b and c.
      dims: Matryoshka widths; empty: the embedding's.
      adapter: parameters of a tower's LoRA adapters; 0: the encoder itself is trained.
    """
    forward = encoder_flops(shape, tokens=tokens, squares=squares) + 2 * tokens * adapter
    frozen = encoder_flops(shape, tokens=tokens, squares=0) if adapter else 0
    for width in dims or (shape.width,):
        forward += loss_flops(objective, pairs=pairs, width=width, candidates=candidates)
    return 3 * forward - frozen


def product_flops(jaxpr, *, devices: int = 1) -> float:
    """FLOPs per device of a traced program's matrix products.

    Unlike in the compiler's cost analysis, loops count as often as they run, and all blocks of a
    kernel's grid count. Of a conditional, the branch with the most FLOPs counts; a while loop
    of unknown trip count counts once.

    Args:
      devices: over which the work outside shard_map is split evenly.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            depth = math.prod(shape[axis] for axis in contracted)
            total += 2 * depth * equation.outvars[0].aval.size / devices
        elif name == "cond":
            total += max(product_flops(b.jaxpr, devices=devices) for b in params["branches"])
        else:
            times = params["length"] if name == "scan" else 1
            if name == "pallas_call":  # its jaxpr computes one block
                times = math.prod(params["grid_mapping"].grid)
            inside = 1 if name == "shard_map" else devices  # its shapes are those of a device
            for value in params.values():
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    total += times * product_flops(inner, devices=inside)
    return total
