"""Counts operations and memory traffic of a compiled program, instruction by instruction.

The compiler counts the body of a loop once (`cost_analysis()`). Here the text of the scheduled
program is read (`planning.hlo`), with loops multiplied out: operations of matrix products and
attention kernels, bytes between memory and chip, and the compiler's own estimate of cycles.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from inf_jax.planning.hlo import KINDS, Instruction, Program, arrays, body_of, sizes

# Passes of the bfloat16 unit for a product of float32 arrays, by precision (jax.lax.Precision).
PASSES = {"highest": 6, "high": 3}
# Neither reads nor writes memory by itself.
_NO_TRAFFIC = """after-all bitcast call conditional constant custom-call get-tuple-element
    opt-barrier parameter partition-id replica-id tuple while""".split()


# Splash attention goes over blocks of queries and keys. For block^2 pairs of tokens it makes 2
# products in the forward pass (q k^T, p v), 4 in backward dkv (q k^T, dO v^T, p^T dO, dS^T q; with
# dq in the same kernel 5) and 3 in backward dq (q k^T, dO v^T, dS k), of 2 k operations a pair, k
# the head's width. All blocks of the grid count, also those of other texts in the row; the grid
# leaves out what lies outside a window, but keeps the half that a causal mask skips.
_SPLASH = re.compile(r"splash_m[hq]a_(fwd|dkv|dq)\w*")
_PRODUCTS = {"fwd": 2, "dkv": 4, "dq": 3}


class InstructionCost(NamedTuple):
    """One instruction of the schedule.

    Attributes:
      times: how often it runs.
      flops: operations of its products, once: two a multiply-add.
      unit_flops: the same, each as often as the matrix unit makes it: six times for float32 of the
        highest precision.
      traffic: bytes it reads from memory and writes there, once.
      cycles: the compiler's estimate, once; 0 where it gives none.
      waits: what runs next waits for it; a copy that it starts and does not wait for does not.
      kernel: the name of an attention kernel; "" for all else.
    """

    times: int
    flops: float
    unit_flops: float
    traffic: int
    cycles: int
    waits: bool
    kernel: str = ""


def instruction_costs(text: str) -> list[InstructionCost]:
    """The costs of a compiled program (its `as_text()`) on one device.

    Of branches the one with the most traffic counts.
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
        flops = unit = 0.0
        for inner, owner in self._products(x, computation):
            found = _product_flops(inner, self._shapes[owner])
            precision = re.search(r"operand_precision=\{(\w+)", inner.rest)
            wide = all(
                dtype == "f32"
                for name in inner.operands[:2]
                for dtype, _, _ in arrays(self._shapes[owner].get(name, ""))
            )
            flops += found
            unit += found * (PASSES.get(precision[1], 1) if precision and wide else 1)
        kernel = kernel_name(x)
        if kernel:
            flops = unit = kernel_flops(x, self._shapes[computation])
        cycles = re.search(r'"estimated_cycles":"(\d+)"', x.rest)
        return InstructionCost(
            times=times,
            flops=flops,
            unit_flops=unit,
            traffic=self._traffic(x, computation),
            cycles=int(cycles[1]) if cycles else 0,
            waits=not x.opcode.endswith("-start"),
            kernel=kernel,
        )

    def _products(self, x: Instruction, computation: str) -> Iterator[tuple[Instruction, str]]:
        """The matrix products of an instruction and of what it calls, each with its computation."""
        if x.opcode in ("dot", "convolution"):
            yield x, computation
        for name in x.calls():
            for inner in self._program.computations.get(name, []):
                yield from self._products(inner, name)

    def _traffic(self, x: Instruction, computation: str) -> int:
        kind = x.opcode.removesuffix("-start").removesuffix("-done")
        if (
            (x.opcode in _NO_TRAFFIC and not kernel_name(x))
            or x.opcode.endswith("-done")
            or (kind not in KINDS and kind in ("async", "send", "recv"))
        ):
            return 0
        shapes = self._shapes[computation]
        operands = [shapes.get(name, "") for name in x.operands]
        if x.opcode in ("copy-start", "slice-start"):
            # (to, from, ...): as much as arrives, on each side that is memory
            ends = arrays(x.shape)[:2]
            moved = sizes(x.shape)[: len(ends)]
            return min(moved) * sum(space == 0 for _, _, space in ends)
        if x.opcode.endswith("-start"):  # a collective
            return sum(map(_in_memory, operands)) * 2
        if x.opcode == "fusion":
            inner = x.calls()[0]
            body = self._program.computations[inner]
            parameters = {int(p.operands[0]): p for p in body if p.opcode == "parameter"}
            read = sum(
                min(_in_memory(shape), self._read(parameters[number], inner))
                for number, shape in enumerate(operands)
                if number in parameters
            )
            return read + min(_in_memory(x.shape), self._written(body[-1], inner))
        if x.opcode in ("dynamic-slice", "slice", "gather"):
            return 2 * _in_memory(x.shape)
        if x.opcode == "dynamic-update-slice":
            return 2 * _in_memory(operands[1])
        return sum(map(_in_memory, operands)) + _in_memory(x.shape)

    def _read(self, parameter: Instruction, computation: str) -> int:
        """Bytes that a fusion reads of a parameter: of one that is sliced, the slices."""
        total, whole = 0, sum(sizes(parameter.shape))
        for user in self._program.computations[computation]:
            for place, name in enumerate(user.operands):
                if name != parameter.name or user.opcode in ("constant", "parameter"):
                    continue
                if user.opcode in ("dynamic-slice", "slice") or (
                    user.opcode == "gather" and place == 0
                ):
                    total += sum(sizes(user.shape))
                elif user.opcode == "dynamic-update-slice" and place == 0:
                    pass  # in place
                elif user.opcode == "bitcast":
                    total += self._read(user, computation)
                elif user.opcode == "fusion":
                    inner = user.calls()[0]
                    body = self._program.computations[inner]
                    inside = [
                        p for p in body if p.opcode == "parameter" and int(p.operands[0]) == place
                    ]
                    total += self._read(inside[0], inner) if inside else whole
                else:
                    return whole
        return min(total, whole)

    def _written(self, root: Instruction, computation: str) -> int:
        """Bytes that a fusion writes: of an update in place, the update."""
        body = {x.name: x for x in self._program.computations[computation]}
        if root.opcode == "dynamic-update-slice":
            return sum(sizes(self._shapes[computation].get(root.operands[1], "")))
        if root.opcode == "bitcast" and root.operands[0] in body:
            return self._written(body[root.operands[0]], computation)
        if root.opcode == "tuple":
            return sum(self._written(body[n], computation) for n in root.operands if n in body)
        if root.opcode == "fusion":
            inner = root.calls()[0]
            return self._written(self._program.computations[inner][-1], inner)
        return sum(sizes(root.shape))


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


