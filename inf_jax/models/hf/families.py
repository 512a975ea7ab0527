"""Reads the config.json of each model family; one function turns fields into EncoderConfig options.

Encoders: BERT, RoBERTa, XLM-R, ModernBERT, T5's encoder. Decoders: Llama, Mistral, Qwen 2 and 3,
Gemma 1 to 3. Fields have their names in transformers 5; older names are read as well.
"""

from typing import Any

from inf_jax.models.config import UNLIMITED, Rope
from inf_jax.models.hf.fields import (
    NUMBER,
    Family,
    Fields,
    layer_types,
    ropes_of,
    transformer_options,
    windows_of,
)
from inf_jax.models.layers import ACTIVATIONS


def _ropes(
    fields: Fields, kinds: tuple[str, ...], full: tuple[str, float], sliding: tuple[str, float]
) -> tuple[Rope, ...]:
    """Each layer's Rope by its attention type; of each type, (field of its base, default)."""
    bases = {
        kind: fields.get(name, base, kind=NUMBER)
        for kind, (name, base) in (("full_attention", full), ("sliding_attention", sliding))
    }
    ropes = ropes_of(fields, bases)
    return tuple(ropes[kind] for kind in kinds)


def _attention_bias(fields: Fields) -> dict[str, bool]:
    return dict.fromkeys(("qkv_bias", "out_bias"), fields.get("attention_bias", False, kind=bool))


def _bert(fields: Fields) -> dict[str, Any]:
    options = transformer_options(fields)
    embedding = fields.get("embedding_size", options["width"])  # some files of ALBERT and ELECTRA
    if embedding != options["width"]:
        fields.problems.append(f"embedding_size={embedding} differs from hidden_size")
    return options | {
        "type_vocab_size": fields.get("type_vocab_size"),
        "norm": "layer",
        "norm_eps": fields.get("layer_norm_eps", kind=NUMBER),
        "norm_bias": True,
        "norm_place": "post",
        "embedding_norm": True,
        "final_norm": False,
        "activation": fields.activation("hidden_act"),
        "positions": "learned",
        "qkv_bias": True,
        "out_bias": True,
        "ffn_bias": True,
        "dropout": fields.get("hidden_dropout_prob", 0.1, kind=NUMBER),
        "attention_dropout": fields.get("attention_probs_dropout_prob", 0.1, kind=NUMBER),
    }


def _roberta(fields: Fields) -> dict[str, Any]:
    # Positions start after the padding token's id, which has a row of the table too.
    offset = fields.get("pad_token_id", 1) + 1
    options = _bert(fields)
    positions = options["max_positions"] - offset
    return options | {"position_offset": offset, "max_positions": positions}


