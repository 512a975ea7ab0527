"""The shape and parts of an encoder, whatever file they were read from."""

import dataclasses
from typing import NamedTuple

from inf_jax.core.errors import UserError

MASKS = ("model", "causal", "bidirectional")
UNLIMITED = 2**31 - 1  # tokens: more than any text has


class Rope(NamedTuple):
    """Rotary positions (Su et al. 2021, arXiv 2104.09864) of one layer.

    Attributes:
      base: theta; the wavelengths are 2 pi base^(2i/k).
      factor: wavelengths are stretched by it; 1 leaves them alone.
      original: tokens that the model was first trained on, for Llama 3's scaling: wavelengths over
        `original / low` are stretched, those under `original / high` are not, those between in
        part. None stretches all.
      low, high: see `original`.
    """

    base: float
    factor: float = 1.0
    original: int | None = None
    low: float = 1.0
    high: float = 4.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Shape and parts of a transformer. Einsum letters: d width, h heads, k head width, f ffn.

    Attributes:
      family: Hugging Face's model_type, which decides the names of the weights.
      max_positions: tokens of the longest text; UNLIMITED where positions are relative.
      kv_heads: heads of keys and values; each serves heads / kv_heads queries' heads.
      norm: "layer" or "rms"; norm_bias is for the former, norm_offset adds 1 to a stored scale.
      norm_place: "post" (after each residual sum), "pre" (before each half of a layer) or "both"
        (before it and on its result).
      embedding_norm, final_norm: a norm after the embeddings, and after the last layer.
      first_norm: whether the first layer has its norm before the attention.
      positions: "learned", "rope" or "relative" (T5's bias by distance, one for all layers).
      position_offset: rows of the table of learned positions before that of a text's first token.
      type_vocab_size: rows of the token type table; 0 is no table.
      ropes: one a layer, or empty.
      windows: one a layer: a causal layer sees so many tokens, its own the last; a bidirectional
        one so many on either side of its own. None sees the whole text.
      relative_buckets, relative_distance: of the relative positions; those further away than the
        distance are alike.
      gated: the ffn is act(x G) * (x U) in place of act(x U).
      qkv_bias, out_bias, ffn_bias: which products have a bias.
      qk_norm: a norm over each head's queries and keys.
      scale: of the scores q k^T.
      softcap: scores become softcap * tanh(scores / softcap); None leaves them.
      embedding_scale: factor of the word vectors.
      decoder: made with causal attention, which may be switched off; an encoder's cannot be on.
      causal: a token sees no later one.
      dropout, attention_dropout: rates; a run sets its own.
      init_std: of random weights.
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

    def with_mask(self, mask: str) -> "EncoderConfig":
        """The same model with attention as its own config says ("model"), or overridden.

        Raises:
          UserError: causal attention in an encoder, which transformers could not open again.
        """
        if mask not in MASKS:
            raise ValueError(f"unknown mask {mask!r}: one of {MASKS}")
        if mask == "causal" and not self.decoder:
            raise UserError(
                f"model.mask='causal': {self.family} models have bidirectional attention only; "
                "leave mask='model'"
            )
        return self if mask == "model" else dataclasses.replace(self, causal=mask == "causal")
