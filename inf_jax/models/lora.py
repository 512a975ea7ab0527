"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685) of the blocks' linear layers.

A layer's product with a kernel W [*in, *out] becomes x W + (alpha / r) (x A) B, with A [*in, r] and
B [r, *out]. The kernel is not trained, so that no gradient of its size is ever computed. Adapters
are parameters like others, `blocks/query_lora_a` beside `blocks/query_kernel`, with the blocks'
leading layer axis.
"""

import math
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from inf_jax.core.errors import UserError

KERNEL, A, B = "_kernel", "_lora_a", "_lora_b"
_INPUTS = {"out": 2}  # axes that a kernel contracts, heads and their width; others have one


class Lora(NamedTuple):
    """Which adapters there are.

    Attributes:
      rank: r.
      alpha: the product of A and B counts alpha / r times.
      targets: linear layers of a block: query, key, value, out, up, gate, down.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]

    @property
    def scale(self) -> float:
        """alpha / r."""
        return self.alpha / self.rank


def make_lora(paths: Sequence[str], *, rank: int, alpha: float, targets: str) -> Lora | None:
    """The adapters that a regular expression on parameter paths asks for; None for rank 0.

    Args:
      paths: of one encoder's parameters, "blocks/query_kernel".

    Raises:
      UserError: it matches nothing, or something that is no linear layer.
    """
    if not rank:
        return None
    found = [path for path in paths if re.search(targets, path)]
    linear = [path for path in paths if path.endswith(KERNEL)]
    odd = sorted(set(found) - set(linear))
    if odd or not found:
        what = f"matches {', '.join(odd)}, not linear" if odd else "matches nothing"
        raise UserError(
            f"model.lora_targets={targets!r} {what}; linear layers are {', '.join(linear)}"
        )
    names = sorted(path.removeprefix("blocks/").removesuffix(KERNEL) for path in found)
    return Lora(rank, alpha, tuple(names))


def is_adapter(path: str) -> bool:
    """Whether a parameter belongs to an adapter, by its path."""
    return path.endswith((A, B))


def adapter_shapes(name: str, kernel: tuple[int, ...], rank: int) -> tuple[tuple[int, ...], ...]:
    """Shapes of A and B of a layer's kernel (no layer axis)."""
    n = _INPUTS.get(name, 1)
    return (*kernel[:n], rank), (rank, *kernel[n:])


def first_adapter(key: Array, name: str, kernel: tuple[int, ...], rank: int) -> dict[str, Array]:
    """{A, B} at the start, float32: B is 0, so that the model is as before, and A is drawn from
    U(-1/sqrt(n), 1/sqrt(n)) for n inputs, as PEFT does (Kaiming-uniform with a = sqrt(5))."""
    a, b = adapter_shapes(name, kernel, rank)
    bound = 1 / math.sqrt(math.prod(a[:-1]))
    drawn = jax.random.uniform(key, a, jnp.float32, -bound, bound)
    return {name + A: drawn, name + B: jnp.zeros(b, jnp.float32)}


def first_adapters(key: Array, blocks: Mapping[str, Array], lora: Lora) -> dict[str, Array]:
    """`first_adapter` of all targets and layers, for the stacked kernels of `blocks`."""
    adapters = {}
    for name in lora.targets:
        layers, *kernel = blocks[name + KERNEL].shape
        keys = jax.random.split(jax.random.fold_in(key, zlib.crc32(name.encode())), layers)
        make = lambda k, n=name, s=tuple(kernel): first_adapter(k, n, s, lora.rank)  # noqa: E731
        adapters |= jax.vmap(make)(keys)
    return adapters


def low_rank(equation: str, x: Array, a: Array, b: Array, scale: float) -> Array:
    """What an adapter adds to einsum(equation, x, kernel), in x's dtype; x has rows and tokens."""
    left, kernel, result = re.split(",|->", equation)
    inner = "".join(letter for letter in kernel if letter not in result)
    outer = "".join(letter for letter in kernel if letter in result)
    z = jnp.einsum(f"{left},{inner}z->rtz", x, a.astype(x.dtype)) * scale
    return jnp.einsum(f"rtz,z{outer}->{result}", z, b.astype(x.dtype))


def merged(tree: Mapping, lora: Lora | None) -> dict:
    """One encoder's tree without adapters: each target's kernel is W + (alpha / r) A B, float32;
    other parameters as they are."""
    if lora is None:
        return dict(tree)
    blocks = dict(tree["blocks"])
    for name in lora.targets:
        a, b = (blocks.pop(name + part).astype(jnp.float32) for part in (A, B))
        kernel = blocks[name + KERNEL].astype(jnp.float32)
        blocks[name + KERNEL] = kernel + lora.scale * _product(a, b).reshape(kernel.shape)
    return {**tree, "blocks": blocks}


def _product(a: Float[Array, "l ... r"], b: Float[Array, "l r ..."]) -> Float[Array, "l i o"]:
    layers, rank = b.shape[:2]
    a, b = a.reshape(layers, -1, rank), b.reshape(layers, rank, -1)
    return jnp.einsum("liz,lzo->lio", a, b, precision=jax.lax.Precision.HIGHEST)
