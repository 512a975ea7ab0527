"""Opens an exported model, or any model of a supported family, as a Retriever."""

import dataclasses
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path

import jax

from inf_jax.core.choices import ATTENTION_MASKS, DTYPES
from inf_jax.core.errors import UserError
from inf_jax.distributed.mesh import local_mesh
from inf_jax.distributed.sharding import state_shardings
from inf_jax.io.json_files import read_json
from inf_jax.models.config import EncoderConfig
from inf_jax.models.encoder import make_encoder
from inf_jax.models.hf import sentence_transformers as st_files
from inf_jax.models.hf.config import read_config, refuse_adapter, refuse_own_code
from inf_jax.models.hf.module_settings import TransformerSettings
from inf_jax.models.hf.resolve import resolve_model
from inf_jax.models.hf.sentence_transformers import prompt_of
from inf_jax.models.hf.weights import load_weights
from inf_jax.models.pooling import PROJECTION
from inf_jax.retriever.retriever import Retriever
from inf_jax.retriever.settings import SETTINGS_FILE, RetrieverConfig, read_settings
from inf_jax.text.templates import TextConfig
from inf_jax.text.tokenizer import load_tokenizer


def load(
    name: str | os.PathLike,
    *,
    dtype: str = "float32",
    fsdp: int = 1,
    mask: str = "model",
    query_template: str | None = None,
    passage_template: str | None = None,
) -> Retriever:
    """Loads an export of inf_jax, or any directory or hub id of a supported model family.

    Without `inf_jax.json`, everything comes from the sentence-transformers files: pooling,
    normalisation, limits, lower-casing, truncation of vectors and prompts; what is not supported is
    refused by name. Without those too, mean pooling (last for a causal language model), unit length
    and the tokenizer's limit are assumed and a warning is logged. Texts get the prompts of
    `encode_query` and `encode_document`; a default_prompt_name is for plain `encode` only.

    Args:
      name: a local directory, a hub id, or `package:MODULE/PATH` of an installed package.
      dtype: dtype of the computation, float32 or bfloat16.
      fsdp: for a model that does not fit on one device: each copy is split over this many devices
        of this process (the greatest common divisor with their number).
      mask: attention mask, "causal" or "bidirectional"; "model": as the model's config says. A
        model with code of its own (`auto_map`) needs one of the first two.
      query_template: text of an instructed query in place of the model's prompt, for instruct
        models whose files do not say it: "Instruct: {instruction}\\nQuery: {query}". None: the
        model's own.
      passage_template: likewise of a passage, "{passage}".

    Raises:
      UserError: no such model, one with features that are not supported, or a wrong argument.
    """
    for argument, value, allowed in (("dtype", dtype, DTYPES), ("mask", mask, ATTENTION_MASKS)):
        if value not in allowed:
            raise UserError(f"{argument}={value!r} is not one of {', '.join(allowed)}")
    if not isinstance(fsdp, int) or fsdp < 1:
        raise UserError(f"fsdp={fsdp!r} is not a number of devices")
    if not isinstance(name, str | os.PathLike):
        raise UserError(f"name={name!r} is neither a directory nor a hub id")
    directory = resolve_model(os.fspath(name))
    if (directory / SETTINGS_FILE).exists():
        config = read_settings(directory)
        folders = config.folders(directory)
        first = next(iter(folders.values()))
        shape = _shape(first, mask)
        lower_case, include_prompt = False, True
        heads = {
            role: st_files.projection_of(folder, width=shape.width)
            for role, folder in folders.items()
        }
    else:
        refuse_adapter(directory)  # other libraries look here too for weights in a folder of it
        model = _foreign_model(directory)
        first = directory / model.path
        shape = _shape(first, mask)
        lower_case, include_prompt = model.transformer.lower_case, model.include_prompt
        head = st_files.read_projection(directory, model.dense, width=shape.width)
        config = _foreign_config(model, first, shape, head)
        if shape.positions != "learned":  # files may allow more than max_position_embeddings
            longest = max(config.text.max_query_tokens, config.text.max_passage_tokens)
            shape = dataclasses.replace(shape, max_positions=max(longest, shape.max_positions))
        folders, heads = {"shared": first}, {"shared": head}
    config = with_templates(config, query_template, passage_template)
    prompts = [prompt_of(x) for x in (config.text.query_template, config.text.passage_template)]
    if not include_prompt and any(prompts):
        raise UserError(
            f"{directory}: its pooling has include_prompt=false, which is not covered with the "
            f"prompts {prompts}; use sentence-transformers"
        )
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
    tokenizer = load_tokenizer(first, rows=shape.vocab_size, lower_case=lower_case)
    return Retriever(params, config, shape=shape, tokenizer=tokenizer, dtype=dtype, mesh=mesh)


