"""One transformer over packed rows for all model families, composed by its config, in flax.nnx.

All layers are one stacked block: parameters have a leading layer axis, and what differs between
layers (window, rotary base) is passed separately.
Einsum letters: r rows, t tokens, d model width, h heads, g key/value heads, k head width, f ffn.
"""

import functools
import operator
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from inf_jax.distributed.layer_shards import OFFLOAD_INPUT, WHOLE, Shards, for_loop, is_summed
from inf_jax.models.attention import attention
from inf_jax.models.config import EncoderConfig
from inf_jax.models.dropout import AttentionDropout, DropoutKey, dropout
from inf_jax.models.layers import (
    ACTIVATIONS,
    LayerContext,
    LayerContexts,
    Norm,
    add,
    relative_bias,
    rotate,
)
from inf_jax.models.lora import KERNEL, A, B, Lora, initial_adapter, low_rank
from inf_jax.models.xla_attention import ScoreOptions

_SUMS, _INNER = "sums", "inner"  # activations that a policy may keep by name
CHECKPOINT_POLICIES = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "ffn": jax.checkpoint_policies.save_only_these_names(_SUMS, _INNER),
    "sums": jax.checkpoint_policies.save_only_these_names(_SUMS),
    "full": jax.checkpoint_policies.nothing_saveable,
    "offload": OFFLOAD_INPUT,
}


class Execution(NamedTuple):
    """How a forward pass is executed; changes no result beyond rounding.

    Attributes:
      dtype: compute dtype, whatever the parameters'; norms and softmax run in float32.
      scan_layers: compile one layer and loop over it; else unroll the layers, which is faster on
        a CPU, and on a GPU by a fifth (launch/benchmarks.md).
      remat: name in CHECKPOINT_POLICIES: what backward recomputes. Besides a layer's input "dots"
        keeps the results of all products, "ffn" the sums with the residual and what enters the
        activation, "sums" the former: in BERT 10, 6 and 2 d a token, sparing 12, 9 and 5 of the
        12 d^2 that "full" recomputes.
      remat_first, remat_first_layers: the policy of this many first layers. (When backward comes to
        them, what the last layers kept is gone from memory.)
      attention: names in `attention.IMPLEMENTATIONS`, to try in order.
    """

    dtype: jnp.dtype = jnp.float32
    scan_layers: bool = True
    remat: str = "none"
    remat_first: str = "full"
    remat_first_layers: int = 0
    attention: tuple[str, ...] = ("xla",)


class PackedInputs(NamedTuple):
    """What all layers share; `bias` is that of the attention scores, float32, and `shards` says how
    a layer's parameters are split (h, g and f are those of this device)."""

    segments: Int[Array, "r t"]
    positions: Int[Array, "r t"]
    bias: Float[Array, "1 h t t"] | None
    key: DropoutKey | None
    shards: Shards
    attention: tuple[str, ...]


def _random(config: EncoderConfig, rngs: nnx.Rngs, *shape: int) -> nnx.Param:
    return nnx.Param(config.init_std * jax.random.normal(rngs.params(), shape, jnp.float32))


