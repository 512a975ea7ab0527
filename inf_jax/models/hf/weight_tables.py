"""Maps parameters to tensors of Hugging Face files: one two-way table of names per model family.

A rule pairs a tensor, or one per `{layer}`, with one of our parameters or with several that it
concatenates. Rules for parameters that a model lacks (a bias, a norm of queries) are skipped; the
others must cover each of its parameters exactly once.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from inf_jax.models.config import EncoderConfig


class Rule(NamedTuple):
    """One tensor, or one per layer.

    Attributes:
      name: in the file.
      paths: our parameters; several are concatenated along the tensor's first axis.
      inputs: number of input axes of a linear layer, which HF stores as [out, in] and we as
        [*in, *out]; None keeps the shape (and flattens a bias).
      first: first layer with this tensor; earlier layers get neutral values (a norm's 1 and 0).
    """

    name: str
    paths: tuple[str, ...]
    inputs: int | None = None
    first: int = 0

    @property
    def stacked(self) -> bool:
        """Whether there is one tensor per layer."""
        return "{layer}" in self.name

    def names(self, layers: int) -> list[str]:
        """Names of its tensors, in the order of the layers."""
        numbers = range(self.first, layers) if self.stacked else (None,)
        return [self.name.format(layer=i) for i in numbers]

    def shape_of(self, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        """The tensor's shape, given those of our arrays (no layer axis)."""
        parts = [self._hf_shape(shape) for shape in shapes]
        return (sum(shape[0] for shape in parts), *parts[0][1:])

    def to_hf(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """The tensor of one layer's arrays (no layer axis)."""
        parts = [self._hf_array(x) for x in arrays]
        return np.ascontiguousarray(parts[0] if len(parts) == 1 else np.concatenate(parts))

    def from_hf(self, tensor: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
        """Inverse of `to_hf`, without a copy if possible."""
        ends = np.cumsum([self._hf_shape(shape)[0] for shape in shapes])[:-1]
        parts = np.split(tensor, ends)
        parts = parts if self.inputs is None else [part.T for part in parts]
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    def _hf_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if self.inputs is None:
            return (int(np.prod(shape)),) if self.name.endswith(".bias") else tuple(shape)
        n = self.inputs
        return int(np.prod(shape[n:])), int(np.prod(shape[:n]))

    def _hf_array(self, x: np.ndarray) -> np.ndarray:
        shape = self._hf_shape(x.shape)
        return x.reshape(shape) if self.inputs is None else x.reshape(shape[::-1]).T


class WeightTable(NamedTuple):
    """The tensors of a model family.

    Attributes:
      rules: all that models of the family may use.
      architecture: transformers' class without a head.
      prefix: prefix of the names in models with a head.
      renamed: (pattern, replacement) of older names.
      carried: tensors without effect on the token states that are saved again unchanged (a pooler).
      ignored: heads and buffers, which are dropped.
    """

    rules: tuple[Rule, ...]
    architecture: str
    prefix: re.Pattern
    renamed: tuple[tuple[str, str], ...] = ()
    carried: re.Pattern = re.compile(r"(?!)")
    ignored: re.Pattern = re.compile(r"(?!)")

    def plain_name(self, name: str) -> str:
        """The name in the table of a tensor with this name in a file."""
        name = self.prefix.sub("", name)
        for pattern, replacement in self.renamed:
            name = re.sub(pattern, replacement, name)
        return name


def _rules(names: Mapping[str, Any], *, layer: str) -> tuple[Rule, ...]:
    """Rules from {our paths: HF name or (HF name, inputs)}; `layer` prefixes the blocks' names."""
    rules = []
    for paths, name in names.items():
        name, inputs = name if isinstance(name, tuple) else (name, None)
        prefix = layer if paths.startswith("blocks/") else ""
        rules.append(Rule(prefix + name, tuple(paths.split(" ")), inputs))
    return tuple(rules)


def _linear(path: str, name: str, inputs: int = 1) -> dict[str, Any]:
    """A linear layer: kernel and bias."""
    kernels = " ".join(f"blocks/{p}_kernel" for p in path.split())
    biases = " ".join(f"blocks/{p}_bias" for p in path.split())
    return {kernels: (f"{name}.weight", inputs), biases: f"{name}.bias"}


def _norm(path: str, name: str) -> dict[str, str]:
    return {f"{path}/scale": f"{name}.weight", f"{path}/bias": f"{name}.bias"}


_BERT = _rules(
    {
        "word": "embeddings.word_embeddings.weight",
        "position": "embeddings.position_embeddings.weight",
        "token_type": "embeddings.token_type_embeddings.weight",
        **_norm("norm", "embeddings.LayerNorm"),
        **_linear("query", "attention.self.query"),
        **_linear("key", "attention.self.key"),
        **_linear("value", "attention.self.value"),
        **_linear("out", "attention.output.dense", 2),
        **_norm("blocks/attention_norm", "attention.output.LayerNorm"),
        **_linear("up", "intermediate.dense"),
        **_linear("down", "output.dense"),
        **_norm("blocks/ffn_norm", "output.LayerNorm"),
    },
    layer="encoder.layer.{layer}.",
)
_MODERNBERT = _rules(
    {
        "word": "embeddings.tok_embeddings.weight",
        **_norm("norm", "embeddings.norm"),
        **_linear("query key value", "attn.Wqkv"),
        **_linear("out", "attn.Wo", 2),
        **_linear("gate up", "mlp.Wi"),
        **_linear("down", "mlp.Wo"),
        **_norm("blocks/ffn_norm", "mlp_norm"),
        **_norm("final_norm", "final_norm"),
    },
    layer="layers.{layer}.",
) + tuple(
    rule._replace(first=1)
    for rule in _rules(_norm("blocks/attention_norm", "attn_norm"), layer="layers.{layer}.")
)
_T5 = _rules(
    {
        "word": "shared.weight",
        "relative_bias": "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        "blocks/query_kernel": ("layer.0.SelfAttention.q.weight", 1),
        "blocks/key_kernel": ("layer.0.SelfAttention.k.weight", 1),
        "blocks/value_kernel": ("layer.0.SelfAttention.v.weight", 1),
        "blocks/out_kernel": ("layer.0.SelfAttention.o.weight", 2),
        "blocks/attention_norm/scale": "layer.0.layer_norm.weight",
        "blocks/down_kernel": ("layer.1.DenseReluDense.wo.weight", 1),
        "blocks/ffn_norm/scale": "layer.1.layer_norm.weight",
        "final_norm/scale": "encoder.final_layer_norm.weight",
    },
    layer="encoder.block.{layer}.",
)
_T5_FFN = {
    False: {"blocks/up_kernel": ("layer.1.DenseReluDense.wi.weight", 1)},
    True: {
        "blocks/gate_kernel": ("layer.1.DenseReluDense.wi_0.weight", 1),
        "blocks/up_kernel": ("layer.1.DenseReluDense.wi_1.weight", 1),
    },
}
_DECODER = {
    "word": "embed_tokens.weight",
    **_linear("query", "self_attn.q_proj"),
    **_linear("key", "self_attn.k_proj"),
    **_linear("value", "self_attn.v_proj"),
    **_linear("out", "self_attn.o_proj", 2),
    "blocks/query_norm/scale": "self_attn.q_norm.weight",
    "blocks/key_norm/scale": "self_attn.k_norm.weight",
    **_linear("gate", "mlp.gate_proj"),
    **_linear("up", "mlp.up_proj"),
    **_linear("down", "mlp.down_proj"),
    "blocks/attention_norm/scale": "input_layernorm.weight",
    "final_norm/scale": "norm.weight",
}
_TWO_NORMS = {"blocks/ffn_norm/scale": "post_attention_layernorm.weight"}
_FOUR_NORMS = {
    "blocks/attention_post_norm/scale": "post_attention_layernorm.weight",
    "blocks/ffn_norm/scale": "pre_feedforward_layernorm.weight",
    "blocks/ffn_post_norm/scale": "post_feedforward_layernorm.weight",
}


def _decoder(architecture: str, norms: Mapping[str, str] = _TWO_NORMS) -> WeightTable:
    return WeightTable(
        _rules({**_DECODER, **norms}, layer="layers.{layer}."),
        architecture,
        prefix=re.compile(r"^model\."),
        ignored=re.compile(r"(lm_head|score|classifier)\.|.*rotary_emb\.inv_freq$"),
    )


_POOLER = re.compile(r"pooler\.")
_BERT_TABLE = WeightTable(
    _BERT,
    "BertModel",
    prefix=re.compile(r"^bert\."),
    renamed=((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias")),
    carried=_POOLER,
    ignored=re.compile(r"(cls|classifier|qa_outputs)\.|embeddings\.position_ids$"),
)
_ROBERTA_TABLE = _BERT_TABLE._replace(
    architecture="RobertaModel",
    prefix=re.compile(r"^roberta\."),
    ignored=re.compile(r"(lm_head|classifier|qa_outputs)\.|embeddings\.position_ids$"),
)
TABLES: dict[str, WeightTable] = {
    "bert": _BERT_TABLE,
    "roberta": _ROBERTA_TABLE,
    "xlm-roberta": _ROBERTA_TABLE._replace(architecture="XLMRobertaModel"),
    "modernbert": WeightTable(
        _MODERNBERT,
        "ModernBertModel",
        prefix=re.compile(r"^model\."),
        ignored=re.compile(r"(head|decoder|classifier)\."),
    ),
    "t5": WeightTable(
        _T5,
        "T5EncoderModel",
        prefix=re.compile(r"^(transformer|model)\."),
        renamed=((r"^encoder\.embed_tokens\.weight$", "shared.weight"),),
        ignored=re.compile(r"decoder\.|(lm_head|classification_head|classifier)\."),
    ),
    "llama": _decoder("LlamaModel"),
    "mistral": _decoder("MistralModel"),
    "qwen2": _decoder("Qwen2Model"),
    "qwen3": _decoder("Qwen3Model"),
    "gemma": _decoder("GemmaModel"),
    "gemma2": _decoder("Gemma2Model", _FOUR_NORMS),
    "gemma3_text": _decoder("Gemma3TextModel", _FOUR_NORMS),
}


def table_of(config: EncoderConfig) -> WeightTable:
    """The table of the config's family; T5's depends on whether the ffn is gated."""
    table = TABLES[config.family]
    if config.family != "t5":
        return table
    ffn = _rules(_T5_FFN[config.gated], layer="encoder.block.{layer}.")
    return table._replace(rules=table.rules + ffn)


def rules_of(config: EncoderConfig, paths: Sequence[str]) -> list[Rule]:
    """The rules that cover a model with these parameters; ValueError if one has no rule or several,
    which is a mistake in the table."""
    rules = [rule for rule in table_of(config).rules if set(rule.paths) <= set(paths)]
    covered = [path for rule in rules for path in rule.paths]
    if sorted(covered) != sorted(paths):
        repeated = {path for path in covered if covered.count(path) > 1}
        wrong = sorted(set(paths) ^ set(covered) or repeated)
        raise ValueError(f"{config.family}: parameters without exactly one rule: {wrong}")
    return rules
