"""Dropout whose mask is a pure function of (key, site, text id, position in the text).

Packing, GradCache chunks and the mesh therefore do not change the gradients. The random bits are a
counter hash of those ids (32-bit finaliser of C. Wellons' `lowbias32` family): it is elementwise,
so XLA fuses it into its consumer and no mask is stored.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt32

_GOLDEN_RATIO = 0x9E3779B9  # 2^32 / phi, odd: spreads small integers over 32 bits


class DropoutKey(NamedTuple):
    """Identifies the tokens of packed rows independently of where they are packed.

    Attributes:
      seed: bits of the step's key.
      text: global id of each token's text.
      position: of each token in its text.
    """

    seed: UInt32[Array, "2"]
    text: UInt32[Array, "r t"]
    position: UInt32[Array, "r t"]


class AttentionDropout(NamedTuple):
    """Dropout of attention weights in one layer.

    Attributes:
      rate: probability of dropping a weight.
      site: number of the dropout site, unique in the model.
      first_head: index, among all heads of the model, of the first head of the array.
    """

    rate: float
    key: DropoutKey
    site: Array | int = 0
    first_head: Array | int = 0


def _mix(h: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    h = (h ^ (h >> 16)) * jnp.uint32(0x7FEB352D)
    h = (h ^ (h >> 15)) * jnp.uint32(0x846CA68B)
    return h ^ (h >> 16)


def token_bits(key: DropoutKey, site: Array | int) -> UInt32[Array, "r t"]:
    """Random bits of each token for one dropout site."""
    start = _mix(key.seed[0] ^ _mix(key.seed[1] + jnp.asarray(site, jnp.uint32)))
    return _mix(_mix(start ^ key.text) + key.position)


def dropout(
    x: Float[Array, "r t d"], rate: float, key: DropoutKey | None, site: Array | int
) -> Float[Array, "r t d"]:
    """Inverted dropout on token states; the identity if the rate is 0 or the key None."""
    if key is None or rate == 0.0:
        return x
    feature = jnp.arange(x.shape[-1], dtype=jnp.uint32) * jnp.uint32(_GOLDEN_RATIO)
    bits = _mix(token_bits(key, site)[:, :, None] ^ feature[None, None, :])
    return _drop(x, bits, rate)


def attention_dropout(
    weights: Float[Array, "r h t t"], options: AttentionDropout | None
) -> Float[Array, "r h t t"]:
    """Inverted dropout on attention weights, by head and both positions in the text; the identity
    if `options` is None."""
    if options is None:
        return weights
    query = token_bits(options.key, options.site)[:, None, :, None]
    head = jnp.arange(weights.shape[1], dtype=jnp.uint32)
    head = (head + jnp.asarray(options.first_head, jnp.uint32)) * jnp.uint32(_GOLDEN_RATIO)
    key_position = options.key.position[:, None, None, :]
    bits = _mix(_mix(query ^ head[None, :, None, None]) + key_position)
    return _drop(weights, bits, options.rate)


def _drop(x: Array, bits: Array, rate: float) -> Array:
    keep = bits >= jnp.uint32(round(rate * 2**32))
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype))


def dropout_key(
    key: jax.Array, text_ids: UInt32[Array, "r s"], segments: Array, positions: Array
) -> DropoutKey:
    """The DropoutKey of packed rows (see `packing.Packed`; no chunk axis) and a step's JAX key."""
    texts = jnp.take_along_axis(text_ids, jnp.maximum(segments - 1, 0), axis=1)
    bits = jax.random.key_data(key).reshape(-1)
    return DropoutKey(jnp.stack([bits[0], bits[-1]]), texts, positions.astype(jnp.uint32))
