"""What to change where a step does not fit: options that need less memory, the largest batch."""

import math
import re
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from inf_jax.config.checks import check
from inf_jax.config.sections import RunConfig
from inf_jax.core.errors import UserError

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_CROWDED = 0.3  # share of the memory above which the state at rest is worth splitting


def advice(config: RunConfig, plan: dict[str, Any]) -> list[dict[str, Any]]:
    """Options that need less memory, most likely first.

    Returns:
      {"key", "value", "why"} each; setting the key to the value is a run with the same objective
      on the same batch.
    """
    memory, batch, mesh = plan["hbm"], plan["batch"], config.mesh
    limit, state = memory["limit"], memory["at_rest"]
    rest = max(memory["needed"] - state, 0)
    options = []

    def option(key: str, value: Any, why: str) -> None:
        options.append({"key": key, "value": value, "why": why})

    if config.loss.engine == "dense":
        option("loss.engine", "ring", "the dense engine holds every score of the batch")
    if config.model.remat != "full":
        option("model.remat", "full", "the backward pass then keeps no layer's activations")
    if config.model.dtype == "float32":
        option("model.dtype", "bfloat16", "activations take half")
    frozen = plan["parameters"] - plan["trained_parameters"]
    if frozen and config.model.frozen_dtype == "float32":
        option("model.frozen_dtype", "bfloat16", "what is not trained takes half")
    together = plan["devices"] // plan["slices"] // mesh.tensor  # that may share a copy
    if state > _CROWDED * limit:
        fsdp = _fsdp(mesh.fsdp, together, state / (_CROWDED * limit))
        if fsdp:
            option("mesh.fsdp", fsdp, f"the state takes {state / 2**30:.2f} GiB of each device")
    chunks = config.train.chunks_per_device
    gathered = mesh.gather == "step" or (mesh.gather == "auto" and chunks > 1)
    whole = 4 * (plan["parameters"] + plan["trained_parameters"]) / mesh.tensor  # and gradients
    if mesh.fsdp > 1 and gathered and whole > _CROWDED * limit:
        option(
            "mesh.gather",
            "layer",
            f"all weights at once and their gradients take {whole / 2**30:.2f} GiB of each device",
        )
    each = batch["pairs"] * mesh.tensor / plan["devices"]
    room = limit - state
    times = 2 ** max(1, math.ceil(math.log2(rest / room))) if 0 < room < rest else 2
    if chunks * times <= each:
        option(
            "train.chunks_per_device",
            chunks * times,
            "chunks are encoded one after another (GradCache), for one more forward pass"
            if chunks == 1
            else "smaller chunks",
        )
    elif together % (2 * mesh.fsdp) == 0 and plan["tensor_divides"] % (2 * mesh.tensor) == 0:
        option("mesh.tensor", 2 * mesh.tensor, "devices share a text's heads and ffn")
    longest = max(config.data.max_query_tokens, config.data.max_passage_tokens)
    if config.data.row_tokens > longest:
        option("data.row_tokens", longest, "attention holds tokens x tokens scores of a row")
    return options


def with_option(config: ConfigDict, key: str, value: Any) -> ConfigDict:
    """The config with one key changed, checked."""
    changed = config.copy_and_resolve_references()
    section, _, name = key.rpartition(".")
    (changed[section] if section else changed)[name] = value
    check(changed)
    return changed


def largest(fits: Callable[[int], bool], *, start: int, unit: int, most: int = 2**24) -> int:
    """The largest multiple of `unit` that fits, to a sixteenth; 0 where none does.

    Args:
      fits: of a number; what fits, fits with less.
      start: where to begin.
      most: where to stop.
    """

    def rounded(number: float) -> int:
        return max(unit, int(number) // unit * unit)

    low, high = 0, 0  # fits, does not
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
        if fits(middle):
            low = middle
        else:
            high = middle
    return low


def exhausted(message: str) -> tuple[float, float]:
    """(bytes needed, bytes that there are) of the compiler's RESOURCE_EXHAUSTED.

    Raises:
      UserError: it is another error.
    """
    text = message.split("Program hbm requirement")[0]
    sizes = re.findall(r"\b(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?\b", text)
    sizes = [float(number) * _UNITS[unit] for number, unit in sizes if unit]
    if "RESOURCE_EXHAUSTED" not in message or len(sizes) < 2:
        raise UserError(f"the compiler failed: {message[:2000]}")
    return sizes[0], sizes[1]


def _fsdp(now: int, devices: int, factor: float) -> int:
    """The smallest larger divisor of the devices that splits the state `factor` further; else the
    largest there is."""
    larger = [n for n in range(now + 1, devices + 1) if devices % n == 0 and n % now == 0]
    enough = [n for n in larger if n >= factor * now]
    return (enough or larger or [0])[0 if enough else -1]
