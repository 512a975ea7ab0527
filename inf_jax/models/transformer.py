"""One transformer on packed rows for all families, put together by its config, defined in nnx.

Layers are one stacked block: parameters have a leading layer axis whatever way the forward pass
goes through them, and what differs from layer to layer (window, rotary base) travels beside them.
Einsum letters: r rows, t tokens, d model width, h heads, g heads of keys and values, k head width,
f ffn.
"""

import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from inf_jax.distributed.layer_shards import WHOLE, Shards
from inf_jax.models.attention import attention
from inf_jax.models.config import EncoderConfig
from inf_jax.models.dropout import DropoutKey, dropout
from inf_jax.models.layers import ACTIVATIONS, Norm, add, relative_bias, rope_tables, rotate
from inf_jax.models.lora import KERNEL, A, B, Lora, first_adapter, low_rank
from inf_jax.models.xla_attention import Window

REMAT = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class Rows(NamedTuple):
    """What all layers share of packed rows.

    Attributes:
      segments, positions: see `packing.Packed`.
      bias: of the scores, [1, h, t, t], or None.
      key: dropout's, or None.
      shards: how the layer's parameters are split: h, g and f are this device's.
      attention: names in `attention.IMPLEMENTATIONS`, to try in turn.
    """

    segments: Int[Array, "r t"]
    positions: Int[Array, "r t"]
    bias: Array | None
    key: DropoutKey | None
    shards: Shards
    attention: tuple[str, ...]


class Kind(NamedTuple):
    """What is a layer's own beside its parameters.

    Attributes:
      number: of the layer, uint32; it numbers its dropout sites.
      window: how far it sees.
      tables: rotary cosine and sine, or None.
    """

    number: Array
    window: Window
    tables: tuple[Array, Array] | None


