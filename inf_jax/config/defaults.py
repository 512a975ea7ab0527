"""The default configuration of a run, as the ConfigDict that config files start from."""

from ml_collections import ConfigDict

from inf_jax.config.schema import config_dict, from_config_dict
from inf_jax.config.sections import RunConfig


def defaults() -> ConfigDict:
    """All keys with their defaults; locked, so that a new key raises."""
    return config_dict(RunConfig())


def run_config(config: ConfigDict) -> RunConfig:
    """The typed, immutable form of a checked config."""
    return from_config_dict(RunConfig(), config)