def _modernbert(fields: Fields) -> dict[str, Any]:
    options = transformer_options(fields) | _attention_bias(fields)
    every = fields.get("global_attn_every_n_layers", 3, positive=True)
    kinds = layer_types(fields, options["layers"], lambda i: i % every == 0)
    bases = ("global_rope_theta", 160_000.0), ("local_rope_theta", 10_000.0)
    return options | {
        "norm": "layer",
        "norm_eps": fields.get("norm_eps", 1e-5, kind=NUMBER),
        "norm_bias": fields.get("norm_bias", False, kind=bool),
        "norm_place": "pre",
        "embedding_norm": True,
        "first_norm": False,
        "activation": fields.activation("hidden_activation"),
        "gated": True,
        "positions": "rope",
        "ropes": _ropes(fields, kinds, *bases),
        "windows": windows_of(kinds, fields.get("local_attention", 128, positive=True) // 2),
        "ffn_bias": fields.get("mlp_bias", False, kind=bool),
        "attention_dropout": fields.get("attention_dropout", 0.0, kind=NUMBER),
    }


def _t5(fields: Fields) -> dict[str, Any]:
    layers, heads = fields.get("num_layers"), fields.get("num_heads")
    gate, _, activation = fields.get("feed_forward_proj", "relu", kind=str).rpartition("-")
    if gate not in ("", "gated") or activation not in ACTIVATIONS:
        fields.problems.append(f"feed_forward_proj={gate}-{activation!r} is not covered")
    # transformers' rule: "gated-gelu" means the tanh approximation.
    activation = "gelu_new" if (gate, activation) == ("gated", "gelu") else activation
    if fields.get("dense_act_fn", activation, kind=str) != activation:
        fields.problems.append("dense_act_fn contradicts feed_forward_proj")
    if fields.get("is_gated_act", bool(gate), kind=bool) != bool(gate):
        fields.problems.append("is_gated_act contradicts feed_forward_proj")
    dropout = fields.get("dropout_rate", 0.1, kind=NUMBER)
    return {
        "vocab_size": fields.get("vocab_size"),
        "width": fields.get("d_model"),
        "layers": layers,
        "heads": heads,
        "kv_heads": heads,
        "head_width": fields.get("d_kv"),
        "ffn": fields.get("d_ff"),
        "max_positions": UNLIMITED,  # n_positions is the length of pretraining texts
        "norm": "rms",
        "norm_eps": fields.get("layer_norm_epsilon", 1e-6, kind=NUMBER),
        "norm_place": "pre",
        "activation": activation,
        "gated": bool(gate),
        "positions": "relative",
        "relative_buckets": fields.get("relative_attention_num_buckets", 32, positive=True),
        "relative_distance": fields.get("relative_attention_max_distance", 128, positive=True),
        "windows": (None,) * layers,
        "scale": 1.0,
        "dropout": dropout,
        "attention_dropout": dropout,
    }


def _decoder(
    fields: Fields, *activation: str, head_width: int | None = None, kv_heads: int | None = None
) -> dict[str, Any]:
    """The options that Llama and its successors share; `activation` names the activation's fields,
    `head_width` and `kv_heads` are for a file without theirs (None derives them from others)."""
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
    softcap = fields.get("attn_logit_softcapping", None, absent=50.0, kind=NUMBER, positive=True)
    return options | {
        "norm_place": "both",
        "scale": _query_scale(fields),
        "softcap": softcap,
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
    bases = ("rope_theta", 1_000_000.0), ("rope_local_base_freq", 10_000.0)
    return options | {
        "norm_place": "both",
        "qk_norm": True,
        "scale": _query_scale(fields),
        "causal": options["causal"] and not bidirectional,
        # A bidirectional file's number counts both sides together.
        "windows": windows_of(kinds, window // 2 if bidirectional else window),
        "ropes": _ropes(fields, kinds, *bases),
    }


# Fields with a covered value only. Of both kinds of model, and of encoders:
_PLAIN = {"is_decoder": (False,), "add_cross_attention": (False,), "is_encoder_decoder": (False,)}
_PLAIN |= {"chunk_size_feed_forward": (0,)}
_ENCODER_ONLY = _PLAIN | {"pruned_heads": ({}, None), "cross_attention_hidden_size": (None,)}
_BERT = Family(
    _bert,
    required=_ENCODER_ONLY | {"position_embedding_type": ("absolute",)},
    ignored=frozenset(
        """directionality pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers
        pooler_size_per_head pooler_type""".split()
    ),
)
_ROBERTA = _BERT._replace(read=_roberta)
_MODERNBERT = Family(
    _modernbert,
    required=_ENCODER_ONLY
    | {"position_embedding_type": ("absolute", "sans_pos"), "rope_scaling": (None,)}
    | {"causal_mask": (False,)},  # mmBERT's
    # A run sets its own dropout; the rest concerns training from scratch and heads.
    ignored=frozenset(
        """embedding_dropout mlp_dropout initializer_cutoff_factor decoder_bias classifier_pooling
        classifier_bias classifier_activation deterministic_flash_attn sparse_prediction
        sparse_pred_ignore_index reference_compile repad_logits_with_grad layer_norm_eps""".split()
    ),
)
_T5 = Family(
    _t5,
    required={n: v for n, v in _ENCODER_ONLY.items() if n != "is_encoder_decoder"},
    # Of the decoder, which is not built; initialisation; the length of pretraining texts.
    ignored=frozenset(
        """n_positions num_decoder_layers scale_decoder_outputs is_encoder_decoder
        initializer_factor initializer_range num_hidden_layers num_attention_heads hidden_size
        head_dim""".split()
    ),
)
_GEMMA = frozenset(("final_logit_softcapping",))
# transformers ignores use_bidirectional_attention in these families and keeps the mask causal.
_CAUSAL_GEMMA = _PLAIN | {"use_bidirectional_attention": (False, None)}

FAMILIES: dict[str, Family] = {  # by model_type
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "modernbert": _MODERNBERT,
    "t5": _T5,
    "llama": Family(_llama, required=_PLAIN),
    "mistral": Family(_mistral, required=_PLAIN),
    "qwen2": Family(_qwen2, required=_PLAIN | {"use_mrope": (False,)}),
    "qwen3": Family(_qwen3, required=_PLAIN),
    "gemma": Family(_gemma1, required=_CAUSAL_GEMMA, ignored=_GEMMA),
    # sliding_window_size is in some of the first files; transformers does not read it.
    "gemma2": Family(_gemma2, required=_CAUSAL_GEMMA, ignored=_GEMMA | {"sliding_window_size"}),
    # transformers reads attn_logit_softcapping but does not apply it.
    "gemma3_text": Family(
        _gemma3, required=_PLAIN | {"attn_logit_softcapping": (None,)}, ignored=_GEMMA
    ),
}
