"""Retriever settings of a training run, from its configuration."""

import dataclasses

from inf_jax.config.sections import RunConfig
from inf_jax.data.from_config import text_config
from inf_jax.retriever.settings import RetrieverConfig


def retriever_config(config: RunConfig) -> RetrieverConfig:
    """The settings that a run is evaluated and exported with.

    Passages are cut at `eval.max_passage_tokens`, not at the limit of the training.
    """
    text = dataclasses.replace(
        text_config(config), max_passage_tokens=config.eval.max_passage_tokens
    )
    return RetrieverConfig(
        towers=config.model.towers,
        query_encoder=config.model.query_encoder,
        pooling=config.model.pooling,
        projection=config.model.projection,
        projection_bias=config.model.projection_bias,
        normalise=config.model.normalise,
        dims=tuple(config.loss.dims),
        text=text,
    )


def chunk_tokens(config: RunConfig) -> int:
    """Tokens that a device encodes at once when a run is evaluated."""
    text = retriever_config(config).text
    return config.eval.batch_rows * max(text.max_query_tokens, text.max_passage_tokens)