def _shape(folder: Path, mask: str) -> EncoderConfig:
    refuse_own_code(folder, mask)
    return read_config(folder).with_mask(mask)


def with_templates(
    config: RetrieverConfig, query_template: str | None, passage_template: str | None
) -> RetrieverConfig:
    """The settings with these templates in place of their own; None leaves one as it is. Raises
    UserError for a query's template where query and instruction are encoded separately."""
    if query_template is not None and not config.queries.pooled:
        raise UserError("query_template: this model encodes query and instruction separately")
    given = {"query_template": query_template, "passage_template": passage_template}
    given = {name: template for name, template in given.items() if template is not None}
    return dataclasses.replace(config, text=dataclasses.replace(config.text, **given))


def _foreign_model(directory: Path) -> st_files.StModel:
    """The sentence-transformers model of a directory, or what is assumed without its files."""
    model = st_files.read_model(directory)
    if model is not None:
        return model
    tokenizer = read_json(directory / "tokenizer_config.json", default={}, kind=dict)
    if tokenizer.get("chat_template") or any(directory.glob("chat_template.*")):
        raise UserError(
            f"{directory} has a chat template and no modules.json: sentence-transformers would "
            "encode each text as a chat, which is not covered; save it with that library, or leave "
            "the template out of a copy to encode plain texts"
        )
    fields = read_json(directory / "config.json", default={}, kind=dict)
    classes = fields.get("architectures")
    first = classes[0] if isinstance(classes, list) and classes else ""
    causal = str(first).endswith("ForCausalLM") and fields.get("is_causal", True)
    pooling = "last" if causal else "mean"  # as sentence-transformers assumes
    logging.getLogger(__name__).warning(
        "%s has neither %s nor modules.json: %s pooling and unit length are assumed",
        directory,
        SETTINGS_FILE,
        pooling,
    )
    return st_files.StModel(pooling, True)


def _foreign_config(
    model: st_files.StModel, folder: Path, shape: EncoderConfig, head: dict | None
) -> RetrieverConfig:
    """The settings of a model without `inf_jax.json`; `folder` is that of its weights."""
    path = folder / "tokenizer_config.json"
    tokenizer = read_json(path, default={}, kind=dict)
    sides = ["truncation_side"]
    if shape.positions == "learned" and not shape.position_offset:
        sides.append("padding_side")  # elsewhere positions do not depend on the padding
    for name in sides:
        side = tokenizer.get(name) or "right"
        if side != "right":
            raise UserError(
                f"{path}: {name}={side!r} is not covered, only 'right'; change it in a copy"
            )
    inputs = tokenizer.get("model_input_names", "attention_mask")
    if "attention_mask" not in (inputs or ()):
        raise UserError(
            f"{path}: model_input_names={inputs!r} has no attention_mask: other libraries would "
            "attend to padding, which is not covered; add it in a copy"
        )
    limits = _limits(model.transformer, tokenizer, shape, path)
    query, passage = (
        prompt.replace("{", "{{").replace("}", "}}")
        for prompt in (model.query_prompt, model.passage_prompt)
    )
    size = shape.width if head is None else head["kernel"].shape[1]
    return RetrieverConfig(
        pooling=model.pooling,
        normalise=model.normalise,
        text=TextConfig(query + "{query} {instruction}", passage + "{passage}", *limits),
        projection=0 if head is None else size,
        projection_bias=head is not None and "bias" in head,
        truncate_dim=model.truncate_dim if model.truncate_dim < size else 0,
        similarity=model.similarity,
    )


def _limits(
    lengths: TransformerSettings, tokenizer: Mapping, shape: EncoderConfig, path: Path
) -> list[int]:
    """Most tokens of a query and of a passage; `tokenizer` is the contents of `path`.

    A limit of the sentence-transformers files may exceed max_position_embeddings where positions
    have no table; the tokenizer's own may not.
    """
    known = [tokenizer[name] for name in ("model_max_length", "max_len") if name in tokenizer]
    own = (known[0] if known else None) or shape.max_positions  # max_len: before transformers 3
    if isinstance(own, bool) or not isinstance(own, int | float):
        raise UserError(f"{path}: model_max_length={own!r} is not a number of tokens; correct it")
    most = shape.max_positions if shape.positions == "learned" else math.inf
    limit = min(lengths.max_length or min(own, shape.max_positions), most)
    return [
        int(min(each or limit, most)) for each in (lengths.query_length, lengths.document_length)
    ]
