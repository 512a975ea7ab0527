"""The encoder's shape, read from a Hugging Face config whose every field is handled, ignored or
refused."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from inf_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Shape of a BERT-family encoder. Einsum letters: d width, h heads, k head width, f ffn."""

    vocab_size: int
    width: int
    layers: int
    heads: int
    ffn: int
    max_positions: int
    type_vocab_size: int
    norm_eps: float
    activation: str
    dropout: float = 0.0
    attention_dropout: float = 0.0
    init_std: float = 0.02

    @property
    def head_width(self) -> int:
        """Width of one head, k = d / h."""
        return self.width // self.heads


# HF name -> ours. A field with a required value (below) is handled too: any other value is refused.
_BERT_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "ffn",
    "max_position_embeddings": "max_positions",
    "type_vocab_size": "type_vocab_size",
    "layer_norm_eps": "norm_eps",
    "hidden_act": "activation",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "initializer_range": "init_std",
}
_REQUIRED = {
    "model_type": ("bert",),
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False,),
    "tie_word_embeddings": (True, False),  # there is no output head here to tie
    "chunk_size_feed_forward": (0,),
    "pruned_heads": ({}, None),
    "cross_attention_hidden_size": (None,),
}
# Knowingly without effect on the hidden states: bookkeeping, heads that we do not build,
# generation.
_IGNORED = frozenset(
    """_name_or_path architectures auto_map transformers_version torch_dtype dtype use_cache
    gradient_checkpointing pad_token_id bos_token_id eos_token_id sep_token_id cls_token_id
    decoder_start_token_id classifier_dropout id2label label2id num_labels problem_type
    finetuning_task task_specific_params output_attentions output_hidden_states return_dict
    torchscript directionality pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers
    pooler_size_per_head pooler_type _attn_implementation_autoset attn_implementation
    tokenizer_class prefix model_max_length""".split()
)


def config_from_hf(fields: Mapping, source: str = "config.json") -> EncoderConfig:
    """Reads a HF config.

    Args:
      fields: the parsed config.json.
      source: its path, for messages.

    Raises:
      UserError: lists every field that is missing, has a value that this encoder does not cover, or
        is neither handled nor knowingly ignored.
    """
    problems = [
        f"{name}={fields[name]!r} (covered: {', '.join(map(repr, allowed))})"
        for name, allowed in _REQUIRED.items()
        if name in fields and fields[name] not in allowed
    ]
    known = _BERT_FIELDS.keys() | _REQUIRED.keys() | _IGNORED
    problems += [f"unknown field {name!r}" for name in sorted(fields.keys() - known)]
    optional = {
        f.name for f in dataclasses.fields(EncoderConfig) if f.default is not dataclasses.MISSING
    }
    problems += [
        f"missing field {name!r}"
        for name, ours in _BERT_FIELDS.items()
        if name not in fields and ours not in optional
    ]
    if "model_type" not in fields:
        problems.append("missing field 'model_type'")
    if not problems and fields["hidden_size"] % fields["num_attention_heads"]:
        problems.append("hidden_size is not a multiple of num_attention_heads")
    if problems:
        raise UserError(f"{source}: not an encoder this version loads: " + "; ".join(problems))
    return EncoderConfig(**{ours: fields[n] for n, ours in _BERT_FIELDS.items() if n in fields})


def read_config(directory: str | Path) -> EncoderConfig:
    """`config_from_hf` of `<directory>/config.json`."""
    path = Path(directory) / "config.json"
    try:
        fields = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; name a Hugging Face model directory or hub id"
        ) from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    return config_from_hf(fields, str(path))
