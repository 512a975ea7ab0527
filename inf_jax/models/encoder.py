"""The text encoder as pure functions on parameters that are a plain dict of arrays.

flax.nnx is not used outside this package. Letters of shapes: c chunks, k texts of a chunk, b pairs
of a chunk, d model width, e embedding width.
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
from inf_jax.models.attention import choose, implementations_for
from inf_jax.models.config import EncoderConfig
from inf_jax.models.dropout import dropout_key
from inf_jax.models.instruction_attention import attend, attend_all, text_states
from inf_jax.models.lora import Lora
from inf_jax.models.pooling import PROJECTION, init_projection, normalise, pool, project
from inf_jax.models.transformer import Execution, Transformer

COMPUTE_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class EncoderOptions:
    """What turns token states into embeddings, and how it is computed (a run's `model` section).

    Attributes:
      pooling: name in `core.choices.POOLINGS`.
      projection: e, width of a linear layer after pooling; 0 for none, then e = d.
      normalise: scale embeddings to unit length.
      dtype: compute dtype, a name in COMPUTE_DTYPES.
      scan_layers, remat, remat_first, remat_first_layers: see `transformer.Execution`.
      lora: the adapters among the parameters.
      attention: "auto" or a name in `attention.IMPLEMENTATIONS`.
      device: that programs are compiled for ("auto" depends on it); None for this process's first.
    """

    pooling: str = "mean"
    projection: int = 0
    projection_bias: bool = False
    normalise: bool = True
    dtype: str = "float32"
    scan_layers: bool = True
    remat: str = "none"
    remat_first: str = "full"
    remat_first_layers: int = 0
    lora: Lora | None = None
    attention: str = "xla"
    device: jax.Device | None = None


class Instructed(NamedTuple):
    """Embeddings of chunks whose instructions and queries are encoded separately, float32.

    Attributes:
      queries: each under its own instruction.
      negatives: [c, a, i] is query a under instruction i; the diagonal is `queries`. None if not
        requested.
      passages: of n passages a query [c, n * b, e]; None if the chunks hold none.
    """

    queries: Float[Array, "c b e"]
    negatives: Float[Array, "c b b e"] | None
    passages: Float[Array, "c b e"] | None


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Pure functions of one encoder; `params` is a nested dict of float32 arrays, frozen ones
    float32 or bfloat16.

    Attributes:
      init: (key) -> params, random weights; `jax.eval_shape` of it gives their shapes.
      hidden: (params, tokens, segments, positions, **options of Transformer) -> token states.
      encode: (params, packed, key=None, *, shards=WHOLE) -> one float32 embedding per text. A key
        turns dropout on; `shards` says how params are split, see `distributed.layer_shards`.
      encode_instructed: (params, packed, key=None, *, max_tokens, all_pairs=True, passages=1,
        shards=WHOLE) -> Instructed, in one pass, see `instruction_attention`. The k = 3b texts of
        a chunk are b instructions, their b queries and their b passages; with passages=n
        k = (2 + n)b, the passages as they come; 0: none (the query tower of separate ones).
        `max_tokens` bounds the length of instructions and queries. all_pairs=False computes no
        `negatives`.
      encode_queries: (params, packed, *, shards=WHOLE) -> the `queries` of chunks of k = 2b texts
        of at most half a row each, as `retriever.encode` packs them.
    """

    config: EncoderConfig
    options: EncoderOptions
    init: Callable[[jax.Array], dict]
    hidden: Callable[..., Array]
    encode: Callable[..., Float[Array, "c k e"]]
    encode_instructed: Callable[..., Instructed]
    encode_queries: Callable[..., Float[Array, "c b e"]]

    @property
    def width(self) -> int:
        """e, the entries of an embedding."""
        return self.options.projection or self.config.width

    def attention_in_training(self, tokens: int) -> str:
        """The attention implementation for rows of `tokens` tokens; if it is not the device's
        fastest one, also the reason. Raises UserError as `choose` and `implementations_for`."""
        config = self.config
        shape = (1, config.heads, tokens, config.head_width)
        name, reason = choose(
            _implementations(self.options),
            jax.ShapeDtypeStruct(shape, COMPUTE_DTYPES[self.options.dtype]),
            bias=config.positions == "relative",
            dropout=config.attention_dropout > 0,
            softcap=config.softcap,
        )
        return f"{name} ({reason})" if reason else name


def tower(params: dict, role: str) -> dict:
    """The parameters of the encoder for `role` ("query" or "passage")."""
    return params["shared"] if "shared" in params else params[role]


def _implementations(options: EncoderOptions) -> tuple[str, ...]:
    return implementations_for(options.attention, options.device or jax.local_devices()[0])


def plain_encoder(encoder: Encoder) -> Encoder:
    """The same encoder without adapters, for parameters into which they are merged."""
    if encoder.options.lora is None:
        return encoder
    return make_encoder(encoder.config, dataclasses.replace(encoder.options, lora=None))


def make_encoder(config: EncoderConfig, options: EncoderOptions = EncoderOptions()) -> Encoder:
    """The Encoder of a config and options."""

    def build(key: jax.Array) -> Transformer:
        return Transformer(config, nnx.Rngs(params=key), options.lora)

    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: build(jax.random.key(0))))

    def init(key: jax.Array) -> dict:
        params = nnx.to_pure_dict(nnx.state(build(key), nnx.Param))
        if options.projection:
            sizes, bias = (config.width, options.projection), options.projection_bias
            params[PROJECTION] = init_projection(key, *sizes, bias=bias)
        return params

    def hidden(params: dict, *rows: Array, **kwargs) -> Array:
        state = jax.tree.map(lambda x: x, abstract)  # a copy: the next line fills it in place
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graphdef, state)(*rows, **kwargs)

    def token_states(params: dict, packed: Packed, key: jax.Array | None, shards: Shards) -> Array:
        others = {name: x for name, x in params.items() if name not in ("blocks", PROJECTION)}
        params = shards.whole(others) | {"blocks": params["blocks"]}
        c, r, t = packed.tokens.shape
        rows = [x.reshape(c * r, t) for x in (packed.tokens, packed.segments, packed.positions)]
        text_ids = packed.text_ids.reshape(c * r, -1)
        execution = Execution(
            COMPUTE_DTYPES[options.dtype],
            options.scan_layers,
            options.remat,
            options.remat_first,
            options.remat_first_layers,
            _implementations(options),
        )
        with jax.named_scope("encoder"):
            row_key = None if key is None else dropout_key(key, text_ids, *rows[1:])
            states = hidden(params, *rows, execution=execution, key=row_key, shards=shards)
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
        head = None
        if options.projection:
            head = shards.whole({PROJECTION: params[PROJECTION]})[PROJECTION]
        return pooled(token_states(params, packed, key, shards), packed, head)

    def encode_instructed(
        params: dict,
        packed: Packed,
        key: jax.Array | None = None,
        *,
        max_tokens: int,
        all_pairs: bool = True,
        passages: int = 1,
        shards: Shards = WHOLE,
    ) -> Instructed:
        states = token_states(params, packed, key, shards)
        k, s = packed.slots.shape[1], packed.text_ids.shape[-1]
        kinds = 2 + passages
        b, remainder = divmod(k, kinds)
        if remainder:
            raise ValueError(f"the {k} texts of a chunk are not a multiple of {kinds}")

        def instructed(states: Array, segments: Array, slots: Array) -> tuple:
            sizes = {"texts_per_row": s, "max_tokens": max_tokens}
            instructions, instruction_mask = text_states(states, segments, slots[:b], **sizes)
            queries, query_mask = text_states(states, segments, slots[b : 2 * b], **sizes)
            texts = instructions, queries, instruction_mask, query_mask
            if not all_pairs:
                return finish(jax.vmap(attend)(*texts)), None
            pairs = attend_all(*texts, normalise=options.normalise)
            return jnp.diagonal(pairs).T, pairs

        with jax.named_scope("instructed"):
            queries, negatives = jax.vmap(instructed)(states, packed.segments, packed.slots)
        if not passages:
            return Instructed(queries, negatives, None)
        passages_only = packed._replace(slots=packed.slots[:, 2 * b :])
        return Instructed(queries, negatives, pooled(states, passages_only, None))

    def encode_queries(params: dict, packed: Packed, *, shards: Shards = WHOLE) -> Array:
        wanted = {"all_pairs": False, "passages": 0}
        half = packed.tokens.shape[-1] // 2
        return encode_instructed(params, packed, max_tokens=half, shards=shards, **wanted).queries

    return Encoder(config, options, init, hidden, encode, encode_instructed, encode_queries)
