"""Counts the work of XLA's calls into cuBLAS and cuDNN on NVIDIA GPUs.

A product is a custom call to cuBLAS (unless the compiler fuses it, as a `dot`); attention is one to
cuDNN. Scores of attention are those of whole rows, other texts of the row included: cuDNN computes
them and adds a mask. Half of them count under a causal mask, whose upper blocks it skips.
"""

import json
import math
import re
from typing import NamedTuple

from inf_jax.planning.hlo import Instruction, array_bytes, arrays

_TARGET = re.compile(r'custom_call_target="(__cu[\w$]+)"')
# Products of attention, each 2 k FLOPs per score with heads of width k: forward q k^T and p v;
# backward q k^T again, dv, dp, dq and dk.
_PRODUCTS = {False: 2, True: 5}
# FLOPs of the vector units per score, forward and backward: mask, exponential, sum, casts. From 1.5
# and 3.7 ps a score with heads of 32, measured on an H200 of 67 TFLOP/s (launch/benchmarks.md).
_VECTOR_FLOPS = {False: 100, True: 250}


class CallWork(NamedTuple):
    """Work of one call.

    Attributes:
      flops: of its matrix products, two per multiply-add.
      vector_flops: of the vector units, for attention.
      traffic: bytes read and written; workspaces do not count.
      kernel: name of an attention kernel, else "".
    """

    flops: float
    vector_flops: float
    traffic: int
    kernel: str


def gpu_call(x: Instruction, shapes: dict[str, str]) -> CallWork | None:
    """The work of a custom call into a library of CUDA, None for any other instruction.

    Args:
      shapes: of the operands, by name.
    """
    target = _TARGET.search(x.rest) if x.opcode == "custom-call" else None
    if target is None:
        return None
    operands = [shapes.get(name, "") for name in x.operands]
    # workspaces are arrays of bytes
    sized = zip(arrays(x.shape), array_bytes(x.shape), strict=True)
    written = sum(size for (dtype, _, _), size in sized if dtype not in ("s8", "u8"))
    traffic = written + sum(size for shape in operands for size in array_bytes(shape))
    config = _backend_config(x.rest)
    flops = vector_flops = 0.0
    kernel = ""
    if attention := config.get("cudnn_fmha_backend_config"):
        backward = "Backward" in target[1]
        kernel = target[1].removeprefix("__cudnn$")
        scores = math.prod(map(int, attention["intermediate_tensor_shape"]["dimensions"]))
        scores *= 0.5 if "CAUSAL" in attention.get("mask_type", "") else 1
        width = arrays(operands[0])[0][1][-1]
        flops = 2.0 * _PRODUCTS[backward] * scores * width
        vector_flops = _VECTOR_FLOPS[backward] * scores
    elif product := config.get("gemm_backend_config"):
        left = arrays(operands[0])[0][1]
        axes = product["dot_dimension_numbers"]["lhs_contracting_dimensions"]
        contracted = math.prod(left[int(axis)] for axis in axes)
        flops = 2.0 * math.prod(arrays(x.shape)[0][1]) * contracted
    return CallWork(flops, vector_flops, traffic, kernel)


def _backend_config(rest: str) -> dict:
    _, found, text = rest.partition("backend_config=")
    return json.JSONDecoder().raw_decode(text)[0] if found and text.startswith("{") else {}
