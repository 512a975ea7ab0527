"""Opens the model of a run's checkpoint as a Retriever, without an export; and a run's teacher."""

import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from inf_jax.checkpoints import manager as checkpoint
from inf_jax.checkpoints.integrity import fingerprint
from inf_jax.config.sections import RunConfig
from inf_jax.core.errors import UserError
from inf_jax.core.trees import is_vector
from inf_jax.distributed.mesh import local_mesh
from inf_jax.io.paths import is_url
from inf_jax.io.storage import AnyPath
from inf_jax.models.config import EncoderConfig
from inf_jax.models.encoder import COMPUTE_DTYPES, Encoder, EncoderOptions, make_encoder
from inf_jax.models.hf.backbone import Backbone, load_model
from inf_jax.models.hf.config import read_config
from inf_jax.planning.model_shapes import model_shape
from inf_jax.retriever.from_config import chunk_tokens, retriever_config
from inf_jax.retriever.loading import load, with_templates
from inf_jax.retriever.retriever import Retriever
from inf_jax.retriever.settings import SETTINGS_FILE, read_settings
from inf_jax.training.initial_params import checkpoints_of, config_of, trained_params


class Teacher(NamedTuple):
    """A frozen model that scores passages in a run's step, see `step.with_teacher`.

    Attributes:
      encoder: computes in the run's dtype, to unit length.
      params: {tower: tree}, arrays of the host or their shapes; matrices in the run's dtype.
    """

    encoder: Encoder
    params: dict

    def on_mesh(self, shapes: dict) -> dict:
        """The parameters with the shardings of `shapes`; the mesh may span processes."""

        def leaf(x: np.ndarray, shape: jax.ShapeDtypeStruct) -> jax.Array:
            return jax.make_array_from_callback(x.shape, shape.sharding, x.__getitem__)

        return jax.tree.map(leaf, self.params, shapes)


def teacher_fingerprint(encoder: Encoder | None, params: dict) -> str:
    """WEIGHTS-SETTINGS, hexadecimal digits of what decides a teacher's vectors in a run's step, the
    same on any mesh; "" for none.

    Settings are pooling and architecture, the attention mask included. The rest is the run's own:
    tokens, templates and limits of texts, and vectors of unit length.
    """
    if encoder is None or not params:
        return ""
    config = encoder.config
    default = {field.name: field.default for field in dataclasses.fields(config)}
    shape = {name: x for name, x in config.of_vectors().items() if x != default[name]}
    text = json.dumps([encoder.options.pooling, shape], sort_keys=True)
    return f"{fingerprint(params)}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def is_run(name: str) -> bool:
    """Whether a model's name is the out_dir of a run, or one of its checkpoints."""
    path = Path(name).expanduser()
    return is_url(name) or (path / "checkpoints").is_dir() or (path / "state").is_dir()


def has_checkpoints(name: str) -> bool:
    """Whether a model's name is the out_dir of a run, one of whose checkpoints is opened."""
    return is_run(name) and _place(name)[1] == "newest"


def open_model(
    name: str,
    *,
    which: str = "newest",
    dtype: str = "float32",
    fsdp: int = 1,
    mask: str = "model",
    query_template: str | None = None,
    passage_template: str | None = None,
) -> Retriever:
    """The model of a run, or any other that `inf_jax.load` opens.

    Args:
      name: out_dir of a run, OUT_DIR/checkpoints/STEP, or as of `inf_jax.load`.
      which: of an out_dir: newest, best (needs train.keep_best) or a step.
      dtype, fsdp, mask, query_template, passage_template: as of `inf_jax.load`.

    Raises:
      UserError: no such checkpoint, one that is damaged, or as `inf_jax.load`.
    """
    templates = {"query_template": query_template, "passage_template": passage_template}
    if not is_run(name):
        return load(name, dtype=dtype, fsdp=fsdp, mask=mask, **templates)
    directory, step = _place(name)
    saved = checkpoint.read_saved(directory, which if step == "newest" else step)
    if saved is None:
        raise UserError(f"model {name!r}: no checkpoint in {directory}; train first")
    config = config_of(saved.config, ("model", "data", "loss", "eval"))
    model, mesh = load_model(config), local_mesh(fsdp)
    return Retriever(
        trained_params(directory, saved, config, model, mesh).params,
        with_templates(retriever_config(config), **templates),
        shape=read_config(model.directory).with_mask(
            config.model.mask if mask == "model" else mask
        ),
        tokenizer=model.tokenizer,
        dtype=dtype,
        attention=config.model.attention,
        mesh=mesh,
        chunk_tokens=chunk_tokens(config),  # as in its evaluation: the same bits
    )


def load_teacher(config: RunConfig, model: Backbone) -> Teacher | None:
    """The model that loss.teacher names, for a run of `model`; None where it is empty.

    Raises:
      UserError: there is no such model, or it cannot encode the run's batches.
    """
    name = config.loss.teacher
    if not name:
        return None
    try:
        opened = open_model(name, fsdp=config.mesh.fsdp)
    except UserError as error:
        raise UserError(f"loss.teacher: {error}") from error
    _check(config, model, opened)
    options = opened.config.encoder_options()
    encoder = _encoder(config, opened.encoder.config, options, model.encoder)
    return Teacher(encoder, _cast(config, jax.device_get(opened.params)))


