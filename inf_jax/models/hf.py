"""Weights from Hugging Face and back: one two-way table per family, every key accounted for.

A rule pairs one of our parameters with one HF tensor name (`{layer}` runs over the layers, our
arrays have a leading layer axis). Loading and saving read the same table, so they cannot drift
apart.
"""

import importlib.util
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from inf_jax.atomic import atomic_file
from inf_jax.errors import UserError
from inf_jax.models.config import EncoderConfig
from inf_jax.models.encoder import make_encoder


class Rule(NamedTuple):
    """Attributes: `path` in our tree, `name` in HF, `inputs` = leading axes that a linear layer
    contracts.

    HF stores a linear layer as [out, in], we as [*in, *out]; `inputs=None` keeps the shape, a bias
    flattened.
    """

    path: str
    name: str
    inputs: int | None = None


_LAYER = "encoder.layer.{layer}."
BERT = (
    Rule("word", "embeddings.word_embeddings.weight"),
    Rule("position", "embeddings.position_embeddings.weight"),
    Rule("token_type", "embeddings.token_type_embeddings.weight"),
    Rule("norm/scale", "embeddings.LayerNorm.weight"),
    Rule("norm/bias", "embeddings.LayerNorm.bias"),
    Rule("blocks/query_kernel", _LAYER + "attention.self.query.weight", 1),
    Rule("blocks/query_bias", _LAYER + "attention.self.query.bias"),
    Rule("blocks/key_kernel", _LAYER + "attention.self.key.weight", 1),
    Rule("blocks/key_bias", _LAYER + "attention.self.key.bias"),
    Rule("blocks/value_kernel", _LAYER + "attention.self.value.weight", 1),
    Rule("blocks/value_bias", _LAYER + "attention.self.value.bias"),
    Rule("blocks/out_kernel", _LAYER + "attention.output.dense.weight", 2),
    Rule("blocks/out_bias", _LAYER + "attention.output.dense.bias"),
    Rule("blocks/attention_norm/scale", _LAYER + "attention.output.LayerNorm.weight"),
    Rule("blocks/attention_norm/bias", _LAYER + "attention.output.LayerNorm.bias"),
    Rule("blocks/up_kernel", _LAYER + "intermediate.dense.weight", 1),
    Rule("blocks/up_bias", _LAYER + "intermediate.dense.bias"),
    Rule("blocks/down_kernel", _LAYER + "output.dense.weight", 1),
    Rule("blocks/down_bias", _LAYER + "output.dense.bias"),
    Rule("blocks/ffn_norm/scale", _LAYER + "output.LayerNorm.weight"),
    Rule("blocks/ffn_norm/bias", _LAYER + "output.LayerNorm.bias"),
)
# Tensors of a checkpoint that take no part in the token states: a pooler goes back unchanged on
# export.
CARRIED = re.compile(r"pooler\.")
IGNORED = re.compile(r"cls\.|embeddings\.position_ids$|classifier\.|qa_outputs\.")


def to_hf(rule: Rule, array: np.ndarray) -> np.ndarray:
    """One layer's array (no layer axis) in HF's shape."""
    if rule.inputs is None:
        flat = array.reshape(-1) if rule.name.endswith(".bias") else array
        return np.ascontiguousarray(flat)
    n_in = int(np.prod(array.shape[: rule.inputs]))
    return np.ascontiguousarray(array.reshape(n_in, -1).T)


