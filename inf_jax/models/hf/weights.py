"""Loads and saves the weights of Hugging Face directories, using the tables of `weight_tables`."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from inf_jax.core.errors import UserError
from inf_jax.core.trees import flatten, unflatten
from inf_jax.io.safetensors import (
    STORED_DTYPES,
    Planned,
    Stored,
    by_layer,
    stored_tensors,
    write_tensors,
)
from inf_jax.models.config import EncoderConfig
from inf_jax.models.encoder import make_encoder
from inf_jax.models.hf.weight_tables import Rule, WeightTable, rules_of, table_of

_SAVE_DTYPES = {"float32": STORED_DTYPES["F32"], "bfloat16": STORED_DTYPES["BF16"]}


class Weights(NamedTuple):
    """Nested dicts of float32 arrays, and HF tensors that are saved unchanged."""

    params: dict
    carried: dict[str, np.ndarray]


def load_weights(
    directory: str | Path, config: EncoderConfig, *, shardings: Mapping | None = None
) -> Weights:
    """Reads `model.safetensors` (or its shards) of a HF directory as float32.

    Args:
      shardings: a tree like the parameters: places each array on its devices, so that host memory
        holds only this process's shards of one parameter. None returns numpy arrays.

    Raises:
      UserError: lists every missing tensor, wrong shape and tensor without a rule, layers grouped;
        or a file is missing or damaged.
    """
    directory = Path(directory)
    shapes = _shapes(config)
    rules, table = rules_of(config, list(shapes)), table_of(config)
    tensors, problems = _named(stored_tensors(directory), table)
    used = set()
    for rule in rules:
        expected = rule.shape_of(_one_layer(rule, shapes))
        for name in rule.names(config.layers):
            used.add(name)
            if name not in tensors:
                problems.append(f"missing {name}")
            elif tensors[name].shape != expected:
                problems.append(f"{name} has shape {tensors[name].shape}, expected {expected}")
    unused = [n for n in sorted(tensors.keys() - used) if not table.ignored.match(n)]
    problems += [f"no rule for {name}" for name in unused if not table.carried.match(name)]
    if problems:
        message = "; ".join(by_layer(problems))
        raise UserError(f"{directory}: weights do not fit config.json: {message}")
    placed = None if shardings is None else flatten(shardings)
    params = {}
    for rule in rules:
        targets = [_Target(path, shapes[path], placed and placed[path]) for path in rule.paths]
        _fill(rule, targets, tensors, config.layers)
        params |= {target.path: target.array() for target in targets}
    return Weights(unflatten(params), {name: np.array(tensors[name].read()) for name in unused})


def load_carried(directory: str | Path, config: EncoderConfig) -> dict[str, np.ndarray]:
    """The `carried` tensors of `load_weights`, without the others."""
    table = table_of(config)
    tensors, _ = _named(stored_tensors(Path(directory)), table)
    names = sorted(name for name in tensors if table.carried.match(name))
    return {name: np.array(tensors[name].read()) for name in names}


def save_weights(
    params: Mapping,
    directory: str | Path,
    config: EncoderConfig,
    carried: Mapping[str, np.ndarray] | None = None,
    *,
    dtype: str = "float32",
    max_file_bytes: int = 5_000_000_000,
) -> None:
    """Writes parameters and `carried` tensors as the weights of a HF directory, atomically by file.

    Args:
      params: nested dicts of numpy or jax arrays, copied to the host one after another.
      dtype: of the file, float32 or bfloat16; carried tensors keep theirs.
      max_file_bytes: larger models are written as several files and an index.
    """
    flat, carried = flatten(params), dict(carried or {})
    rules = rules_of(config, list(flat))
    planned = []
    for rule in rules:
        shape = rule.shape_of(_one_layer(rule, {p: flat[p].shape for p in rule.paths}))
        planned += [Planned(name, shape, _SAVE_DTYPES[dtype]) for name in rule.names(config.layers)]
    extra = [Planned(name, x.shape, x.dtype) for name, x in carried.items()]
    # Wider dtypes first: each tensor is then aligned to its own dtype.
    carried_first = any(x.dtype.itemsize > _SAVE_DTYPES[dtype].itemsize for x in extra)

    def tensors() -> Iterator[np.ndarray]:
        if carried_first:
            yield from carried.values()
        for rule in rules:
            arrays = [_on_host(flat[path]) for path in rule.paths]
            for i in range(rule.first, config.layers) if rule.stacked else (...,):
                yield rule.to_hf([x[i] for x in arrays]).astype(_SAVE_DTYPES[dtype], copy=False)
            del arrays  # frees it before the next parameter is copied
        if not carried_first:
            yield from carried.values()

    order = extra + planned if carried_first else planned + extra
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_tensors(directory, order, tensors(), max_file_bytes=max_file_bytes)


def _on_host(x: Any) -> np.ndarray:
    """The whole array. A jax array caches its host copy; that of a temporary one is freed."""
    if isinstance(x, jax.Array):
        parts = [shard.data for shard in x.addressable_shards]
        x = jax.make_array_from_single_device_arrays(x.shape, x.sharding, parts)
    return np.asarray(x)


class _Target:
    """A parameter being filled: this process's shards of it, or the whole array."""

    def __init__(self, path: str, shape: tuple[int, ...], sharding: jax.sharding.Sharding | None):
        self.path, self._shape, self._sharding = path, shape, sharding
        places = [(slice(None),) * len(shape)]
        if sharding is not None:
            places = sharding.addressable_devices_indices_map(shape).values()
        self._parts = {}
        for place in places:
            bounds = tuple(s.indices(n)[:2] for s, n in zip(place, shape, strict=True))
            self._parts[bounds] = np.empty([b - a for a, b in bounds], np.float32)

    def put(self, array: np.ndarray | float, layer: int | None) -> None:
        """Sets one layer, or with None the whole array."""
        for bounds, part in self._parts.items():
            if layer is not None:
                (start, end), *inner = bounds
                if not start <= layer < end:
                    continue
                part, bounds = part[layer - start], tuple(inner)
            place = tuple(slice(a, b) for a, b in bounds)
            part[...] = array[place] if isinstance(array, np.ndarray) else array

    def array(self) -> np.ndarray | jax.Array:
        """The filled array, on its devices if it has shardings."""
        if self._sharding is None:
            return next(iter(self._parts.values()))

        def part(place: tuple[slice, ...]) -> np.ndarray:
            bounds = zip(place, self._shape, strict=True)
            return self._parts[tuple(s.indices(n)[:2] for s, n in bounds)]

        return jax.make_array_from_callback(self._shape, self._sharding, part)


