"""The text encoder as pure functions: parameters are a plain dict of arrays, nnx stays in here.

`make_encoder(config)` gives `init(key) -> params`, `encode(params, packed) -> vectors` and, for
queries whose instruction is encoded apart, `encode_instructed`; everything outside this package
works on these.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from inf_jax.core.packing import Packed
from inf_jax.distributed.layer_shards import WHOLE, Shards
from inf_jax.models.attention import choose, implementations
from inf_jax.models.config import EncoderConfig
from inf_jax.models.dropout import dropout_key
from inf_jax.models.instruction_attention import attend, attend_all, text_states
from inf_jax.models.lora import Lora
from inf_jax.models.pooling import PROJECTION, init_projection, normalise, pool, project
from inf_jax.models.transformer import Transformer

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class EncoderOptions:
    """How to run the encoder, apart from its shape: the `model` section of a run's config.

    Attributes:
      pooling: mean, cls, last or weighted_mean.
      projection: e, width of a linear layer after pooling; 0 is none, and e is d.
      projection_bias: whether it has a bias.
      normalise: unit-length vectors.
      dtype: compute dtype, float32 or bfloat16.
      scan_layers: one compiled layer in a loop, or layers unrolled.
      remat: what the backward pass recomputes: none, dots or full.
      lora: the adapters that the parameters have, see `models.lora`.
      attention: auto or a name in `attention.IMPLEMENTATIONS`.
      device: one of those that programs are compiled for, which decides what "auto" is; None is
        this process's first.
    """

    pooling: str = "mean"
    projection: int = 0
    projection_bias: bool = False
    normalise: bool = True
    dtype: str = "float32"
    scan_layers: bool = True
    remat: str = "none"
    lora: Lora | None = None
    attention: str = "xla"
    device: jax.Device | None = None


class Instructed(NamedTuple):
    """Vectors of chunks whose instructions and queries were encoded apart, float32.

    Attributes:
      queries: [c, n, e], query a under its own instruction.
      negatives: [c, n, n, e]; [c, a, b] is query a under instruction b, so the diagonal is
        `queries`. None where they were not asked for.
      passages: [c, n, e]; None where the grid holds none.
    """

    queries: Float[Array, "c n e"]
    negatives: Float[Array, "c n n e"] | None
    passages: Float[Array, "c n e"] | None


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Pure functions of one encoder; `params` is a nested dict of float32 arrays (frozen ones may
    be bfloat16).

    Attributes:
      init: (key) -> params, random weights; under `jax.eval_shape` it gives the abstract tree.
      hidden: (params, tokens, segments, positions, **options of Transformer) -> token states.
      encode: (params, packed, key=None, *, shards=WHOLE) -> Float[c, k, e], one float32 vector a
        text; a key turns dropout on; `shards` is for params that are split (`models.shards`).
      encode_instructed: (params, packed, key=None, *, max_tokens, all_pairs=True, passages=True,
        shards=WHOLE) -> Instructed, by `models.instruct`, in one pass. A chunk's k = 3n texts are n
        instructions, their n queries and their n passages (shared towers), or, with passages=False,
        k = 2n without the passages (the query tower of separate ones; `encode` is for the other
        tower). No instruction or query is longer than `max_tokens`. all_pairs=False computes no
        `negatives`.
      encode_queries: (params, packed) -> Float[c, n, e], the `queries` of a grid of k = 2n texts
        of at most half a row each, as `encode.encode_texts` makes it.
    """

    config: EncoderConfig
    options: EncoderOptions
    init: Callable[[jax.Array], dict]
    hidden: Callable[..., Array]
    encode: Callable[..., Float[Array, "c k e"]]
    encode_instructed: Callable[..., Instructed]
    encode_queries: Callable[[dict, Packed], Float[Array, "c n e"]]

    @property
    def width(self) -> int:
        """e, entries of a vector."""
        return self.options.projection or self.config.width

    def attention_in_training(self, tokens: int) -> str:
        """The implementation for rows of so many tokens, with why it is not the device's own.

        Raises:
          UserError: as `attention.implementations` and `attention.choose`.
        """
        config = self.config
        name, instead_of = choose(
            _implementations(self.options),
            jax.ShapeDtypeStruct(
                (1, config.heads, tokens, config.head_width), DTYPES[self.options.dtype]
            ),
            bias=config.positions == "relative",
            dropout=config.attention_dropout > 0,
            softcap=config.softcap,
        )
        return f"{name} ({instead_of})" if instead_of else name


def tower(params: dict, role: str) -> dict:
    """The encoder's tree for `role` ("query" or "passage")."""
    return params["shared"] if "shared" in params else params[role]


def _implementations(options: EncoderOptions) -> tuple[str, ...]:
    return implementations(options.attention, options.device or jax.local_devices()[0])