class Block(nnx.Module):
    """One transformer layer, with LoRA adapters if `lora` is given."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs, lora: Lora | None = None):
        d, h, g, k = config.width, config.heads, config.kv_heads, config.head_width
        self.config, self.lora, f = config, lora, config.ffn

        weight = functools.partial(_random, config, rngs)

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
            for part, x in initial_adapter(rngs.params(), name, kernel, lora.rank).items():
                setattr(self, part, nnx.Param(x))

    def __call__(
        self, x: Float[Array, "r t d"], inputs: PackedInputs, context: LayerContext
    ) -> Float[Array, "r t d"]:
        config, pre_norm = self.config, self.config.norm_place != "post"
        site = 3 * context.number
        with jax.named_scope("attention"):
            y = self.attention_norm(x) if pre_norm else x
            if not config.first_norm:
                y = jnp.where(context.number > 0, y, x)
            y = self._attend(y, inputs, context)
            y = dropout(y, config.dropout, inputs.key, site + 2)
            if config.norm_place == "both":
                y = self.attention_post_norm(y)
            x = checkpoint_name(x + y, _SUMS)
            x = x if pre_norm else self.attention_norm(x)
        with jax.named_scope("ffn"):
            y = self._feed_forward(self.ffn_norm(x) if pre_norm else x, inputs.shards)
            y = dropout(y, config.dropout, inputs.key, site + 3)
            if config.norm_place == "both":
                y = self.ffn_post_norm(y)
            x = checkpoint_name(x + y, _SUMS)
            return x if pre_norm else self.ffn_norm(x)

    def _attend(
        self, x: Float[Array, "r t d"], inputs: PackedInputs, context: LayerContext
    ) -> Float[Array, "r t d"]:
        config, dtype, shards = self.config, x.dtype, inputs.shards

        def heads(name: str) -> Float[Array, "r h t k"]:
            y = self._product(name, "rtd,dhk->rhtk", x)
            if config.qkv_bias:
                bias = getattr(self, f"{name}_bias")[...]
                if name == "key" and _key_bias_cancels(config):
                    bias = jax.lax.stop_gradient(bias)
                y = y + bias.astype(dtype)[None, :, None, :]
            return y

        q, k, v = heads("query"), heads("key"), heads("value")
        if config.qk_norm:
            q, k = self.query_norm(q), self.key_norm(k)
        if context.tables is not None:
            q, k = rotate(q, context.tables), rotate(k, context.tables)
        all_heads = {"heads": config.heads, "kv_heads": config.kv_heads}
        k, v = (shards.serving(x, q.shape[1], **all_heads) for x in (k, v))
        drop = None
        if inputs.key is not None and config.attention_dropout > 0:
            site, first = 3 * context.number + 1, shards.first(q.shape[1])
            drop = AttentionDropout(config.attention_dropout, inputs.key, site, first)
        layout = {"segments": inputs.segments, "positions": inputs.positions}
        scores = ScoreOptions(
            config.scale, config.causal, context.window, config.softcap, inputs.bias, drop
        )
        mixed = attention(q, k, v, **layout, scores=scores, implementations=inputs.attention)
        y = shards.total(self._product("out", "rhtk,hkd->rtd", mixed))
        return add(y, self.out_bias[...]) if config.out_bias else y

    def _feed_forward(self, x: Float[Array, "r t d"], shards: Shards) -> Float[Array, "r t d"]:
        config = self.config

        def inner(name: str) -> Float[Array, "r t f"]:
            y = self._product(name, "rtd,df->rtf", x)
            y = add(y, getattr(self, f"{name}_bias")[...]) if config.ffn_bias else y
            return checkpoint_name(y, _INNER)

        act = ACTIVATIONS[config.activation]
        y = act(inner("gate")) * inner("up") if config.gated else act(inner("up"))
        y = shards.total(self._product("down", "rtf,fd->rtd", y))
        return add(y, self.down_bias[...]) if config.ffn_bias else y

    def _product(self, name: str, equation: str, x: Array) -> Array:
        """x times a kernel, plus its adapter's term; both are linear, so devices may sum them."""
        y = jnp.einsum(equation, x, getattr(self, name + KERNEL)[...].astype(x.dtype))
        if self.lora is None or name not in self.lora.targets:
            return y
        a, b = getattr(self, name + A)[...], getattr(self, name + B)[...]
        return y + low_rank(equation, x, a, b, self.lora.scale)