class Block(nnx.Module):
    """One transformer layer, with adapters where `lora` is given."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs, lora: Lora | None = None):
        d, h, g, k = config.width, config.heads, config.kv_heads, config.head_width
        f = config.ffn
        self.config, self.lora = config, lora

        def weight(*shape: int) -> nnx.Param:
            return nnx.Param(config.init_std * jax.random.normal(rngs.params(), shape, jnp.float32))

        def zeros(*shape: int) -> nnx.Param:
            return nnx.Param(jnp.zeros(shape, jnp.float32))

        self.query_kernel = weight(d, h, k)
        self.key_kernel = weight(d, g, k)
        self.value_kernel = weight(d, g, k)
        self.out_kernel = weight(h, k, d)
        self.attention_norm = Norm(d, config)
        self.up_kernel = weight(d, f)
        self.down_kernel = weight(f, d)
        self.ffn_norm = Norm(d, config)
        if config.qkv_bias:
            self.query_bias, self.key_bias, self.value_bias = zeros(h, k), zeros(g, k), zeros(g, k)
        if config.out_bias:
            self.out_bias = zeros(d)
        if config.gated:
            self.gate_kernel = weight(d, f)
        if config.ffn_bias:
            self.up_bias, self.down_bias = zeros(f), zeros(d)
            if config.gated:
                self.gate_bias = zeros(f)
        if config.qk_norm:
            self.query_norm, self.key_norm = Norm(k, config), Norm(k, config)
        if config.norm_place == "both":
            self.attention_post_norm, self.ffn_post_norm = Norm(d, config), Norm(d, config)
        for name in lora.targets if lora else ():
            kernel = getattr(self, name + KERNEL).shape
            adapter = first_adapter(rngs.params(), name, kernel, lora.rank)
            for attribute, x in adapter.items():
                setattr(self, attribute, nnx.Param(x))

    def __call__(self, x: Float[Array, "r t d"], rows: Rows, kind: Kind) -> Float[Array, "r t d"]:
        """Token states after this layer."""
        config, before = self.config, self.config.norm_place != "post"
        site = 3 * kind.number
        with jax.named_scope("attention"):
            y = self.attention_norm(x) if before else x
            if not config.first_norm:
                y = jnp.where(kind.number > 0, y, x)
            y = self._attend(y, rows, kind)
            y = dropout(y, config.dropout, rows.key, site + 2)
            if config.norm_place == "both":
                y = self.attention_post_norm(y)
            x = x + y if before else self.attention_norm(x + y)
        with jax.named_scope("ffn"):
            y = self._feed(self.ffn_norm(x) if before else x, rows.shards)
            y = dropout(y, config.dropout, rows.key, site + 3)
            if config.norm_place == "both":
                y = self.ffn_post_norm(y)
            return x + y if before else self.ffn_norm(x + y)

    def _attend(self, x: Float[Array, "r t d"], rows: Rows, kind: Kind) -> Float[Array, "r t d"]:
        config, dtype = self.config, x.dtype

        def heads(name: str) -> Float[Array, "r h t k"]:
            y = self._product(name, "rtd,dhk->rhtk", x)
            if config.qkv_bias:
                bias = getattr(self, f"{name}_bias")[...]
                if name == "key" and _idle_key_bias(config):
                    bias = jax.lax.stop_gradient(bias)
                y = y + bias.astype(dtype)[None, :, None, :]
            return y

        q, k, v = heads("query"), heads("key"), heads("value")
        if config.qk_norm:
            q, k = self.query_norm(q), self.key_norm(k)
        if kind.tables is not None:
            q, k = rotate(q, kind.tables), rotate(k, kind.tables)
        every = {"heads": config.heads, "kv_heads": config.kv_heads}
        k, v = (rows.shards.serving(x, q.shape[1], **every) for x in (k, v))
        mixed = attention(
            q,
            k,
            v,
            segments=rows.segments,
            positions=rows.positions,
            scale=config.scale,
            causal=config.causal,
            window=kind.window,
            softcap=config.softcap,
            bias=rows.bias,
            dropout_rate=config.attention_dropout,
            dropout_key=rows.key,
            site=3 * kind.number + 1,
            first_head=rows.shards.first(q.shape[1]),
            by=rows.attention,
        )
        y = rows.shards.total(self._product("out", "rhtk,hkd->rtd", mixed))
        return add(y, self.out_bias[...]) if config.out_bias else y

    def _feed(self, x: Float[Array, "r t d"], shards: Shards) -> Float[Array, "r t d"]:
        config = self.config

        def inner(name: str) -> Float[Array, "r t f"]:
            y = self._product(name, "rtd,df->rtf", x)
            return add(y, getattr(self, f"{name}_bias")[...]) if config.ffn_bias else y

        act = ACTIVATIONS[config.activation]
        y = act(inner("gate")) * inner("up") if config.gated else act(inner("up"))
        y = shards.total(self._product("down", "rtf,fd->rtd", y))
        return add(y, self.down_bias[...]) if config.ffn_bias else y

    def _product(self, name: str, equation: str, x: Array) -> Array:
        """x times a kernel, and its adapter's part if there is one; both are linear, so that sums
        over devices may come after them."""
        y = jnp.einsum(equation, x, getattr(self, name + KERNEL)[...].astype(x.dtype))
        if self.lora is None or name not in self.lora.targets:
            return y
        a, b = getattr(self, name + A)[...], getattr(self, name + B)[...]
        return y + low_rank(equation, x, a, b, self.lora.scale)


class Transformer(nnx.Module):
    """Embeddings and stacked blocks. `rngs` seeds random weights (dropout has its own keys)."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs, lora: Lora | None = None):
        self.config = config

        def table(*shape: int) -> nnx.Param:
            return nnx.Param(config.init_std * jax.random.normal(rngs.params(), shape, jnp.float32))

        self.word = table(config.vocab_size, config.width)
        if config.positions == "learned":
            self.position = table(config.max_positions + config.position_offset, config.width)
        if config.positions == "relative":
            self.relative_bias = table(config.relative_buckets, config.heads)
        if config.type_vocab_size:
            self.token_type = table(config.type_vocab_size, config.width)
        if config.embedding_norm:
            self.norm = Norm(config.width, config)
        if config.final_norm:
            self.final_norm = Norm(config.width, config)
        stacked = nnx.vmap(lambda r: Block(config, r, lora), in_axes=0, out_axes=0)
        self.blocks = stacked(rngs.split(config.layers))

    def __call__(
        self,
        tokens: Int[Array, "r t"],
        segments: Int[Array, "r t"],
        positions: Int[Array, "r t"],
        *,
        dtype: jnp.dtype = jnp.float32,
        key: DropoutKey | None = None,
        scan_layers: bool = True,
        remat: str = "none",
        all_layers: bool = False,
        shards: Shards = WHOLE,
        attention: tuple[str, ...] = ("xla",),
    ) -> Float[Array, "r t d"] | list[Array]:
        """Last token states in `dtype`.

        Args:
          tokens, segments, positions: packed rows, see `packing.Packed`.
          dtype: compute dtype, whatever the parameters'; norms and softmax run in float32.
          key: dropout's identity of each token; None turns dropout off.
          scan_layers: one compiled layer in a loop; else layers unrolled (faster on a CPU).
          remat: a name in REMAT, what the backward pass recomputes.
          all_layers: return the states after the embeddings and after each layer (for parity
            checks).
          shards: how the blocks' parameters are split; the others are whole.
          attention: names in `attention.IMPLEMENTATIONS`, to try in turn.
        """
        config = self.config
        x = self._embed(tokens, positions)
        x = dropout(x.astype(dtype), config.dropout, key, 0)
        bias = None
        if config.positions == "relative":
            heads = self.blocks.query_kernel.shape[-2]
            table = self.relative_bias[...]
            table = jax.lax.dynamic_slice_in_dim(table, shards.first(heads), heads, axis=1)
            bias = relative_bias(table, tokens.shape[1], limit=config.relative_distance)
        rows = Rows(segments, positions, bias, key, shards, attention)
        graphdef, stacked = nnx.split(self.blocks)

        def layer(x: Array, params: nnx.State, kind: Kind) -> Array:
            return nnx.merge(graphdef, shards.whole(params, dtype))(x, rows, kind)

        layer = shards.remat(layer, REMAT[remat])
        kinds = _Kinds(config, positions)
        if scan_layers and not all_layers:
            numbers = np.arange(config.layers, dtype=np.uint32)

            def turn(x: Array, mine: tuple) -> tuple[Array, None]:
                params, number, which = mine
                return layer(x, params, kinds.traced(number, which)), None

            x = jax.lax.scan(turn, x, (stacked, numbers, kinds.of_layer))[0]
            return self._finish(x)
        states = [x]
        for i in range(config.layers):
            mine = jax.tree.map(operator.itemgetter(i), stacked)
            states.append(layer(states[-1], mine, kinds.static(i)))
        states[-1] = self._finish(states[-1])
        return states if all_layers else states[-1]

    def _embed(self, tokens: Int[Array, "r t"], positions: Int[Array, "r t"]) -> Array:
        config = self.config
        x = jnp.take(self.word[...], tokens, axis=0).astype(jnp.float32)
        if config.embedding_scale != 1.0:
            x = x * config.embedding_scale
        if config.positions == "learned":
            x = x + jnp.take(self.position[...], positions + config.position_offset, axis=0)
        if config.type_vocab_size:
            x = x + self.token_type[0][None, None, :]
        return self.norm(x) if config.embedding_norm else x

    def _finish(self, x: Float[Array, "r t d"]) -> Float[Array, "r t d"]:
        return self.final_norm(x) if self.config.final_norm else x


