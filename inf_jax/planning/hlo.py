"""Reads scheduled HLO, the text of a compiled program: collectives, and what runs beside them.

In scheduled HLO the instructions of a computation stand in the order in which they start. A
collective is one of these:

- `all-gather(...)`: the chip waits for it;
- `all-gather-start(...)` and `all-gather-done(...)`, or `async-start` and `async-done` around a
  computation that holds it: what stands in between runs meanwhile;
- an async collective fusion of the TPU's compiler: fusions that all hold the same collective (the
  same channel), the first starts it, the last waits for it, those between do a piece of it beside
  products;
- between slices of TPUs, `send(...)` to the data-centre network's runtime and `send-done(...)`.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

KINDS = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)
# no work of a chip's units, whatever the size
FREE = (
    "bitcast broadcast call conditional constant copy copy-done copy-start dynamic-slice fusion "
    "get-tuple-element iota parameter reshape slice tuple while"
).split()
BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "s32": 4, "u32": 4, "s64": 8, "u64": 8}
NO_BYTES = ("token", "opaque")


@dataclass(frozen=True)
class Collective:
    """One collective of the program.

    Attributes:
      kind: one of KINDS, or "dcn " and what it is a part of, for what a chip sends to the
        data-centre network.
      times: how often it runs, the loops around it counted out; a loop whose condition says no
        number counts once.
      size: bytes of its result on a chip, of all its arrays.
      waits: the chip does nothing meanwhile, since it has no start and no end of its own.
      beside: between its start and its end runs a matrix product, or other work on an array
        larger than its own.
      groups: device numbers, [groups, devices of a group], those that exchange; for a permute
        [pairs, (from, to)]; empty where the text does not say.
    """

    kind: str
    times: int
    size: int
    waits: bool
    beside: bool
    groups: tuple[tuple[int, ...], ...] = field(default=(), compare=False, repr=False)

    @property
    def group(self) -> int:
        """Devices that exchange with each other; 0 where the text does not say."""
        return len(self.groups[0]) if self.groups else 0


@dataclass(frozen=True)
class Instruction:
    """One instruction; `rest` are its attributes.

    Attributes:
      operands: names; of a constant its value, of a parameter its number.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str

    def calls(self) -> list[str]:
        """Names of the computations that it runs."""
        named = re.findall(r"\b(?:calls|body|condition|to_apply)=%?([\w.\-]+)", self.rest)
        for group in re.findall(r"\b(?:branch|called)_computations=\{([^}]*)\}", self.rest):
            named += re.findall(r"%?([\w.\-]+)", group)
        return named

    def channel(self) -> str:
        found = re.search(r"\bchannel_id=(\d+)", self.rest)
        return found[1] if found else self.name


def collectives(text: str) -> list[Collective]:
    """The collectives of a compiled program in the order of its schedule.

    Args:
      text: `as_text()` of a compiled program.
    """
    return list(Program(text).walk())


