"""Settles what a config leaves to "auto": the fastest form of the step that fits.

`model.remat` and `train.chunks_per_device` change neither the objective nor the batch, so they may
be left open. They are settled once, before anything of a run is built: forms of its own step, on
its own devices and data, are compiled and compared as `plan --search=fastest` does it
(`planning.advice`), all other keys staying as they are. Every process compiles the same forms (on
a GPU they tune kernels together) and follows the figures of the primary one. The programs go
through the compilation cache, where there is one, so that the first step finds its own.

OUT_DIR/automatic.json holds the choice and what it depends on: model, data, loss, mesh, batch and
devices. A later start takes it from there and compiles nothing; on other devices it searches again.
The resolved config of a run and of its checkpoints has the values, never "auto".
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from inf_jax.config.defaults import run_config
from inf_jax.config.resume import SETTLED
from inf_jax.config.schema import keys_of, set_value, value_of
from inf_jax.core.choices import AUTO
from inf_jax.core.errors import UserError
from inf_jax.data.from_config import make_loader
from inf_jax.data.step_shapes import StepInputs, loader_inputs
from inf_jax.distributed.coordination import is_primary, of_primary
from inf_jax.distributed.mesh import batch_devices, local_parts, make_mesh
from inf_jax.io.json_files import read_json, write_json
from inf_jax.io.storage import as_path
from inf_jax.models.encoder import make_encoder
from inf_jax.models.hf.backbone import load_model
from inf_jax.planning.advice import KEYS, SearchLimits, Trial, search_fastest, with_option
from inf_jax.planning.chips import GIB
from inf_jax.planning.compile import make_plan
from inf_jax.planning.topology import device_memory, topology_of
from inf_jax.training.planned import planned_step

AUTOMATIC_FILE = "automatic.json"
TRIALS = 10  # forms that a start compiles at most
FIRST = dict(zip(SETTLED, ("none", 1), strict=True))  # what the search begins with
# The rest of what the choice depends on.
_SECTIONS, _KEYS = (
    ("data", "model", "loss", "mesh"),
    ("train.batch_size", "train.keep_last_chunk", "train.health"),
)
_NOT = ("data.dir", "data.prefetch", "data.stage_mb", "model.start_from")


class Choice(NamedTuple):
    """What was chosen, and why, for people."""

    values: dict[str, Any]
    why: str

    def __str__(self) -> str:
        values = " ".join(f"{key}={value}" for key, value in self.values.items())
        return f"{values} ({self.why})"


def open_keys(config: ConfigDict) -> tuple[str, ...]:
    """The keys that a config leaves to "auto"."""
    return tuple(key for key in SETTLED if value_of(config, key) == AUTO)


def settled(config: ConfigDict, values: dict[str, Any]) -> ConfigDict:
    """A checked copy of the config with these values of keys."""
    return functools.reduce(lambda c, item: with_option(c, *item), values.items(), config)


def search_open(
    config: ConfigDict,
    planned: Callable[[ConfigDict], dict[str, Any]],
    *,
    devices: int,
    trials: int = TRIALS,
) -> list[Trial]:
    """Forms of the step that differ in the open keys, as of `search_fastest`.

    Args:
      planned: a config without "auto" -> its plan; may raise UserError.
      devices: that a batch is split over.
      trials: most forms that are compiled.
    """
    keys = open_keys(config)
    first = settled(config, {key: FIRST[key] for key in keys})
    limits = SearchLimits(chunks=max(1, config.train.batch_size // devices), trials=trials)

    def plan_of(form: dict[str, Any]) -> dict[str, Any]:
        return planned(settled(first, {key: form[key] for key in keys}))

    return search_fastest(plan_of, {k: value_of(first, k) for k in KEYS}, limits, keys=keys)


def settle_keys(config: ConfigDict, *, dataset: str | None, order: int | None) -> Choice | None:
    """Replaces "auto" in the config of a run that starts; all processes call it.

    Args:
      config: is changed.
      dataset, order: of a run that is resumed, see `make_training`.

    Returns:
      The choice; None where nothing was open.

    Raises:
      UserError: no form fits, or as `make_training`.
    """
    keys = open_keys(config)
    if not keys:
        return None
    file, facts = as_path(config.out_dir) / AUTOMATIC_FILE, _facts(config)
    saved = read_json(file, {}, kind=dict, remedy="delete it") if is_primary() else {}
    of = saved.get("of", {})  # keys that are newer than the file count as they were: not at all
    same = bool(of) and of.items() <= facts.items()
    values = of_primary("automatic", saved["values"] if same else None)
    if values is not None:
        choice = Choice(values, "as chosen at the first start")
    else:
        choice, record = _choose(config, keys, dataset=dataset, order=order)
        if is_primary():
            write_json(file, {"of": facts, **choice._asdict(), **record})
    for key, value in choice.values.items():
        set_value(config, key, value)
    return choice


def _facts(config: ConfigDict) -> dict[str, Any]:
    """What the choice depends on, as plain values."""
    names = [n for n in keys_of(config) if n.split(".")[0] in _SECTIONS and n not in _NOT]
    facts = {name: value_of(config, name) for name in (*names, *SETTLED, *_KEYS)}
    facts = {k: list(v) if isinstance(v, tuple) else v for k, v in facts.items()}
    return facts | {"devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}"}


def _choose(
    config: ConfigDict, keys: tuple[str, ...], *, dataset: str | None, order: int | None
) -> tuple[Choice, dict[str, Any]]:
    """The choice, and a record of the search."""
    began, memory = time.monotonic(), of_primary("memory", device_memory())
    if memory is None:
        kind = jax.devices()[0].device_kind
        values = {key: FIRST[key] for key in keys}
        return Choice(values, f"{kind}: its memory is not known, nothing was compared"), {}
    mesh = make_mesh(fsdp=config.mesh.fsdp, tensor=config.mesh.tensor)
    target, devices = topology_of(list(mesh.devices.flat)), batch_devices(mesh)
    model = load_model(run_config(settled(config, {key: FIRST[key] for key in keys})))

    @functools.cache
    def inputs(chunks: int) -> StepInputs:
        each = run_config(settled(config, {"train.chunks_per_device": chunks}))
        share = {"devices": devices, "parts": local_parts(mesh), "order": order}
        return loader_inputs(make_loader(each, model.tokenizer, expected=dataset, **share))

    def planned(form: ConfigDict) -> dict[str, Any]:
        each = run_config(form)
        options = dataclasses.replace(model.encoder.options, remat=each.model.remat)
        encoder = make_encoder(model.encoder.config, options)
        of_form = inputs(each.train.chunks_per_device)
        step = planned_step(each, encoder, mesh, of_form, source=str(model.directory))
        plan = make_plan(step, target, mesh, hbm=memory)
        plan = of_primary("plan", {key: plan[key] for key in ("hbm", "seconds") if key in plan})
        if is_primary():
            values = " ".join(f"{key}={value_of(form, key)}" for key in keys)
            print(f"{values}: {_shown(plan)}", flush=True)
        return plan

    trials = search_open(config, planned, devices=devices)
    seconds = time.monotonic() - began
    if not trials or not trials[0].fits:
        least = min((t.plan["hbm"]["needed"] for t in trials), default=0)
        raise UserError(
            f"{' and '.join(keys)}={AUTO}: none of {len(trials)} forms of the step fits; the "
            f"smallest takes {least / GIB:.2f} of {memory / GIB:.2f} GiB of a device; lower "
            "train.batch_size or raise mesh.fsdp (inf-jax plan tells more)"
        )
    best = trials[0]
    why = f"{_shown(best.plan)}; the fastest of {len(trials)} forms, compared in {seconds:.0f} s"
    searched = [{**{k: t.overrides[k] for k in keys}, **t.plan} for t in trials]
    values = {key: best.overrides[key] for key in keys}
    return Choice(values, why), {"seconds": round(seconds, 1), "searched": searched}


def _shown(plan: dict[str, Any]) -> str:
    memory = plan["hbm"]
    gib = f"{memory['needed'] / GIB:.2f} of {memory['limit'] / GIB:.2f} GiB"
    if not memory["fits"] or "seconds" not in plan:
        return f"does not fit, {gib}"
    return f"{plan['seconds']['step']:.4f} s a step predicted, {gib}"
