"""Whether a checkpoint's arrays are those that are asked for, and those that were saved.

TensorStore finds a file that is missing or too short, but not bytes that have changed: each array
has one number, the same on any mesh, in which they show.
"""

import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

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


def check_tree(checkpoint: epath.Path, abstract: Mapping[str, Any]) -> None:
    """Raises ValueError naming what the checkpoint has otherwise than these parts of the state.

    Before Orbax reads, since that leaves an absent array as it was asked for, says nothing of one
    too many, and gives up at the first of another shape with its other reads under way.
    """

    def shapes(tree) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {jax.tree_util.keystr(p, simple=True, separator="/"): x.shape for p, x in leaves}

    handler = ocp.PyTreeCheckpointHandler()
    saved = handler.metadata(checkpoint / "state").tree
    handler.close()
    found = shapes({part: saved[part] for part in abstract})
    expected = shapes(abstract)
    if not any(name.startswith("params/loss/") for name in expected):
        # a learned scale is no part of the model
        found = {name: x for name, x in found.items() if not name.startswith("params/loss/")}
    differ = [
        f"{name} {found.get(name, 'absent')}, expected {expected.get(name, 'none')}"
        for name in sorted(found.keys() | expected.keys())
        if found.get(name) != expected.get(name)
    ]
    if differ:
        more = f" and {len(differ) - 3} more" if len(differ) > 3 else ""
        raise ValueError(f"{'; '.join(differ[:3])}{more}")


def check_contents(checkpoint: epath.Path, restored: Mapping[str, Any]) -> None:
    """Raises ValueError naming the arrays that are not what was saved."""
    saved = json.loads((checkpoint / "checksums" / "metadata").read_text())
    damaged = [name for name, number in checksums(restored).items() if saved.get(name) != number]
    if damaged:
        more = f" and {len(damaged) - 3} more" if len(damaged) > 3 else ""
        raise ValueError(f"{', '.join(damaged[:3])}{more} is not what was saved")


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
