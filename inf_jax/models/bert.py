"""The BERT encoder on packed rows (Devlin et al. 2018, arXiv 1810.04805), defined in nnx.

Layers are one stacked block: parameters have a leading layer axis whatever way the forward pass
goes through them.
Einsum letters: r rows, t tokens, d model width, h heads, k head width, f ffn.
"""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from inf_jax.errors import UserError
from inf_jax.models.attention import attention
from inf_jax.models.config import EncoderConfig
from inf_jax.models.dropout import DropoutKey, dropout
from inf_jax.models.shards import WHOLE, Shards

REMAT = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@jax.custom_vjp
def _gelu(x: Array) -> Array:
    """The exact gelu, by erf: jax.nn.gelu goes by erfc, which costs twice as much on a CPU."""
    return 0.5 * x * (1.0 + jax.lax.erf(x * np.sqrt(0.5).astype(x.dtype)))


def _gelu_backward(x: Array, g: Array) -> tuple[Array]:
    # Autodiff would keep erf and exp of x beside x: three arrays of the ffn's width a layer.
    cdf = 0.5 * (1.0 + jax.lax.erf(x * np.sqrt(0.5).astype(x.dtype)))
    density = jnp.exp(-0.5 * x * x) * np.sqrt(0.5 / np.pi).astype(x.dtype)
    return (g * (cdf + x * density),)


_gelu.defvjp(lambda x: (_gelu(x), x), _gelu_backward)


ACTIVATIONS = {
    "gelu": _gelu,
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}


def _add(x: Array, bias: Array) -> Array:
    return x + bias.astype(x.dtype).reshape((1,) * (x.ndim - bias.ndim) + bias.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _standardise(x: Array, eps: float) -> Array:
    """Zero mean and unit variance over the last axis; backward keeps the result and one scalar a
    token."""
    return _standardise_forward(x, eps)[0]


def _standardise_forward(x: Array, eps: float) -> tuple[Array, tuple[Array, Array]]:
    x = x - x.mean(-1, keepdims=True)
    inverse = jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + eps)
    return x * inverse, (x * inverse, inverse)


def _standardise_backward(eps: float, kept: tuple[Array, Array], g: Array) -> tuple[Array]:
    y, inverse = kept
    return (inverse * (g - g.mean(-1, keepdims=True) - y * (g * y).mean(-1, keepdims=True)),)


_standardise.defvjp(_standardise_forward, _standardise_backward)


class LayerNorm(nnx.Module):
    """Layer normalisation in float32, whatever the compute dtype."""

    def __init__(self, width: int, eps: float):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32))

    def __call__(self, x: Float[Array, "r t d"]) -> Float[Array, "r t d"]:
        """Same shape and dtype as x."""
        y = _standardise(x.astype(jnp.float32), self.eps)
        return _add(y * self.scale[...][None, None, :], self.bias[...]).astype(x.dtype)


