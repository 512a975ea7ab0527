"""From a config to the things that the mains work with: model, texts, data, directories."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from inf_jax.config.sections import RunConfig
from inf_jax.core.errors import UserError
from inf_jax.core.trees import leaf_paths
from inf_jax.models.config import EncoderConfig
from inf_jax.models.encoder import Encoder, EncoderOptions, make_encoder
from inf_jax.models.hf import sentence_transformers as st_files
from inf_jax.models.hf.config import read_config
from inf_jax.models.hf.resolve import resolve_model
from inf_jax.models.hf.weights import Weights, load_weights
from inf_jax.models.lora import make_lora
from inf_jax.models.pooling import PROJECTION, init_projection
from inf_jax.text import eos
from inf_jax.text.tokenizer import TextTokenizer, load_tokenizer


class Backbone(NamedTuple):
    """A backbone as the config names it.

    Attributes:
      directory: its HF directory (config.json, tokenizer, weights).
      encoder: the pure functions, with the run's dropout and options.
      tokenizer: its tokenizer.
      seed: of a projection that is not in the directory.
    """

    directory: Path
    encoder: Encoder
    tokenizer: TextTokenizer
    seed: int = 0

    def load(self, shardings: Mapping | None = None) -> Weights:
        """The backbone's own weights, float32, see `load_weights`; and its projection, or a
        random one.

        Raises:
          UserError: its projection is not the one that the config asks for.
        """
        head = self._projection()
        loaded = load_weights(self.directory, self.encoder.config, shardings=shardings)
        if head is None:
            return loaded
        if shardings is not None:
            head = {
                name: jax.make_array_from_callback(
                    x.shape, shardings[PROJECTION][name], x.__getitem__
                )
                for name, x in head.items()
            }
        return loaded._replace(params=loaded.params | {PROJECTION: head})

    def _projection(self) -> dict[str, np.ndarray] | None:
        options = self.encoder.options
        width, bias = options.projection, options.projection_bias
        found = st_files.projection_of(self.directory, width=self.encoder.config.width)
        if found is not None:
            there = found["kernel"].shape[1], "bias" in found
            if there != (width, bias):
                raise UserError(
                    f"{self.directory} ends in a Dense module: set model.projection={there[0]} and "
                    f"model.projection_bias={there[1]} to go on with it, or train from a copy "
                    "without modules.json"
                )
        elif width:
            key = jax.random.key(self.seed)
            drawn = init_projection(key, self.encoder.config.width, width, bias=bias)
            found = jax.tree.map(np.asarray, drawn)
        return found


def load_model(config: RunConfig) -> Backbone:
    """The `model` section: directory, shape, options, tokenizer; weights are read by
    `Backbone.load`."""
    directory = resolve_model(config.model.name)
    encoder = configured_encoder(config, read_config(directory), source=directory)
    return Backbone(directory, encoder, run_tokenizer(config), config.seed)


def run_tokenizer(config: RunConfig) -> TextTokenizer:
    """The tokenizer of the `model` section, which appends an EOS where that asks for it."""
    choice = eos.choice_for(config.model.append_eos, config.model.pooling)
    directory = resolve_model(config.model.name)
    rows = read_config(directory).vocab_size
    return load_tokenizer(directory, append_eos=choice, rows=rows)


def configured_encoder(
    config: RunConfig,
    shape: EncoderConfig,
    *,
    source: str | os.PathLike,
    device: jax.Device | None = None,
) -> Encoder:
    """An encoder of this shape with the dropout and the options of the `model` section.

    Raises:
      UserError: texts may be longer than the shape has positions (names `source`), the mask is
        not for such a model, or model.lora_targets are no linear layers.
    """
    section = config.model
    shape = shape.with_mask(section.mask)
    shape = dataclasses.replace(shape, dropout=section.dropout, attention_dropout=section.dropout)
    longest = max(config.data.max_query_tokens, config.data.max_passage_tokens)
    if longest > shape.max_positions:
        raise UserError(
            f"config: texts of {longest} tokens, but {source} has {shape.max_positions} "
            "positions; lower data.max_query_tokens or data.max_passage_tokens"
        )
    parameters = jax.eval_shape(make_encoder(shape).init, jax.random.key(0))
    paths = leaf_paths(parameters) if section.lora_rank else []
    options = EncoderOptions(
        pooling=section.pooling,
        projection=section.projection,
        projection_bias=section.projection_bias,
        normalise=section.normalise,
        dtype=section.dtype,
        scan_layers=section.scan_layers,
        remat=section.remat,
        lora=make_lora(
            paths, rank=section.lora_rank, alpha=section.lora_alpha, targets=section.lora_targets
        ),
        attention=section.attention,
        device=device,
    )
    return make_encoder(shape, options)