def from_hf(rule: Rule, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Inverse of `to_hf`."""
    return (tensor if rule.inputs is None else tensor.T).reshape(shape)


def resolve_model(name: str) -> Path:
    """The directory of a model: a local path, `package:NAME/SUB` inside a Python package, or a hub
    id.

    Raises:
      UserError: nothing there, or the hub cannot be reached.
    """
    if name.startswith("package:"):
        package, _, sub = name.removeprefix("package:").partition("/")
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise UserError(
                f"model {name!r}: the package {package} is not installed; "
                f"pip install {package.replace('_', '-')} (see the extras of setup.py)"
            )
        return Path(spec.submodule_search_locations[0]) / sub
    if Path(name).is_dir():
        return Path(name)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise UserError(f"model {name!r}: no such directory")
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"])
        )
    except Exception as error:  # every kind of network, permission and name error of the hub client
        raise UserError(
            f"model {name!r}: neither a local directory nor to be had from the Hugging Face hub "
            f"({type(error).__name__}: {(str(error).splitlines() or [repr(error)])[0]})"
        ) from None


class Weights(NamedTuple):
    """Attributes: `params`, our tree (float32 numpy); `carried`, HF tensors that go back
    unchanged."""

    params: dict
    carried: dict[str, np.ndarray]


def load_weights(directory: str | Path, config: EncoderConfig) -> Weights:
    """Reads `model.safetensors` (or its shards) of a HF directory.

    Raises:
      UserError: every missing key, wrong shape and key without a rule, all in one message.
    """
    tensors = _read_safetensors(Path(directory))
    shapes = _flatten(jax.eval_shape(make_encoder(config).init, jax.random.key(0)))
    problems, params, used = [], {}, set()
    for rule in BERT:
        shape = shapes[rule.path].shape
        stacked = "{layer}" in rule.name
        layers = range(config.layers) if stacked else (0,)
        one = shape[1:] if stacked else shape
        expected = to_hf(rule, np.broadcast_to(np.float32(0), one)).shape
        parts = []
        for name in (rule.name.format(layer=i) for i in layers):
            used.add(name)
            if name not in tensors:
                problems.append(f"missing {name}")
            elif tensors[name].shape != expected:
                problems.append(f"{name} has shape {tensors[name].shape}, expected {expected}")
            else:
                parts.append(from_hf(rule, tensors[name].astype(np.float32), one))
        if len(parts) == len(layers):
            params[rule.path] = np.stack(parts) if stacked else parts[0]
    rest = tensors.keys() - used
    carried = {name: tensors[name] for name in sorted(rest) if CARRIED.match(name)}
    unknown = [n for n in sorted(rest) if not CARRIED.match(n) and not IGNORED.match(n)]
    problems += [f"no rule for {name}" for name in unknown]
    if problems:
        raise UserError(f"{directory}: weights do not fit config.json: " + "; ".join(problems))
    return Weights(_unflatten(params), carried)


def save_weights(
    params: Mapping, path: str | Path, carried: Mapping[str, np.ndarray] | None = None
) -> None:
    """Writes our tree as one HF `model.safetensors` (float32), atomically; `carried` tensors beside
    it."""
    flat = _flatten(params)
    tensors = dict(carried or {})
    for rule in BERT:
        array = np.asarray(flat.pop(rule.path), np.float32)
        if "{layer}" in rule.name:
            for i, layer in enumerate(array):
                tensors[rule.name.format(layer=i)] = to_hf(rule, layer)
        else:
            tensors[rule.name] = to_hf(rule, array)
    if flat:
        raise ValueError(f"parameters without a rule: {sorted(flat)}")
    with atomic_file(path) as file:
        file.write(save(tensors, {"format": "pt"}))


def _read_safetensors(directory: Path) -> dict[str, np.ndarray]:
    index = directory / "model.safetensors.index.json"
    if index.exists():
        files = [
            directory / n for n in sorted(set(json.loads(index.read_text())["weight_map"].values()))
        ]
    else:
        files = [directory / "model.safetensors"]
    tensors = {}
    for file in files:
        if not file.exists():
            old = sorted(p.name for p in directory.glob("*.bin"))
            raise UserError(
                f"{file}: no such file"
                + (
                    f"; convert {old} to safetensors first (transformers: save_pretrained)"
                    if old
                    else ""
                )
            )
        try:
            with safe_open(file, "flax") as f:  # jax arrays: numpy has no bfloat16
                for name in f.keys():  # noqa: SIM118 (no iterator protocol)
                    tensors[name.removeprefix("bert.")] = np.asarray(f.get_tensor(name))
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"{file}: not a readable safetensors file ({error})") from None
    return tensors


def _flatten(tree: Mapping, prefix: str = "") -> dict:
    flat = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        flat |= _flatten(value, path + "/") if isinstance(value, Mapping) else {path: value}
    return flat


def _unflatten(flat: Mapping) -> dict:
    tree: dict = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        node[leaf] = value
    return tree
