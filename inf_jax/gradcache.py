"""GradCache: chunks encoded one after another, with one gradient reduction a step.

Gao et al. 2021 (arXiv 2101.06983) encode without gradients, take the loss's derivatives by the
embeddings, and encode again with them. Here that is a scan over chunks with `jax.checkpoint`:
forward keeps the embeddings alone, the loss sees the whole batch, backward encodes chunk by chunk
once more. Plain autodiff makes the gradients exact.
"""

from collections.abc import Callable

import jax
from jax.sharding import Mesh, PartitionSpec

from inf_jax.mesh import BATCH_AXES, state_shardings


def in_chunks(
    encode: Callable, tree: dict, packed, *, groups: int, mesh: Mesh | None
) -> jax.Array | tuple:
    """encode(tree, packed) with `groups` chunks of each device one after another.

    On a mesh each device works on its own chunks with a whole copy of the parameters, gathered once
    from their shards, and adds the chunks' gradients up by itself: these cross the mesh once, after
    the last chunk, where a scan that the compiler partitions would reduce them chunk by chunk. So
    while a step encodes, a device holds all parameters and all gradients of a tower, shards or not;
    with groups = 1 the compiler gathers layer by layer, as FSDP does.

    Args:
      encode: (tree, packed) -> arrays [c, ...], a chunk's result depending on that chunk alone.
      tree: one tower's parameters, split over the mesh by its rules.
      packed: arrays [c, ...], split over the mesh; c a multiple of groups * devices.
      groups: chunks a device; 1 encodes all at once and keeps the activations.
      mesh: None is one device.

    Returns:
      What encode gives, [c, ...].
    """
    if groups == 1:
        return encode(tree, packed)
    if mesh is None or mesh.size == 1:
        return _one_by_one(encode, tree, packed)
    specs = jax.tree.map(lambda s: s.spec, state_shardings(mesh, tree))

    def on_a_device(tree: dict, packed):
        return _one_by_one(encode, jax.tree.map(_gathered, tree, specs), packed)

    over = PartitionSpec(BATCH_AXES)
    # without types of varying axes a whole copy's gradients are summed where it comes in: once
    return jax.shard_map(
        on_a_device, mesh=mesh, in_specs=(specs, over), out_specs=over, check_vma=False
    )(tree, packed)


def _one_by_one(encode: Callable, tree: dict, packed):
    """A scan over the chunks; backward encodes each again."""

    def chunk(carry, packed):
        found = encode(tree, jax.tree.map(lambda x: x[None], packed))
        return carry, jax.tree.map(lambda x: x[0], found)

    again = jax.checkpoint(chunk, policy=jax.checkpoint_policies.nothing_saveable)
    return jax.lax.scan(again, None, packed)[1]


def _gathered(x: jax.Array, spec: PartitionSpec) -> jax.Array:
    """The whole array from its shards; backward sends each device its shard of the sum."""
    for dimension, axis in enumerate(spec):
        if axis is not None:
            x = jax.lax.all_gather(x, axis, axis=dimension, tiled=True)
    return x
