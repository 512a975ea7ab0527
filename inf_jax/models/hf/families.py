"""The families of models by their config.json: what each field means, one function a family.

A field that the function reads is handled; those of `required` may have the listed values only;
those of `ignored` are knowingly without effect on the token states. Anything else is unknown.
Fields are named as in transformers 5; the older names beside them where they differ.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from inf_jax.models.config import UNLIMITED, Rope
from inf_jax.models.hf.fields import NUMBER, Fields, layer_types, ropes_of, windows_of
from inf_jax.models.layers import ACTIVATIONS


class Family(NamedTuple):
    """Attributes: `read`, a config.json's fields to the options of EncoderConfig; see the
    module."""

    read: Callable[[Fields], dict[str, Any]]
    required: Mapping[str, tuple] = {}
    ignored: frozenset[str] = frozenset()


# Bookkeeping, heads that are not built, generation.
IGNORED = frozenset(
    """_name_or_path architectures auto_map transformers_version torch_dtype dtype use_cache
    gradient_checkpointing pad_token_id bos_token_id eos_token_id sep_token_id cls_token_id
    decoder_start_token_id classifier_dropout id2label label2id num_labels problem_type
    finetuning_task task_specific_params output_attentions output_hidden_states output_past
    return_dict torchscript _attn_implementation_autoset attn_implementation _attn_implementation
    _attn_implementation_internal tokenizer_class prefix model_max_length tie_word_embeddings
    unsloth_version unsloth_fixed pretraining_tp cache_implementation use_bfloat16 tf_legacy_loss
    max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty
    temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size
    encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores
    return_dict_in_generate forced_bos_token_id forced_eos_token_id remove_invalid_values
    exponential_decay_length_penalty suppress_tokens begin_suppress_tokens""".split()
)
_ENCODER_ONLY = {
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False,),
    "chunk_size_feed_forward": (0,),
    "pruned_heads": ({}, None),
    "cross_attention_hidden_size": (None,),
}


def _transformer(fields: Fields, *, head_width: int | None = None) -> dict[str, Any]:
    """What all but T5 name alike; without a `head_width` it is hidden_size over the heads."""
    width, heads = fields.get("hidden_size"), fields.get("num_attention_heads")
    layers = fields.get("num_hidden_layers")
    if not head_width:
        if width % heads and not fields.problems:  # of a missing one nothing is said twice
            fields.problems.append(f"hidden_size={width} is no multiple of the {heads} heads")
        head_width = max(width // heads, 1)
    return {
        "vocab_size": fields.get("vocab_size"),
        "width": width,
        "layers": layers,
        "heads": heads,
        "kv_heads": heads,
        "head_width": head_width,
        "ffn": fields.get("intermediate_size"),
        "max_positions": fields.get("max_position_embeddings"),
        "scale": head_width**-0.5,
        "windows": (None,) * layers,
        "init_std": fields.get("initializer_range", 0.02, kind=NUMBER),
    }


def _bert(fields: Fields) -> dict[str, Any]:
    options = _transformer(fields)
    embedded = fields.get("embedding_size", options["width"])  # ALBERT's and ELECTRA's, in some
    if embedded != options["width"]:
        fields.problems.append(f"embedding_size={embedded} is not hidden_size: not covered")
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
    # A text's positions start behind the padding token's id, which has a row of its own.
    offset = fields.get("pad_token_id", 1) + 1
    options = _bert(fields)
    return options | {
        "position_offset": offset,
        "max_positions": options["max_positions"] - offset,
    }


def _modernbert(fields: Fields) -> dict[str, Any]:
    options = _transformer(fields)
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
    # that "gated-gelu" means the tanh form is transformers' rule
    activation = "gelu_new" if (gate, activation) == ("gated", "gelu") else activation
    if fields.get("dense_act_fn", activation, kind=str) != activation:
        fields.problems.append("dense_act_fn is not that of feed_forward_proj")
    if fields.get("is_gated_act", bool(gate), kind=bool) != bool(gate):
        fields.problems.append("is_gated_act is not that of feed_forward_proj")
    dropout = fields.get("dropout_rate", 0.1, kind=NUMBER)
    return {
        "vocab_size": fields.get("vocab_size"),
        "width": fields.get("d_model"),
        "layers": layers,
        "heads": heads,
        "kv_heads": heads,
        "head_width": fields.get("d_kv"),
        "ffn": fields.get("d_ff"),
        "max_positions": UNLIMITED,  # n_positions is of the training's texts
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
    fields: Fields,
    *activation: str,
    head_width: int | None = None,
    kv_heads: int | None = None,
) -> dict[str, Any]:
    """What Llama and those after it have in common.

    Args:
      activation: names of the field.
      head_width, kv_heads: of a file that says nothing of them; None follows from other fields.
    """
    width = fields.get("head_dim", None, absent=head_width, positive=True)
    options = _transformer(fields, head_width=width)
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
            "null"
        )
    return options | {"windows": windows_of(kinds, window), "ropes": _one_rope(fields, layers)}


def _qwen3(fields: Fields) -> dict[str, Any]:
    return _qwen2(fields, head_width=128) | _attention_bias(fields) | {"qk_norm": True}


def _gemma(fields: Fields, *, kv_heads: int) -> dict[str, Any]:
    names = "hidden_activation", "hidden_act"
    options = _decoder(fields, *names, head_width=256, kv_heads=kv_heads)
    options |= _attention_bias(fields)
    given = options["activation"]
    return options | {
        "norm_offset": True,
        "embedding_scale": options["width"] ** 0.5,
        # the first releases say gelu and mean its tanh form
        "activation": "gelu_pytorch_tanh" if given == "gelu" else given,
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
    # twice in some files; the underscored one is what transformers 5 writes
    every = fields.get("_sliding_window_pattern", 6, positive=True)
    every = fields.get("sliding_window_pattern", every, positive=True)
    kinds = layer_types(fields, options["layers"], lambda i: (i + 1) % every == 0)
    both_ways = fields.get("use_bidirectional_attention", False, kind=bool)
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
        "causal": options["causal"] and not both_ways,
        # both ways the file's number is what a token sees in all
        "windows": windows_of(kinds, window // 2 if both_ways else window),
        "ropes": tuple(ropes[kind] for kind in kinds),
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
    # its dropouts are the run's own, its initialisation is for training from nothing
    ignored=frozenset(
        """embedding_dropout mlp_dropout initializer_cutoff_factor decoder_bias classifier_pooling
        classifier_bias classifier_activation deterministic_flash_attn sparse_prediction
        sparse_pred_ignore_index reference_compile repad_logits_with_grad layer_norm_eps""".split()
    ),
)
_T5 = Family(
    _t5,
    required={n: v for n, v in _ENCODER_ONLY.items() if n != "is_encoder_decoder"},
    # the decoder's, which is not built; initialisation; the length of the training's texts
    ignored=frozenset(
        """n_positions num_decoder_layers scale_decoder_outputs is_encoder_decoder
        initializer_factor initializer_range num_hidden_layers num_attention_heads hidden_size
        head_dim""".split()
    ),
)
_NO_ENCODER = {"is_encoder_decoder": (False,), "add_cross_attention": (False,)}
_NO_ENCODER |= {"chunk_size_feed_forward": (0,), "is_decoder": (False,)}
_GEMMA = frozenset(("final_logit_softcapping",))
_TWO_WAY = {"use_bidirectional_attention": (False, None)}  # transformers keeps its mask causal

# model_type -> family
FAMILIES: dict[str, Family] = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "modernbert": _MODERNBERT,
    "t5": _T5,
    "llama": Family(_llama, required=_NO_ENCODER),
    "mistral": Family(_mistral, required=_NO_ENCODER),
    "qwen2": Family(_qwen2, required=_NO_ENCODER | {"use_mrope": (False,)}),
    "qwen3": Family(_qwen3, required=_NO_ENCODER),
    "gemma": Family(_gemma1, required=_NO_ENCODER | _TWO_WAY, ignored=_GEMMA),
    "gemma2": Family(
        _gemma2,
        required=_NO_ENCODER | _TWO_WAY,
        # in some of the first files, and not read by transformers
        ignored=_GEMMA | {"sliding_window_size"},
    ),
    "gemma3_text": Family(
        _gemma3,
        # transformers reads attn_logit_softcapping and does not apply it
        required=_NO_ENCODER | {"attn_logit_softcapping": (None,)},
        ignored=_GEMMA,
    ),
}
