"""What a layer must know of a mesh over which its parameters are split.

Inside `shard_map` a layer sees a device's part of everything: its rows, its share of the heads and
of the ffn ("tensor" in `distributed.mesh`) and shards of its
matrices ("fsdp"), which `gather` joins.
`inf_jax.distributed.gradcache` makes these.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array


@dataclasses.dataclass(frozen=True)
class Shards:
    """How the parameters are split.

    Attributes:
      gather: (a layer's parameters or others of the tree, dtype or None) -> the same, whole but
        for heads and ffn; its matrices in `dtype`, which the layer would cast them to: what else
        it makes of them may be kept for backward. Backward gives each device its shard of the
        summed gradient. None where nothing is to be gathered.
      tensor: the mesh axis that heads and ffn are split over; None where a device has them all.
    """

    gather: Callable[[Any, Any], Any] | None = None
    tensor: str | None = None

    def whole(self, params: Any, dtype: Any = None) -> Any:
        """The parameters joined, at the start of the layer that needs them."""
        return params if self.gather is None else self.gather(params, dtype)

    def total(self, x: Array) -> Array:
        """The sum over the devices that share the heads or the ffn: after the product that takes
        them in, before its bias."""
        return x if self.tensor is None else jax.lax.psum(x, self.tensor)

    def first(self, size: int) -> Array | int:
        """The number, among all, of the first of this device's `size` heads."""
        return 0 if self.tensor is None else jax.lax.axis_index(self.tensor) * size

    def serving(self, x: Array, mine: int, *, heads: int, kv_heads: int) -> Array:
        """The heads of keys or values for this device's heads of queries.

        Args:
          x: [r, g, t, k], of this device: its share of them, or all where the axis does not divide
            them.
          mine: this device's heads of queries; `heads` are those of all.

        Returns:
          [r, g', t, k]; each of the g' heads serves `mine` / g' neighbouring ones of queries.
        """
        if self.tensor is None or x.shape[1] < kv_heads:
            return x
        group = heads // kv_heads
        if group % mine == 0:
            return jax.lax.dynamic_slice_in_dim(x, self.first(mine) // group, 1, axis=1)
        return jnp.take(x, (self.first(mine) + jnp.arange(mine)) // group, axis=1)

    def remat(self, layer: Callable, policy: Callable | None) -> Callable:
        """`jax.checkpoint` of a layer that gathers its parameters first: whatever the policy keeps
        (None keeps all), backward gathers them again."""
        if policy is None and self.gather is not None:
            policy = _all_but_gathered
        return layer if policy is None else jax.checkpoint(layer, policy=policy)


WHOLE = Shards()


def _all_but_gathered(primitive, *_, **params) -> bool:
    inner = params.get("call_jaxpr")  # of a gather with a derivative of its own
    inside = [] if inner is None else [equation.primitive.name for equation in inner.jaxpr.eqns]
    return "all_gather" not in (primitive.name, *inside)