def planned_teacher(config: RunConfig, encoder: Encoder) -> Teacher | None:
    """The shapes of loss.teacher, for a run of `encoder`, by its config.json: the weights and the
    rest of its settings are not read.

    Raises:
      UserError: there is no such run or config.json.
    """
    name, towers = config.loss.teacher, "shared"
    if not name:
        return None
    try:
        if is_run(name):
            directory, which = _place(name)
            saved = checkpoint.read_saved(directory, which)
            if saved is None:
                raise UserError(f"{directory}: no checkpoint; train first")
            section = config_of(saved.config).model
            name, towers = section.name, section.towers
        elif (Path(name) / SETTINGS_FILE).exists():
            settings = read_settings(Path(name))
            name, towers = str(next(iter(settings.folders(Path(name)).values()))), settings.towers
        shape, _ = model_shape(name)
    except UserError as error:
        raise UserError(f"loss.teacher: {error}") from error
    options = dataclasses.replace(encoder.options, projection=0, projection_bias=False)
    teaching = _encoder(config, shape, options, encoder)
    tree = jax.eval_shape(teaching.init, jax.random.key(0))
    roles = ("shared",) if towers == "shared" else ("query", "passage")
    params = jax.eval_shape(functools.partial(_cast, config), dict.fromkeys(roles, tree))
    return Teacher(teaching, params)


def _encoder(
    config: RunConfig, shape: EncoderConfig, options: EncoderOptions, student: Encoder
) -> Encoder:
    """An encoder of a teacher's shape, computed as the run's but without what is of training."""
    ours = student.options
    changes = {"dtype": ours.dtype, "attention": ours.attention, "device": ours.device}
    changes |= {"scan_layers": ours.scan_layers, "lora": None, "normalise": True}
    changes |= {"remat": "none", "remat_first_layers": 0}
    shape = dataclasses.replace(shape, dropout=0.0, attention_dropout=0.0)
    longest = max(config.data.max_query_tokens, config.data.max_passage_tokens)
    if longest > shape.max_positions:
        raise UserError(
            f"loss.teacher={config.loss.teacher!r}: texts of {longest} tokens, but it has "
            f"{shape.max_positions} positions; lower data.max_query_tokens or "
            "data.max_passage_tokens, or name another teacher"
        )
    return make_encoder(shape, dataclasses.replace(options, **changes))


def _cast(config: RunConfig, params: dict) -> dict:
    """Matrices and tables in the run's dtype; biases and norms stay float32."""
    dtype = COMPUTE_DTYPES[config.model.dtype]

    def leaf(path, x):
        return x if is_vector(path) else x.astype(dtype)

    return jax.tree_util.tree_map_with_path(leaf, params)


def _check(config: RunConfig, model: Backbone, teacher: Retriever) -> None:
    """Raises UserError where the teacher would read the run's batches otherwise than its own texts,
    or its vectors are not compared by cosine."""
    data, theirs = config.data, teacher.config
    problem, remedy = "", "name another teacher"
    if teacher.tokenizer.fingerprint != model.tokenizer.fingerprint:
        problem = f"its tokenizer is not that of {model.directory}, whose token ids a step has"
        remedy = "name a teacher and a model.name with the same tokenizer files"
    elif theirs.query_encoder != config.model.query_encoder:
        problem = f"its query encoder is {theirs.query_encoder!r}"
        remedy = f"set model.query_encoder={theirs.query_encoder!r}, or name another teacher"
    elif theirs.towers == "separate" and config.model.towers == "shared":
        problem = "it has separate towers, and queries and passages of shared ones are in one grid"
        remedy = "set model.towers='separate', or name another teacher"
    elif theirs.truncate_dim:
        problem = f"its vectors are cut after {theirs.truncate_dim} entries (truncate_dim)"
    elif theirs.similarity != "cosine" and not theirs.normalise:
        problem = f"its vectors are compared by {theirs.similarity}, not by cosine"
    wanted = {
        "data.query_template": theirs.text.query_template,
        "data.passage_template": theirs.text.passage_template,
    }
    for key, template in wanted.items():
        own = getattr(data, key.removeprefix("data."))
        if not problem and own != template:
            problem = f"its texts have the template {template!r}, and {key} is {own!r}"
            remedy = f"set {key}={template!r}, or name another teacher"
    if not problem and set(data.more_templates) - {theirs.text.query_template}:
        problem = f"data.more_templates={data.more_templates!r} are not its template"
        remedy = "leave them empty, or give the teacher's scores in records"
    if problem:
        raise UserError(f"loss.teacher={config.loss.teacher!r}: {problem}; {remedy}")


def _place(name: str) -> tuple[AnyPath, str]:
    return checkpoints_of(name if is_url(name) else str(Path(name).expanduser()))
