"""Reads the settings of sentence-transformers' Transformer, Pooling and Normalize modules."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from inf_jax.core.errors import UserError
from inf_jax.io.json_files import read_json
from inf_jax.models.hf.fields import IGNORED

# Our poolings -> sentence-transformers' (name since version 6, switch that versions since 2 read).
POOLING_SPELLINGS = {
    "mean": ("mean", "pooling_mode_mean_tokens"),
    "cls": ("cls", "pooling_mode_cls_token"),
    "last": ("lasttoken", "pooling_mode_lasttoken"),
    "weighted_mean": ("weightedmean", "pooling_mode_weightedmean_tokens"),
}
_NORMALIZE = {  # likewise of a Normalize module
    "module_input_name": ("sentence_embedding",),
    "module_output_name": ("sentence_embedding", None),
}
# In the order of reading; an empty file counts as absent.
NAMES = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
# Covered values of fields; None for any, where the field has no effect on vectors of texts.
_FIELDS = {
    "transformer_task": ("feature-extraction",),
    "module_output_name": ("token_embeddings",),
    "query_expansion": (None,),
    "tokenizer_name_or_path": (None,),
    "do_lower_case": (True, False, None),
    "unpad_inputs": None,
    "cache_dir": None,
    "backend": None,
}
_MODEL_ARGUMENTS = {  # how weights are read and computed; float16 stands for the stored values
    "dtype": ("float32", "float16", "auto", None),
    "torch_dtype": ("float32", "float16", "auto", None),
    "add_pooling_layer": (True, False),
} | dict.fromkeys(
    """attn_implementation device_map low_cpu_mem_usage use_safetensors max_memory offload_folder
    offload_state_dict force_download proxies""".split()
)
_TOKENIZER_ARGUMENTS = dict.fromkeys(
    "use_fast padding_side clean_up_tokenization_spaces force_download proxies".split()
)
_CALL_ARGUMENTS = {  # of the tokenizer's call
    "padding": (True, "longest", "max_length"),
    "truncation": (True, "longest_first", "only_first"),
    "add_special_tokens": (True,),
    "return_attention_mask": (True, None),
    "return_tensors": ("pt",),
    "pad_to_multiple_of": None,
    "return_token_type_ids": None,
    "logits_to_keep": None,
    "verbose": None,
}
# The library's own values take the place of these.
_OVERRIDDEN = "subfolder token cache_dir revision local_files_only trust_remote_code".split()
_TEXT_MODALITY = {"method": "forward", "method_output_name": "last_hidden_state"}


class TransformerSettings(NamedTuple):
    """What a Transformer module does to texts; lengths are in tokens, special ones included.

    Attributes:
      max_length: at which a text is cut; None: the limit of the tokenizer or of the positions.
      query_length, document_length: in place of `max_length`; None: as that.
      lower_case: texts are lower-cased before the tokenizer's own normalisation.
    """

    max_length: int | None = None
    query_length: int | None = None
    document_length: int | None = None
    lower_case: bool = False


def read_transformer(folder: Path, *, run: bool = False) -> TransformerSettings:
    """The settings in the first of NAMES in a Transformer module's folder.

    Args:
      run: for a run, whose own keys decide on everything but the tokenizer and config.json:
        arguments of these are refused, other fields that are not covered are not.

    Raises:
      UserError: names each field, or argument of transformers, that is not covered.
    """
    for name in NAMES:
        path = folder / name
        fields = read_json(path, default={}, kind=dict)
        if fields:
            return _settings(path, fields, run)
    return TransformerSettings()


def read_pooling(path: Path) -> tuple[str, bool]:
    """(name in POOLING_SPELLINGS, include_prompt) of a Pooling module's config.json; UserError if
    it is another one."""
    fields = read_json(path, kind=dict)
    old = [name for name in fields if name.startswith("pooling_mode_")]
    if "pooling_mode" in fields:  # written since version 6
        modes = fields["pooling_mode"]
        modes = [str(mode) for mode in (modes if isinstance(modes, list) else [modes])]
        ours = {name: pooling for pooling, (name, _) in POOLING_SPELLINGS.items()}
    else:
        modes = [name for name in old if fields[name]] or [POOLING_SPELLINGS["mean"][1]]
        ours = {switch: pooling for pooling, (_, switch) in POOLING_SPELLINGS.items()}
    known = {"word_embedding_dimension", "embedding_dimension", "pooling_mode", "include_prompt"}
    if unknown := sorted(fields.keys() - known - set(old)):
        raise UserError(f"{path}: {', '.join(unknown)}: no field of a Pooling module is called so")
    if len(modes) != 1 or modes[0] not in ours:
        raise UserError(
            f"{path}: pooling {' + '.join(modes) or 'none'} is not covered, only one of "
            f"{', '.join(ours)}"
        )
    return ours[modes[0]], bool(fields.get("include_prompt", True))


def check_normalize(path: Path) -> None:
    """Raises UserError if a Normalize module's config.json is not that of the pooled vector."""
    if problems := uncovered(read_json(path, default={}, kind=dict), _NORMALIZE):
        raise UserError(
            f"{path}: a Normalize module with {', '.join(problems)} is not covered, only one of "
            "the pooled vector"
        )


