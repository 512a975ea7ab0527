"""Opens the model of a run's checkpoint as a Retriever, without an export."""

from pathlib import Path

from inf_jax.checkpoints import manager as checkpoint
from inf_jax.core.errors import UserError
from inf_jax.distributed.mesh import local_mesh
from inf_jax.io.paths import is_url
from inf_jax.io.storage import AnyPath
from inf_jax.models.hf.backbone import load_model
from inf_jax.models.hf.config import read_config
from inf_jax.retriever.from_config import chunk_tokens, retriever_config
from inf_jax.retriever.loading import load, with_templates
from inf_jax.retriever.retriever import Retriever
from inf_jax.training.initial_params import checkpoints_of, config_of, trained_params


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


def _place(name: str) -> tuple[AnyPath, str]:
    return checkpoints_of(name if is_url(name) else str(Path(name).expanduser()))
