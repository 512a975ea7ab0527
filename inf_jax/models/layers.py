"""Building blocks of a layer: activations, norms, rotary and relative position embeddings."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from inf_jax.models.config import EncoderConfig, Rope
from inf_jax.models.xla_attention import Window


@jax.custom_vjp
def _gelu(x: Array) -> Array:
    """The exact GELU through erf: jax.nn.gelu uses erfc, which costs twice as much on a CPU."""
    return 0.5 * x * (1.0 + jax.lax.erf(x * np.sqrt(0.5).astype(x.dtype)))


def _gelu_backward(x: Array, g: Array) -> tuple[Array]:
    # Autodiff would keep erf and exp of x as well as x: three arrays of the ffn width per layer.
    cdf = 0.5 * (1.0 + jax.lax.erf(x * np.sqrt(0.5).astype(x.dtype)))
    density = jnp.exp(-0.5 * x * x) * np.sqrt(0.5 / np.pi).astype(x.dtype)
    return (g * (cdf + x * density),)


_gelu.defvjp(lambda x: (_gelu(x), x), _gelu_backward)


ACTIVATIONS = {
    "gelu": _gelu,
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


def add(x: Array, bias: Array) -> Array:
    """x + bias, broadcast over the leading axes, in x's dtype."""
    return x + bias.astype(x.dtype).reshape((1,) * (x.ndim - bias.ndim) + bias.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _standardise(x: Array, eps: float, centre: bool) -> Array:
    """Unit mean square over the last axis, after subtracting the mean if `centre`; keeps the result
    and one scalar per token for the backward pass."""
    return _standardise_forward(x, eps, centre)[0]


def _standardise_forward(x: Array, eps: float, centre: bool) -> tuple[Array, tuple[Array, Array]]:
    if centre:
        x = x - x.mean(-1, keepdims=True)
    inverse = jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + eps)
    return x * inverse, (x * inverse, inverse)


def _standardise_backward(
    eps: float, centre: bool, residuals: tuple[Array, Array], g: Array
) -> tuple[Array]:
    y, inverse = residuals
    if centre:
        g = g - g.mean(-1, keepdims=True)
    return (inverse * (g - y * (g * y).mean(-1, keepdims=True)),)


_standardise.defvjp(_standardise_forward, _standardise_backward)


class Norm(nnx.Module):
    """LayerNorm (Ba et al. 2016, arXiv 1607.06450) or RMSNorm (Zhang & Sennrich 2019, arXiv
    1910.07467) over the last axis, computed in float32."""

    def __init__(self, width: int, config: EncoderConfig):
        self.config = config
        init = jnp.zeros if config.norm_offset else jnp.ones
        self.scale = nnx.Param(init((width,), jnp.float32))
        if config.norm_bias:
            self.bias = nnx.Param(jnp.zeros((width,), jnp.float32))

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        config = self.config
        y = _standardise(x.astype(jnp.float32), config.norm_eps, config.norm == "layer")
        scale = self.scale[...] + 1.0 if config.norm_offset else self.scale[...]
        y = y * scale.reshape((1,) * (x.ndim - 1) + scale.shape)
        return (add(y, self.bias[...]) if config.norm_bias else y).astype(x.dtype)


def rope_frequencies(rope: Rope, head_width: int) -> np.ndarray:
    """Radians per token for each pair of a head's entries, float32[k/2]; see `Rope` for scaling by
    wavelength (Llama team 2024, arXiv 2407.21783)."""
    exponents = np.arange(0, head_width, 2, dtype=np.float32) / np.float32(head_width)
    plain = np.float32(1.0) / np.float32(rope.base) ** exponents
    if rope.original is None:
        return plain / np.float32(rope.factor)
    turns = rope.original * plain / np.float32(2 * math.pi)  # in the original context length
    unscaled = np.clip((turns - rope.low) / (rope.high - rope.low), 0.0, 1.0)
    return ((1.0 - unscaled) * plain / rope.factor + unscaled * plain).astype(np.float32)


