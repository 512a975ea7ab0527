"""Reads the config.json of encoder families: BERT, RoBERTa, XLM-R, ModernBERT, T5's encoder.

One function per family turns fields into options of EncoderConfig. Fields have their names in
transformers 5; older names are read as well.
"""

from typing import Any

from inf_jax.models.config import UNLIMITED
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

_ENCODER_ONLY = {
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False,),
    "chunk_size_feed_forward": (0,),
    "pruned_heads": ({}, None),
    "cross_attention_hidden_size": (None,),
}


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
    return options | {
        "position_offset": offset,
        "max_positions": options["max_positions"] - offset,
    }


def _modernbert(fields: Fields) -> dict[str, Any]:
    options = transformer_options(fields)
    every = fields.get("global_attn_every_n_layers", 3, positive=True)
    kinds = layer_types(fields, options["layers"], lambda i: i % every == 0)
    bias = fields.get("attention_bias", False, kind=bool)
    ropes = ropes_of(
        fields,
        {
            "full_attention": fields.get("global_rope_theta", 160_000.0, kind=NUMBER),
            "sliding_attention": fields.get("local_rope_theta", 10_000.0, kind=NUMBER),
        },
    )
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
        "ropes": tuple(ropes[kind] for kind in kinds),
        "windows": windows_of(kinds, fields.get("local_attention", 128, positive=True) // 2),
        "qkv_bias": bias,
        "out_bias": bias,
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

ENCODER_FAMILIES: dict[str, Family] = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "modernbert": _MODERNBERT,
    "t5": _T5,
}
