"""Reads scheduled HLO, the text of a compiled program: collectives, and what runs beside them.

In scheduled HLO the instructions of a computation stand in the order in which they start. A
collective is one of these:

- `all-gather(...)`: the chip waits for it;
- `all-gather-start(...)` and `all-gather-done(...)`, or `async-start` and `async-done` around a
  computation that holds it: what stands in between runs meanwhile;
- an async collective fusion of the TPU's compiler: fusions that all hold the same collective (the
  same channel), the first starts it, the last waits for it, those between do a piece of it beside
  products.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Collective:
    """One collective of the program.

    Attributes:
      kind: one of KINDS.
      times: how often it runs, the loops around it counted out; a loop whose condition says no
        number counts once.
      size: bytes of its result (for a start: of its largest part).
      waits: the chip does nothing meanwhile, since it has no start and no end of its own.
      beside: between its start and its end runs a matrix product, or other work on an array
        larger than its own.
    """

    kind: str
    times: int
    size: int
    waits: bool
    beside: bool


@dataclass(frozen=True)
class _Instruction:
    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str  # attributes

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
    return list(_Program(text).walk())


class _Program:
    def __init__(self, text: str):
        self.computations: dict[str, list[_Instruction]] = {}
        self.entry = ""
        current = None
        for line in text.splitlines():
            header = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$", line)
            if header:
                current = self.computations.setdefault(header[2], [])
                self.entry = header[2] if header[1] else self.entry
            elif line.startswith("}"):
                current = None
            elif current is not None and " = " in line:
                current.append(_instruction(line))
        self.inside: dict[str, list[_Instruction]] = {}
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
                for inner in self._reached(instruction):
                    if inner.opcode in KINDS:
                        yield self._collective(inner, inner.opcode, body, place, times)
            elif instruction.opcode == "fusion":
                for inner in self._reached(instruction):
                    key = (inner.opcode, inner.channel())
                    if inner.opcode in KINDS and key not in seen:
                        seen.add(key)
                        yield self._fused(inner, body, place, times)
            elif instruction.opcode == "while":
                loops = self._trips(instruction)
                inner = re.search(r"\bbody=%?([\w.\-]+)", instruction.rest)[1]
                yield from self.walk(inner, times * loops)
            elif instruction.opcode in ("call", "conditional"):
                for inner in instruction.calls():
                    yield from self.walk(inner, times)

    def _collective(self, instruction, kind, body, place, times) -> Collective:
        start = body[place]
        waits = not start.opcode.endswith("-start")
        between = []
        if not waits:
            # no end in this computation: the loop's next turn has it
            ends = [i for i, x in enumerate(body) if _ends(x) and start.name in x.operands]
            between = body[place + 1 : ends[0] if ends else None]
        size = _bytes(instruction.shape)
        return Collective(kind, times, size, waits, any(self._works(x, size) for x in between))

    def _fused(self, inner, body, place, times) -> Collective:
        places = [
            i
            for i, x in enumerate(body)
            if x.opcode == "fusion"
            and any(
                (y.opcode, y.channel()) == (inner.opcode, inner.channel()) for y in self._reached(x)
            )
        ]
        between = body[place + 1 : places[-1]]
        size, waits = _bytes(inner.shape), len(places) == 1
        beside = any(self._works(x, size) for x in between)
        return Collective(inner.opcode, times, size, waits, beside)

    def _works(self, instruction: _Instruction, size: int) -> bool:
        """Whether it is a product, or works on an array larger than `size` bytes."""
        for x in (instruction, *self._reached(instruction)):
            moves = (
                x.opcode in FREE or x.opcode.removesuffix("-start").removesuffix("-done") in KINDS
            )
            if _is_product(x) or (not moves and _bytes(x.shape) > size):
                return True
        return False

    def _reached(self, instruction: _Instruction) -> list[_Instruction]:
        """All instructions of the computations that it runs, and of those that they run."""
        found = []
        for name in instruction.calls():
            if name not in self.inside:
                own = self.computations.get(name, [])
                self.inside[name] = own + [y for x in own for y in self._reached(x)]
            found += self.inside[name]
        return found

    def _trips(self, loop: _Instruction) -> int:
        """How often a loop runs: the compiler's word, or the bound that its counter stays below."""
        known = re.search(r'known_trip_count[^0-9]*"(\d+)"', loop.rest)
        if known:
            return int(known[1])
        condition = re.search(r"\bcondition=%?([\w.\-]+)", loop.rest)[1]
        own = self.computations[condition]
        reached = own + [y for x in own for y in self._reached(x)]
        bounds = {
            int(x.operands[0])
            for x in reached
            if x.opcode == "constant" and x.shape.startswith("s32[]")
        }
        counts = any("direction=LT" in x.rest for x in reached)
        return bounds.pop() if counts and len(bounds) == 1 else 1


def _instruction(line: str) -> _Instruction:
    name, right = line.split(" = ", 1)
    end = _closing(right) if right.startswith("(") else right.index(" ") - 1
    shape, right = right[: end + 1], right[end + 1 :].lstrip()
    opcode = right[: right.index("(")]
    right = right[len(opcode) :]
    end = _closing(right)
    inner = right[1:end]
    operands = tuple(re.findall(r"%([\w.\-]+)", inner)) or (inner,)  # a constant has its value
    name = name.replace("ROOT", "").strip().removeprefix("%")
    return _Instruction(name, shape, opcode, operands, right[end + 1 :])


def _closing(text: str) -> int:
    """Where the bracket that opens `text` closes."""
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return i
    raise ValueError(f"brackets do not close: {text[:80]}")


def _ends(instruction: _Instruction) -> bool:
    return instruction.opcode.endswith("-done")


def _is_product(instruction: _Instruction) -> bool:
    kernel = 'custom_call_target="tpu_custom_call"' in instruction.rest
    return instruction.opcode in ("dot", "convolution") or kernel


def _bytes(shape: str) -> int:
    """Bytes of an array, or of a tuple's largest part."""
    sizes = [0]
    for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", shape):
        size = BYTES.get(dtype, 1)
        for dim in filter(None, dims.split(",")):
            size *= int(dim)
        sizes.append(size)
    return max(sizes)
