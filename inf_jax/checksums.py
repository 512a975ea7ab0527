"""One number for each array, the same on any mesh: what of a checkpoint is damaged shows in it.

TensorStore finds a file that is missing or too short, but not bytes that have changed.
"""

from typing import Any

import jax
import jax.numpy as jnp

_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def checksums(tree: Any) -> dict[str, int]:
    """{"params/shared/word": number} of a tree of arrays of at most 32 bits, wherever their shards.

    The sum, modulo 2^32, of each entry's bits times an odd number that depends on its place: whole
    numbers add up to the same in any order, so no mesh and no process count changes it, and any one
    changed entry does.
    """
    leaves, found = jax.tree_util.tree_leaves_with_path(tree), _sums(tree)
    numbers = jax.device_get(jax.tree.leaves(found))
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    return dict(zip(names, map(int, numbers), strict=True))


@jax.jit
def _sums(tree: Any) -> Any:
    return jax.tree.map(_sum, tree)


def _sum(x: jax.Array) -> jax.Array:
    x = x.astype(jnp.uint8) if x.dtype == bool else x
    bits = jax.lax.bitcast_convert_type(x, _WORDS[x.dtype.itemsize]).astype(jnp.uint32)
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)
