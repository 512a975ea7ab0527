"""How a step encodes its chunks on the devices: all at once or one after another, with parameters
that are gathered from their shards.

GradCache (Gao et al. 2021, arXiv 2101.06983) encodes without gradients, takes the loss's
derivatives by the embeddings, and encodes again with them. Here that is a scan over chunks with
`jax.checkpoint`: forward keeps the embeddings alone, the loss sees the whole batch, backward
encodes chunk by chunk once more. Plain autodiff makes the gradients exact.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from inf_jax.core.trees import path_name
from inf_jax.distributed.layer_shards import Shards
from inf_jax.distributed.mesh import BATCH_AXES
from inf_jax.distributed.sharding import rule, state_shardings


def in_chunks(
    encode: Callable,
    tree: dict,
    packed,
    *,
    groups: int,
    mesh: Mesh | None,
    gather: str = "auto",
) -> jax.Array | tuple:
    """encode(tree, packed) with `groups` chunks of each device one after another.

    On a mesh each device works on its own chunks and adds the chunks' gradients up by itself: they
    are summed over the copies of the state once, after the last chunk, where a program that the
    compiler partitions would do so layer by layer and chunk by chunk. Over the shards of a copy:

    | gather | parameters                                | gradients                         |
    |--------|-------------------------------------------|-----------------------------------|
    | step   | whole on each device during the step      | whole; scattered once             |
    | layer  | a layer is gathered where it is needed,   | a layer's are scattered at once   |
    |        | forward and again backward, for each of   |                                   |
    |        | the groups                                |                                   |

    Args:
      encode: (tree, packed, **how) -> arrays [c, ...], a chunk's result depending on that chunk
        alone; `how` is empty, or shards=Shards where the parameters are split.
      tree: one tower's parameters, split over the mesh by its rules.
      packed: arrays [c, ...], split over the mesh; c a multiple of groups * devices.
      groups: chunks a device; 1 encodes all at once and keeps the activations.
      mesh: None is one device.
      gather: "step", "layer", or "auto": layer for groups = 1, else step.

    Returns:
      What encode gives, [c, ...].
    """
    run = encode if groups == 1 else _one_by_one(encode)
    if mesh is None or mesh.size == 1:
        return run(tree, packed)
    specs = jax.tree.map(lambda s: s.spec, state_shardings(mesh, tree))
    by_layer = gather == "layer" or (gather == "auto" and groups == 1)
    split = mesh.shape["fsdp"] > 1
    shards = Shards(
        gather=_gathered if split and by_layer else None,
        tensor="tensor" if mesh.shape["tensor"] > 1 else None,
    )
    how = {} if shards == Shards() else {"shards": shards}

    def on_a_device(tree: dict, packed):
        return run(_gathered(tree) if split and not by_layer else tree, packed, **how)

    over = PartitionSpec(BATCH_AXES)
    # without types of varying axes what devices have in common gets its gradients summed where it
    # comes in: once
    return jax.shard_map(
        on_a_device, mesh=mesh, in_specs=(specs, over), out_specs=over, check_vma=False
    )(tree, packed)


def _one_by_one(encode: Callable) -> Callable:
    """`encode` as a scan over the chunks; backward encodes each again."""

    def run(tree: dict, packed, **how):
        def chunk(carry, packed):
            found = encode(tree, jax.tree.map(lambda x: x[None], packed), **how)
            return carry, jax.tree.map(lambda x: x[0], found)

        again = jax.checkpoint(chunk, policy=jax.checkpoint_policies.nothing_saveable)
        return jax.lax.scan(again, None, packed)[1]

    return run


def _gathered(tree, dtype: jnp.dtype | None = None):
    """The whole arrays from their shards over "fsdp", in `dtype` those that are split.

    Args:
      tree: shards by the mesh's rules: stacked layers, one layer without the leading axis, others.
    """

    def leaf(path, x: jax.Array) -> jax.Array:
        spec = rule(path_name(path).removesuffix("/value"))  # of nnx
        spec = spec[max(0, len(spec) - x.ndim) :]
        return _join(x, spec.index("fsdp"), dtype or x.dtype) if "fsdp" in spec else x

    return jax.tree_util.tree_map_with_path(leaf, tree)


def _join(x: jax.Array, axis: int, dtype: jnp.dtype) -> jax.Array:
    """The whole array from its shards along `axis`, cast first; backward sends each device its
    shard of the sum, which is taken in x's own dtype."""

    @jax.custom_vjp
    def join(x: jax.Array) -> jax.Array:
        return jax.lax.all_gather(x.astype(dtype), "fsdp", axis=axis, tiled=True)

    def scatter(_, g: jax.Array) -> tuple[jax.Array]:
        g = g.astype(x.dtype)
        return (jax.lax.psum_scatter(g, "fsdp", scatter_dimension=axis, tiled=True),)

    join.defvjp(lambda x: (join(x), None), scatter)
    return join(x)
