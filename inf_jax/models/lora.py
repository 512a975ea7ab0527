"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685) of the blocks' linear layers.

A product with a frozen kernel W [*in, *out] becomes x W + (alpha / rank) (x A) B, with A
[*in, rank] and B [rank, *out]. Adapters are ordinary parameters, `blocks/query_lora_a` next to
`blocks/query_kernel`, with the blocks' leading layer axis l. Einsum letters: r rows, t tokens,
z rank.
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
_INPUTS = {"out": 2}  # input axes of a kernel (heads and head width); all others have one


class Lora(NamedTuple):
    """The adapters of an encoder; `targets` names linear layers of a block: query, key, value, out,
    up, gate, down."""

    rank: int
    alpha: float
    targets: tuple[str, ...]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def make_lora(paths: Sequence[str], *, rank: int, alpha: float, targets: str) -> Lora | None:
    """The adapters of the linear layers that a regular expression selects; None for rank 0.

    Args:
      paths: of one encoder's parameters, such as "blocks/query_kernel".
      targets: searched in the paths (`model.lora_targets`).

    Raises:
      UserError: it matches nothing, or a parameter that is not a kernel of a linear layer.
    """
    if not rank:
        return None
    matches = [path for path in paths if re.search(targets, path)]
    kernels = [path for path in paths if path.endswith(KERNEL)]
    others = sorted(set(matches) - set(kernels))
    if others or not matches:
        problem = f"matches {', '.join(others)}, not linear" if others else "matches nothing"
        raise UserError(
            f"model.lora_targets={targets!r} {problem}; linear layers are {', '.join(kernels)}"
        )
    names = sorted(path.removeprefix("blocks/").removesuffix(KERNEL) for path in matches)
    return Lora(rank, alpha, tuple(names))


def is_adapter(path: str) -> bool:
    """Whether the parameter at this path belongs to an adapter."""
    return path.endswith((A, B))


def initial_adapter(key: Array, name: str, kernel: tuple[int, ...], rank: int) -> dict[str, Array]:
    """Initial {A, B} of one layer, float32; `kernel` is the shape without the layer axis.

    B is 0, so the model is unchanged; A is drawn from U(-1/sqrt(n), 1/sqrt(n)) for n inputs, as in
    PEFT (Kaiming-uniform with a = sqrt(5)).
    """
    inputs, outputs = kernel[: _INPUTS.get(name, 1)], kernel[_INPUTS.get(name, 1) :]
    bound = 1 / math.sqrt(math.prod(inputs))
    random = jax.random.uniform(key, (*inputs, rank), jnp.float32, -bound, bound)
    return {name + A: random, name + B: jnp.zeros((rank, *outputs), jnp.float32)}


def initial_adapters(key: Array, blocks: Mapping[str, Array], lora: Lora) -> dict[str, Array]:
    """`initial_adapter` of every target and layer; `blocks` holds the stacked kernels."""
    adapters = {}
    for name in lora.targets:
        layers, *kernel = blocks[name + KERNEL].shape
        keys = jax.random.split(jax.random.fold_in(key, zlib.crc32(name.encode())), layers)
        make = lambda k, n=name, s=tuple(kernel): initial_adapter(k, n, s, lora.rank)  # noqa: E731
        adapters |= jax.vmap(make)(keys)
    return adapters


def low_rank(equation: str, x: Array, a: Array, b: Array, scale: float) -> Array:
    """The adapter's term of einsum(equation, x, kernel), in x's dtype; x is [r, t, ...]."""
    left, kernel, result = re.split(",|->", equation)
    inner = "".join(letter for letter in kernel if letter not in result)
    outer = "".join(letter for letter in kernel if letter in result)
    z = jnp.einsum(f"{left},{inner}z->rtz", x, a.astype(x.dtype)) * scale
    return jnp.einsum(f"rtz,z{outer}->{result}", z, b.astype(x.dtype))


def merged(tree: Mapping, lora: Lora | None) -> dict:
    """One encoder's parameters with the adapters merged: each target's kernel becomes
    W + (alpha / rank) A B, float32; other parameters are unchanged."""
    if lora is None:
        return dict(tree)
    blocks = dict(tree["blocks"])
    for name in lora.targets:
        a, b = (blocks.pop(name + part).astype(jnp.float32) for part in (A, B))
        kernel = blocks[name + KERNEL].astype(jnp.float32)
        blocks[name + KERNEL] = kernel + lora.scale * _product(a, b).reshape(kernel.shape)
    return {**tree, "blocks": blocks}


def _product(a: Float[Array, "l ... z"], b: Float[Array, "l z ..."]) -> Float[Array, "l i o"]:
    layers, rank = b.shape[:2]
    a, b = a.reshape(layers, -1, rank), b.reshape(layers, rank, -1)
    return jnp.einsum("liz,lzo->lio", a, b, precision=jax.lax.Precision.HIGHEST)