def _fill(rule: Rule, targets: list[_Target], tensors: Mapping[str, Stored], layers: int) -> None:
    shapes = _one_layer(rule, {target.path: target._shape for target in targets})
    for layer in range(rule.first):  # layers without this tensor get neutral values
        for target in targets:
            target.put(float(target.path.endswith("scale")), layer)
    for n, name in enumerate(rule.names(layers)):
        arrays = rule.from_hf(tensors[name].read(), shapes)
        for target, array in zip(targets, arrays, strict=True):
            target.put(array, rule.first + n if rule.stacked else None)


def _named(stored: Mapping[str, Stored], table: WeightTable) -> tuple[dict[str, Stored], list[str]]:
    """(the tensors by their names in the table, problems with names that coincide)."""
    tensors, problems = {}, []
    for name, tensor in stored.items():
        plain = table.plain_name(name)
        if plain in tensors:  # tied tensors may be stored twice
            other = tensors[plain]
            if tensor.shape != other.shape or not np.array_equal(tensor.read(), other.read()):
                problems.append(f"{name} differs from another tensor for {plain}")
        tensors[plain] = tensor
    return tensors, problems


def _shapes(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    tree = jax.eval_shape(make_encoder(config).init, jax.random.key(0))
    return {path: x.shape for path, x in flatten(tree).items()}


def _one_layer(rule: Rule, shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[int, ...]]:
    return [shapes[path][1:] if rule.stacked else shapes[path] for path in rule.paths]
