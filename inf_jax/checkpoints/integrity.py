"""Checks that a checkpoint's arrays have the expected names and shapes and hold what was saved.

TensorStore notices a missing or short file but not changed bytes. Sums of an array's bits weighted
by their place are the same on any mesh and any number of processes (whole numbers, added in any
order), and any one changed entry changes them.
"""

import functools
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from inf_jax.core.trees import leaf_paths, path_name
from inf_jax.io.json_files import read_json

_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def checksums(tree: Any) -> dict[str, int]:
    """{"params/shared/word": checksum modulo 2^32} of a tree of arrays of at most 32 bits each,
    sharded or not; saved with every checkpoint."""
    sums = jax.device_get(jax.tree.leaves(_map_bits(tree, _checksum)))
    return dict(zip(leaf_paths(tree), map(int, sums), strict=True))


def fingerprint(tree: Mapping[str, Any]) -> str:
    """16 hexadecimal digits of the paths, shapes and bits of a tree, the same on any mesh; "" for
    an empty one. Stored in checkpoints for the frozen parameters, which are not saved."""
    if not tree:
        return ""
    digest = hashlib.sha256()
    sums = jax.tree_util.tree_leaves_with_path(_map_bits(tree, _two_sums))
    for (path, numbers), x in zip(sums, jax.tree.leaves(tree), strict=True):
        values = np.asarray(numbers).tolist()
        digest.update(f"{path_name(path)} {x.dtype}{x.shape} {values}\n".encode())
    return digest.hexdigest()[:16]


def check_tree(checkpoint: epath.Path, abstract: Mapping[str, Any]) -> None:
    """Raises ValueError naming the arrays in whose name or shape the checkpoint differs from these
    parts of the state.

    Runs before Orbax reads: Orbax leaves an absent array as it was passed in, ignores surplus ones,
    and stops at the first other shape with its other reads under way.
    """

    def shapes(tree) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {path_name(path): x.shape for path, x in leaves}

    state = checkpoint / "state"
    for file in (state / "_METADATA", state / "_sharding", *(state / "array_metadatas").glob("*")):
        if file.exists():  # Orbax starts to read arrays before it finds what is wrong here
            read_json(file, kind=dict, remedy="")
    handler = ocp.PyTreeCheckpointHandler()
    saved = handler.metadata(checkpoint / "state").tree
    handler.close()
    actual = shapes({part: saved[part] for part in abstract if part in saved})
    expected = shapes(abstract)
    if not any(name.startswith("params/loss/") for name in expected):
        # a learned scale is no part of the model
        actual = {name: x for name, x in actual.items() if not name.startswith("params/loss/")}
    differ = [
        f"{name} {actual.get(name, 'absent')}, expected {expected.get(name, 'none')}"
        for name in sorted(actual.keys() | expected.keys())
        if actual.get(name) != expected.get(name)
    ]
    if differ:
        raise ValueError(_first_three(differ, "; "))


def check_contents(checkpoint: epath.Path, restored: Mapping[str, Any]) -> None:
    """Raises ValueError naming the arrays whose checksums differ from the saved ones."""
    saved = read_json(checkpoint / "checksums" / "metadata", kind=dict, remedy="")
    damaged = [name for name, number in checksums(restored).items() if saved.get(name) != number]
    if damaged:
        raise ValueError(f"{_first_three(damaged, ', ')} is not what was saved")


def _first_three(items: list[str], separator: str) -> str:
    more = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return separator.join(items[:3]) + more


@functools.partial(jax.jit, static_argnames="combine")
def _map_bits(tree: Any, combine: Callable[[jax.Array, jax.Array], jax.Array]) -> Any:
    """combine(bits, place) of each array: uint32 bits of each entry, and its row-major index."""

    def leaf(x: jax.Array) -> jax.Array:
        x = x.astype(jnp.uint8) if x.dtype == bool else x
        bits = jax.lax.bitcast_convert_type(x, _WORDS[x.dtype.itemsize]).astype(jnp.uint32)
        place = jnp.zeros(x.shape, jnp.uint32)
        for axis, size in enumerate(x.shape):
            index = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
            place = place * jnp.uint32(size) + index
        return combine(bits, place)

    return jax.tree.map(leaf, tree)


def _checksum(bits: jax.Array, place: jax.Array) -> jax.Array:
    return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)


def _two_sums(bits: jax.Array, place: jax.Array) -> jax.Array:
    """uint32[2], of a stronger mix: a fingerprint also has to tell different weights apart."""
    factor = (place * np.uint32(0x9E3779B1)) ^ (place >> 15)
    return jnp.stack([jnp.sum(bits * (factor | 1)), jnp.sum((bits ^ bits >> 7) * ~factor)])
