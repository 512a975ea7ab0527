"""The hyperparameters of a transformer encoder, independent of the file they were read from."""

import dataclasses
from typing import Any, NamedTuple

from inf_jax.core.choices import ATTENTION_MASKS
from inf_jax.core.errors import UserError

UNLIMITED = 2**31 - 1  # max_positions of a model with relative positions


class Rope(NamedTuple):
    """Rotary position embeddings (Su et al. 2021, arXiv 2104.09864) of one layer.

    Attributes:
      base: theta; the wavelengths are 2 pi base^(2i/k).
      factor: wavelengths are multiplied by it.
      original: tokens of a pretraining text, for Llama 3's scaling: wavelengths over
        `original / low` are scaled, those under `original / high` are not, and those between are
        interpolated. None scales all.
    """

    base: float
    factor: float = 1.0
    original: int | None = None
    low: float = 1.0
    high: float = 4.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Hyperparameters of a transformer encoder.

    Attributes:
      family: Hugging Face's model_type; it selects the weight table.
      max_positions: tokens of the longest text; UNLIMITED with relative positions.
      kv_heads: key and value heads; each serves heads / kv_heads query heads.
      norm: "layer" or "rms"; norm_bias is for "layer", norm_offset adds 1 to a stored scale.
      norm_place: "post" (after each residual sum), "pre" (before attention and feed-forward) or
        "both" (before each and on its output).
      embedding_norm, first_norm, final_norm: whether there is a norm after the embeddings, before
        the first layer's attention, and after the last layer.
      positions: "learned", "rope" or "relative" (T5's bias by distance, shared by all layers).
      position_offset: rows of the position table before that of a text's first token.
      type_vocab_size: rows of the token type table; 0 for none.
      ropes: one per layer, or empty.
      windows: one per layer. A causal layer attends to that many tokens including its own, a
        bidirectional one to that many on each side. None attends to the whole text.
      relative_distance: relative positions of at least this distance share a bucket.
      gated: the feed-forward layer is act(x G) * (x U) instead of act(x U).
      qkv_bias, out_bias, ffn_bias: which linear layers have a bias.
      qk_norm: a norm over each head's queries and keys.
      scale: factor of the attention scores q k^T.
      softcap: scores become softcap * tanh(scores / softcap); None leaves them unchanged.
      embedding_scale: factor of the word embeddings.
      decoder: pretrained with causal attention; only such a model may be causal.
      causal: no token attends to a later one.
      dropout, attention_dropout: rates; a run sets its own.
      init_std: standard deviation of random weights.
    """

    family: str
    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    ffn: int
    max_positions: int
    activation: str
    norm: str
    norm_eps: float
    norm_place: str
    positions: str
    scale: float
    windows: tuple[int | None, ...]
    ropes: tuple[Rope, ...] = ()
    norm_bias: bool = False
    norm_offset: bool = False
    embedding_norm: bool = False
    final_norm: bool = True
    first_norm: bool = True
    position_offset: int = 0
    type_vocab_size: int = 0
    relative_buckets: int = 0
    relative_distance: int = 0
    gated: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    ffn_bias: bool = False
    qk_norm: bool = False
    softcap: float | None = None
    embedding_scale: float = 1.0
    decoder: bool = False
    causal: bool = False
    dropout: float = 0.0
    attention_dropout: float = 0.0
    init_std: float = 0.02

    def of_vectors(self) -> dict[str, Any]:
        """The fields that decide a text's vector, beside the weights and the limits of texts."""
        fields = dataclasses.asdict(self)
        for name in ("dropout", "attention_dropout", "init_std", "max_positions"):
            del fields[name]
        return fields

    def with_mask(self, mask: str) -> "EncoderConfig":
        """A copy with this attention mask, one of `ATTENTION_MASKS`. Raises UserError for causal
        attention in an encoder model, which transformers could not load."""
        if mask not in ATTENTION_MASKS:
            raise ValueError(f"unknown mask {mask!r}; choose one of {', '.join(ATTENTION_MASKS)}")
        if mask == "causal" and not self.decoder:
            raise UserError(
                f"model.mask='causal': {self.family} models support bidirectional attention only; "
                "leave mask='model'"
            )
        return self if mask == "model" else dataclasses.replace(self, causal=mask == "causal")
