"""Configuration of a run: `defaults()` is where a user's config file starts."""

from inf_jax.config.defaults import defaults as defaults
