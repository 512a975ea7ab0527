"""Operations of attention kernels, which a compiled program shows as calls without any.

Splash attention goes over blocks of queries and keys; of block^2 pairs of tokens it makes

    forward (fwd)          2 products: q k^T, p v
    backward, dkv          4: q k^T, dO v^T, p^T dO, dS^T q; with dq in the same kernel 5
    backward, dq           3: q k^T, dO v^T, dS k

of 2 k operations a pair, k the head's width. All blocks of the kernel's grid count, also those of
other texts in the row; the grid leaves out what lies outside a window, but of a causal mask over
several blocks it has the half that the kernel skips.
"""

import math
import re

from inf_jax.planning.hlo import Instruction, arrays

_SPLASH = re.compile(r"splash_m[hq]a_(fwd|dkv|dq)\w*")
_PRODUCTS = {"fwd": 2, "dkv": 4, "dq": 3}


def kernel_name(x: Instruction) -> str:
    """The name of an attention kernel that an instruction calls; "" where it calls none."""
    if x.opcode != "custom-call" or '"tpu_custom_call"' not in x.rest:
        return ""
    found = _SPLASH.search(f"{x.name} {x.rest}")
    return found[0] if found else ""


def kernel_flops(x: Instruction, shapes: dict[str, str]) -> float:
    """Operations of an attention kernel, two a multiply-add.

    Args:
      x: with a `kernel_name`.
      shapes: of its operands.
    """
    kind = _SPLASH.search(kernel_name(x))[1]
    operands = [arrays(shapes[name])[0] for name in x.operands]
    blocks = operands[0][1]  # which block comes next, [masks, blocks, blocks]
    queries = next(dims for dtype, dims, _ in operands if dtype in ("bf16", "f16", "f32"))
    block = int(re.search(r'block_q\w*\\*": (\d+)', x.rest)[1])
    products = _PRODUCTS[kind]
    # the gradient of q from the same kernel has an axis for the blocks of keys
    products += kind == "dkv" and any(len(d) > len(queries) for _, d, _ in arrays(x.shape))
    pairs = math.prod(blocks[1:]) * block * block
    return 2.0 * products * math.prod(queries[:-2]) * pairs * queries[-1]
