"""Reads the fields of a config.json, refuses those not covered; fields that families share."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from inf_jax.core.errors import UserError
from inf_jax.models.config import Rope
from inf_jax.models.layers import ACTIVATIONS

NUMBER = (int, float)
_REQUIRED = object()

# Fields of every family without effect on the token states: bookkeeping, heads, generation.
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
    exponential_decay_length_penalty suppress_tokens begin_suppress_tokens tie_encoder_decoder
    eos_token_ids xla_device _commit_hash""".split()
)


class Fields:
    """The fields of a config.json; `seen` names those read so far, `problems` has a message for
    each that is missing or wrong."""

    def __init__(self, fields: Mapping[str, Any]):
        self._fields = fields
        self.seen: set[str] = set()
        self.problems: list[str] = []

    def refuse_others(
        self, source: str, *, required: Mapping[str, tuple], ignored: frozenset[str]
    ) -> None:
        """Raises UserError listing every field that is missing, wrong or not covered.

        Args:
          required: fields that must have one of these values where they are present.
          ignored: fields without effect on this family's token states, besides `IGNORED`.
        """
        problems = [
            f"{name}={self._fields[name]!r} (covered: {', '.join(map(repr, allowed))})"
            for name, allowed in required.items()
            if name in self._fields and self._fields[name] not in allowed
        ]
        known = self.seen | required.keys() | ignored | IGNORED | {"model_type"}
        unknown = sorted(self._fields.keys() - known)
        problems += [f"unknown field {name!r}" for name in unknown]
        if problems := problems + self.problems:
            remedy = "; in a copy, take out fields on which the vectors do not depend"
            raise UserError(
                f"{source}: not a supported model: {'; '.join(problems)}{remedy * bool(unknown)}"
            )

    def get(
        self,
        name: str,
        default: Any = _REQUIRED,
        *,
        absent: Any = _REQUIRED,
        kind: type | tuple = int,
        positive: bool = False,
    ) -> Any:
        """A field's value; 1 and an entry in `problems` if it is missing or wrong.

        Args:
          default: value of a field that is absent or null; without one it is required, and an int
            must be above 0.
          absent: value of an absent field, if transformers' differs from that of a null one.
          positive: whether the value must be above 0.
        """
        self.seen.add(name)
        if name not in self._fields and absent is not _REQUIRED:
            return absent
        value = self._fields.get(name)
        if value is None:
            if default is not _REQUIRED:
                return default
            self.problems.append(f"missing field {name!r}")
            return 1
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            self.problems.append(f"{name}={value!r} (wrong type)")
            return 1 if default is _REQUIRED else default
        limit = 31 if kind is int else 1000  # of JAX's sizes, of a float's value; bits
        if isinstance(value, int) and abs(value) >= 1 << limit:
            shown = f"={value}" if abs(value) < 1 << 64 else ""
            self.problems.append(f"{name}{shown} (too large)")
            return 1 if default is _REQUIRED else default
        if (positive or (default is _REQUIRED and kind is int)) and not value > 0:
            self.problems.append(f"{name}={value!r} (must be above 0)")
            return 1
        return value

    def activation(self, *names: str) -> str:
        """The activation that the first non-empty of these fields names."""
        values = [self.get(name, None, kind=str) for name in names]
        activation = next(filter(None, values), None)
        if activation is None:
            self.problems.append(f"missing field {names[0]!r}")
        elif activation not in ACTIVATIONS:
            covered = ", ".join(sorted(ACTIVATIONS))
            self.problems.append(f"{names[0]}={activation!r} (covered: {covered})")
        return activation or "gelu"


class Family(NamedTuple):
    """How the config.json of a model family is read."""

    read: Callable[[Fields], dict[str, Any]]  # gives keyword arguments of EncoderConfig
    required: Mapping[str, tuple] = {}  # the values that a field may have if present
    ignored: frozenset[str] = frozenset()  # fields without effect on the token states


