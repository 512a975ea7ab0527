"""Suggests changes to a step: options that save memory, the largest batch, the fastest form."""

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from inf_jax.config.checks import check_config
from inf_jax.config.schema import set_value
from inf_jax.config.sections import RunConfig
from inf_jax.core.choices import GATHERS, REMAT_POLICIES
from inf_jax.core.errors import UserError

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_LARGE = 0.3  # share of the memory above which the state at rest is worth sharding
# Keys of the execution that the search for the fastest form changes.
_REMAT, _CHUNKS, _SCAN = "model.remat", "train.chunks_per_device", "model.scan_layers"
_FSDP, _GATHER, _ROW = "mesh.fsdp", "mesh.gather", "data.row_tokens"
KEYS = (_REMAT, _CHUNKS, _SCAN, _FSDP, _GATHER, _ROW)
_FAST_POLICIES = ("none", "dots")  # which compute no matrix product again


def advice(config: RunConfig, plan: dict[str, Any]) -> list[dict[str, Any]]:
    """Options that need less memory, the most promising first.

    Returns:
      {"key", "value", "why"} each: a config key and a value that keep the objective and the batch.
    """
    memory, batch, mesh = plan["hbm"], plan["batch"], config.mesh
    limit, state = memory["limit"], memory["at_rest"]
    options = []

    def option(key: str, value: Any, why: str) -> None:
        options.append({"key": key, "value": value, "why": why})

    if config.loss.engine == "dense":
        option("loss.engine", "ring", "the dense engine holds every score of the batch")
    if config.model.remat not in ("full", "offload"):
        option("model.remat", "full", "the backward pass then keeps no layer's activations")
    if config.model.dtype == "float32":
        option("model.dtype", "bfloat16", "activations take half the memory")
    frozen = plan["parameters"] - plan["trained_parameters"]
    if frozen and config.model.frozen_dtype == "float32":
        option("model.frozen_dtype", "bfloat16", "frozen weights take half the memory")
    data_devices = plan["devices"] // plan["slices"] // mesh.tensor
    shards = mesh.fsdp * state / (_LARGE * limit)
    if shards > mesh.fsdp and (fsdp := _larger_divisor(mesh.fsdp, data_devices, shards)):
        option("mesh.fsdp", fsdp, f"the state takes {state / 2**30:.2f} GiB of each device")
    chunks = config.train.chunks_per_device
    gather = ("layer" if chunks == 1 else "step") if mesh.gather == "auto" else mesh.gather
    weights = plan["parameters"] * (2 if config.model.dtype == "bfloat16" else 4)
    weights, gradients = weights * (gather == "step"), 4 * plan["trained_parameters"]
    whole = (weights + gradients) / mesh.tensor
    if mesh.fsdp > 1 and gather != "layer" and whole > _LARGE * limit:
        why = f"whole weights and gradients take {whole / 2**30:.2f} GiB per device"
        option("mesh.gather", "layer", why)
    times = max(2, _times(memory))
    if chunks * times <= batch["pairs"] * mesh.tensor / plan["devices"]:
        first = "chunks are encoded one after another (GradCache), for one more forward pass"
        why = first if chunks == 1 else "smaller chunks"
        option("train.chunks_per_device", chunks * times, why)
    elif data_devices % (2 * mesh.fsdp) == 0 and plan["tensor_divides"] % (2 * mesh.tensor) == 0:
        option("mesh.tensor", 2 * mesh.tensor, "devices share the heads and the ffn of each layer")
    longest = max(config.data.max_query_tokens, config.data.max_passage_tokens)
    if config.data.row_tokens > longest:
        option("data.row_tokens", longest, "attention holds tokens x tokens scores per row")
    return options


def with_option(config: ConfigDict, key: str, value: Any) -> ConfigDict:
    """A checked copy of the config with one dotted key changed."""
    changed = config.copy_and_resolve_references()
    set_value(changed, key, value)
    check_config(changed)
    return changed


