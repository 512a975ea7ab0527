"""Reads scheduled HLO, a compiled program's text: its collectives and the work overlapping them.

In scheduled HLO the instructions of a computation stand in the order in which they start. A
collective is one of these:

- `all-gather(...)`: the chip waits for it;
- `all-gather-start(...)` and `all-gather-done(...)`, or `async-start` and `async-done` around a
  computation that contains it: the instructions in between overlap with it;
- an async collective fusion of the TPU compiler: fusions that contain the same collective (same
  channel); the first starts it, the last waits for it, those in between overlap it with products;
- between slices of TPUs, `send(...)` to the data-centre network's runtime and `send-done(...)`.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

COLLECTIVES = (
    "all-gather all-reduce all-to-all collective-broadcast collective-permute ragged-all-to-all "
    "reduce-scatter"
).split()
# Take no time on the chip's compute units, whatever their size.
_NO_COMPUTE = (
    "bitcast broadcast call conditional constant copy copy-done copy-start dynamic-slice fusion "
    "get-tuple-element iota parameter reshape slice tuple while"
).split()
_SIZE = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "s32": 4, "u32": 4, "s64": 8, "u64": 8}


@dataclass(frozen=True)
class Collective:
    """One collective of the program.

    Attributes:
      kind: one of COLLECTIVES, or "dcn KIND" for the data that a chip sends to the data-centre
        network as part of a collective of that kind.
      times: runs per step: the product of the trip counts of the loops around it; a loop of unknown
        trip count counts as 1.
      size: bytes of its result on a chip, of all its arrays.
      blocking: the chip idles meanwhile, since it has no separate start and end.
      overlapped: a matrix product, or other work on an array larger than its own, runs between its
        start and its end.
      groups: [groups, devices per group], device numbers that exchange data; for a permute
        [pairs, (from, to)]; empty if unknown.
    """

    kind: str
    times: int
    size: int
    blocking: bool
    overlapped: bool
    groups: tuple[tuple[int, ...], ...] = field(default=(), compare=False, repr=False)

    @property
    def group(self) -> int:
        """Number of devices that exchange data; 0 if unknown."""
        return len(self.groups[0]) if self.groups else 0


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
      operands: names; a constant's value; a parameter's number.
      rest: the attributes, unparsed.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str

    def calls(self) -> list[str]:
        """Names of the computations that it calls."""
        named = re.findall(r"\b(?:calls|body|condition|to_apply)=%?([\w.\-]+)", self.rest)
        for group in re.findall(r"\b(?:branch|called)_computations=\{([^}]*)\}", self.rest):
            named += re.findall(r"%?([\w.\-]+)", group)
        return named

    def channel(self) -> tuple[str, str]:
        """Equal for the parts of one collective: (opcode, channel)."""
        channel = re.search(r"\bchannel_id=(\d+)", self.rest)
        return self.opcode, channel[1] if channel else self.name


def collectives(text: str) -> list[Collective]:
    """The collectives of a compiled program (its `as_text()`) in the order of its schedule."""
    return list(Program(text).walk())


class Program:
    """The parsed text of a compiled program.

    Attributes:
      computations: name -> instructions, in the order of the schedule.
      entry: name of the computation that runs first.

    Raises:
      ValueError: the text is not that of a compiled program.
    """

    def __init__(self, text: str):
        self.computations: dict[str, list[Instruction]] = {}
        self.entry, current = "", None
        # a Pallas kernel's metadata is printed on separate lines
        text = re.sub(r"(kernel_metadata=\{)\n(.*?)\n(\}\})", r"\1\2\3", text)
        for line in text.splitlines():
            header = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$", line)
            if header:
                current = self.computations.setdefault(header[2], [])
                self.entry = header[2] if header[1] else self.entry
            elif line.startswith("}"):
                current = None
            elif current is not None and " = " in line:
                current.append(_instruction(line))
        self._nested: dict[str, list[Instruction]] = {}
        if not self.entry:
            raise ValueError("no ENTRY computation: this is not the text of a compiled program")

    def walk(self, name: str = "", times: int = 1) -> Iterator[Collective]:
        """The collectives of a computation that runs `times` times."""
        body = self.computations[name or self.entry]
        fused = self._fused_in(body)
        for place, instruction in enumerate(body):
            kind = instruction.opcode.removesuffix("-start")
            if kind in COLLECTIVES:
                yield self._collective(instruction, kind, body, place, times)
            elif instruction.opcode == "async-start":
                for inner in self._collectives_in(instruction):
                    yield self._collective(inner, inner.opcode, body, place, times)
            elif instruction.opcode == "fusion":
                for inner, last in fused.get(place, ()):
                    yield self._fused(inner, body[place : last + 1], times)
            elif instruction.opcode == "send" and "megascale" in instruction.rest:
                part = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.rest)
                kind = "dcn " + (part[1].lower().replace("_", "-") if part else "send")
                yield self._collective(instruction, kind, body, place, times)
            elif instruction.opcode == "while":
                yield from self.walk(body_of(instruction), times * self.trips(instruction))
            elif instruction.opcode in ("call", "conditional"):
                for inner in instruction.calls():
                    yield from self.walk(inner, times)

    def _collectives_in(self, instruction: Instruction) -> list[Instruction]:
        return [x for x in self._called(instruction) if x.opcode in COLLECTIVES]

    def _collective(self, instruction, kind, body, place, times) -> Collective:
        start = body[place]
        blocking = not start.opcode.endswith("-start") and start.opcode != "send"
        size, between = _result_bytes(instruction, body), []
        if not blocking:
            ends = (
                i
                for i, x in enumerate(body)
                if x.opcode.endswith("-done") and start.name in x.operands
            )
            # None: the loop's next iteration has the end
            between = body[place + 1 : next(ends, None)]
        overlapped = any(self._computes(x, size) for x in between)
        return Collective(kind, times, size, blocking, overlapped, _groups(instruction.rest))

    def _fused_in(self, body: list[Instruction]) -> dict[int, list[tuple[Instruction, int]]]:
        """{place of the first fusion: (collective, place of the last)}.

        Collectives of one channel follow one another: all fusions but the last of each return its
        semaphores, in memory space 2.
        """
        begun: dict[tuple[str, str], int] = {}
        found: dict[int, dict[tuple[str, str], tuple[Instruction, int]]] = {}
        for place, x in enumerate(body):
            inside = self._collectives_in(x) if x.opcode == "fusion" else []
            for inner in {y.channel(): y for y in inside}.values():
                channel = inner.channel()
                first = found.setdefault(begun.setdefault(channel, place), {})
                first[channel] = first.get(channel, (inner, 0))[0], place
                if all(space != 2 for _, _, space in arrays(x.shape)):
                    del begun[channel]
        return {place: list(each.values()) for place, each in found.items()}

    def _fused(self, inner: Instruction, fusions: list[Instruction], times: int) -> Collective:
        kind, shape = inner.opcode, inner.shape
        if "=%all-reduce-scatter" in fusions[0].rest:  # a sum and its slices in one fusion
            kind, shape = "reduce-scatter", fusions[0].shape
        size = sum(array_bytes(shape))
        overlapped = any(self._computes(x, size) for x in fusions[1:-1])
        return Collective(kind, times, size, len(fusions) == 1, overlapped, _groups(inner.rest))

    def _computes(self, instruction: Instruction, size: int) -> bool:
        """Whether it is a product, or computes on an array larger than `size` bytes."""
        for x in (instruction, *self._called(instruction)):
            kind = x.opcode.removesuffix("-start").removesuffix("-done")
            moves = x.opcode in _NO_COMPUTE or kind in COLLECTIVES
            if _is_product(x) or (not moves and _largest(x.shape) > size):
                return True
        return False

    def _called(self, instruction: Instruction) -> list[Instruction]:
        """All instructions of the computations that it calls, directly or not."""
        return [x for name in instruction.calls() for x in self._all(name)]

    def _all(self, name: str) -> list[Instruction]:
        """All instructions of a computation and of those that it calls."""
        if name not in self._nested:
            own = self.computations.get(name, [])
            self._nested[name] = own + [y for x in own for y in self._called(x)]
        return self._nested[name]

    def trips(self, loop: Instruction) -> int:
        """Trip count of a loop: as the compiler gives it, or the bound of its counter; else 1."""
        known = re.search(r'known_trip_count[^0-9]*"(\d+)"', loop.rest)
        if known:
            return int(known[1])
        condition = self._all(re.search(r"\bcondition=%?([\w.\-]+)", loop.rest)[1])
        bounds = {
            int(x.operands[0])
            for x in condition
            if x.opcode == "constant" and x.shape.startswith("s32[]")
        }
        counts = any("direction=LT" in x.rest for x in condition)
        return bounds.pop() if counts and len(bounds) == 1 else 1


def _instruction(line: str) -> Instruction:
    line = re.sub(r"/\*.*?\*/", "", line)  # comments number the entries of a tuple
    name, right = line.split(" = ", 1)
    end = _closing(right) if right.startswith("(") else right.index(" ") - 1
    shape, right = right[: end + 1], right[end + 1 :].lstrip()
    opcode = right[: right.index("(")]
    right = right[len(opcode) :]
    end = _closing(right)
    operands = tuple(re.findall(r"%([\w.\-]+)", right[:end])) or (right[1:end],)
    name = name.replace("ROOT", "").strip().removeprefix("%")
    return Instruction(name, shape, opcode, operands, right[end + 1 :])


def _closing(text: str) -> int:
    """Index of the bracket that closes the one at the start of the text."""
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return i
    raise ValueError(f"brackets do not close: {text[:80]}")


def _is_product(instruction: Instruction) -> bool:
    kernel = 'custom_call_target="tpu_custom_call"' in instruction.rest
    return instruction.opcode in ("dot", "convolution") or kernel


def body_of(loop: Instruction) -> str:
    """The computation that a while loop repeats."""
    return re.search(r"\bbody=%?([\w.\-]+)", loop.rest)[1]


def arrays(shape: str) -> list[tuple[str, tuple[int, ...], int]]:
    """(dtype, dimensions, memory space; 0 is HBM) of an array, or of each array of a tuple."""
    parts = []
    for dtype, dims, layout in re.findall(r"(\w+)\[([\d,]*)\](\{[^{}]*\})?", shape):
        if dtype not in ("token", "opaque"):
            space = re.search(r"S\((\d+)\)", layout)
            dimensions = tuple(int(d) for d in dims.split(",") if d)
            parts.append((dtype, dimensions, int(space[1]) if space else 0))
    return parts


def array_bytes(shape: str) -> list[int]:
    """Bytes of an array, or of each array of a tuple."""
    return [_SIZE.get(dtype, 1) * math.prod(dims) for dtype, dims, _ in arrays(shape)]


def _largest(shape: str) -> int:
    """Bytes of an array, or of a tuple's largest."""
    return max(array_bytes(shape), default=0)