class Transformer(nnx.Module):
    """Embeddings and stacked blocks; `rngs` seeds the random weights, not dropout."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs, lora: Lora | None = None):
        self.config = config

        table = functools.partial(_random, config, rngs)
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
        execution: Execution = Execution(),
        key: DropoutKey | None = None,
        shards: Shards = WHOLE,
        all_layers: bool = False,
    ) -> Float[Array, "r t d"] | list[Array]:
        """The last layer's token states of packed rows, in the compute dtype.

        Args:
          key: None turns dropout off.
          shards: how the blocks' parameters are split; all others are whole.
          all_layers: return the states after the embeddings and each layer instead (parity checks).
        """
        config = self.config
        x = self._embed(tokens, positions).astype(execution.dtype)
        x = dropout(x, config.dropout, key, 0)
        bias = None
        if config.positions == "relative":
            heads = self.blocks.query_kernel.shape[-2]
            table = self.relative_bias[...]
            table = jax.lax.dynamic_slice_in_dim(table, shards.first(heads), heads, axis=1)
            bias = relative_bias(table, tokens.shape[1], limit=config.relative_distance)
        inputs = PackedInputs(segments, positions, bias, key, shards, execution.attention)
        graphdef, stacked = nnx.split(self.blocks)

        def layer(x: Array, params: nnx.State, context: LayerContext) -> Array:
            return nnx.merge(graphdef, shards.whole(params, execution.dtype))(x, inputs, context)

        first = min(execution.remat_first_layers, config.layers)
        contexts = LayerContexts(config, positions)
        early = shards.remat(layer, CHECKPOINT_POLICIES[execution.remat_first])
        late = shards.remat(layer, CHECKPOINT_POLICIES[execution.remat])
        runs = (early, range(first)), (late, range(first, config.layers))
        if execution.scan_layers and not all_layers:
            numbers = np.arange(config.layers, dtype=np.uint32)
            of_layers = for_loop(stacked), numbers, contexts.of_layer
            for run, layers in runs:
                x = _scan(run, x, contexts, of_layers, layers)
            return self._finish(x)
        states = [x]
        for run, layers in runs:
            for i in layers:
                params = jax.tree.map(operator.itemgetter(i), stacked, is_leaf=is_summed)
                states.append(run(states[-1], params, contexts.static(i)))
        states[-1] = self._finish(states[-1])
        return states if all_layers else states[-1]

    def _embed(self, tokens: Int[Array, "r t"], positions: Int[Array, "r t"]) -> Array:
        config = self.config
        x = jnp.take(self.word[...], tokens, axis=0).astype(jnp.float32)
        if config.embedding_scale != 1.0:
            x = x * config.embedding_scale
        if config.positions == "learned":
            rows = _position_rows(tokens, positions, config.position_offset)
            x = x + jnp.take(self.position[...], rows, axis=0)
        if config.type_vocab_size:
            x = x + self.token_type[0][None, None, :]
        return self.norm(x) if config.embedding_norm else x

    def _finish(self, x: Float[Array, "r t d"]) -> Float[Array, "r t d"]:
        return self.final_norm(x) if self.config.final_norm else x


def _scan(
    layer: Callable, x: Array, contexts: LayerContexts, of_layers: tuple, layers: range
) -> Array:
    """x after the consecutive `layers`; `of_layers` are (parameters, numbers, which context), each
    with a leading axis of all layers."""
    if not layers:
        return x
    if len(layers) < len(of_layers[1]):
        of_layers = jax.tree.map(operator.itemgetter(slice(layers.start, layers.stop)), of_layers)

    def step(x: Array, of_layer: tuple) -> tuple[Array, None]:
        params, number, which = of_layer
        return layer(x, params, contexts.traced(number, which)), None

    return jax.lax.scan(step, x, of_layers)[0]


def _position_rows(
    tokens: Int[Array, "r t"], positions: Int[Array, "r t"], offset: int
) -> Int[Array, "r t"]:
    """Rows of the position table. With an offset, as in RoBERTa, a padding token inside a text
    ("<pad>" is in some corpora) has the row of its id, `offset` - 1, and is not counted."""
    if not offset:
        return positions
    padding = (tokens == offset - 1).astype(positions.dtype)
    before = jnp.cumsum(padding, axis=1) - padding
    start = jnp.arange(tokens.shape[1], dtype=positions.dtype)[None] - positions
    inside = before - jnp.take_along_axis(before, start, axis=1)
    return jnp.where(padding > 0, offset - 1, positions - inside + offset)


def _key_bias_cancels(config: EncoderConfig) -> bool:
    """Whether a key's bias adds one constant to all scores of a query, so that its gradient is 0.

    Autodiff would give rounding errors that differ between meshes, and Adam, which divides by their
    size, would take full steps along them.
    """
    return config.positions != "rope" and config.softcap is None and not config.qk_norm
