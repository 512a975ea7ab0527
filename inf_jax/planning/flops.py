"""Operations of a training step: by formula (`model_flops`), and of a traced program's products.

The formula counts what any implementation has to compute, two a multiply-add, real tokens only:

    encoder, forward = L (2 T (d k (2 h + 2 g) + n d f) + 4 h k S)
    loss, forward    = 2 b^2 e for each matrix of scores, 2 b c e for block I
    step             = 3 x forward (backward computes two products for each of forward's)

with L layers, d width, h heads of width k, g heads of keys and values, f ffn, n = 2 (gated: 3)
products of it, T tokens of a step, S the sum of the squares of the texts' lengths (attention inside
a text, whatever a causal mask or a window leaves of it), b pairs, e width of the embeddings, c
candidates of a row in block I. With adapters of P parameters the kernels have no gradient, which
takes one product from backward's two, and forward has 2 T P more; what else is frozen counts as if
it were trained. So padding, what remat computes again and the products of the optimiser's and the
health metrics are not in it; nor are embeddings' look-ups, pooling, and the attention between query
and instruction of query_encoder="attention". MFU is this over peak times seconds.
"""

import math

from inf_jax.losses.blocks import BLOCKS
from inf_jax.losses.objective import Objective
from inf_jax.models.config import EncoderConfig


def encoder_flops(shape: EncoderConfig, *, tokens: float, squares: float) -> float:
    """Forward operations of the encoder.

    Args:
      tokens: T, of all texts.
      squares: S, sum over the texts of tokens^2.
    """
    d, hk, gk = shape.width, shape.heads * shape.head_width, shape.kv_heads * shape.head_width
    products = 3 if shape.gated else 2
    weights = 2 * d * (hk + gk) + products * d * shape.ffn
    return shape.layers * (2 * tokens * weights + 4 * hk * squares)


def loss_flops(objective: Objective, *, pairs: float, width: int, instructions: float) -> float:
    """Forward operations of the scores of an objective's blocks.

    Args:
      pairs: b.
      width: e.
      instructions: c, candidates of a row in block I.
    """
    blocks = [BLOCKS[name] for name in objective.blocks]
    matrices = {block.matrix for block in blocks if not block.per_row}
    own = any(block.per_row for block in blocks)
    return 2 * pairs * width * (pairs * len(matrices) + instructions * own)


def model_flops(
    shape: EncoderConfig,
    objective: Objective,
    *,
    tokens: float,
    squares: float,
    pairs: float,
    instructions: float = 0,
    dims: tuple[int, ...] = (),
    adapter: float = 0,
) -> float:
    """Operations of a step over the whole mesh, see the module; `dims` are Matryoshka's, `adapter`
    the parameters of a tower's adapters (0: the encoder is trained itself)."""
    forward = encoder_flops(shape, tokens=tokens, squares=squares) + 2 * tokens * adapter
    frozen = encoder_flops(shape, tokens=tokens, squares=0) if adapter else 0
    for width in dims or (shape.width,):
        forward += loss_flops(objective, pairs=pairs, width=width, instructions=instructions)
    return 3 * forward - frozen


def product_flops(jaxpr, *, devices: int = 1) -> float:
    """Floating-point operations a device of a traced program's matrix products.

    Loops are counted out, which the compiler's own cost analysis does not do, and so are all blocks
    of a kernel's grid. Of branches the dearest counts; a while loop without a static number of
    turns counts once.

    Args:
      jaxpr: what is traced.
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
            if name == "pallas_call":  # its program is that of one block
                times = math.prod(params["grid_mapping"].grid)
            inside = 1 if name == "shard_map" else devices  # shapes in there are a device's own
            for value in params.values():
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    total += times * product_flops(inner, devices=inside)
    return total
