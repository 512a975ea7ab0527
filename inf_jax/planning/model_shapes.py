"""Reads encoder shapes for planning, from a config.json or a list of public models."""

from pathlib import Path

from inf_jax.core.errors import UserError
from inf_jax.io.json_files import read_json
from inf_jax.models.config import EncoderConfig
from inf_jax.models.hf.config import config_from_hf, read_config
from inf_jax.models.hf.resolve import resolve_model

PUBLIC = Path(__file__).with_name("plan_models.json")


def model_shape(name: str, override: str | None = None) -> tuple[EncoderConfig, str]:
    """(shape, source) of a model, without its weights.

    Args:
      name: `model.name` of a config.
      override: a config.json, or a directory with one, in place of the model's own.

    Raises:
      UserError: the config.json is missing or cannot be read.
    """
    if override:
        path = Path(override)
        path = path / "config.json" if path.is_dir() else path
        fields = read_json(path, kind=dict, remedy="name a config.json with --model-config")
        return config_from_hf(fields, str(path)), str(path)
    public = read_json(PUBLIC)
    try:
        if name in public and not name.startswith("package:") and not Path(name).is_dir():
            return config_from_hf(public[name], name), f"{PUBLIC.name}, {name}"
        directory = resolve_model(name)
        return read_config(directory), str(directory)
    except UserError as error:
        if name in public:
            return config_from_hf(public[name], name), f"{PUBLIC.name}, {name}"
        raise UserError(f"{error}; or give its config.json with --model-config=FILE") from None
