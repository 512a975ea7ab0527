"""The backbone that a run's config names: its directory, encoder, tokenizer and weights."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from inf_jax.config.sections import RunConfig
from inf_jax.core.choices import AUTO
from inf_jax.core.errors import UserError
from inf_jax.core.trees import leaf_paths
from inf_jax.models.config import EncoderConfig
from inf_jax.models.encoder import Encoder, EncoderOptions, make_encoder
from inf_jax.models.hf import sentence_transformers as st_files
from inf_jax.models.hf.config import read_config, refuse_own_code
from inf_jax.models.hf.resolve import resolve_model
from inf_jax.models.hf.weights import Weights, load_weights
from inf_jax.models.lora import make_lora
from inf_jax.models.pooling import PROJECTION, init_projection
from inf_jax.text import eos
from inf_jax.text.tokenizer import TextTokenizer, load_tokenizer


class Backbone(NamedTuple):
    """A pretrained model, with the options of a run."""

    directory: Path  # config.json, tokenizer, weights
    encoder: Encoder  # with the run's dropout and options
    tokenizer: TextTokenizer
    seed: int = 0  # of a random projection, if the directory has none

    def load(self, shardings: Mapping | None = None) -> Weights:
        """The backbone's weights, float32, see `load_weights`, with its projection or a random one.
        Raises UserError if its projection differs from the config's."""
        head = self._projection()
        loaded = load_weights(self.directory, self.encoder.config, shardings=shardings)
        if head is None:
            return loaded
        if shardings is not None:
            places = shardings[PROJECTION]
            head = {
                name: jax.make_array_from_callback(x.shape, places[name], x.__getitem__)
                for name, x in head.items()
            }
        return loaded._replace(params=loaded.params | {PROJECTION: head})

    def _projection(self) -> dict[str, np.ndarray] | None:
        options = self.encoder.options
        width, bias = options.projection, options.projection_bias
        projection = st_files.projection_of(self.directory, width=self.encoder.config.width)
        if projection is not None:
            own = projection["kernel"].shape[1], "bias" in projection
            if own != (width, bias):
                raise UserError(
                    f"{self.directory} ends in a Dense module: set model.projection={own[0]} and "
                    f"model.projection_bias={own[1]} to keep training it, or use a copy without "
                    "modules.json"
                )
        elif width:
            key = jax.random.key(self.seed)
            random = init_projection(key, self.encoder.config.width, width, bias=bias)
            projection = jax.tree.map(np.asarray, random)
        return projection


def load_model(config: RunConfig) -> Backbone:
    """The backbone of the `model` section; `Backbone.load` reads its weights."""
    directory = resolve_model(config.model.name)
    refuse_own_code(directory, config.model.mask)
    encoder = configured_encoder(config, read_config(directory), source=directory)
    return Backbone(directory, encoder, run_tokenizer(config), config.seed)


def run_tokenizer(config: RunConfig) -> TextTokenizer:
    """The tokenizer of the `model` section; it appends an EOS if `model.append_eos` says so, and
    lower-cases texts if the model's sentence-transformers files do."""
    choice = eos.choice_for(config.model.append_eos, config.model.pooling)
    directory = resolve_model(config.model.name)
    rows = read_config(directory).vocab_size
    lower_case = st_files.transformer_of_run(directory).lower_case
    return load_tokenizer(directory, append_eos=choice, rows=rows, lower_case=lower_case)


def configured_encoder(
    config: RunConfig,
    shape: EncoderConfig,
    *,
    source: str | os.PathLike,
    device: jax.Device | None = None,
) -> Encoder:
    """An encoder with the dropout and the options of the `model` section.

    Args:
      source: where `shape` is from, for messages.
      device: see `EncoderOptions`.

    Raises:
      UserError: data.max_*_tokens exceed the model's positions, the model does not support
        model.mask, or model.lora_targets selects something other than linear layers.
    """
    section = config.model
    shape = shape.with_mask(section.mask)
    rates = {"dropout": section.dropout, "attention_dropout": section.attention_dropout}
    shape = dataclasses.replace(shape, **rates)
    longest = max(config.data.max_query_tokens, config.data.max_passage_tokens)
    if longest > shape.max_positions:
        raise UserError(
            f"config: texts of {longest} tokens, but {source} has {shape.max_positions} "
            "positions; lower data.max_query_tokens or data.max_passage_tokens"
        )
    lora = None
    if section.lora_rank:
        paths = leaf_paths(jax.eval_shape(make_encoder(shape).init, jax.random.key(0)))
        rank, alpha, targets = section.lora_rank, section.lora_alpha, section.lora_targets
        lora = make_lora(paths, rank=rank, alpha=alpha, targets=targets)
    # The other options are keys of the section.
    names = {field.name for field in dataclasses.fields(EncoderOptions)} - {"lora", "device"}
    options = {name: getattr(section, name) for name in names}
    if section.remat == AUTO:  # where no step is trained; training has settled it
        options["remat"] = "none"
    return make_encoder(shape, EncoderOptions(**options, lora=lora, device=device))