def largest_fitting(
    fits: Callable[[int], bool], *, start: int, unit: int, most: int = 2**24
) -> int:
    """The largest multiple of `unit` that fits, within 1/16; 0 if none does.

    Args:
      fits: number -> whether it fits; must be monotonic.
      start, most: where the search begins and ends.
    """

    def rounded(number: float) -> int:
        return max(unit, int(number) // unit * unit)

    low, high = 0, 0  # fits, does not; 0: not known yet
    at = rounded(start)
    while not (low and high):
        if fits(at):
            low = at
            if low >= most:
                return low
            at = rounded(2 * at)
        else:
            high = at
            if high == unit:
                return 0
            at = rounded(at / 2)
    while high - low > max(unit, low // 16):
        middle = rounded((low + high) / 2)
        if middle in (low, high):
            break
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


class Trial(NamedTuple):
    """One compiled form.

    Attributes:
      overrides: {key: value} of KEYS.
      plan: as of `planning.compile.make_plan`.
    """

    overrides: dict[str, Any]
    plan: dict[str, Any]

    @property
    def fits(self) -> bool:
        """Whether it fits in memory and could be costed."""
        return self.plan["hbm"]["fits"] and "seconds" in self.plan

    @property
    def seconds(self) -> float:
        """Predicted seconds of a step; infinite if it does not fit."""
        return self.plan["seconds"]["step"] if self.fits else float("inf")


class SearchLimits(NamedTuple):
    """Bounds of a search.

    Attributes:
      chunks: most of a device, at least 1.
      fsdp: most devices of a slice that may share the state.
      longest: tokens of the longest text, the least row.
      trials: most forms that are compiled.
    """

    chunks: int
    fsdp: int = 1
    longest: int = 1
    trials: int = 40


def search_fastest(
    planned: Callable[[dict[str, Any]], dict[str, Any]],
    start: Mapping[str, Any],
    limits: SearchLimits,
    *,
    keys: Collection[str] = KEYS,
) -> list[Trial]:
    """Compiled forms of a step, the fastest first, then those that do not fit.

    A compilation takes minutes, so few are tried. More chunks never need more memory and cost fill
    and passes over the weights, so the remat policies that compute no product again are tried with
    the fewest chunks that fit. The others are tried where those need GradCache, in case they need
    none; with it they cost more than smaller chunks. From the best, one key after another is
    changed and what is faster is kept; then come remat and fewer chunks once more.

    Args:
      planned: {key: value} of KEYS -> a plan; may raise UserError for values that do not suit.
      start: the config's own values of KEYS.
      keys: those of KEYS that may be changed.
    """
    search = _Search(planned, limits.trials)
    fixed = _CHUNKS not in keys
    fewest = start[_CHUNKS] if fixed else 1
    policies = REMAT_POLICIES if _REMAT in keys else (start[_REMAT],)
    for remat in policies:
        if remat in _FAST_POLICIES or remat == start[_REMAT]:
            _fewest_chunks(search, dict(start) | {_REMAT: remat}, limits, fixed=fixed)
    _thriftier(search, start, policies, fewest)
    for remat in policies:
        if not search.best():
            _fewest_chunks(search, dict(start) | {_REMAT: remat}, limits, fixed=fixed)
    found = search.best()
    fsdp, row = start[_FSDP], start[_ROW]
    for key, values in (
        (_SCAN, (False, True)),
        (_GATHER, GATHERS[1:] if fsdp > 1 else ()),
        (_FSDP, [n for n in (fsdp // 2, 2 * fsdp) if n and limits.fsdp % n == 0]),
        (_ROW, [n for n in (limits.longest, 2 * row) if n != row]),
    ):
        if key in keys:
            search.change(key, values)
    if found is not search.best():
        if _REMAT in keys:
            search.change(_REMAT, _FAST_POLICIES)
        while (best := search.best()).overrides[_CHUNKS] > fewest:
            search.change(_CHUNKS, [best.overrides[_CHUNKS] // 2])
            if search.best() is best:
                break
        _thriftier(search, search.best().overrides, policies, fewest)
    return sorted(search.done, key=lambda t: (t.seconds, t.plan["hbm"]["needed"]))


class _Search:
    """Forms that have been compiled, each once."""

    def __init__(self, planned: Callable[[dict[str, Any]], dict[str, Any]], most: int):
        self._planned, self._most = planned, most
        self._tried: dict[tuple, Trial | None] = {}

    @property
    def done(self) -> list[Trial]:
        return [trial for trial in self._tried.values() if trial]

    def best(self) -> Trial | None:
        return min((t for t in self.done if t.fits), key=_seconds, default=None)

    def trial(self, form: Mapping[str, Any]) -> Trial | None:
        """None where the values do not suit, or no more forms may be compiled."""
        values = tuple(form[key] for key in KEYS)
        if values not in self._tried and len(self._tried) < self._most:
            try:
                self._tried[values] = Trial(dict(form), self._planned(dict(form)))
            except UserError as error:
                print(f"not tried: {error}", flush=True)
                self._tried[values] = None
        return self._tried.get(values)

    def change(self, key: str, values: Iterable[Any]) -> None:
        """Tries values of one key on the best form."""
        found = self.best()
        for value in values if found else ():
            self.trial(found.overrides | {key: value})


def _thriftier(
    search: _Search, form: Mapping[str, Any], policies: Iterable[str], fewest: int
) -> None:
    """Tries a form with the fewest chunks and the policies that keep ever less, until one fits;
    nothing where a fast policy fits so."""
    whole = [t.overrides[_REMAT] for t in search.done if t.fits and t.overrides[_CHUNKS] == fewest]
    for remat in policies:
        if remat not in _FAST_POLICIES and not set(whole) & set(_FAST_POLICIES):
            found = search.trial(dict(form) | {_REMAT: remat, _CHUNKS: fewest})
            if found and found.fits:
                break


def _fewest_chunks(
    search: _Search, form: dict[str, Any], limits: SearchLimits, *, fixed: bool
) -> None:
    """Tries a form with the fewest chunks that fit, or only with its own."""
    found, lower = search.trial(form), 0  # chunks that do not fit
    while not fixed and found and not found.fits:
        lower = form[_CHUNKS]
        chunks = lower * max(2, _times(found.plan["hbm"]))
        if lower < limits.chunks < chunks:
            chunks = lower * 2 ** int(math.log2(limits.chunks / lower))
        if not lower < chunks <= limits.chunks:
            return
        form = form | {_CHUNKS: chunks}
        found = search.trial(form)
    while not fixed and found and found.fits and form[_CHUNKS] // 2 > lower:
        if lower and _times(found.plan["hbm"], larger=1.5) > 1:
            return  # twice the chunk needs at least that much more
        form = form | {_CHUNKS: form[_CHUNKS] // 2}
        found = search.trial(form)


def _times(memory: Mapping[str, float], *, larger: float = 1.0) -> int:
    """How many times as many chunks may fit, a power of two: what a step needs beyond its state and
    its batch shrinks with the chunk. 1 where `larger` times that fits; 2 where no number would."""
    at_rest = memory.get("at_rest", 0)
    activations, room = larger * (memory["needed"] - at_rest), memory["limit"] - at_rest
    if activations <= room:
        return 1
    return 2 ** max(1, math.ceil(math.log2(activations / room))) if room > 0 else 2


def _seconds(trial: Trial) -> float:
    return trial.seconds


def flags(trial: Trial, start: Mapping[str, Any]) -> str:
    """The overrides of keys in `start` that differ from the values there, to copy; "" where none
    do."""
    changed = {k: v for k, v in trial.overrides.items() if k in start and v != start[k]}
    return " ".join(f"--config.{key}={value}" for key, value in changed.items())


def exhausted(message: str) -> tuple[float, float]:
    """(bytes needed, bytes available) of a RESOURCE_EXHAUSTED message of the compiler.

    Raises:
      UserError: it is another error.
    """
    text = message.split("Program hbm requirement")[0]
    sizes = re.findall(r"\b(\d+(?:\.\d+)?)([KMGT])(?:i?B)?\b", text)
    sizes = [float(number) * _UNITS[unit] for number, unit in sizes]
    if "RESOURCE_EXHAUSTED" not in message or len(sizes) < 2:
        raise UserError(f"the compiler failed: {message[:2000]}")
    return sizes[0], sizes[1]


def _larger_divisor(now: int, devices: int, wanted: float) -> int:
    """The smallest multiple of `now` above it that divides `devices` and is at least `wanted`, else
    the largest multiple that divides; 0 if there is none."""
    larger = [n for n in range(2 * now, devices + 1, now) if devices % n == 0]
    return next((n for n in larger if n >= wanted), larger[-1] if larger else 0)
