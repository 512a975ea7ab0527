"""Encodes a batch chunk by chunk on each device (GradCache), gathering sharded parameters.

GradCache (Gao et al. 2021, arXiv 2101.06983) encodes without gradients, takes the loss's
derivatives by the embeddings, and encodes again with them. Here that is a scan over chunks with
`jax.checkpoint`: forward keeps only the embeddings, backward encodes each chunk again. As backward
holds one chunk's activations at a time, forward may keep those of the last: of n chunks, n - 1 are
then encoded again, for a program whose layers are compiled twice.
"""

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from inf_jax.core.trees import path_name
from inf_jax.distributed.layer_shards import WHOLE, Shards, SummedParameter, is_summed
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

    | gather  | parameters                               | gradients                         |
    |---------|------------------------------------------|-----------------------------------|
    | step    | gathered whole once a step               | whole, in float32; scattered once |
    | layer   | gathered layer by layer, in forward and  | scattered layer by layer          |
    |         | backward, for each of the groups         |                                   |
    | weights | as layer; all but the layers as step     | as step                           |

    Args:
      encode: (tree, packed, shards=Shards) -> arrays [c, ...], where a chunk's result depends on
        that chunk only; `shards` says how the parameters are split, WHOLE that they are not.
      tree: one tower's parameters, split over the mesh by `distributed.sharding`.
      packed: arrays [c, ...], split over the mesh; c a multiple of groups * devices.
      groups: chunks a device; 1 encodes all at once and keeps the activations.
      mesh: None for one device.
      gather: "step", "layer", "weights", or "auto": layer for groups = 1, else step.
      keep_last: of several groups, keep the activations of the last.
      dtype: that the layers compute in; "step" holds their whole matrices in it. None: their own.

    Returns:
      The results of encode, [c, ...].
    """
    run = encode if groups == 1 else _one_by_one(encode, keep_last=keep_last)
    if mesh is None or mesh.size == 1:
        return run(tree, packed, shards=WHOLE)
    specs = jax.tree.map(lambda s: s.spec, state_shardings(mesh, tree))
    if gather == "auto":
        gather = "layer" if groups == 1 else "step"
    split = mesh.shape["fsdp"] > 1
    summed = split and (gather == "weights" or (gather == "step" and groups > 1))
    shards = Shards(
        gather=_gathered_summed if summed else _gathered if split and gather == "layer" else None,
        held=gather == "step",
        tensor="tensor" if mesh.shape["tensor"] > 1 else None,
    )

    def on_a_device(tree: dict, packed):
        if split and gather != "layer":
            whole = _gathered({name: x for name, x in tree.items() if name != "blocks"})
            if "blocks" in tree:  # not in a tower without layers
                layers = tree["blocks"]
                if summed:
                    layers = _summed(layers, dtype, whole=gather == "step")
                else:
                    layers = _gathered(layers, dtype)
                whole["blocks"] = layers
            tree = whole
        return run(tree, packed, shards=shards)

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


def _split_axis(path: tuple, x: jax.Array) -> int | None:
    """The axis of x that "fsdp" splits; x is of stacked layers, of one layer without the leading
    axis, or another parameter."""
    spec = rule(path_name(path).removesuffix("/value"))  # nnx adds it
    spec = spec[max(0, len(spec) - x.ndim) :]
    return spec.index("fsdp") if "fsdp" in spec else None


def _gathered(tree, dtype: jnp.dtype | None = None):
    """The whole arrays from their shards over "fsdp"; those that are split come in `dtype`."""

    def leaf(path, x: jax.Array) -> jax.Array:
        axis = _split_axis(path, x)
        if axis is None:
            return x
        table = re.search(r"(word|position|token_type)$", path_name(path)) is not None
        return _join(x, axis, dtype or x.dtype, rows=table)

    return jax.tree_util.tree_map_with_path(leaf, tree)


def _gathered_summed(tree, dtype: jnp.dtype | None = None):
    """The same of a tree some of whose leaves are a SummedParameter; other leaves are whole."""

    def leaf(path, x: jax.Array | SummedParameter) -> jax.Array:
        if not is_summed(x):
            return x
        whole = x.values.shape == x.summed.shape
        axis = _split_axis(path, x.values)

        @jax.custom_vjp
        def join(x: SummedParameter) -> jax.Array:
            return x.values if whole else _joined(x.values, axis, dtype or x.values.dtype)

        def backward(_, g: jax.Array) -> tuple[SummedParameter]:
            return (SummedParameter(None, g.astype(x.summed.dtype)),)

        join.defvjp(lambda x: (join(x), None), backward)
        return join(x)

    return jax.tree_util.tree_map_with_path(leaf, tree, is_leaf=is_summed)


def _summed(blocks: dict, dtype: jnp.dtype | None, *, whole: bool) -> dict:
    """What of the stacked layers is split over "fsdp" as a SummedParameter of shards or of whole
    arrays in `dtype`."""

    def leaf(path, x: jax.Array) -> jax.Array | SummedParameter:
        axis = _split_axis(path, x)
        if axis is None:
            return x
        values = _joined(x, axis, dtype or x.dtype) if whole else x
        return SummedParameter(jax.lax.stop_gradient(values), _zeros(x, axis))

    return jax.tree_util.tree_map_with_path(leaf, blocks)


def _joined(x: jax.Array, axis: int, dtype: jnp.dtype) -> jax.Array:
    """The whole array from its shards along `axis`, cast before the gather."""
    return jax.lax.all_gather(x.astype(dtype), "fsdp", axis=axis, tiled=True)


def _scattered(g: jax.Array, axis: int, *, rows: bool = False) -> jax.Array:
    """A device's shard of the sum of the whole arrays; `rows`: of tables, of which XLA would sum
    the whole, since a row lies in one place."""
    if rows:
        n = jax.lax.axis_size("fsdp")
        g = g.reshape(len(g), n, -1).transpose(1, 0, 2)
        return jax.lax.psum_scatter(g, "fsdp", scatter_dimension=0)
    return jax.lax.psum_scatter(g, "fsdp", scatter_dimension=axis, tiled=True)


def _join(x: jax.Array, axis: int, dtype: jnp.dtype, *, rows: bool) -> jax.Array:
    """`_joined`; backward gives each device its shard of the gradients' sum, taken in x's own
    dtype."""

    @jax.custom_vjp
    def join(x: jax.Array) -> jax.Array:
        return _joined(x, axis, dtype)

    def scatter(_, g: jax.Array) -> tuple[jax.Array]:
        return (_scattered(g.astype(x.dtype), axis, rows=rows),)

    join.defvjp(lambda x: (join(x), None), scatter)
    return join(x)


def _zeros(x: jax.Array, axis: int) -> tuple[jax.Array, ...]:
    """Zeros in the whole shape of each layer of a shard, which has the shards of their gradients'
    sums."""

    @jax.custom_vjp
    def zeros(x: jax.Array) -> tuple[jax.Array, ...]:
        shape = list(x.shape[1:])
        shape[axis - 1] *= jax.lax.axis_size("fsdp")
        return tuple(jnp.zeros(shape, x.dtype) for _ in range(len(x)))

    def scatter(_, g: tuple[jax.Array, ...]) -> tuple[jax.Array]:
        return (jnp.stack([_scattered(layer, axis - 1) for layer in g]),)

    zeros.defvjp(lambda x: (zeros(x), None), scatter)
    return zeros(x)
