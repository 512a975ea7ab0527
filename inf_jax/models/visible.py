"""Which tokens of a packed row see which."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Window:
    """How far a layer sees, see `EncoderConfig.windows`.

    Attributes:
      sizes: the different windows of the layers that share a program; None sees the whole text.
      which: the place in `sizes` of this layer's, an int32 scalar; None where there is but one.
    """

    sizes: tuple[int | None, ...] = dataclasses.field(default=(None,), metadata={"static": True})
    which: Array | None = None

    def size(self) -> Array | int | None:
        """This layer's tokens; None where no layer has a window."""
        if self.which is None or set(self.sizes) == {None}:
            return self.sizes[0]
        everything = np.iinfo(np.int32).max
        sizes = [everything if size is None else size for size in self.sizes]
        return jnp.asarray(sizes, jnp.int32)[self.which]


def visible(
    segments: Int[Array, "r t"],
    positions: Int[Array, "r t"],
    *,
    causal: bool,
    window: Window,
) -> Bool[Array, "r 1 t t"]:
    """Which tokens (last axis) a token sees: of its own segment, none later if `causal`, none
    beyond the window.

    Each token sees itself, so no row is empty; those of empty slots (segment 0) see each other.
    """
    seen = segments[:, None, :, None] == segments[:, None, None, :]
    size = window.size()
    if not causal and size is None:
        return seen
    behind = positions[:, None, :, None] - positions[:, None, None, :]
    if causal:
        seen &= behind >= 0
    if size is not None:
        seen &= (behind < size) if causal else (jnp.abs(behind) <= size)
    return seen