def plain_encoder(encoder: Encoder) -> Encoder:
    """The same without adapters, for parameters that have them merged."""
    if encoder.options.lora is None:
        return encoder
    return make_encoder(encoder.config, dataclasses.replace(encoder.options, lora=None))


def make_encoder(config: EncoderConfig, options: EncoderOptions = EncoderOptions()) -> Encoder:
    """The pure functions for a shape and options."""

    def build(key: jax.Array) -> Transformer:
        return Transformer(config, nnx.Rngs(params=key), options.lora)

    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: build(jax.random.key(0))))

    def init(key: jax.Array) -> dict:
        params = nnx.to_pure_dict(nnx.state(build(key), nnx.Param))
        if options.projection:
            how = {"bias": options.projection_bias}
            params[PROJECTION] = init_projection(key, config.width, options.projection, **how)
        return params

    def hidden(params: dict, *rows: Array, **how) -> Array:
        state = jax.tree.map(lambda x: x, abstract)  # a fresh container: replace fills it in place
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graphdef, state)(*rows, **how)

    def token_states(params: dict, packed: Packed, key: jax.Array | None, shards: Shards) -> Array:
        rest = {name: x for name, x in params.items() if name not in ("blocks", PROJECTION)}
        params = shards.whole(rest) | {"blocks": params["blocks"]}
        c, r, t = packed.tokens.shape
        rows = [x.reshape(c * r, t) for x in (packed.tokens, packed.segments, packed.positions)]
        text_ids = packed.text_ids.reshape(c * r, -1)
        with jax.named_scope("encoder"):
            states = hidden(
                params,
                *rows,
                dtype=DTYPES[options.dtype],
                key=None if key is None else dropout_key(key, text_ids, rows[1], rows[2]),
                scan_layers=options.scan_layers,
                remat=options.remat,
                shards=shards,
                attention=_implementations(options),
            )
        return states.reshape(c, r, t, -1)

    def finish(vectors: Array) -> Array:
        return normalise(vectors) if options.normalise else vectors

    def pooled(states: Array, packed: Packed, head: dict | None) -> Array:
        c, r, _, d = states.shape
        s = packed.text_ids.shape[-1]
        rows = [x.reshape(c * r, *x.shape[2:]) for x in (states, packed.segments, packed.positions)]
        with jax.named_scope("pooling"):
            vectors = pool(*rows, texts_per_row=s, pooling=options.pooling)
            vectors = vectors.reshape(c, r * s, d)
            vectors = jnp.take_along_axis(vectors, packed.slots[:, :, None], axis=1)
            return finish(vectors if head is None else project(vectors, head))

    def encode(
        params: dict, packed: Packed, key: jax.Array | None = None, *, shards: Shards = WHOLE
    ) -> Array:
        head = (
            shards.whole({PROJECTION: params[PROJECTION]})[PROJECTION]
            if options.projection
            else None
        )
        return pooled(token_states(params, packed, key, shards), packed, head)

    def encode_instructed(
        params: dict,
        packed: Packed,
        key: jax.Array | None = None,
        *,
        max_tokens: int,
        all_pairs: bool = True,
        passages: bool = True,
        shards: Shards = WHOLE,
    ) -> Instructed:
        states = token_states(params, packed, key, shards)
        k, s = packed.slots.shape[1], packed.text_ids.shape[-1]
        n, rest = divmod(k, 3 if passages else 2)
        if rest:
            raise ValueError(f"{k} texts a chunk are not n each of {3 if passages else 2} kinds")

        def instructed(states: Array, segments: Array, slots: Array) -> tuple:
            sizes = {"texts_per_row": s, "max_tokens": max_tokens}
            instructions, instruction_mask = text_states(states, segments, slots[:n], **sizes)
            queries, query_mask = text_states(states, segments, slots[n : 2 * n], **sizes)
            texts = instructions, queries, instruction_mask, query_mask
            if not all_pairs:
                return finish(jax.vmap(attend)(*texts)), None
            pairs = attend_all(*texts, normalise=options.normalise)
            return jnp.diagonal(pairs).T, pairs

        with jax.named_scope("instructed"):
            queries, negatives = jax.vmap(instructed)(states, packed.segments, packed.slots)
        if not passages:
            return Instructed(queries, negatives, None)
        last = packed._replace(slots=packed.slots[:, 2 * n :])
        return Instructed(queries, negatives, pooled(states, last, None))

    def encode_queries(params: dict, packed: Packed, *, shards: Shards = WHOLE) -> Array:
        how = {"max_tokens": packed.tokens.shape[-1] // 2, "shards": shards}
        return encode_instructed(params, packed, all_pairs=False, passages=False, **how).queries

    return Encoder(
        config=config,
        options=options,
        init=init,
        hidden=hidden,
        encode=encode,
        encode_instructed=encode_instructed,
        encode_queries=encode_queries,
    )
