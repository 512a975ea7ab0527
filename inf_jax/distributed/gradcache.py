"""Encodes a batch chunk by chunk on each device (GradCache), gathering sharded parameters.

GradCache (Gao et al. 2021, arXiv 2101.06983) encodes without gradients, takes the loss's
derivatives by the embeddings, and encodes again with them. Here that is a scan over chunks with
`jax.checkpoint`: forward keeps only the embeddings, backward encodes each chunk again. As backward
holds one chunk's activations at a time, forward may keep those of the last: of n chunks, n - 1 are
then encoded again, for a program whose layers are compiled twice.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from inf_jax.core.trees import path_name
from inf_jax.distributed.layer_shards import WHOLE, Shards
from inf_jax.distributed.mesh import BATCH_AXES
from inf_jax.distributed.sharding import rule, state_shardings


def encode_in_chunks(
    encode: Callable,
    tree: dict,
    packed,
    *,
    groups: int,
    mesh: Mesh | None,
    gather: str = "auto",
    keep_last: bool = False,
    dtype: jnp.dtype | None = None,
) -> jax.Array | tuple:
    """encode(tree, packed), with the `groups` chunks of each device one after another.

    On a mesh each device encodes its own chunks and accumulates their gradients. They are summed
    over the copies of the state once, after the last chunk; a program partitioned by the compiler
    would do so for each layer and chunk. Within a copy:

    | gather | parameters                                | gradients                         |
    |--------|-------------------------------------------|-----------------------------------|
    | step   | gathered whole once a step                | whole, in float32; scattered once |
    | layer  | gathered layer by layer, in forward and   | scattered layer by layer          |
    |        | backward, for each of the groups          |                                   |

    Args:
      encode: (tree, packed, shards=Shards) -> arrays [c, ...], where a chunk's result depends on
        that chunk only; `shards` says how the parameters are split, WHOLE that they are not.
      tree: one tower's parameters, split over the mesh by `distributed.sharding`.
      packed: arrays [c, ...], split over the mesh; c a multiple of groups * devices.
      groups: chunks a device; 1 encodes all at once and keeps the activations.
      mesh: None for one device.
      gather: "step", "layer", or "auto": layer for groups = 1, else step.
      keep_last: of several groups, keep the activations of the last.
      dtype: that the layers compute in; "step" holds their whole matrices in it. None: their own.

    Returns:
      The results of encode, [c, ...].
    """

    def run(encode: Callable, tree, packed, shards: Shards):
        several = encode if groups == 1 else _one_by_one(encode, keep_last=keep_last)
        return several(tree, packed, shards=shards)

    if mesh is None or mesh.size == 1:
        return run(encode, tree, packed, WHOLE)
    specs = jax.tree.map(lambda s: s.spec, state_shardings(mesh, tree))
    by_layer = gather == "layer" or (gather == "auto" and groups == 1)
    split = mesh.shape["fsdp"] > 1
    shards = Shards(
        gather=_gathered if split and by_layer else None,
        tensor="tensor" if mesh.shape["tensor"] > 1 else None,
    )

    def on_a_device(tree: dict, packed):
        if not split or by_layer:
            return run(encode, tree, packed, shards)
        others = {name: x for name, x in tree.items() if name != "blocks"}
        whole = _gathered(others) | {"blocks": _gathered(tree["blocks"], dtype, once=True)}
        return run(_of_whole(encode), whole, packed, shards)

    over = PartitionSpec(BATCH_AXES)
    # check_vma=False: gradients of what the devices share are summed once, at the entrance
    return jax.shard_map(
        on_a_device, mesh=mesh, in_specs=(specs, over), out_specs=over, check_vma=False
    )(tree, packed)


def _one_by_one(encode: Callable, *, keep_last: bool) -> Callable:
    """`encode` as a scan over the chunks; backward encodes each again, or all but the last."""

    def run(tree: dict, packed, *, shards: Shards):
        def chunk(carry, packed):
            result = encode(tree, jax.tree.map(lambda x: x[None], packed), shards=shards)
            return carry, jax.tree.map(lambda x: x[0], result)

        recomputed = jax.checkpoint(chunk, policy=jax.checkpoint_policies.nothing_saveable)
        if not keep_last:
            return jax.lax.scan(recomputed, None, packed)[1]
        earlier = jax.lax.scan(recomputed, None, jax.tree.map(lambda x: x[:-1], packed))[1]
        last = encode(tree, jax.tree.map(lambda x: x[-1:], packed), shards=shards)
        return jax.tree.map(lambda x, y: jnp.concatenate([x, y]), earlier, last)

    return run


class _Whole(NamedTuple):
    """A whole array in the compute dtype, and zeros that no product reads: their gradient is the
    array's in float32, so that those of many chunks are summed in it."""

    values: jax.Array
    summed: jax.Array


