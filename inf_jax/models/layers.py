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


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _normalise(x: Array, scale: Array, bias: Array | None, eps: float, centre: bool) -> Array:
    """scale * (x - mean) / sqrt(variance + eps) + bias over the last axis, computed in float32, in
    x's dtype; without `centre` of x and its mean square.

    Autodiff would keep float32 arrays of x's size. This keeps x and two scalars per token.
    """
    return _normalise_forward(x, scale, bias, eps, centre)[0]


def _normalise_forward(x, scale, bias, eps: float, centre: bool) -> tuple[Array, tuple]:
    y = x.astype(jnp.float32)
    mean = y.mean(-1, keepdims=True) if centre else jnp.zeros((), jnp.float32)
    y = y - mean
    inverse = jax.lax.rsqrt((y * y).mean(-1, keepdims=True) + eps)
    y = y * inverse * _last_axis(scale, x)
    y = y if bias is None else y + _last_axis(bias, x)
    return y.astype(x.dtype), (x, scale, bias, mean, inverse)


def _normalise_backward(eps: float, centre: bool, residuals: tuple, g: Array) -> tuple:
    x, scale, bias, mean, inverse = residuals
    y = (x.astype(jnp.float32) - mean) * inverse
    g, tokens = g.astype(jnp.float32), tuple(range(x.ndim - 1))
    by_scale = (g * y).sum(tokens).astype(scale.dtype)
    by_bias = None if bias is None else g.sum(tokens).astype(bias.dtype)
    g = g * _last_axis(scale, x)
    if centre:
        g = g - g.mean(-1, keepdims=True)
    by_x = inverse * (g - y * (g * y).mean(-1, keepdims=True))
    return by_x.astype(x.dtype), by_scale, by_bias


def _last_axis(weights: Array, x: Array) -> Array:
    return weights.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + weights.shape)


_normalise.defvjp(_normalise_forward, _normalise_backward)


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
        scale = self.scale[...] + 1.0 if config.norm_offset else self.scale[...]
        bias = self.bias[...] if config.norm_bias else None
        return _normalise(x, scale, bias, config.norm_eps, config.norm == "layer")


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
