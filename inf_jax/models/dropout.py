"""Dropout whose mask is a pure function of (key, site, text, place in the text).

Where a text lies in its row, in its chunk or on which device changes nothing, so packing, GradCache
chunks and the mesh leave the gradients alone. The random bits are a counter hash (32-bit finaliser
of C. Wellons' `lowbias32` family) of those ids: elementwise, so XLA fuses it into its consumer and
no mask is stored.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt32


class DropoutKey(NamedTuple):
    """What identifies the tokens of packed rows, whatever their place.

    Attributes:
      seed: uint32[2], bits of the step's key.
      text: uint32[r, t], global id of each token's text.
      position: uint32[r, t], each token's position in its text.
    """

    seed: UInt32[Array, "2"]
    text: UInt32[Array, "r t"]
    position: UInt32[Array, "r t"]


def _mix(h: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    h = (h ^ (h >> 16)) * jnp.uint32(0x7FEB352D)
    h = (h ^ (h >> 15)) * jnp.uint32(0x846CA68B)
    return h ^ (h >> 16)


def token_bits(key: DropoutKey, site: Array | int) -> UInt32[Array, "r t"]:
    """Random bits of each token for one site (a layer's dropout place)."""
    start = _mix(key.seed[0] ^ _mix(key.seed[1] + jnp.asarray(site, jnp.uint32)))
    return _mix(_mix(start ^ key.text) + key.position)


def dropout(
    x: Float[Array, "r t d"], rate: float, key: DropoutKey | None, site: Array | int
) -> Float[Array, "r t d"]:
    """Inverted dropout on token states; off where the rate is 0 or there is no key."""
    if key is None or rate == 0.0:
        return x
    feature = jnp.arange(x.shape[-1], dtype=jnp.uint32) * jnp.uint32(0x9E3779B9)
    bits = _mix(token_bits(key, site)[:, :, None] ^ feature[None, None, :])
    return _drop(x, bits, rate)


def attention_dropout(
    weights: Float[Array, "r h t t"],
    rate: float,
    key: DropoutKey | None,
    site: Array | int,
    first_head: Array | int = 0,
) -> Float[Array, "r h t t"]:
    """Inverted dropout on attention weights; the mask depends on head (this array's start at
    `first_head`) and both positions in the text."""
    if key is None or rate == 0.0:
        return weights
    query = token_bits(key, site)[:, None, :, None]
    head = jnp.arange(weights.shape[1], dtype=jnp.uint32) + jnp.asarray(first_head, jnp.uint32)
    head *= jnp.uint32(0x9E3779B9)
    other = key.position[:, None, None, :]
    bits = _mix(_mix(query ^ head[None, :, None, None]) + other)
    return _drop(weights, bits, rate)


def _drop(x: Array, bits: Array, rate: float) -> Array:
    keep = bits >= jnp.uint32(round(rate * 2**32))
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype))


def dropout_key(
    key: jax.Array,
    text_ids: UInt32[Array, "r s"],
    segments: Array,
    positions: Array,
) -> DropoutKey:
    """DropoutKey of packed rows from a typed JAX key and the row's text ids; shapes as in
    `Packed`."""
    texts = jnp.take_along_axis(text_ids, jnp.maximum(segments - 1, 0), axis=1)
    bits = jax.random.key_data(key).reshape(-1)
    return DropoutKey(jnp.stack([bits[0], bits[-1]]), texts, positions.astype(jnp.uint32))
