"""Opens an exported model, or any model of a supported family, as a Retriever."""

import dataclasses
import logging
import os
from pathlib import Path

import jax

from inf_jax.core.errors import UserError
from inf_jax.distributed.mesh import local_mesh
from inf_jax.distributed.sharding import state_shardings
from inf_jax.io.json_files import read_json
from inf_jax.models.config import EncoderConfig
from inf_jax.models.encoder import make_encoder
from inf_jax.models.hf import sentence_transformers as st_files
from inf_jax.models.hf.config import read_config
from inf_jax.models.hf.resolve import resolve_model
from inf_jax.models.hf.weights import load_weights
from inf_jax.models.pooling import PROJECTION
from inf_jax.retriever.retriever import Retriever
from inf_jax.retriever.settings import SETTINGS_FILE, RetrieverConfig, read_settings
from inf_jax.text.templates import TextConfig
from inf_jax.text.tokenizer import load_tokenizer


def load(name: str | os.PathLike, *, dtype: str = "float32", fsdp: int = 1) -> Retriever:
    """Loads an export of inf_jax, or any directory or hub id of a supported model family.

    Without `inf_jax.json`, pooling, normalisation, limit and prompts come from the
    sentence-transformers files; without those too, mean pooling, unit length and the tokenizer's
    limit are assumed and a warning is logged. Texts get the prompts of `encode_query` and
    `encode_document`; a default_prompt_name is ignored, since it applies to plain `encode` only.

    Args:
      name: a local directory, a hub id, or `package:MODULE/PATH` of an installed package.
      dtype: dtype of the computation, float32 or bfloat16.
      fsdp: for a model that does not fit on one device: each copy is split over this many devices
        of this process (the greatest common divisor with their number).

    Raises:
      UserError: no such model, or one with features that are not supported.
    """
    directory = resolve_model(os.fspath(name))
    if (directory / SETTINGS_FILE).exists():
        config = read_settings(directory)
        folders = config.folders(directory)
        first = next(iter(folders.values()))
        shape = read_config(first)
        heads = {
            role: st_files.projection_of(folder, width=shape.width)
            for role, folder in folders.items()
        }
    else:
        config, first, shape, head = _foreign_config(directory)
        folders, heads = {"shared": first}, {"shared": head}
    mesh = local_mesh(fsdp)
    shardings = state_shardings(mesh, jax.eval_shape(make_encoder(shape).init, jax.random.key(0)))
    params = {
        role: load_weights(folder, shape, shardings=shardings).params
        for role, folder in folders.items()
    }
    for role, head in heads.items():
        stored = (0, False) if head is None else (head["kernel"].shape[1], "bias" in head)
        if stored != (config.projection, config.projection_bias):
            raise UserError(
                f"{folders[role]}: its Dense modules are not the projection of {SETTINGS_FILE}; "
                "export again"
            )
        if head is not None:
            params[role][PROJECTION] = head
    tokenizer = load_tokenizer(first, rows=shape.vocab_size)
    return Retriever(params, config, shape=shape, tokenizer=tokenizer, dtype=dtype, mesh=mesh)


def _foreign_config(directory: Path) -> tuple[RetrieverConfig, Path, EncoderConfig, dict | None]:
    """(config, folder of the weights, shape, projection) of a directory without `inf_jax.json`."""
    model = st_files.read_model(directory)
    if model is None:
        logging.getLogger(__name__).warning(
            "%s has neither %s nor modules.json: mean pooling and unit length are assumed",
            directory,
            SETTINGS_FILE,
        )
        model = st_files.StModel("mean", True, None)
    folder = directory / model.path
    shape = read_config(folder)
    tokenizer = read_json(folder / "tokenizer_config.json", default={}, kind=dict)
    limits = {
        "max_position_embeddings": shape.max_positions,
        "max_seq_length": model.max_length,
        "model_max_length": tokenizer.get("model_max_length"),
    }
    for name, limit in limits.items():
        if limit is not None and not isinstance(limit, int | float):
            raise UserError(f"{folder}: {name}={limit!r} is not a number of tokens; correct it")
    limit = int(min(x for x in limits.values() if x))
    query, passage = (
        prompt.replace("{", "{{").replace("}", "}}")
        for prompt in (model.query_prompt, model.passage_prompt)
    )
    text = TextConfig(query + "{query} {instruction}", passage + "{passage}", limit, limit)
    config = RetrieverConfig("shared", model.pooling, model.normalise, text)
    head = st_files.read_projection(directory, model.dense, width=shape.width)
    if head is not None:
        width, bias = head["kernel"].shape[1], "bias" in head
        config = dataclasses.replace(config, projection=width, projection_bias=bias)
    return config, folder, shape, head
