"""Reading a config.json field by field, and the fields that families share: layers, windows,
ropes."""

from collections.abc import Callable, Mapping
from typing import Any

from inf_jax.models.config import Rope
from inf_jax.models.layers import ACTIVATIONS

NUMBER = (int, float)
_NEEDED = object()


class Fields:
    """A config.json under reading.

    Attributes:
      seen: names that were asked for.
      problems: one text for each that is missing or of another type.
    """

    def __init__(self, fields: Mapping[str, Any]):
        self._fields = fields
        self.seen: set[str] = set()
        self.problems: list[str] = []

    def get(
        self,
        name: str,
        default: Any = _NEEDED,
        *,
        absent: Any = _NEEDED,
        kind: type | tuple = int,
        positive: bool = False,
    ) -> Any:
        """The value; `default` where it is absent or null, or `absent` where transformers takes
        another value for a field that is not there. Without one, a 1 and a problem; an int must
        then be above 0, and with `positive` in any case."""
        self.seen.add(name)
        if name not in self._fields and absent is not _NEEDED:
            return absent
        value = self._fields.get(name)
        if value is None:
            if default is not _NEEDED:
                return default
            self.problems.append(f"missing field {name!r}")
            return 1
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            self.problems.append(f"{name}={value!r} (a value of another type is expected)")
            return 1 if default is _NEEDED else default
        if (positive or (default is _NEEDED and kind is int)) and not value > 0:
            self.problems.append(f"{name}={value!r} (must be above 0)")
            return 1
        return value

    def activation(self, *names: str) -> str:
        """The first of these that is given, one of ours."""
        values = [self.get(name, None, kind=str) for name in names]
        found = next((value for value in values if value), None)
        if found is None:
            self.problems.append(f"missing field {names[0]!r}")
        elif found not in ACTIVATIONS:
            covered = ", ".join(sorted(ACTIVATIONS))
            self.problems.append(f"{names[0]}={found!r} (covered: {covered})")
        return found or "gelu"


def layer_types(fields: Fields, layers: int, full: Callable[[int], bool]) -> tuple[str, ...]:
    """Each layer's kind of attention, by `full` where the file does not list them."""
    names = ("sliding_attention", "full_attention")
    kinds = fields.get("layer_types", None, kind=list)
    if kinds is None:
        return tuple(names[bool(full(i))] for i in range(layers))
    if len(kinds) != layers or any(kind not in names for kind in kinds):
        fields.problems.append(f"layer_types={kinds!r}: {layers} of {', '.join(names)}")
        return names[1:] * layers
    return tuple(kinds)


def windows_of(kinds: tuple[str, ...], window: int | None) -> tuple[int | None, ...]:
    """Each layer's window by its kind of attention."""
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def ropes_of(fields: Fields, bases: Mapping[str, float]) -> dict[str, Rope]:
    """A Rope for each kind of layer in `bases` (kind -> its default base); "" is all layers.

    `rope_parameters` holds base and scaling, of each kind where there are several; before
    transformers 5 `rope_scaling` held the scaling, which in Gemma 3 is for full attention only.
    """
    new = fields.get("rope_parameters", None, kind=dict)
    old = fields.get("rope_scaling", None, kind=dict) or {}
    if not new:
        given = {kind: {} if kind == "sliding_attention" else old for kind in bases}
    elif "" in bases:
        given = {"": new}
    else:
        given = {kind: new.get(kind) for kind in bases}
        if new.keys() != bases.keys() or not all(isinstance(x, dict) for x in given.values()):
            expected = f"one each for {' and '.join(bases)} is expected"
            fields.problems.append(f"rope_parameters={new!r}: {expected}")
            given = {kind: {} for kind in bases}
    # what transformers takes of these is not alike in its versions
    if new and any(name not in new or new[name] != value for name, value in old.items()):
        fields.problems.append("rope_scaling is not that of rope_parameters")
    if "" not in bases and "type" in old and "rope_type" not in old:
        fields.problems.append("rope_scaling has a type, but no rope_type")
    return {kind: _rope(fields, given[kind], base) for kind, base in bases.items()}


def _rope(fields: Fields, given: Mapping[str, Any], base: float) -> Rope:
    inner = Fields(given)
    kind = inner.get("rope_type", None, kind=str) or inner.get("type", "default", kind=str)
    inner.seen.add("type")
    base = inner.get("rope_theta", base, kind=NUMBER, positive=True)
    if inner.get("partial_rotary_factor", 1.0, kind=NUMBER) != 1:
        inner.problems.append("partial_rotary_factor is not covered")
    factor, original, low, high = 1.0, None, 1.0, 4.0
    if kind in ("linear", "llama3"):
        factor = inner.get("factor", kind=NUMBER, positive=True)
    if kind == "llama3":
        original = inner.get("original_max_position_embeddings", None)
        original = original or fields.get("max_position_embeddings")
        low = inner.get("low_freq_factor", kind=NUMBER)
        high = inner.get("high_freq_factor", kind=NUMBER)
    if kind not in ("default", "linear", "llama3"):
        inner.problems.append(f"rope_type={kind!r} (covered: default, linear, llama3)")
    else:
        inner.problems += [f"unknown field {n!r}" for n in sorted(given.keys() - inner.seen)]
    fields.problems += [f"rope_parameters: {problem}" for problem in inner.problems]
    return Rope(float(base), float(factor), original, float(low), float(high))
