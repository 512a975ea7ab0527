"""Reads the config.json of decoder families: Llama, Mistral, Qwen 2 and 3, Gemma 1 to 3.

One function per family turns fields into options of EncoderConfig. Fields have their names in
transformers 5; older names are read as well.
"""

from typing import Any

from inf_jax.models.config import Rope
from inf_jax.models.hf.fields import (
    NUMBER,
    Family,
    Fields,
    layer_types,
    ropes_of,
    transformer_options,
    windows_of,
)


def _decoder(
    fields: Fields,
    *activation: str,
    head_width: int | None = None,
    kv_heads: int | None = None,
) -> dict[str, Any]:
    """The options that Llama and its successors have in common.

    Args:
      activation: names of the activation's field.
      head_width, kv_heads: values for a file without these fields; None derives them from others.
    """
    width = fields.get("head_dim", None, absent=head_width, positive=True)
    options = transformer_options(fields, head_width=width)
    heads = options["heads"]
    kv_heads = fields.get("num_key_value_heads", heads, absent=kv_heads or heads)
    if kv_heads < 1 or heads % kv_heads:
        fields.problems.append(f"num_key_value_heads={kv_heads} does not divide the {heads} heads")
    return options | {
        "kv_heads": kv_heads,
        "norm": "rms",
        "norm_eps": fields.get("rms_norm_eps", 1e-6, kind=NUMBER),
        "norm_place": "pre",
        "activation": fields.activation(*(activation or ("hidden_act",))),
        "gated": True,
        "positions": "rope",
        "decoder": True,
        "causal": fields.get("is_causal", True, kind=bool),
        "attention_dropout": fields.get("attention_dropout", 0.0, kind=NUMBER),
    }


def _one_rope(fields: Fields, layers: int) -> tuple[Rope, ...]:
    theta = fields.get("rope_theta", 10_000.0, kind=NUMBER)
    return (ropes_of(fields, {"": theta})[""],) * layers


def _attention_bias(fields: Fields) -> dict[str, bool]:
    bias = fields.get("attention_bias", False, kind=bool)
    return {"qkv_bias": bias, "out_bias": bias}


def _llama(fields: Fields) -> dict[str, Any]:
    options = _decoder(fields) | _attention_bias(fields)
    options["ffn_bias"] = fields.get("mlp_bias", False, kind=bool)
    return options | {"ropes": _one_rope(fields, options["layers"])}


def _mistral(fields: Fields) -> dict[str, Any]:
    options = _decoder(fields, kv_heads=8)
    layers = options["layers"]
    windows = (fields.get("sliding_window", None, absent=4096, positive=True),) * layers
    return options | {"windows": windows, "ropes": _one_rope(fields, layers)}


def _qwen2(fields: Fields, *, head_width: int | None = None) -> dict[str, Any]:
    options = _decoder(fields, head_width=head_width, kv_heads=32) | {"qkv_bias": True}
    layers, first = options["layers"], fields.get("max_window_layers", 28)
    window = fields.get("sliding_window", None, absent=4096, positive=True)
    window = window if fields.get("use_sliding_window", False, kind=bool) else None
    kinds = layer_types(fields, layers, lambda i: window is None or i < first)
    if window is None and "sliding_attention" in kinds:
        fields.problems.append(
            "layer_types has sliding_attention, but use_sliding_window is false or sliding_window "
            "is null"
        )
    return options | {"windows": windows_of(kinds, window), "ropes": _one_rope(fields, layers)}


def _qwen3(fields: Fields) -> dict[str, Any]:
    return _qwen2(fields, head_width=128) | _attention_bias(fields) | {"qk_norm": True}


def _gemma(fields: Fields, *, kv_heads: int) -> dict[str, Any]:
    names = "hidden_activation", "hidden_act"
    options = _decoder(fields, *names, head_width=256, kv_heads=kv_heads)
    options |= _attention_bias(fields)
    activation = options["activation"]
    return options | {
        "norm_offset": True,
        "embedding_scale": options["width"] ** 0.5,
        # The first releases say gelu and mean its tanh approximation.
        "activation": "gelu_pytorch_tanh" if activation == "gelu" else activation,
    }


def _query_scale(fields: Fields) -> float:
    return fields.get("query_pre_attn_scalar", 256, kind=NUMBER, positive=True) ** -0.5


def _gemma1(fields: Fields) -> dict[str, Any]:
    options = _gemma(fields, kv_heads=16)
    return options | {"ropes": _one_rope(fields, options["layers"])}


def _gemma2(fields: Fields) -> dict[str, Any]:
    options = _gemma(fields, kv_heads=4)
    kinds = layer_types(fields, options["layers"], lambda i: i % 2 == 1)
    return options | {
        "norm_place": "both",
        "scale": _query_scale(fields),
        "softcap": fields.get(
            "attn_logit_softcapping", None, absent=50.0, kind=NUMBER, positive=True
        ),
        "windows": windows_of(kinds, fields.get("sliding_window", absent=4096)),
        "ropes": _one_rope(fields, options["layers"]),
    }


def _gemma3(fields: Fields) -> dict[str, Any]:
    options = _gemma(fields, kv_heads=4)
    # Some files have both; transformers 5 writes the underscored one.
    every = fields.get("_sliding_window_pattern", 6, positive=True)
    every = fields.get("sliding_window_pattern", every, positive=True)
    kinds = layer_types(fields, options["layers"], lambda i: (i + 1) % every == 0)
    bidirectional = fields.get("use_bidirectional_attention", False, kind=bool)
    window = fields.get("sliding_window", absent=4096)
    ropes = ropes_of(
        fields,
        {
            "full_attention": fields.get("rope_theta", 1_000_000.0, kind=NUMBER),
            "sliding_attention": fields.get("rope_local_base_freq", 10_000.0, kind=NUMBER),
        },
    )
    return options | {
        "norm_place": "both",
        "qk_norm": True,
        "scale": _query_scale(fields),
        "causal": options["causal"] and not bidirectional,
        # A bidirectional file's number counts both sides together.
        "windows": windows_of(kinds, window // 2 if bidirectional else window),
        "ropes": tuple(ropes[kind] for kind in kinds),
    }


_NO_ENCODER = {"is_encoder_decoder": (False,), "add_cross_attention": (False,)}
_NO_ENCODER |= {"chunk_size_feed_forward": (0,), "is_decoder": (False,)}
_GEMMA = frozenset(("final_logit_softcapping",))
# transformers ignores this switch in these families and keeps the mask causal.
_BIDIRECTIONAL = {"use_bidirectional_attention": (False, None)}


DECODER_FAMILIES: dict[str, Family] = {
    "llama": Family(_llama, required=_NO_ENCODER),
    "mistral": Family(_mistral, required=_NO_ENCODER),
    "qwen2": Family(_qwen2, required=_NO_ENCODER | {"use_mrope": (False,)}),
    "qwen3": Family(_qwen3, required=_NO_ENCODER),
    "gemma": Family(_gemma1, required=_NO_ENCODER | _BIDIRECTIONAL, ignored=_GEMMA),
    "gemma2": Family(
        _gemma2,
        required=_NO_ENCODER | _BIDIRECTIONAL,
        # In some of the first files; not read by transformers.
        ignored=_GEMMA | {"sliding_window_size"},
    ),
    "gemma3_text": Family(
        _gemma3,
        # transformers reads attn_logit_softcapping but does not apply it.
        required=_NO_ENCODER | {"attn_logit_softcapping": (None,)},
        ignored=_GEMMA,
    ),
}