class Block(nnx.Module):
    """One post-norm transformer layer."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
        d, h, k, f = config.width, config.heads, config.head_width, config.ffn
        self.config = config

        def weight(*shape: int) -> nnx.Param:
            return nnx.Param(config.init_std * jax.random.normal(rngs.params(), shape, jnp.float32))

        def zeros(*shape: int) -> nnx.Param:
            return nnx.Param(jnp.zeros(shape, jnp.float32))

        self.query_kernel, self.query_bias = weight(d, h, k), zeros(h, k)
        self.key_kernel, self.key_bias = weight(d, h, k), zeros(h, k)
        self.value_kernel, self.value_bias = weight(d, h, k), zeros(h, k)
        self.out_kernel, self.out_bias = weight(h, k, d), zeros(d)
        self.attention_norm = LayerNorm(d, config.norm_eps)
        self.up_kernel, self.up_bias = weight(d, f), zeros(f)
        self.down_kernel, self.down_bias = weight(f, d), zeros(d)
        self.ffn_norm = LayerNorm(d, config.norm_eps)

    def __call__(
        self,
        x: Float[Array, "r t d"],
        segments: Int[Array, "r t"],
        key: DropoutKey | None,
        layer: Array | int,
        shards: Shards = WHOLE,
    ) -> Float[Array, "r t d"]:
        """Token states after this layer; `layer` numbers its dropout sites. With `shards`, h and f
        are this device's."""
        config, dtype = self.config, x.dtype
        site = 3 * jnp.asarray(layer, jnp.uint32)

        def heads(kernel: nnx.Param, bias: Array) -> Float[Array, "r h t k"]:
            y = jnp.einsum("rtd,dhk->rhtk", x, kernel[...].astype(dtype))
            return y + bias.astype(dtype)[None, :, None, :]

        # A key's bias adds the same to all scores of a query, which the softmax takes out: its
        # gradient is 0. What rounding leaves of it would differ from mesh to mesh, and Adam, which
        # divides by its size, would make full steps of that.
        key_bias = jax.lax.stop_gradient(self.key_bias[...])

        with jax.named_scope("attention"):
            mixed = attention(
                heads(self.query_kernel, self.query_bias[...]),
                heads(self.key_kernel, key_bias),
                heads(self.value_kernel, self.value_bias[...]),
                segments=segments,
                dropout_rate=config.attention_dropout,
                dropout_key=key,
                site=site + 1,
                first_head=shards.first(self.query_kernel.shape[-2]),
            )
            y = jnp.einsum("rhtk,hkd->rtd", mixed, self.out_kernel[...].astype(dtype))
            y = dropout(_add(shards.total(y), self.out_bias[...]), config.dropout, key, site + 2)
            x = self.attention_norm(x + y)
        with jax.named_scope("ffn"):
            y = jnp.einsum("rtd,df->rtf", x, self.up_kernel[...].astype(dtype))
            y = ACTIVATIONS[config.activation](_add(y, self.up_bias[...]))
            y = jnp.einsum("rtf,fd->rtd", y, self.down_kernel[...].astype(dtype))
            y = dropout(_add(shards.total(y), self.down_bias[...]), config.dropout, key, site + 3)
            return self.ffn_norm(x + y)


class BertEncoder(nnx.Module):
    """Embeddings and stacked blocks. `rngs` seeds random weights (dropout has its own keys)."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
        if config.activation not in ACTIVATIONS:
            raise UserError(
                f"hidden_act={config.activation!r} is not covered: one of {sorted(ACTIVATIONS)}"
            )
        self.config = config

        def table(rows: int) -> nnx.Param:
            shape = (rows, config.width)
            return nnx.Param(config.init_std * jax.random.normal(rngs.params(), shape, jnp.float32))

        self.word = table(config.vocab_size)
        self.position = table(config.max_positions)
        self.token_type = table(config.type_vocab_size)
        self.norm = LayerNorm(config.width, config.norm_eps)
        stacked = nnx.vmap(lambda r: Block(config, r), in_axes=0, out_axes=0)
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
    ) -> Float[Array, "r t d"] | list[Array]:
        """Last token states in `dtype`.

        Args:
          tokens, segments, positions: packed rows, see `packing.Packed`.
          dtype: compute dtype; parameters stay float32, norms and softmax run in float32.
          key: dropout's identity of each token; None turns dropout off.
          scan_layers: one compiled layer in a loop; else layers unrolled (faster on a CPU).
          remat: a name in REMAT, what the backward pass recomputes.
          all_layers: return the states after the embeddings and after each layer (for parity
            checks).
          shards: how the blocks' parameters are split; the others are whole.
        """
        word = jnp.take(self.word[...], tokens, axis=0)
        position = jnp.take(self.position[...], positions, axis=0)
        x = word + position + self.token_type[0][None, None, :]
        x = dropout(self.norm(x).astype(dtype), self.config.dropout, key, 0)
        graphdef, stacked = nnx.split(self.blocks)

        def layer(x: Array, numbered: tuple) -> tuple[Array, None]:
            params, number = numbered
            block = nnx.merge(graphdef, shards.whole(params, dtype))
            return block(x, segments, key, number, shards), None

        layer = shards.remat(layer, REMAT[remat])
        numbers = jnp.arange(self.config.layers, dtype=jnp.uint32)
        if scan_layers and not all_layers:
            return jax.lax.scan(layer, x, (stacked, numbers))[0]
        states = [x]
        for i in range(self.config.layers):
            mine = jax.tree.map(operator.itemgetter(i), stacked)
            states.append(layer(states[-1], (mine, numbers[i]))[0])
        return states if all_layers else states[-1]