def transformer_options(fields: Fields, *, head_width: int | None = None) -> dict[str, Any]:
    """The options that all families but T5 read from the same fields; `head_width` defaults to
    hidden_size / heads."""
    width, heads = fields.get("hidden_size"), fields.get("num_attention_heads")
    layers = fields.get("num_hidden_layers")
    if not head_width:
        if width % heads and not fields.problems:  # a missing field is reported already
            fields.problems.append(f"hidden_size={width} is not a multiple of the {heads} heads")
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


def layer_types(fields: Fields, layers: int, full: Callable[[int], bool]) -> tuple[str, ...]:
    """Each layer's attention type; `full` (layer -> bool) decides unless the file lists them."""
    names = ("sliding_attention", "full_attention")
    kinds = fields.get("layer_types", None, kind=list)
    if kinds is None:
        return tuple(names[bool(full(i))] for i in range(layers))
    if len(kinds) != layers or any(kind not in names for kind in kinds):
        fields.problems.append(f"layer_types={kinds!r}: {layers} of {', '.join(names)}")
        return names[1:] * layers
    return tuple(kinds)


def windows_of(kinds: tuple[str, ...], window: int | None) -> tuple[int | None, ...]:
    """Each layer's window, from its attention type."""
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def ropes_of(fields: Fields, bases: Mapping[str, float]) -> dict[str, Rope]:
    """The Rope of each attention type in `bases` (type -> default base); "" stands for all layers.

    `rope_parameters` holds base and scaling, one entry per type if there are several. Before
    transformers 5 `rope_scaling` held the scaling, in Gemma 3 for full attention only.
    """
    new = fields.get("rope_parameters", None, kind=dict)
    old = fields.get("rope_scaling", None, kind=dict) or {}
    if not new:
        given = {kind: {} if kind == "sliding_attention" else old for kind in bases}
    elif "" in bases:
        given = {"": new}
    else:
        given = {kind: new.get(kind) for kind in bases}
        if new.keys() != bases.keys() or not all(isinstance(x, dict) for x in given.values()):
            fields.problems.append(
                f"rope_parameters={new!r}: expected one entry for each of {', '.join(bases)}"
            )
            given = {kind: {} for kind in bases}
    # Versions of transformers differ in which of these they use.
    if new and any(name not in new or new[name] != value for name, value in old.items()):
        fields.problems.append("rope_scaling differs from rope_parameters")
    if "" not in bases and "type" in old and "rope_type" not in old:
        fields.problems.append("rope_scaling has a type but no rope_type")
    return {kind: _rope(fields, given[kind], base) for kind, base in bases.items()}


def _rope(fields: Fields, given: Mapping[str, Any], base: float) -> Rope:
    inner = Fields(given)
    kind = inner.get("rope_type", None, kind=str) or inner.get("type", "default", kind=str)
    inner.seen.add("type")
    base = inner.get("rope_theta", base, kind=NUMBER, positive=True)
    if inner.get("partial_rotary_factor", 1.0, kind=NUMBER) != 1:
        inner.problems.append("partial_rotary_factor is not covered")
    factor, original, low, high = 1.0, None, 1.0, 4.0
    if kind in ("linear", "llama3"):
        factor = inner.get("factor", kind=NUMBER, positive=True)
    if kind == "llama3":
        original = inner.get("original_max_position_embeddings", None)
        original = original or fields.get("max_position_embeddings")
        low = inner.get("low_freq_factor", kind=NUMBER)
        high = inner.get("high_freq_factor", kind=NUMBER)
    if kind not in ("default", "linear", "llama3"):
        inner.problems.append(f"rope_type={kind!r} (covered: default, linear, llama3)")
    else:
        inner.problems += [f"unknown field {n!r}" for n in sorted(given.keys() - inner.seen)]
    fields.problems += [f"rope_parameters: {problem}" for problem in inner.problems]
    return Rope(float(base), float(factor), original, float(low), float(high))
