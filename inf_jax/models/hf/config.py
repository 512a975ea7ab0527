"""Reads a Hugging Face config.json as an EncoderConfig; picks the family that maps its fields."""

from collections.abc import Mapping
from pathlib import Path

from inf_jax.core.errors import UserError
from inf_jax.io.json_files import read_json
from inf_jax.models.config import EncoderConfig
from inf_jax.models.hf.families import FAMILIES
from inf_jax.models.hf.fields import Fields


def config_from_hf(fields: Mapping, source: str = "config.json") -> EncoderConfig:
    """The EncoderConfig of a config.json as transformers 4 or 5 writes it; `source` is its path.

    Raises:
      UserError: lists every field that is missing, has a value that is not covered, or is neither
        read nor known to have no effect on the token states.
    """
    if not isinstance(fields, Mapping):
        raise UserError(f"{source}: not a JSON object")
    model_type = fields.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        problem = "missing field 'model_type'" if model_type is None else f"{model_type=}"
        covered = ", ".join(sorted(FAMILIES))
        raise UserError(f"{source}: not a supported model: {problem} (covered: {covered})")
    family, read = FAMILIES[model_type], Fields(fields)
    options = family.read(read)
    read.refuse_others(source, required=family.required, ignored=family.ignored)
    return EncoderConfig(family=model_type, **options)


def mask_fields(fields: Mapping, shape: EncoderConfig) -> dict:
    """The fields with the attention mask of `shape`; transformers 5 switches by `is_causal`."""
    fields = dict(fields)
    if config_from_hf(fields).causal == shape.causal:
        return fields
    if not shape.causal:
        return fields | {"is_causal": False}
    fields.pop("is_causal", None)
    if fields.get("use_bidirectional_attention"):
        # The window of such a config counts both sides, that of a causal one does not.
        fields["sliding_window"] = next((w for w in shape.windows if w), fields["sliding_window"])
        fields["use_bidirectional_attention"] = False
    return fields


def refuse_own_code(directory: Path, mask: str) -> None:
    """Raises UserError if a directory has code of its own (`auto_map`), which is not run and often
    changes the attention, unless `mask` says which attention it is: "causal" or "bidirectional"."""
    code = {}
    for name in ("config.json", "tokenizer_config.json"):
        fields = read_json(directory / name, default={}, kind=dict)
        if fields.get("auto_map"):
            code[name] = fields["auto_map"]
    if code and mask == "model":
        found = "; ".join(f"{name}: auto_map={value!r}" for name, value in code.items())
        raise UserError(
            f"{directory} has code of its own, which is not run ({found}); if that is its "
            "model_type with another attention mask, name the mask: model.mask='bidirectional' or "
            "'causal' (mask=... of inf_jax.load), and compare some vectors with its own; if it is "
            "no more than its model_type, take auto_map out of the file"
        )


def refuse_adapter(directory: Path) -> None:
    """Raises UserError if a directory is a PEFT adapter, which is not applied; says how to merge it
    into its base."""
    path = directory / "adapter_config.json"
    if not path.exists():
        return
    fields = read_json(path, kind=dict, remedy="download it again")
    kind, base = fields.get("peft_type"), fields.get("base_model_name_or_path")
    # PEFT needs the class that the adapter was made for; SentenceTransformer.add_adapter names none
    of_base = "AutoModelForCausalLM" if fields.get("task_type") == "CAUSAL_LM" else "AutoModel"
    raise UserError(
        f"{path}: a PEFT adapter ({kind}) of the model {base!r} is not applied here; merge it: "
        f"peft.PeftModel.from_pretrained(transformers.{of_base}.from_pretrained({base!r}), "
        f"{str(directory)!r}).merge_and_unload().save_pretrained(NEW), copy the directory's other "
        "files but adapter_* (tokenizer, modules.json, 1_Pooling, ...) to NEW, and name that"
    )


def read_config(directory: str | Path) -> EncoderConfig:
    """`config_from_hf` of `<directory>/config.json`; UserError for a PEFT adapter too."""
    path = Path(directory) / "config.json"
    refuse_adapter(path.parent)
    fields = read_json(path, remedy="name a Hugging Face model directory or hub id")
    return config_from_hf(fields, str(path))
