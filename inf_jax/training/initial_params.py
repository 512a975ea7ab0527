"""Loads the towers that a run starts with, and those of a checkpoint to evaluate or export."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from inf_jax.checkpoints import manager as checkpoint
from inf_jax.checkpoints.integrity import fingerprint
from inf_jax.checkpoints.resume import ResumeInfo, check_frozen, check_start
from inf_jax.config.defaults import defaults, run_config
from inf_jax.config.resume import check_same_run
from inf_jax.config.sections import RunConfig
from inf_jax.core.errors import UserError
from inf_jax.distributed.coordination import is_primary
from inf_jax.distributed.sharding import state_shardings
from inf_jax.io.storage import AnyPath, as_path
from inf_jax.models.config import EncoderConfig
from inf_jax.models.hf.backbone import Backbone, load_model
from inf_jax.models.lora import is_adapter
from inf_jax.models.pooling import PROJECTION
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


class Start(NamedTuple):
    """What a run starts from: a checkpoint of another run, or its backbone.

    Attributes:
      path: the config's model.start_from; "": the backbone.
      directory: of the checkpoints.
      step, fingerprint: of the checkpoint; None and "" for a backbone.
      key: what names the path, for messages.
    """

    path: str = ""
    directory: AnyPath | None = None
    step: int | None = None
    fingerprint: str = ""
    key: str = "model.start_from"


def find_start(
    start_from: str, recorded: ResumeInfo | None = None, *, key: str = "model.start_from"
) -> Start:
    """What a run starts from, or started from, by its model.start_from.

    Args:
      start_from: out_dir of another run, whose newest checkpoint is meant, or one of its
        checkpoints; "": the backbone.
      recorded: of the run itself, once it has started: the checkpoint is then the one it started
        from, whatever the other run has done since.
      key: what names the path, for messages.

    Raises:
      UserError: there is no such checkpoint, or it is not the recorded one any more.
    """
    if not start_from:
        return Start()
    directory, which = checkpoints_of(start_from)
    name = f"{key}={start_from}"
    if recorded and recorded.start_step is not None:
        if not (directory / str(recorded.start_step)).exists():
            raise UserError(
                f"{name}: the run began with checkpoint {recorded.start_step} of that run, which "
                f"is gone from {directory}; put it back. To evaluate without it, name an eval.json "
                "that has the scores of the start: eval.base_from"
            )
        which = str(recorded.start_step)
    saved = checkpoint.read_saved(directory, which)
    if saved is None:
        raise UserError(f"{name}: no checkpoint there")
    if recorded and recorded.start_step is None and is_primary():
        print(
            f"note: {name}: this run is of a version that did not record which checkpoint it began "
            f"with; taking that of step {saved.step}"
        )
    if recorded and recorded.start_step is not None:
        check_start(recorded, saved.fingerprint, f"{name}, checkpoint {saved.step}")
    return Start(start_from, directory, saved.step, saved.fingerprint, key)


def start_params(
    model: Backbone, partition: ParameterPartition, mesh: Mesh, start: Start
) -> tuple[dict, str]:
    """({tower: tree} on the mesh, float32, without adapters; its fingerprint, `ResumeInfo.start`).

    Raises:
      UserError: the run that `start` names has another model or tokenizer, or is damaged.
    """
    shardings = state_shardings(mesh, partition.base)
    if start.step is None:
        tree = model.load(next(iter(shardings.values()))).params
        # without a projection, which may be random
        weights = {name: x for name, x in tree.items() if name != PROJECTION}
        return dict.fromkeys(partition.base, tree), fingerprint(weights)
    source_name = f"{start.key}={start.path}"
    saved = checkpoint.read_saved(start.directory, str(start.step))
    source = config_of(saved.config)
    theirs = load_model(source)
    if _kind(theirs) != _kind(model):
        raise UserError(
            f"{source_name}: its model has another shape than {model.directory}; "
            f"name the run's own backbone, model.name={source.model.name!r}"
        )
    _check_same_tokens(theirs, model, source_name, source.model.name)
    if _head(theirs) != _head(model):
        was, bias = _head(theirs)
        raise UserError(
            f"{source_name}: was trained with model.projection={was} and "
            f"model.projection_bias={bias}; give the same"
        )
    params = trained_params(start.directory, saved, source, theirs, mesh).params
    if "shared" in params:
        params = dict.fromkeys(partition.base, params["shared"])
    if params.keys() != partition.base.keys():
        raise UserError(
            f"{source_name}: has separate towers, which cannot start shared ones; "
            "set model.towers='separate'"
        )
    return jax.device_put(params, shardings), start.fingerprint


def checkpoint_of_run(
    directory: AnyPath,
    config: ConfigDict,
    *,
    which: str,
    purpose: str,
    besides: tuple[str, ...] = (),
) -> checkpoint.Saved:
    """The record of a checkpoint of the run whose config and flags these are.

    Args:
      which: as of `checkpoint.read_saved`.
      purpose: evaluate, export; for messages.
      besides: keys that may differ from the run's own, besides those that a resumed run may change.

    Raises:
      UserError: there is no such checkpoint, or its own config differs; names the keys.
    """
    saved = checkpoint.read_saved(directory, which)
    if saved is None:
        raise UserError(
            f"{directory}: no checkpoint to {purpose}; train first: "
            "`python -m inf_jax.train --config=...` with the same config and flags"
        )
    check_same_run(
        config,
        saved.config,
        f"{directory}/{saved.step}",
        besides=(*besides, "model.attention_dropout"),  # of training alone
        remedy=f"{purpose} it with the config and flags of its training",
    )
    return saved


def trained_params(
    directory: AnyPath, saved: checkpoint.Saved, config: RunConfig, model: Backbone, mesh: Mesh
) -> Trained:
    """The parameters of a checkpoint, on the mesh; their moving average where the run has one.

    Args:
      directory: of the checkpoints.
      saved: of the checkpoint.
      config: of its run.
      model: of the config.

    Raises:
      UserError: the checkpoint is damaged or does not fit the model; or the run's frozen parameters
        are missing.
    """
    partition = make_partition(config, model.encoder)
    shapes = jax.eval_shape(partition.trained, partition.base)
    shardings = state_shardings(mesh, shapes)
    abstract = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )
    trained = checkpoint.restore_params(directory, abstract, step=saved.step, part=saved.scored)
    frozen = {}
    if partition.frozen:
        start = find_start(config.model.start_from, saved.info)
        base, _ = start_params(model, partition, mesh, start)
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


def checkpoints_of(start_from: str) -> tuple[AnyPath, str]:
    """(directory of checkpoints, which) of a run's out_dir or one of its checkpoints."""
    path = as_path(start_from)
    if path.name.isdecimal() and (path / "state").exists():
        return path.parent, path.name
    return path / "checkpoints", "newest"


def config_of(saved: Mapping[str, Any], sections: Sequence[str] = ("model", "data")) -> RunConfig:
    """Some sections of a saved config; keys added since then get their defaults."""
    config = defaults()
    config.seed = saved.get("seed", config.seed)
    for section in sections:
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


def _check_same_tokens(theirs: Backbone, model: Backbone, source: str, name: str) -> None:
    """Raises UserError where a token of both vocabularies has another id now."""
    was, now = theirs.tokenizer.vocabulary(), model.tokenizer.vocabulary()
    others = sorted((was[token], token) for token in was.keys() & now if was[token] != now[token])
    if others:
        number, token = others[0]
        raise UserError(
            f"{source}: was trained with another tokenizer than that of "
            f"{model.directory} (the token {token!r} had the id {number}, now {now[token]}); name "
            f"the run's own backbone, model.name={name!r}"
        )