def uncovered(
    given: Mapping[str, Any],
    covered: Mapping[str, Collection | None],
    prefix: str = "",
    *,
    same: Mapping[str, Any] = {},
) -> list[str]:
    """A text for each value that is neither in `covered`, where None is any, nor as in `same`."""
    return [
        f"{prefix}{name}={value!r}"
        for name, value in given.items()
        if not (name in covered and (covered[name] is None or value in covered[name]))
        and not (name in same and same[name] == value)
    ]


def _settings(path: Path, fields: dict[str, Any], run: bool) -> TransformerSettings:
    """The settings in the fields of one file; old names of arguments count before new ones."""
    problems: list[str] = []
    fields = dict(fields)
    arguments = {}
    for new, old in (
        ("model_kwargs", "model_args"),
        ("processor_kwargs", "tokenizer_args"),
        ("config_kwargs", "config_args"),
    ):
        given = fields.pop(new, None)
        name, given = (old, fields.pop(old)) if old in fields else (new, given)
        given = _object(given, name, problems)
        arguments[new] = name, {k: v for k, v in given.items() if k not in _OVERRIDDEN}
    lengths = {
        name: _length(fields.pop(name, None), name, problems)
        for name in ("max_seq_length", "query_length", "document_length")
    }
    name, given = arguments["processor_kwargs"]
    if "model_max_length" in given:  # counts before max_seq_length
        limit = given.pop("model_max_length")
        lengths["max_seq_length"] = _length(limit, f"{name}.model_max_length", problems)
    config = read_json(path.with_name("config.json"), default={}, kind=dict)
    tokenizer = read_json(path.with_name("tokenizer_config.json"), default={}, kind=dict)
    covered = dict(_TOKENIZER_ARGUMENTS)
    if config.get("model_type") == "bert":  # its positions count from the padding on
        covered["padding_side"] = ("right",)
    of_run = uncovered(given, covered, f"{name}.", same=tokenizer)
    name, given = arguments["config_kwargs"]
    of_run += uncovered(given, dict.fromkeys(IGNORED), f"{name}.", same=config)
    problems += of_run
    name, given = arguments["model_kwargs"]
    problems += uncovered(given, _MODEL_ARGUMENTS, f"{name}.")
    call = _call_arguments(fields.pop("processing_kwargs", None), problems)
    if "max_length" in call:
        limit = _length(call["max_length"], "processing_kwargs: max_length", problems)
        lengths |= {"query_length": limit, "document_length": limit}
    modalities = _object(fields.pop("modality_config", None), "modality_config", problems)
    if modalities and ("message" in modalities or not _plain_text(modalities.get("text"))):
        problems.append(f"modality_config={modalities!r}")
    problems += uncovered(fields, _FIELDS)
    if problems := of_run if run else problems:
        raise UserError(
            f"{path}: not covered: {'; '.join(problems)}; remove what the vectors do not depend on "
            "in a copy of the model, or use sentence-transformers"
        )
    return TransformerSettings(*lengths.values(), bool(fields.get("do_lower_case")))


def _call_arguments(given: Any, problems: list[str]) -> dict[str, Any]:
    """The arguments of the tokenizer's call in `processing_kwargs`, by their names."""
    given = _object(given, "processing_kwargs", problems)
    parts = {
        name: _object(value, f"processing_kwargs.{name}", problems)
        for name, value in given.items()
        if name in ("text", "common")
    }
    unknown = given.keys() - parts.keys() - {"audio", "image", "video", "chat_template"}
    problems += [f"processing_kwargs.{name}" for name in sorted(unknown)]
    call: dict[str, Any] = {}
    for name in ("text", "common"):
        others = {k: v for k, v in parts.get(name, {}).items() if k != "max_length"}
        problems += uncovered(others, _CALL_ARGUMENTS, f"processing_kwargs.{name}.")
        call |= parts.get(name, {})
    return call


def _plain_text(modality: Any) -> bool:
    if not isinstance(modality, dict):
        return False
    output = modality.get("method_output_name")
    output = output[0] if isinstance(output, list) and len(output) == 1 else output
    return modality | {"method_output_name": output} == _TEXT_MODALITY


def _object(value: Any, name: str, problems: list[str]) -> dict[str, Any]:
    if value is None or isinstance(value, dict):
        return value or {}
    problems.append(f"{name}={value!r} (not an object)")
    return {}


def _length(value: Any, name: str, problems: list[str]) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    problems.append(f"{name}={value!r} (not a positive number of tokens)")
    return None
