"""Compares a config with that of an earlier start of the run, and writes the resolved config."""

import json
import os
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from inf_jax.config.defaults import defaults
from inf_jax.config.idle import without_effect
from inf_jax.config.schema import keys_of, set_value, value_of
from inf_jax.core.choices import AUTO
from inf_jax.core.errors import UserError
from inf_jax.io.storage import AnyPath, new_file

# Keys and sections that may change between the starts of a run, and between its training and its
# evaluation or export; and exceptions from them.
_MAY_CHANGE = """out_dir data.dir data.prefetch data.stage_mb data.texts_per_row
    data.max_epochs data.at_max_epochs model.scan_layers model.remat
    model.remat_first model.remat_first_layers model.attention loss.teacher
    optim.max_nonfinite loss.engine mesh eval export train""".split()
_MAY_NOT_CHANGE = ("train.batch_size",)
# "auto" of these is replaced by a value when training starts; a run's saved config has that value.
SETTLED = ("model.remat", "train.chunks_per_device")
_RESTORE = "restore the old values or give a new out_dir"

# In saved configs; in those without it, of older versions, train.batch_size counts examples.
_COUNTS = {"batch_size_counts": "pairs"}
_PAIRS = 3  # of an example, in those versions

_ABSENT = object()


def check_same_run(
    config: ConfigDict,
    saved: Mapping[str, Any],
    source: str | os.PathLike,
    *,
    besides: tuple[str, ...] = (),
    remedy: str = _RESTORE,
) -> list[str]:
    """Compares a config with that of the run that it resumes, evaluates or exports.

    Args:
      saved: the run's config as plain values, from a checkpoint.
      source: where it is from, for messages.
      besides: keys that may differ as well.
      remedy: end of the message.

    Returns:
      Allowed differences, as text; a key that has no effect in either config may differ.

    Raises:
      UserError: lists the differences that are not allowed.
    """
    refused, allowed = [], []
    idle = without_effect(config).keys() & without_effect(_whole(saved)).keys()
    for key in keys_of(config):
        free = key in besides or key in _MAY_CHANGE or key.split(".")[0] in _MAY_CHANGE
        free = key in idle or (free and key not in _MAY_NOT_CHANGE)
        was = saved
        for name in key.split("."):
            was = was.get(name, _ABSENT) if isinstance(was, dict) else _ABSENT
        if was is _ABSENT:  # the key is newer than the run
            was = _before(key, saved)
        now = _as_json(value_of(config, key))
        if key in SETTLED and now == AUTO:
            continue
        if key == "train.batch_size" and not _counts_pairs(saved):
            was = now if now == was else _PAIRS * was
        if was != now:
            (allowed if free else refused).append(f"{key} was {was!r}, is now {now!r}")
    if refused:
        raise UserError(
            f"{source}: the run in this out_dir had another config ({'; '.join(refused)}); {remedy}"
        )
    return allowed


def continue_older(config: ConfigDict, saved: Mapping[str, Any]) -> list[str]:
    """Gives the keys of `config` whose defaults are newer than a run, and that are not set, the
    values it had.

    Returns:
      What was set, as text.
    """
    found = []
    for key in ("model.attention_dropout",):  # of which `_before` knows more than the default
        section, name = key.split(".")
        before, now = _before(key, saved), value_of(config, key)
        if name not in saved.get(section, {}) and now == value_of(defaults(), key) != before:
            config[section][name] = before
            found.append(f"{key}={before}")
    texts = saved.get("data", {}).get("texts_per_row", 16)
    if config.data.texts_per_row == value_of(defaults(), "data.texts_per_row") != texts:
        config.data.texts_per_row = texts
        found.append(f"data.texts_per_row={texts}")
    examples = saved.get("train", {}).get("batch_size")
    if examples == config.train.batch_size and not _counts_pairs(saved):
        config.train.batch_size = _PAIRS * examples
        found.append(f"train.batch_size={_PAIRS * examples} pairs, of {examples} examples")
    return found


def as_saved(config: ConfigDict, begun: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The config as plain values, for a file.

    Args:
      begun: the saved config of the run that is resumed; one of an older version keeps its form, so
        that the same command goes on from each of its checkpoints.
    """
    values = config.to_dict()
    if begun is None or _counts_pairs(begun):
        return values | _COUNTS
    values["train"]["batch_size"] = begun["train"]["batch_size"]
    return values


def _counts_pairs(saved: Mapping[str, Any]) -> bool:
    return _COUNTS.items() <= saved.items()


def _before(key: str, saved: Mapping[str, Any]) -> Any:
    """What a run did whose saved config does not have a key: as a rule, the key's default."""
    if key == "model.attention_dropout":  # model.dropout was the rate of attention weights as well
        return saved.get("model", {}).get("dropout", 0.0)
    return _as_json(value_of(defaults(), key))


def _whole(saved: Mapping[str, Any]) -> ConfigDict:
    """A saved config with the keys of this version."""
    config = defaults()
    for key in keys_of(config):
        section, _, name = key.rpartition(".")
        values = saved.get(section, {}) if section else saved
        set_value(config, key, values[name] if name in values else _before(key, saved))
    return config


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))  # a tuple is saved as a list


def save_resolved(config: ConfigDict, path: AnyPath) -> None:
    """Writes the config with all defaults as JSON, atomically."""
    with new_file(path) as file:
        file.write(json.dumps(as_saved(config), indent=2, sort_keys=True).encode() + b"\n")
