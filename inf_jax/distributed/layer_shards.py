"""Gives a layer inside `shard_map` its whole parameters and its share of the heads.

There a layer sees one device's part of everything: its rows, its share of the heads and of the ffn
(mesh axis "tensor") and shards of its matrices ("fsdp"), which `gather` joins.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

HOST_MEMORY = "pinned_host"  # a kind of memory of a device
_INPUT = "layer_input"
# A policy of `jax.checkpoint`: nothing of a layer is kept but its input, in the host's memory.
OFFLOAD_INPUT = jax.checkpoint_policies.save_and_offload_only_these_names(
    names_which_can_be_saved=(),
    names_which_can_be_offloaded=(_INPUT,),
    offload_src="device",
    offload_dst=HOST_MEMORY,
)


@dataclasses.dataclass(frozen=True)
class Shards:
    """How the parameters are split.

    Attributes:
      gather: (parameters of a layer or of others in the tree, dtype or None) -> the same, whole
        except for heads and ffn. With a dtype, matrices are cast to it before they are gathered;
        the layer would cast them anyway. Backward gives each device its shard of the summed
        gradient. None where nothing is to be gathered.
      held: devices hold the whole parameters all the time, so that `gather` moves nothing.
      tensor: the mesh axis that heads and ffn are split over; None where a device has them all.
    """

    gather: Callable[[Any, Any], Any] | None = None
    held: bool = False
    tensor: str | None = None

    def whole(self, params: Any, dtype: Any = None) -> Any:
        """The parameters joined, at the start of the layer that needs them."""
        return params if self.gather is None else self.gather(params, dtype)

    def total(self, x: Array) -> Array:
        """The sum over the devices that share the heads or the ffn: after the product that
        contracts over them, before its bias."""
        return x if self.tensor is None else jax.lax.psum(x, self.tensor)

    def first(self, size: int) -> Array | int:
        """The number, among all heads, of the first of this device's `size` heads."""
        return 0 if self.tensor is None else jax.lax.axis_index(self.tensor) * size

    def serving(self, x: Array, local_heads: int, *, heads: int, kv_heads: int) -> Array:
        """The key or value heads that this device's query heads attend to.

        Args:
          x: [r, g, t, k], this device's key or value heads: its share, or all `kv_heads` where the
            axis does not divide them.
          local_heads: query heads of this device; `heads` are those of all.

        Returns:
          [r, g', t, k]; each of the g' heads serves `local_heads` / g' neighbouring query heads.
        """
        if self.tensor is None or x.shape[1] < kv_heads:
            return x
        group = heads // kv_heads
        first = self.first(local_heads)
        if group % local_heads == 0:
            return jax.lax.dynamic_slice_in_dim(x, first // group, 1, axis=1)
        return jnp.take(x, (first + jnp.arange(local_heads)) // group, axis=1)

    def remat(self, layer: Callable, policy: Callable | None) -> Callable:
        """`jax.checkpoint` of a layer (x, ...) that gathers its parameters first.

        Whatever the policy keeps (None keeps everything), backward gathers them again.
        """
        if policy is None and self.gather is not None and not self.held:
            policy = _all_but_gathered
        if policy is OFFLOAD_INPUT:
            return jax.checkpoint(_input_named(layer), policy=policy)
        return layer if policy is None else jax.checkpoint(layer, policy=policy)


WHOLE = Shards()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SummedParameter:
    """A parameter of the stacked layers in a step of several chunks.

    Its gradient is that of `summed`, so the chunks' are summed in float32, layer by layer: sums of
    stacked layers would be read and written several times.

    Attributes:
      values: whole or a shard, [layers, ...]; without a gradient.
      summed: zeros that nothing reads, in the whole shape of each layer; one array where a loop
        goes over the layers.
    """

    values: Array
    summed: tuple[Array, ...] | Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the values."""
        return self.values.shape

    def __getitem__(self, layer: int) -> "SummedParameter":
        return SummedParameter(self.values[layer], self.summed[layer])


def is_summed(x: Any) -> bool:
    """Whether x is a SummedParameter; for `is_leaf`."""
    return isinstance(x, SummedParameter)


def for_loop(stacked: Any) -> Any:
    """Stacked parameters with a leading axis of layers in all arrays."""

    def leaf(x: Any) -> Any:
        return SummedParameter(x.values, jnp.stack(x.summed)) if is_summed(x) else x

    return jax.tree.map(leaf, stacked, is_leaf=is_summed)


def _input_named(layer: Callable) -> Callable:
    def named(x: Array, *others: Any) -> Array:
        return layer(checkpoint_name(x, _INPUT), *others)

    return named


def _all_but_gathered(primitive, *_, **params) -> bool:
    inner = params.get("call_jaxpr")  # of a gather with a custom derivative
    inside = [] if inner is None else [equation.primitive.name for equation in inner.jaxpr.eqns]
    return "all_gather" not in (primitive.name, *inside)
