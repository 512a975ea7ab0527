"""Counts FLOPs and memory traffic of a compiled program, instruction by instruction.

`cost_analysis()` counts the body of a loop once; here loops count as often as they run. Read from
the scheduled HLO: FLOPs of matrix products and attention kernels, bytes between HBM and chip,
and the compiler's own estimate of cycles.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from inf_jax.planning.gpu_calls import gpu_call
from inf_jax.planning.hlo import (
    COLLECTIVES,
    Instruction,
    Program,
    array_bytes,
    arrays,
    body_of,
)

# Passes of the bfloat16 unit for a product of float32 arrays, by precision (jax.lax.Precision).
_PASSES = {"highest": 6, "high": 3}
# Of the TPU compiler: its fusions hand on the arrays of a collective that goes on beside them.
_ASYNC_PART = re.compile(r'custom_call_target="AsyncCollective(Start|Done)"')
_ASYNC_FUSION = "async_collective_fusion"
_HOST = 5  # the memory space of the host, S(5) in a layout
# Neither reads nor writes memory itself.
_NO_TRAFFIC = """after-all async-start bitcast call conditional constant custom-call
    get-tuple-element opt-barrier parameter partition-id recv recv-start replica-id send send-start
    tuple while""".split()

# Products of splash attention per block of queries x keys, each 2 k FLOPs per pair of tokens
# with heads of width k: forward q k^T, p v; backward dkv q k^T, dO v^T, p^T dO, dS^T q (and dS k if
# the kernel also computes dq); backward dq q k^T, dO v^T, dS k. All blocks of the grid count,
# also those of other texts of the row; the grid omits blocks outside a window, but not the half
# that a causal mask skips.
_SPLASH = re.compile(r"splash_m[hq]a_(fwd|dkv|dq)\w*")
_PRODUCTS = {"fwd": 2, "dkv": 4, "dq": 3}


class InstructionCost(NamedTuple):
    """Cost of one instruction of the schedule; all but `times` are per run.

    Attributes:
      times: runs per step.
      flops: FLOPs of its matrix products, two per multiply-add.
      unit_flops: the same times the passes of the matrix unit: 6 for float32 of highest precision.
      traffic: bytes read from and written to HBM.
      cycles: the compiler's estimate; 0 if it gives none.
      blocking: the next instruction waits for it; False for the start of an asynchronous copy.
      kernel: name of an attention kernel, else "".
      vector_flops: FLOPs of the vector units, of cuDNN's attention alone.
      host: bytes between the device and the host's memory.
    """

    times: int
    flops: float
    unit_flops: float
    traffic: int
    cycles: int
    blocking: bool
    kernel: str = ""
    vector_flops: float = 0.0
    host: int = 0


def instruction_costs(text: str) -> list[InstructionCost]:
    """Costs of a compiled program (its `as_text()`) on one device.

    Of a conditional, the branch with the most traffic counts.
    """
    return list(_Reader(Program(text)).walk())


class _Reader:
    def __init__(self, program: Program):
        self._program = program
        self._shapes = {
            name: {x.name: x.shape for x in body} for name, body in program.computations.items()
        }

    def walk(self, name: str = "", times: int = 1) -> Iterator[InstructionCost]:
        name = name or self._program.entry
        for x in self._program.computations[name]:
            if x.opcode == "while":
                yield from self.walk(body_of(x), times * self._program.trips(x))
            elif x.opcode == "conditional":
                branches = [list(self.walk(inner, times)) for inner in x.calls()]
                yield from max(branches, key=lambda b: sum(w.times * w.traffic for w in b))
            elif x.opcode == "call":
                for inner in x.calls():
                    yield from self.walk(inner, times)
            else:
                yield self._cost(x, name, times)

    def _cost(self, x: Instruction, computation: str, times: int) -> InstructionCost:
        shapes, kernel = self._shapes[computation], kernel_name(x)
        if call := gpu_call(x, shapes):
            work = {"traffic": call.traffic, "vector_flops": call.vector_flops}
            work |= {"flops": call.flops, "unit_flops": call.flops, "kernel": call.kernel}
            return InstructionCost(times=times, cycles=0, blocking=True, **work)
        flops = unit_flops = kernel_flops(x, shapes) if kernel else 0.0
        for product, owner in self._products(x, computation):
            once = _product_flops(product, self._shapes[owner])
            flops += once
            unit_flops += once * _passes(product, self._shapes[owner])
        cycles = re.search(r'"estimated_cycles":"(\d+)"', x.rest)
        return InstructionCost(
            times=times,
            flops=flops,
            unit_flops=unit_flops,
            traffic=self._traffic(x, computation),
            cycles=int(cycles[1]) if cycles else 0,
            # asynchronous fusions of a GPU move slices and share the memory with all others
            blocking=(not x.opcode.endswith("-start") or x.opcode == "fusion-start")
            and self._async_part(x) != "Start",
            kernel=kernel,
            host=self._host(x, computation),
        )

    def _host(self, x: Instruction, computation: str) -> int:
        """Bytes that are copied to or from the host's memory: those on the device's side."""
        if x.opcode.endswith("-done") or x.opcode in _NO_TRAFFIC:
            return 0
        shapes = [x.shape, *(self._shapes[computation].get(name, "") for name in x.operands)]
        sized = [
            (space, size)
            for shape in shapes
            for (_, _, space), size in zip(arrays(shape), array_bytes(shape), strict=True)
        ]
        if all(space != _HOST for space, _ in sized):
            return 0
        return max((size for space, size in sized if space != _HOST), default=0)

    def _products(self, x: Instruction, computation: str) -> Iterator[tuple[Instruction, str]]:
        """(matrix product, its computation) of an instruction and of what it calls."""
        if x.opcode in ("dot", "convolution"):
            yield x, computation
        for name in x.calls():
            for inner in self._program.computations.get(name, []):
                yield from self._products(inner, name)

    def _traffic(self, x: Instruction, computation: str) -> int:
        if x.opcode.endswith("-done") or (x.opcode in _NO_TRAFFIC and not kernel_name(x)):
            return 0
        if host := self._host(x, computation):
            return host
        shapes = self._shapes[computation]
        operands = [shapes.get(name, "") for name in x.operands]
        if x.opcode in ("copy-start", "slice-start"):
            # (to, from, ...): the bytes that arrive count once for each side that is HBM
            in_hbm = sum(space == 0 for _, _, space in arrays(x.shape)[:2])
            return min(array_bytes(x.shape)[:2]) * in_hbm
        if x.opcode.endswith("-start") and x.opcode != "fusion-start":  # a collective
            return sum(map(_hbm_bytes, operands)) * 2
        if part := self._async_part(x):
            # what the collective writes, beside the chip's work; its end moves nothing
            collective = (y for y in self._program.computations[x.calls()[0]] if _collective(y))
            return sum(_hbm_bytes(y.shape) for y in collective) if part == "Start" else 0
        if x.opcode in ("fusion", "fusion-start"):
            inner = x.calls()[0]
            root, parameters = self._program.computations[inner][-1], self._parameters(inner)
            read = sum(
                min(_hbm_bytes(shape), self._read(parameters[number], inner))
                for number, shape in enumerate(operands)
                if number in parameters
            )
            return read + min(_hbm_bytes(x.shape), self._written(root, inner))
        if x.opcode in ("dynamic-slice", "slice", "gather"):
            return 2 * _hbm_bytes(x.shape)
        if x.opcode == "dynamic-update-slice":
            return 2 * _hbm_bytes(operands[1])
        return sum(map(_hbm_bytes, operands)) + _hbm_bytes(x.shape)

    def _async_part(self, x: Instruction) -> str:
        """Whether a fusion is the "Start" or "Done" of a collective beside others; else ""."""
        if x.opcode != "fusion":
            return ""
        found = _ASYNC_PART.search(self._program.computations[x.calls()[0]][-1].rest)
        return found[1] if found else ""

    def _parameters(self, computation: str) -> dict[int, Instruction]:
        body = self._program.computations[computation]
        return {int(x.operands[0]): x for x in body if x.opcode == "parameter"}

    def _read(self, parameter: Instruction, computation: str) -> int:
        """Bytes that a fusion reads of a parameter: only the slices, if it is sliced."""
        total, whole = 0, sum(array_bytes(parameter.shape))
        for user in self._program.computations[computation]:
            for place, name in enumerate(user.operands):
                if name != parameter.name or user.opcode in ("constant", "parameter"):
                    continue
                if computation.startswith(_ASYNC_FUSION) and (
                    user.opcode == "tuple" or _collective(user)
                ):
                    continue  # handed on
                if user.opcode in ("dynamic-slice", "slice") or (
                    user.opcode == "gather" and place == 0
                ):
                    total += sum(array_bytes(user.shape))
                elif user.opcode == "dynamic-update-slice" and place == 0:
                    pass  # in place
                elif user.opcode == "bitcast":
                    total += self._read(user, computation)
                elif user.opcode == "fusion":
                    inner = user.calls()[0]
                    inside = self._parameters(inner).get(place)
                    total += self._read(inside, inner) if inside else whole
                else:
                    return whole
        return min(total, whole)

    def _written(self, root: Instruction, computation: str) -> int:
        """Bytes that a fusion writes: only the update, if it updates in place."""
        body = {x.name: x for x in self._program.computations[computation]}
        if root.opcode == "dynamic-update-slice":
            return sum(array_bytes(self._shapes[computation].get(root.operands[1], "")))
        if root.opcode == "bitcast" and root.operands[0] in body:
            return self._written(body[root.operands[0]], computation)
        if root.opcode == "tuple":
            parts = [body[name] for name in root.operands if name in body]
            if computation.startswith(_ASYNC_FUSION):
                parts = [x for x in parts if x.opcode != "parameter" and not _collective(x)]
            return sum(self._written(part, computation) for part in parts)
        if root.opcode == "fusion":
            inner = root.calls()[0]
            return self._written(self._program.computations[inner][-1], inner)
        return sum(array_bytes(root.shape))


def kernel_name(x: Instruction) -> str:
    """The name of the attention kernel that an instruction calls, else ""."""
    if x.opcode != "custom-call" or '"tpu_custom_call"' not in x.rest:
        return ""
    kernel = _SPLASH.search(f"{x.name} {x.rest}")
    return kernel[0] if kernel else ""


def kernel_flops(x: Instruction, shapes: dict[str, str]) -> float:
    """FLOPs of an attention kernel, two per multiply-add; `shapes` by name of operand."""
    kind = _SPLASH.search(kernel_name(x))[1]
    operands = [arrays(shapes[name])[0] for name in x.operands]
    blocks = operands[0][1]  # index of the next block, [masks, blocks, blocks]
    queries = next(dims for dtype, dims, _ in operands if dtype in ("bf16", "f16", "f32"))
    block = int(re.search(r'block_q\w*\\*": (\d+)', x.rest)[1])
    products = _PRODUCTS[kind]
    # dq of the same kernel has an additional axis, for the blocks of keys
    products += kind == "dkv" and any(len(d) > len(queries) for _, d, _ in arrays(x.shape))
    pairs = math.prod(blocks[1:]) * block * block
    return 2.0 * products * math.prod(queries[:-2]) * pairs * queries[-1]


def _collective(x: Instruction) -> bool:
    return x.opcode in COLLECTIVES


def _hbm_bytes(shape: str) -> int:
    """Bytes of the arrays that are in HBM."""
    sized = zip(arrays(shape), array_bytes(shape), strict=True)
    return sum(size for (_, _, space), size in sized if space == 0)


def _passes(product: Instruction, shapes: dict[str, str]) -> int:
    precision = re.search(r"operand_precision=\{(\w+)", product.rest)
    operands = [part for name in product.operands[:2] for part in arrays(shapes.get(name, ""))]
    if precision and all(dtype == "f32" for dtype, _, _ in operands):
        return _PASSES.get(precision[1], 1)
    return 1


def _product_flops(x: Instruction, shapes: dict[str, str]) -> float:
    """FLOPs of a dot or a convolution, two per multiply-add; padding does not count."""
    left, right = (arrays(shapes.get(name, "")) for name in x.operands[:2])
    out = arrays(x.shape)[0][1]
    if not left or not right:
        return 0.0
    left, right = left[0][1], right[0][1]
    if x.opcode == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", x.rest)
        axes = filter(None, contracted[1].split(",")) if contracted else ()
        return 2.0 * math.prod(out) * math.prod(left[int(axis)] for axis in axes)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", x.rest)
    lhs, rhs, result = ({letter: i for i, letter in enumerate(part)} for part in labels.groups())
    flops = 2.0 * out[result["b"]] * out[result["f"]] * right[rhs["i"]]
    groups = re.search(r"\bbatch_group_count=(\d+)", x.rest)
    flops /= int(groups[1]) if groups else 1
    window = re.search(r"window=\{([^}]*)\}", x.rest)
    for axis in range(len(out) - 2):
        lengths = left[lhs[str(axis)]], right[rhs[str(axis)]], out[result[str(axis)]]
        flops *= _window_hits(*lengths, window[1] if window else "", axis)
    return flops


def _window_hits(left: int, right: int, out: int, window: str, axis: int) -> int:
    """Pairs (output index, window index) along an axis that read an entry of the left operand.

    Args:
      left, right, out: lengths of the axis in the operands and the result.
      window: attributes of the convolution, such as "size=16x12 pad=0_1x0_1".
    """

    def attribute(name: str, default: int) -> int:
        values = re.search(rf"\b{name}=([\d_x-]+)", window)
        # of pad=LOW_HIGH, the low one
        return int(values[1].split("x")[axis].split("_")[0]) if values else default

    dilation = attribute("lhs_dilate", 1)
    starts = np.arange(out)[:, None] * attribute("stride", 1) - attribute("pad", 0)
    at = starts + np.arange(right)[None] * attribute("rhs_dilate", 1)
    return int(((at >= 0) & (at <= (left - 1) * dilation) & (at % dilation == 0)).sum())
