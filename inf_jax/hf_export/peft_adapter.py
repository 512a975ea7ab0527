"""Writes a run's LoRA adapters in PEFT's format, next to the merged weights of an export."""

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

FOLDER = "adapter"  # in the directory of a tower


class Adapters(NamedTuple):
    """The LoRA adapters of a run.

    Attributes:
      lora: rank, alpha, targets.
      trees: {tower: {"query_lora_a": float32[layers, ...], ...}}.
      base: name or path by which PEFT finds the model that they are for.
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

    If a model family stores several kernels as one (ModernBERT's Wqkv), their adapters become one
    adapter of a multiple of the rank; B is block-diagonal, and 0 for a kernel without an adapter.

    Args:
      folder: directory to make.
      adapter: the adapters of one tower, {"query_lora_a": float32[layers, ...], ...}.
      lora: rank, alpha, targets.
      shape: the encoder's shape.
      blocks: the tower's stacked parameters; only their shapes are used.
      base: see `Adapters`.
    """
    adapted = {f"blocks/{name}{KERNEL}" for name in lora.targets}
    rules = [rule for rule in table_of(shape).rules if adapted & set(rule.paths)]
    modules = {_module(rule): sum(path in adapted for path in rule.paths) for rule in rules}
    tensors = {}
    for rule in rules:
        for layer, name in enumerate(rule.names(shape.layers)):
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            a, b = _tensors(rule, layer, adapter, lora, blocks)
            tensors[f"{stem}.lora_A.weight"] = a
            tensors[f"{stem}.lora_B.weight"] = b
    fused = {module: n for module, n in modules.items() if n > 1}
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
        "rank_pattern": {module: n * lora.rank for module, n in fused.items()},
        "alpha_pattern": {module: n * lora.alpha for module, n in fused.items()},
    }
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _module(rule: Rule) -> str:
    """Regular expression that matches the module's name in all layers."""
    name = re.escape(rule.name.removesuffix(".weight"))
    return name.replace(re.escape("{layer}"), r"\d+")


def _tensors(
    rule: Rule,
    layer: int,
    adapter: Mapping[str, np.ndarray],
    lora: Lora,
    blocks: Mapping[str, np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """lora_A [n r, in] and lora_B [out, n r] of one layer of a module of n adapted kernels."""
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
