"""The encoder's shape, read from a Hugging Face config whose every field is handled, ignored or
refused; `models.families` has the tables."""

import json
from collections.abc import Mapping
from pathlib import Path

from inf_jax.core.errors import UserError
from inf_jax.models.config import EncoderConfig
from inf_jax.models.hf.families import FAMILIES, IGNORED
from inf_jax.models.hf.fields import Fields


def config_from_hf(fields: Mapping, source: str = "config.json") -> EncoderConfig:
    """Reads a HF config.

    Args:
      fields: the parsed config.json, of transformers 4 or 5.
      source: its path, for messages.

    Raises:
      UserError: lists every field that is missing, has a value that this version does not cover, or
        is neither handled nor knowingly ignored.
    """
    if not isinstance(fields, Mapping):
        raise UserError(f"{source}: not a config, which is a JSON object")
    kind = fields.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        found = "missing field 'model_type'" if kind is None else f"model_type={kind!r}"
        covered = ", ".join(sorted(FAMILIES))
        raise UserError(f"{source}: not a model this version loads: {found} (covered: {covered})")
    family, read = FAMILIES[kind], Fields(fields)
    options = family.read(read)
    problems = [
        f"{name}={fields[name]!r} (covered: {', '.join(map(repr, allowed))})"
        for name, allowed in family.required.items()
        if name in fields and fields[name] not in allowed
    ]
    known = read.seen | family.required.keys() | family.ignored | IGNORED | {"model_type"}
    problems += [f"unknown field {name!r}" for name in sorted(fields.keys() - known)]
    problems += read.problems
    if problems:
        raise UserError(f"{source}: not a model this version loads: " + "; ".join(problems))
    return EncoderConfig(family=kind, **options)


def mask_fields(fields: Mapping, shape: EncoderConfig) -> dict:
    """A config.json's fields, changed so that they say of the mask what `shape` does.

    `is_causal` is transformers' own switch (since 5) of a decoder's attention.
    """
    fields = dict(fields)
    if config_from_hf(fields).causal == shape.causal:
        return fields
    if not shape.causal:
        return fields | {"is_causal": False}
    fields.pop("is_causal", None)
    if fields.get("use_bidirectional_attention"):
        # the number of such a config is of both sides
        fields["sliding_window"] = next((w for w in shape.windows if w), fields["sliding_window"])
        fields["use_bidirectional_attention"] = False
    return fields


def read_config(directory: str | Path) -> EncoderConfig:
    """`config_from_hf` of `<directory>/config.json`."""
    path = Path(directory) / "config.json"
    try:
        fields = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; name a Hugging Face model directory or hub id"
        ) from None
    except ValueError as error:  # of JSON or of its encoding
        raise UserError(f"{path}: not JSON ({error})") from None
    return config_from_hf(fields, str(path))
