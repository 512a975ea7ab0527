"""Partitions a run's parameters into trained and frozen ones.

Both are trees {tower: tree} with different leaves: trained ones have gradients and moments and are
saved, frozen ones are read again from their source. With adapters the whole backbone is frozen.
"""

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from inf_jax.config.sections import RunConfig
from inf_jax.core.errors import UserError
from inf_jax.core.trees import is_vector, join_trees, leaf_paths, select
from inf_jax.models.encoder import COMPUTE_DTYPES, Encoder, make_encoder, plain_encoder
from inf_jax.models.lora import Lora, initial_adapters, is_adapter, merged


class ParameterPartition(NamedTuple):
    """Which parameters are trained.

    Attributes:
      base: {tower: tree} of ShapeDtypeStructs, float32: the parameters at the start, no adapters.
      frozen: paths of frozen parameters, "shared/blocks/up_kernel".
      dtype: of frozen matrices and embedding tables; biases and norms stay float32.
      seed: of the adapters.
    """

    base: dict
    lora: Lora | None
    frozen: frozenset[str]
    dtype: Any
    seed: int

    def trained(self, base: dict) -> dict:
        """The trained parameters at the start of a run, from the arrays of `base`; to be jitted."""
        return select(self._with_adapters(base), lambda path: path not in self.frozen)

    def fixed(self, base: dict) -> dict:
        """The frozen parameters, from the arrays of `base`; to be jitted."""
        frozen = select(self._with_adapters(base), lambda path: path in self.frozen)

        def leaf(path, x: jax.Array) -> jax.Array:
            return x if is_vector(path) else x.astype(self.dtype)

        return jax.tree_util.tree_map_with_path(leaf, frozen)

    def plain(self, trained: dict, frozen: dict) -> dict:
        """All parameters, adapters merged into their kernels, float32; to be jitted."""
        whole = join_trees({name: trained[name] for name in trained if name in self.base}, frozen)
        whole = {name: merged(tree, self.lora) for name, tree in whole.items()}
        return jax.tree.map(lambda x: x.astype(jnp.float32), whole)

    @property
    def adapter_size(self) -> int:
        """Parameters of a tower's adapters."""
        shapes = next(iter(jax.eval_shape(self._with_adapters, self.base).values()))
        return sum(x.size for name, x in shapes["blocks"].items() if is_adapter(name))

    def _with_adapters(self, base: dict) -> dict:
        if self.lora is None:
            return base
        key = jax.random.fold_in(jax.random.key(self.seed), 0x10A)

        def tower(tree: dict) -> dict:
            blocks = tree["blocks"]
            return tree | {"blocks": blocks | initial_adapters(key, blocks, self.lora)}

        return {name: tower(tree) for name, tree in base.items()}


def make_partition(config: RunConfig, encoder: Encoder) -> ParameterPartition:
    """The partition that the `model` section asks for; UserError where model.freeze matches nothing
    or leaves nothing to train, or model.freeze_layers is all layers."""
    section, lora, layers = config.model, encoder.options.lora, encoder.config.layers
    pattern, count = section.freeze, section.freeze_layers
    towers = ("shared",) if section.towers == "shared" else ("query", "passage")
    shapes = jax.eval_shape(plain_encoder(encoder).init, jax.random.key(0))
    base = dict.fromkeys(towers, shapes)
    dtype = COMPUTE_DTYPES[section.frozen_dtype]
    partition = ParameterPartition(base, lora, frozenset(), dtype, config.seed)
    paths = leaf_paths(jax.eval_shape(partition.trained, base))
    chosen = {path for path in paths if pattern and re.search(pattern, path)}
    if pattern and not chosen:
        raise UserError(
            f"model.freeze={pattern!r} matches no parameter; there are {', '.join(paths)}"
        )
    if lora:
        backbone = jax.eval_shape(make_encoder(encoder.config).init, jax.random.key(0))
        chosen |= set(leaf_paths(dict.fromkeys(towers, backbone)))
    if chosen == set(paths):
        raise UserError(f"model.freeze={pattern!r} leaves nothing to train")
    if count >= layers:
        raise UserError(
            f"model.freeze_layers={count}: the model has {layers} layers; freeze all of them with "
            "model.freeze='blocks/'"
        )
    return partition._replace(frozen=frozenset(chosen))
