"""Which parameters of a run are trained, and which stay as they are at its start.

A run's parameters {tower: tree} are two trees of the same kind with different leaves: the trained
ones, which have gradients and optimiser moments and are saved, and the frozen ones, which do not
and are not. With adapters the whole backbone is frozen.
"""

import hashlib
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from inf_jax.config.sections import RunConfig
from inf_jax.core.errors import UserError
from inf_jax.core.trees import join, leaf_paths, path_name, select
from inf_jax.distributed.sharding import state_shardings
from inf_jax.models.encoder import DTYPES, Encoder, make_encoder, plain_encoder
from inf_jax.models.lora import Lora, initial_adapters, is_adapter, merged


class Split(NamedTuple):
    """The division of a run's parameters.

    Attributes:
      base: {tower: tree} of ShapeDtypeStructs, float32: what a run starts from, without adapters.
      lora: the adapters, or None.
      frozen: paths of what is not trained, "shared/blocks/up_kernel".
      dtype: of the frozen matrices and tables; biases and norms stay float32.
      seed: of the adapters.
    """

    base: dict
    lora: Lora | None
    frozen: frozenset[str]
    dtype: Any
    seed: int

    def trained(self, base: dict) -> dict:
        """The trained parameters at the start of a run, of `base`'s arrays; to be jitted."""
        return select(self._with_adapters(base), lambda path: path not in self.frozen)

    def fixed(self, base: dict) -> dict:
        """The frozen parameters, of `base`'s arrays; to be jitted."""
        found = select(self._with_adapters(base), lambda path: path in self.frozen)

        def leaf(path, x: jax.Array) -> jax.Array:
            vector = path_name(path).endswith(("bias", "scale"))
            return x if vector else x.astype(self.dtype)

        return jax.tree_util.tree_map_with_path(leaf, found)

    def plain(self, trained: dict, frozen: dict) -> dict:
        """All parameters, adapters added to their kernels, float32; to be jitted."""
        whole = join({name: trained[name] for name in trained if name in self.base}, frozen)
        whole = {name: merged(tree, self.lora) for name, tree in whole.items()}
        return jax.tree.map(lambda x: x.astype(jnp.float32), whole)

    @property
    def adapter_size(self) -> int:
        """Parameters of a tower's adapters."""
        shapes = next(iter(jax.eval_shape(self._with_adapters, self.base).values()))
        mine = [x.size for name, x in shapes["blocks"].items() if is_adapter(name)]
        return sum(mine)

    def base_shardings(self, mesh: jax.sharding.Mesh) -> dict:
        """Where `base` lies on a mesh."""
        return state_shardings(mesh, self.base)

    def _with_adapters(self, base: dict) -> dict:
        if self.lora is None:
            return base
        key = jax.random.fold_in(jax.random.key(self.seed), 0x10A)

        def tower(tree: dict) -> dict:
            return tree | {
                "blocks": tree["blocks"] | initial_adapters(key, tree["blocks"], self.lora)
            }

        return {name: tower(tree) for name, tree in base.items()}


def make_split(config: RunConfig, encoder: Encoder) -> Split:
    """Reads towers, freeze, freeze_layers and frozen_dtype of the section `model`, and the seed.

    Raises:
      UserError: freeze matches nothing, or leaves nothing to train; freeze_layers is all of them.
    """
    section, lora, layers = config.model, encoder.options.lora, encoder.config.layers
    pattern, count = section.freeze, section.freeze_layers
    towers = ("shared",) if section.towers == "shared" else ("query", "passage")
    shapes = jax.eval_shape(plain_encoder(encoder).init, jax.random.key(0))
    base = dict.fromkeys(towers, shapes)
    split = Split(base, lora, frozenset(), DTYPES[section.frozen_dtype], config.seed)
    paths = leaf_paths(jax.eval_shape(split.trained, base))
    chosen = {path for path in paths if pattern and re.search(pattern, path)}
    if pattern and not chosen:
        raise UserError(f"model.freeze={pattern!r} matches nothing; there are {', '.join(paths)}")
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
    return split._replace(frozen=frozenset(chosen))


@jax.jit
def _sums(tree: dict) -> dict:
    """Two checksums of each array, uint32, whatever its sharding: sums of its bits, each times an
    odd number that belongs to its place."""

    def leaf(x: jax.Array) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(x, {2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize])
        place = jnp.zeros(x.shape, jnp.uint32)
        for axis in range(x.ndim):
            number = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
            place = place * np.uint32(x.shape[axis]) + number
        factor = (place * np.uint32(0x9E3779B1)) ^ (place >> 15)
        bits = bits.astype(jnp.uint32)
        return jnp.stack([jnp.sum(bits * (factor | 1)), jnp.sum((bits ^ bits >> 7) * ~factor)])

    return jax.tree.map(leaf, tree)


def fingerprint(frozen: dict) -> str:
    """16 hexadecimal digits of the paths, shapes and bits of the frozen parameters, the same on any
    mesh; "" where there are none."""
    if not frozen:
        return ""
    digest = hashlib.sha256()
    sums = jax.tree_util.tree_leaves_with_path(_sums(frozen))
    shapes = jax.tree.leaves(frozen)
    for (path, found), x in zip(sums, shapes, strict=True):
        numbers = np.asarray(found).tolist()
        digest.update(f"{path_name(path)} {x.dtype}{x.shape} {numbers}\n".encode())
    return digest.hexdigest()[:16]