def _result_bytes(instruction: Instruction, body: list[Instruction]) -> int:
    """Bytes of a collective's result; the shape of a start is a tuple of operands and results."""
    whole, largest = sum(array_bytes(instruction.shape)), _largest(instruction.shape)
    if instruction.opcode not in ("all-reduce-start", "all-gather-start"):
        started = instruction.opcode.endswith("-start") or instruction.opcode == "send"
        return largest if started else whole
    shapes = {x.name: x.shape for x in body}
    operands = sum(sum(array_bytes(shapes.get(name, ""))) for name in instruction.operands)
    if instruction.opcode == "all-reduce-start":
        return operands or largest
    return max(whole - operands, largest)


_AXES = re.compile(r"\breplica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))? \{([^}]*)\}")
_LISTED = re.compile(r"\b(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}")
_IOTA = re.compile(r"\breplica_groups=(\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)")


def _groups(rest: str) -> tuple[tuple[int, ...], ...]:
    """`Collective.groups`, in any of the forms that the compiler prints."""
    if listed := _LISTED.search(rest):
        groups = re.findall(r"\{([\d,]+)\}", listed[1])
        return tuple(tuple(map(int, group.split(","))) for group in groups)
    if axes := _AXES.search(rest):  # a grid of devices with named axes, and the axes of a group
        names = re.findall(r"'([^']*)'=(\d+)", axes[1])
        shape = [int(size) for _, size in names]
        devices = _iota(axes[2]) if axes[2] else np.arange(math.prod(shape))
        along = [i for i, (name, _) in enumerate(names) if f"'{name}'" in axes[3]]
        others = [i for i in range(len(shape)) if i not in along]
        grid = devices.reshape(shape).transpose(others + along)
        return _rows(grid.reshape(-1, math.prod(shape[i] for i in along)))
    iota = _IOTA.search(rest)
    return _rows(_iota(iota[1])) if iota else ()


def _iota(text: str) -> np.ndarray:
    """The array that `[2,4]<=[4,2]T(1,0)` denotes: iota of the right shape, transposed, reshaped
    to the left one. Also takes `[4,2]T(1,0)` alone, or a list of the numbers."""
    parts = re.fullmatch(r"(?:\[([\d,]+)\]<=)?\[([\d,]+)\](?:T\(([\d,]+)\)?)?", text)
    if not parts:
        return np.array([int(n) for n in re.findall(r"\d+", text)])
    shape, source, order = ([int(n) for n in x.split(",")] if x else None for x in parts.groups())
    grid = np.arange(math.prod(source)).reshape(source)
    grid = grid.transpose(order) if order else grid
    return grid.reshape(shape) if shape else grid


def _rows(grid: np.ndarray) -> tuple[tuple[int, ...], ...]:
    return tuple(map(tuple, grid.tolist()))