class Program:
    """A compiled program's text, read.

    Attributes:
      computations: name -> instructions, in order.
      entry: the name of the first one.
    """

    def __init__(self, text: str):
        self.computations: dict[str, list[Instruction]] = {}
        self.entry = ""
        current = None
        # a Pallas kernel's metadata, which the compiler writes on lines of their own
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
        self.inside: dict[str, list[Instruction]] = {}
        if not self.entry:
            raise ValueError("no ENTRY computation: this is not the text of a compiled program")

    def walk(self, name: str = "", times: int = 1) -> Iterator[Collective]:
        """The collectives of a computation that runs so many times."""
        body = self.computations[name or self.entry]
        seen = set()
        for place, instruction in enumerate(body):
            kind = instruction.opcode.removesuffix("-start")
            if kind in KINDS:
                yield self._collective(instruction, kind, body, place, times)
            elif instruction.opcode == "async-start":
                for inner in self.reached(instruction):
                    if inner.opcode in KINDS:
                        yield self._collective(inner, inner.opcode, body, place, times)
            elif instruction.opcode == "fusion":
                for inner in self.reached(instruction):
                    key = (inner.opcode, inner.channel())
                    if inner.opcode in KINDS and key not in seen:
                        seen.add(key)
                        yield self._fused(inner, body, place, times)
            elif instruction.opcode == "send" and "megascale" in instruction.rest:
                part = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.rest)
                kind = "dcn " + (part[1].lower().replace("_", "-") if part else "send")
                yield self._collective(instruction, kind, body, place, times)
            elif instruction.opcode == "while":
                yield from self.walk(body_of(instruction), times * self.trips(instruction))
            elif instruction.opcode in ("call", "conditional"):
                for inner in instruction.calls():
                    yield from self.walk(inner, times)

    def _collective(self, instruction, kind, body, place, times) -> Collective:
        start = body[place]
        waits = not start.opcode.endswith("-start") and start.opcode != "send"
        between = []
        if not waits:
            # no end in this computation: the loop's next turn has it
            ends = [i for i, x in enumerate(body) if _ends(x) and start.name in x.operands]
            between = body[place + 1 : ends[0] if ends else None]
        size = _result(instruction, body)
        beside = any(self._works(x, size) for x in between)
        return Collective(kind, times, size, waits, beside, _groups(instruction.rest))

    def _fused(self, inner, body, place, times) -> Collective:
        places = [
            i
            for i, x in enumerate(body)
            if x.opcode == "fusion"
            and any(
                (y.opcode, y.channel()) == (inner.opcode, inner.channel()) for y in self.reached(x)
            )
        ]
        between = body[place + 1 : places[-1]]
        size, waits = sum(sizes(inner.shape)), len(places) == 1
        beside = any(self._works(x, size) for x in between)
        return Collective(inner.opcode, times, size, waits, beside, _groups(inner.rest))

    def _works(self, instruction: Instruction, size: int) -> bool:
        """Whether it is a product, or works on an array larger than `size` bytes."""
        for x in (instruction, *self.reached(instruction)):
            moves = (
                x.opcode in FREE or x.opcode.removesuffix("-start").removesuffix("-done") in KINDS
            )
            if _is_product(x) or (not moves and largest(x.shape) > size):
                return True
        return False

    def reached(self, instruction: Instruction) -> list[Instruction]:
        """All instructions of the computations that it runs, and of those that they run."""
        found = []
        for name in instruction.calls():
            if name not in self.inside:
                own = self.computations.get(name, [])
                self.inside[name] = own + [y for x in own for y in self.reached(x)]
            found += self.inside[name]
        return found

    def trips(self, loop: Instruction) -> int:
        """How often a loop runs: the compiler's word, or the bound that its counter stays below."""
        known = re.search(r'known_trip_count[^0-9]*"(\d+)"', loop.rest)
        if known:
            return int(known[1])
        condition = re.search(r"\bcondition=%?([\w.\-]+)", loop.rest)[1]
        own = self.computations[condition]
        reached = own + [y for x in own for y in self.reached(x)]
        bounds = {
            int(x.operands[0])
            for x in reached
            if x.opcode == "constant" and x.shape.startswith("s32[]")
        }
        counts = any("direction=LT" in x.rest for x in reached)
        return bounds.pop() if counts and len(bounds) == 1 else 1


def _instruction(line: str) -> Instruction:
    line = re.sub(r"/\*.*?\*/", "", line)  # a tuple's places are numbered
    name, right = line.split(" = ", 1)
    end = _closing(right) if right.startswith("(") else right.index(" ") - 1
    shape, right = right[: end + 1], right[end + 1 :].lstrip()
    opcode = right[: right.index("(")]
    right = right[len(opcode) :]
    end = _closing(right)
    inner = right[1:end]
    operands = tuple(re.findall(r"%([\w.\-]+)", inner)) or (inner,)  # a constant has its value
    name = name.replace("ROOT", "").strip().removeprefix("%")
    return Instruction(name, shape, opcode, operands, right[end + 1 :])


