"""A run's adapters in PEFT's format, a folder beside the merged weights of an export."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import save_file

from inf_jax.models.config import EncoderConfig
from inf_jax.models.hf.weight_tables import Rule, table_of
from inf_jax.models.lora import KERNEL, A, B, Lora

FOLDER = "adapter"  # in a tower's directory


class Adapters(NamedTuple):
    """What an export needs for them.

    Attributes:
      lora: rank, alpha, targets.
      trees: {tower: {"query_lora_a": float32[layers, ...], ...}}.
      base: the model that they are for, as PEFT is to find it.
    """

    lora: Lora
    trees: dict[str, dict]
    base: str


def write_adapter(
    folder: Path,
    adapter: Mapping[str, np.ndarray],
    *,
    lora: Lora,
    shape: EncoderConfig,
    blocks: Mapping[str, np.ndarray],
    base: str,
) -> None:
    """Writes adapter_config.json and adapter_model.safetensors, float32.

    Where a family stores several kernels as one (ModernBERT's Wqkv), their adapters become one
    adapter of so many times the rank: B is block-diagonal, and 0 for a kernel without an adapter.

    Args:
      adapter: of one tower.
      blocks: its stacked parameters, for their shapes.
      base: see `Adapters`.
    """
    mine = {f"blocks/{name}{KERNEL}" for name in lora.targets}
    rules = [rule for rule in table_of(shape).rules if mine & set(rule.paths)]
    modules = {_module(rule): sum(path in mine for path in rule.paths) for rule in rules}
    tensors = {}
    for rule in rules:
        for layer, name in enumerate(rule.names(shape.layers)):
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            a, b = _tensors(rule, layer, adapter, lora, blocks)
            tensors[f"{stem}.lora_A.weight"] = a
            tensors[f"{stem}.lora_B.weight"] = b
    several = {module: n for module, n in modules.items() if n > 1}
    config = {
        "peft_type": "LORA",
        "task_type": "FEATURE_EXTRACTION",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": "|".join(modules),
        "rank_pattern": {module: n * lora.rank for module, n in several.items()},
        "alpha_pattern": {module: n * lora.alpha for module, n in several.items()},
    }
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _module(rule: Rule) -> str:
    """A regular expression of the module's name in all layers."""
    name = re.escape(rule.name.removesuffix(".weight"))
    return name.replace(re.escape("{layer}"), r"\d+")


def _tensors(
    rule: Rule,
    layer: int,
    adapter: Mapping[str, np.ndarray],
    lora: Lora,
    blocks: Mapping[str, np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """lora_A [r', in] and lora_B [out, r'] of one layer of a module."""
    names = [path.removeprefix("blocks/").removesuffix(KERNEL) for path in rule.paths]
    inputs = int(np.prod(blocks[names[0] + KERNEL].shape[1 : 1 + rule.inputs]))
    sizes = [int(np.prod(blocks[name + KERNEL].shape[1:])) // inputs for name in names]
    targets = [name for name in names if name in lora.targets]
    b = np.zeros((sum(sizes), lora.rank * len(targets)), np.float32)
    for name, size, end in zip(names, sizes, np.cumsum(sizes), strict=True):
        if name in targets:
            column = lora.rank * targets.index(name)
            part = np.asarray(adapter[name + B][layer], np.float32).reshape(lora.rank, -1)
            b[end - size : end, column : column + lora.rank] = part.T
    a = [
        np.asarray(adapter[name + A][layer], np.float32).reshape(-1, lora.rank).T
        for name in targets
    ]
    return np.ascontiguousarray(np.concatenate(a)), b