def _of_whole(encode: Callable) -> Callable:
    """`encode` of a tree some of whose leaves are a _Whole."""

    @jax.custom_vjp
    def values(whole: _Whole) -> jax.Array:
        return whole.values

    def backward(_, g: jax.Array) -> tuple[_Whole]:
        return (_Whole(None, g.astype(jnp.float32)),)

    values.defvjp(lambda whole: (whole.values, None), backward)

    def leaf(x: jax.Array | _Whole) -> jax.Array:
        return values(x) if isinstance(x, _Whole) else x

    def run(tree, packed, *, shards: Shards):
        tree = jax.tree.map(leaf, tree, is_leaf=lambda x: isinstance(x, _Whole))
        return encode(tree, packed, shards=shards)

    return run


def _gathered(tree, dtype: jnp.dtype | None = None, *, once: bool = False):
    """The whole arrays from their shards over "fsdp"; those that are split come in `dtype`.

    tree: stacked layers, one layer without the leading axis, or other parameters.
    once: for all chunks of a step; what `dtype` changes is a _Whole then.
    """

    def leaf(path, x: jax.Array) -> jax.Array | _Whole:
        spec = rule(path_name(path).removesuffix("/value"))  # nnx adds it
        spec = spec[max(0, len(spec) - x.ndim) :]
        if "fsdp" not in spec:
            return x
        join = _join_once if once and dtype not in (None, x.dtype) else _join
        return join(x, spec.index("fsdp"), dtype or x.dtype)

    return jax.tree_util.tree_map_with_path(leaf, tree)


def _join(x: jax.Array, axis: int, dtype: jnp.dtype) -> jax.Array:
    """The whole array from its shards along `axis`, cast before the gather; backward gives each
    device its shard of the gradients' sum, taken in x's own dtype."""

    @jax.custom_vjp
    def join(x: jax.Array) -> jax.Array:
        return jax.lax.all_gather(x.astype(dtype), "fsdp", axis=axis, tiled=True)

    def scatter(_, g: jax.Array) -> tuple[jax.Array]:
        g = g.astype(x.dtype)
        return (jax.lax.psum_scatter(g, "fsdp", scatter_dimension=axis, tiled=True),)

    join.defvjp(lambda x: (join(x), None), scatter)
    return join(x)


def _join_once(x: jax.Array, axis: int, dtype: jnp.dtype) -> _Whole:
    """The same of a float32 array, as a _Whole."""

    @jax.custom_vjp
    def zeros(x: jax.Array) -> jax.Array:
        shape = list(x.shape)
        shape[axis] *= jax.lax.axis_size("fsdp")
        return jnp.zeros(shape, x.dtype)

    def scatter(_, g: jax.Array) -> tuple[jax.Array]:
        return (jax.lax.psum_scatter(g, "fsdp", scatter_dimension=axis, tiled=True),)

    zeros.defvjp(lambda x: (zeros(x), None), scatter)
    return _Whole(jax.lax.stop_gradient(_join(x, axis, dtype)), zeros(x))