def _closing(text: str) -> int:
    """Where the bracket that opens `text` closes."""
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return i
    raise ValueError(f"brackets do not close: {text[:80]}")


def _ends(instruction: Instruction) -> bool:
    return instruction.opcode.endswith("-done")


def _is_product(instruction: Instruction) -> bool:
    kernel = 'custom_call_target="tpu_custom_call"' in instruction.rest
    return instruction.opcode in ("dot", "convolution") or kernel


def body_of(loop: Instruction) -> str:
    """The computation that a while loop repeats."""
    return re.search(r"\bbody=%?([\w.\-]+)", loop.rest)[1]


def arrays(shape: str) -> list[tuple[str, tuple[int, ...], int]]:
    """(dtype, dimensions, memory space) of an array, or of each of a tuple; space 0 is HBM, or
    where there is but one."""
    found = []
    for dtype, dims, layout in re.findall(r"(\w+)\[([\d,]*)\](\{[^{}]*\})?", shape):
        if dtype not in NO_BYTES:
            space = re.search(r"S\((\d+)\)", layout)
            sizes = tuple(int(d) for d in dims.split(",") if d)
            found.append((dtype, sizes, int(space[1]) if space else 0))
    return found


def sizes(shape: str) -> list[int]:
    """Bytes of an array, or of each of a tuple."""
    return [BYTES.get(dtype, 1) * math.prod(dims) for dtype, dims, _ in arrays(shape)]


def largest(shape: str) -> int:
    """Bytes of an array, or of a tuple's largest part."""
    return max(sizes(shape), default=0)


def _result(instruction: Instruction, body: list[Instruction]) -> int:
    """Bytes of a collective's result. A start's own is a tuple of what it takes and gives."""
    if instruction.opcode not in ("all-reduce-start", "all-gather-start"):
        started = instruction.opcode.endswith("-start") or instruction.opcode == "send"
        return largest(instruction.shape) if started else sum(sizes(instruction.shape))
    shapes = {x.name: x.shape for x in body}
    taken = sum(sum(sizes(shapes.get(name, ""))) for name in instruction.operands)
    if instruction.opcode == "all-reduce-start":
        return taken or largest(instruction.shape)
    return max(sum(sizes(instruction.shape)) - taken, largest(instruction.shape))


_AXES = re.compile(r"\breplica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))? \{([^}]*)\}")
_LISTED = re.compile(r"\b(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}")
_IOTA = re.compile(r"\breplica_groups=(\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)")


def _groups(rest: str) -> tuple[tuple[int, ...], ...]:
    """Who exchanges with whom, from any of the compiler's ways to write it."""
    if listed := _LISTED.search(rest):
        found = re.findall(r"\{([\d,]+)\}", listed[1])
        return tuple(tuple(map(int, group.split(","))) for group in found)
    if axes := _AXES.search(rest):  # devices in a grid with named axes, and the axes to go along
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
    """The numbers from 0 as `[2,4]<=[4,2]T(1,0)` has them: in the shape on the right, transposed,
    in the shape on the left; or `[4,2]T(1,0)` alone, or a list of the numbers."""
    found = re.fullmatch(r"(?:\[([\d,]+)\]<=)?\[([\d,]+)\](?:T\(([\d,]+)\)?)?", text)
    if not found:
        return np.array([int(n) for n in re.findall(r"\d+", text)])
    shape, source, order = ([int(n) for n in x.split(",")] if x else None for x in found.groups())
    grid = np.arange(math.prod(source)).reshape(source)
    grid = grid.transpose(order) if order else grid
    return grid.reshape(shape) if shape else grid


def _rows(grid: np.ndarray) -> tuple[tuple[int, ...], ...]:
    return tuple(map(tuple, grid.tolist()))