def _in_memory(shape: str) -> int:
    """Bytes of the arrays that are not in one of the chip's own memories."""
    found = zip(arrays(shape), sizes(shape), strict=True)
    return sum(size for (_, _, space), size in found if space == 0)


def _product_flops(x: Instruction, shapes: dict[str, str]) -> float:
    """Two a multiply-add of a dot or a convolution; what falls on padding is not done."""
    left, right = (arrays(shapes.get(name, "")) for name in x.operands[:2])
    out = arrays(x.shape)[0][1]
    if not left or not right:
        return 0.0
    left, right = left[0][1], right[0][1]
    if x.opcode == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", x.rest)
        flops = 2.0
        for size in out:
            flops *= size
        for axis in filter(None, contracted[1].split(",")) if contracted else ():
            flops *= left[int(axis)]
        return flops
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", x.rest)
    axes = [{letter: i for i, letter in enumerate(part)} for part in labels.groups()]
    flops = 2.0 * out[axes[2]["b"]] * out[axes[2]["f"]] * right[axes[1]["i"]]
    groups = re.search(r"\bbatch_group_count=(\d+)", x.rest)
    flops /= int(groups[1]) if groups else 1
    window = _window(x.rest)
    for axis in range(len(out) - 2):
        name = str(axis)
        flops *= _meetings(
            left[axes[0][name]],
            right[axes[1][name]],
            out[axes[2][name]],
            stride=window["stride"][axis] if window["stride"] else 1,
            before=window["pad"][axis] if window["pad"] else 0,
            left_dilation=window["lhs_dilate"][axis] if window["lhs_dilate"] else 1,
            right_dilation=window["rhs_dilate"][axis] if window["rhs_dilate"] else 1,
        )
    return flops


def _window(rest: str) -> dict[str, list[int]]:
    """window={...} of a convolution, a number an axis; of pad the one before."""
    text = re.search(r"window=\{([^}]*)\}", rest)
    found: dict[str, list[int]] = {}
    for name in ("stride", "pad", "lhs_dilate", "rhs_dilate"):
        value = re.search(rf"\b{name}=([\d_x-]+)", text[1]) if text else None
        found[name] = [int(v.split("_")[0]) for v in value[1].split("x")] if value else []
    return found


def _meetings(
    left: int,
    right: int,
    out: int,
    *,
    stride: int,
    before: int,
    left_dilation: int,
    right_dilation: int,
) -> int:
    """Pairs of places of the result and the window along an axis that meet an entry of the left."""
    count = 0
    for place in range(out):
        for step in range(right):
            at = place * stride + step * right_dilation - before
            count += 0 <= at <= (left - 1) * left_dilation and at % left_dilation == 0
    return count