class _Kinds:
    """The layers' windows and rotary tables, each different pair made once.

    Attributes:
      of_layer: which of the pairs is a layer's, int32[layers].
    """

    def __init__(self, config: EncoderConfig, positions: Int[Array, "r t"]):
        ropes = config.ropes or (None,) * config.layers
        pairs = list(zip(config.windows, ropes, strict=True))
        self._different = list(dict.fromkeys(pairs))
        self.of_layer = np.array([self._different.index(pair) for pair in pairs], np.int32)
        made = {
            rope: rope_tables(rope, positions, config.head_width) for rope in set(ropes) - {None}
        }
        self._tables = [made.get(rope) for _, rope in self._different]
        self._windows = [window for window, _ in self._different]

    def static(self, layer: int) -> Kind:
        """A layer's, by its number."""
        which = self.of_layer[layer]
        return Kind(jnp.uint32(layer), Window((self._windows[which],)), self._tables[which])

    def traced(self, number: Array, which: Array) -> Kind:
        """A layer's inside a scan: `which` picks among the pairs if there are several."""
        if len(self._different) == 1:
            return Kind(number, Window((self._windows[0],)), self._tables[0])
        tables = None
        if self._tables[0] is not None:
            tables = tuple(jnp.stack(each)[which] for each in zip(*self._tables, strict=True))
        sizes = tuple(dict.fromkeys(self._windows))
        if len(sizes) == 1:
            return Kind(number, Window(sizes), tables)
        places = jnp.array([sizes.index(size) for size in self._windows], jnp.int32)
        return Kind(number, Window(sizes, places[which]), tables)


def _idle_key_bias(config: EncoderConfig) -> bool:
    """Whether a key's bias adds the same to all scores of a query, which the softmax takes out.

    Its gradient is 0 then. What rounding leaves of it would differ from mesh to mesh, and Adam,
    which divides by its size, would make full steps of that.
    """
    return config.positions != "rope" and config.softcap is None and not config.qk_norm
