"""The text encoder as pure functions: parameters are a plain dict of arrays, nnx stays in here.

`make_encoder(config)` gives `init(key) -> params` and `encode(params, packed) -> vectors`;
everything outside this package works on these two.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from inf_jax.models.bert import BertEncoder
from inf_jax.models.config import EncoderConfig
from inf_jax.models.dropout import dropout_key
from inf_jax.models.pooling import normalise, pool
from inf_jax.packing import Packed

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class EncoderOptions:
    """How to run the encoder, apart from its shape: the `model` section of a run's config.

    Attributes:
      pooling: mean, cls or last.
      normalise: unit-length vectors.
      dtype: compute dtype, float32 or bfloat16.
      scan_layers: one compiled layer in a loop, or layers unrolled.
      remat: what the backward pass recomputes: none, dots or full.
    """

    pooling: str = "mean"
    normalise: bool = True
    dtype: str = "float32"
    scan_layers: bool = True
    remat: str = "none"


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Pure functions of one encoder; `params` is a nested dict of float32 arrays.

    Attributes:
      init: (key) -> params, random weights; under `jax.eval_shape` it gives the abstract tree.
      hidden: (params, tokens, segments, positions, **options of BertEncoder) -> token states.
      encode: (params, packed, key=None) -> Float[c, k, e], one float32 vector a text; a key turns
        dropout on.
    """

    config: EncoderConfig
    options: EncoderOptions
    init: Callable[[jax.Array], dict]
    hidden: Callable[..., Array]
    encode: Callable[..., Float[Array, "c k e"]]


def make_encoder(config: EncoderConfig, options: EncoderOptions = EncoderOptions()) -> Encoder:
    """The pure functions for a shape and options."""

    def build(key: jax.Array) -> BertEncoder:
        return BertEncoder(config, nnx.Rngs(params=key))

    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: build(jax.random.key(0))))

    def init(key: jax.Array) -> dict:
        return nnx.to_pure_dict(nnx.state(build(key), nnx.Param))

    def hidden(params: dict, *rows: Array, **how) -> Array:
        state = jax.tree.map(lambda x: x, abstract)  # a fresh container: replace fills it in place
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graphdef, state)(*rows, **how)

    def encode(params: dict, packed: Packed, key: jax.Array | None = None) -> Array:
        c, r, t = packed.tokens.shape
        s = packed.text_ids.shape[-1]
        rows = [x.reshape(c * r, t) for x in (packed.tokens, packed.segments, packed.positions)]
        text_ids = packed.text_ids.reshape(c * r, s)
        with jax.named_scope("encoder"):
            states = hidden(
                params,
                *rows,
                dtype=DTYPES[options.dtype],
                key=None if key is None else dropout_key(key, text_ids, rows[1], rows[2]),
                scan_layers=options.scan_layers,
                remat=options.remat,
            )
        with jax.named_scope("pooling"):
            vectors = pool(states, rows[1], rows[2], texts_per_row=s, pooling=options.pooling)
            vectors = vectors.reshape(c, r * s, vectors.shape[-1])
            vectors = jnp.take_along_axis(vectors, packed.slots[:, :, None], axis=1)
            return normalise(vectors) if options.normalise else vectors

    return Encoder(config=config, options=options, init=init, hidden=hidden, encode=encode)
