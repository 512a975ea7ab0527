"""From a config to the things that the mains work with: model, texts, data, directories."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax

from inf_jax.config import ReadLog
from inf_jax.errors import UserError
from inf_jax.mesh import path_name
from inf_jax.models import hf
from inf_jax.models.config import EncoderConfig, read_config
from inf_jax.models.encoder import Encoder, EncoderOptions, make_encoder
from inf_jax.models.lora import make_lora
from inf_jax.text import TextConfig, TextTokenizer, load_tokenizer
from inf_jax.tokenise import tokenise
from inf_jax.tokenised import TokenisedDataset


class Model(NamedTuple):
    """A backbone as the config names it.

    Attributes:
      directory: its HF directory (config.json, tokenizer, weights).
      encoder: the pure functions, with the run's dropout and options.
      tokenizer: its tokenizer.
    """

    directory: Path
    encoder: Encoder
    tokenizer: TextTokenizer

    def load(self, shardings: Mapping | None = None) -> hf.Weights:
        """The backbone's own weights, float32; see `hf.load_weights`."""
        return hf.load_weights(self.directory, self.encoder.config, shardings=shardings)


def load_model(config: ReadLog) -> Model:
    """The `model` section: directory, shape, options, tokenizer; weights are read by
    `Model.load`."""
    directory = hf.resolve_model(config.model.name)
    encoder = configured_encoder(config, read_config(directory), source=directory)
    return Model(directory, encoder, load_tokenizer(directory))


def configured_encoder(
    config: ReadLog,
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
    paths = _paths(shape) if section.lora_rank else []
    options = EncoderOptions(
        pooling=section.pooling,
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


def _paths(shape: EncoderConfig) -> list[str]:
    tree = jax.eval_shape(make_encoder(shape).init, jax.random.key(0))
    return [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def text_config(config: ReadLog) -> TextConfig:
    """Templates and limits of the `data` section."""
    return TextConfig(
        query_template=config.data.query_template,
        passage_template=config.data.passage_template,
        max_query_tokens=config.data.max_query_tokens,
        max_passage_tokens=config.data.max_passage_tokens,
    )


def dataset_dir(config: ReadLog) -> Path:
    """`<data.dir>/inf_ir/<source>/<version>`; raises UserError where nothing was built."""
    directory = Path(config.data.dir) / "inf_ir" / config.data.source / config.data.version
    if not (directory / "dataset_info.json").exists():
        raise UserError(
            f"{directory}: no dataset here; build it with "
            f"`python -m data_pipeline.build --source={config.data.source} "
            f"--data_dir={config.data.dir}`"
        )
    return directory


def tokenised_split(
    config: ReadLog, tokenizer: TextTokenizer, split: str, *, expected: str | None = None
) -> TokenisedDataset:
    """The split's tokenised records, made now if the cache has none for these texts and tokenizer;
    `expected` as for `tokenise`."""
    directory = tokenise(
        dataset_dir(config),
        split,
        tokenizer=tokenizer,
        text=text_config(config),
        out_dir=Path(config.data.dir) / "tokenised" / config.data.source,
        expected=expected,
    )
    return TokenisedDataset(directory)
