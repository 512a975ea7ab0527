"""Loads the parameters that a run starts with, and those of a checkpoint to evaluate or export."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from inf_jax.checkpoints import manager as checkpoint
from inf_jax.checkpoints.integrity import fingerprint
from inf_jax.checkpoints.resume import check_frozen
from inf_jax.config.defaults import defaults, run_config
from inf_jax.config.sections import RunConfig
from inf_jax.core.errors import UserError
from inf_jax.distributed.sharding import state_shardings
from inf_jax.io.storage import AnyPath, as_path
from inf_jax.models.config import EncoderConfig
from inf_jax.models.hf.backbone import Backbone, load_model
from inf_jax.models.lora import is_adapter
from inf_jax.training.parameters import ParameterPartition, make_partition


class Trained(NamedTuple):
    """The parameters of a checkpoint.

    Attributes:
      params: {tower: tree}, float32, adapters merged into their kernels.
      step: of the checkpoint.
      adapters: {tower: tree} of adapters alone; empty where there are none.
    """

    params: dict
    step: int
    adapters: dict


def start_params(
    model: Backbone, partition: ParameterPartition, mesh: Mesh, *, start_from: str
) -> dict:
    """{tower: tree} on the mesh, float32, without adapters: the backbone's own weights, or those of
    the run `start_from`; UserError where it is missing or has another model or tokenizer."""
    shardings = state_shardings(mesh, partition.base)
    if not start_from:
        tree = model.load(next(iter(shardings.values()))).params
        return dict.fromkeys(partition.base, tree)
    directory, which = _directory(start_from)
    saved = checkpoint.read_saved(directory, which)
    if saved is None:
        raise UserError(f"model.start_from={start_from}: no checkpoint there")
    source = _config_of(saved.config)
    theirs = load_model(source)
    if _kind(theirs) != _kind(model):
        raise UserError(
            f"model.start_from={start_from}: its model has another shape than {model.directory}; "
            f"name the run's own backbone, model.name={source.model.name!r}"
        )
    _check_same_tokens(theirs, model, start_from, source.model.name)
    if _head(theirs) != _head(model):
        was, bias = _head(theirs)
        raise UserError(
            f"model.start_from={start_from}: was trained with model.projection={was} and "
            f"model.projection_bias={bias}; give the same"
        )
    params = trained_params(directory, source, theirs, mesh, which=str(saved.step)).params
    if "shared" in params:
        params = dict.fromkeys(partition.base, params["shared"])
    if params.keys() != partition.base.keys():
        raise UserError(
            f"model.start_from={start_from}: has separate towers, which cannot start shared ones; "
            "set model.towers='separate'"
        )
    return jax.device_put(params, shardings)


def trained_params(
    directory: AnyPath, config: RunConfig, model: Backbone, mesh: Mesh, *, which: str = "newest"
) -> Trained | None:
    """The parameters of a checkpoint of the run that `config` describes, on the mesh; None where
    there is none. `directory` and `which` as of `checkpoint.read_saved`.

    Raises:
      UserError: there is no such checkpoint, it is damaged, or it does not fit the model or the
        config; or the run's frozen parameters are missing.
    """
    partition = make_partition(config, model.encoder)
    shapes = jax.eval_shape(partition.trained, partition.base)
    shardings = state_shardings(mesh, shapes)
    abstract = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )
    saved = checkpoint.read_saved(directory, which)
    if saved is None:
        return None
    _check_same_adapters(config, saved, directory)
    trained = checkpoint.restore_params(directory, abstract, step=saved.step)
    frozen = {}
    if partition.frozen:
        base = start_params(model, partition, mesh, start_from=config.model.start_from)
        frozen = jax.jit(partition.fixed)(base)
        del base  # float32: more memory than all that follows
        check_frozen(saved.info, fingerprint(frozen), directory)
    elif partition.lora is None:
        return Trained(trained, saved.step, {})
    params = jax.jit(partition.plain)(trained, frozen)
    return Trained(params, saved.step, _adapters(trained, frozen) if partition.lora else {})


def _adapters(*trees: Mapping) -> dict:
    """{tower: {path in the blocks: array}} of the adapters in these trees."""
    adapters: dict[str, dict] = {}
    for tree in trees:
        for tower, parts in tree.items():
            mine = {n: x for n, x in parts.get("blocks", {}).items() if is_adapter(n)}
            adapters.setdefault(tower, {}).update(mine)
    return adapters


def _directory(start_from: str) -> tuple[AnyPath, str]:
    """(directory of checkpoints, which) of a run's out_dir or one of its checkpoints."""
    path = as_path(start_from)
    if path.name.isdecimal() and (path / "state").exists():
        return path.parent, path.name
    return path / "checkpoints", "newest"


def _config_of(saved: Mapping[str, Any]) -> RunConfig:
    """The model and data sections of a saved config; keys added since then get their defaults."""
    config = defaults()
    config.seed = saved.get("seed", config.seed)
    for section in ("model", "data"):
        for name, value in saved.get(section, {}).items():
            if name in config[section]:
                config[section][name] = value
    return run_config(config)


def _kind(model: Backbone) -> EncoderConfig:
    """The encoder's shape, without what a run's config sets."""
    shape = model.encoder.config
    return dataclasses.replace(shape, dropout=0.0, attention_dropout=0.0, causal=False)


def _head(model: Backbone) -> tuple[int, bool]:
    return model.encoder.options.projection, model.encoder.options.projection_bias


def _check_same_tokens(theirs: Backbone, model: Backbone, start_from: str, name: str) -> None:
    """Raises UserError where a token of both vocabularies has another id now."""
    was, now = theirs.tokenizer.vocabulary(), model.tokenizer.vocabulary()
    others = sorted((was[token], token) for token in was.keys() & now if was[token] != now[token])
    if others:
        number, token = others[0]
        raise UserError(
            f"model.start_from={start_from}: was trained with another tokenizer than that of "
            f"{model.directory} (the token {token!r} had the id {number}, now {now[token]}); name "
            f"the run's own backbone, model.name={name!r}"
        )


def _check_same_adapters(config: RunConfig, saved: checkpoint.Saved, directory: AnyPath) -> None:
    """Raises UserError where the run's frozen parameters or adapters were other ones."""
    was, now = _config_of(saved.config).model, config.model
    names = "lora_rank lora_alpha lora_targets frozen_dtype freeze projection projection_bias"
    differ = [
        f"model.{name} was {getattr(was, name)!r}, is now {getattr(now, name)!r}"
        for name in names.split()
        if getattr(was, name) != getattr(now, name)
    ]
    if differ:
        raise UserError(f"{directory}: {'; '.join(differ)}: give the values of the training")