def rope_tables(
    rope: Rope, positions: Int[Array, "r t"], head_width: int
) -> tuple[Float[Array, "r 1 t k/2"], Float[Array, "r 1 t k/2"]]:
    """Cosine and sine of each token's rotation angles, float32."""
    frequencies = rope_frequencies(rope, head_width)[None, None, None, :]
    angles = positions[:, None, :, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Float[Array, "r h t k"], tables: tuple[Array, Array]) -> Float[Array, "r h t k"]:
    """Rotates the pairs (x_i, x_{i + k/2}) in float32; returns x's dtype."""
    cosine, sine = tables
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = (first * cosine - second * sine, second * cosine + first * sine)
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


def relative_bucket(distance: np.ndarray, *, buckets: int, limit: int) -> np.ndarray:
    """T5's bucket (Raffel et al. 2019, arXiv 1910.10683) of key position - query position, int32.

    Half of the buckets are for each sign. Within a sign, the first half are one distance each; the
    others widen logarithmically up to `limit`, beyond which all distances share one.
    """
    half, exact = buckets // 2, buckets // 4
    size = np.abs(distance)
    # float32 as in T5: the distances at which a bucket starts depend on the rounding.
    steps = np.log(np.maximum(size, 1).astype(np.float32) / np.float32(exact))
    far = exact + (steps / np.float32(math.log(limit / exact)) * (half - exact)).astype(np.int32)
    bucket = np.where(size < exact, size, np.minimum(far, half - 1))
    return (bucket + half * (distance > 0)).astype(np.int32)


def relative_bias(
    table: Float[Array, "buckets h"], tokens: int, *, limit: int
) -> Float[Array, "1 h t t"]:
    """T5's bias of the attention scores, for all rows: a text's tokens are contiguous, so their
    distance is that of their columns, and pairs of different texts are masked."""
    column = np.arange(tokens)
    distance = column[None, :] - column[:, None]
    bucket = relative_bucket(distance, buckets=table.shape[0], limit=limit)
    return jnp.transpose(jnp.take(table, bucket, axis=0), (2, 0, 1))[None]


class LayerContext(NamedTuple):
    """What differs between layers, apart from their parameters: the number, uint32, which numbers
    the dropout sites; the attention window; rotary cosines and sines, if any."""

    number: Array
    window: Window
    tables: tuple[Array, Array] | None


class LayerContexts:
    """The layers' windows and rotary tables, one per distinct (window, rope) pair; `of_layer`,
    int32[layers], is the index of each layer's pair."""

    def __init__(self, config: EncoderConfig, positions: Int[Array, "r t"]):
        ropes = config.ropes or (None,) * config.layers
        pairs = list(zip(config.windows, ropes, strict=True))
        distinct = list(dict.fromkeys(pairs))
        self.of_layer = np.array([distinct.index(pair) for pair in pairs], np.int32)
        tables = {
            rope: rope_tables(rope, positions, config.head_width) for rope in set(ropes) - {None}
        }
        self._tables = [tables.get(rope) for _, rope in distinct]
        self._windows = [window for window, _ in distinct]

    def static(self, layer: int) -> LayerContext:
        """The context of a layer whose number is a Python int."""
        which = self.of_layer[layer]
        return LayerContext(jnp.uint32(layer), Window((self._windows[which],)), self._tables[which])

    def traced(self, number: Array, which: Array) -> LayerContext:
        """The context of a layer inside a scan; `which` is its entry of `of_layer`."""
        if len(self._windows) == 1:
            return LayerContext(number, Window((self._windows[0],)), self._tables[0])
        tables = None
        if self._tables[0] is not None:
            tables = tuple(jnp.stack(each)[which] for each in zip(*self._tables, strict=True))
        sizes = tuple(dict.fromkeys(self._windows))
        if len(sizes) == 1:
            return LayerContext(number, Window(sizes), tables)
        indices = jnp.array([sizes.index(size) for size in self._windows], jnp.int32)
        return LayerContext(number, Window(sizes, indices[which]), tables)
