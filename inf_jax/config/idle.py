"""Keys that have no effect beside the others of a config, and the rule for them.

A key that asks for something which the run would then not do is refused (`checks`): a mixture's
homogeneous batches without a mixture. A key that only describes a part that is off is said in one
line: a config file keeps the rank's alpha while the command line turns adapters off. Both concern
values other than the default alone. A resumed run may change either.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from inf_jax.config.schema import keys, value_of
from inf_jax.config.sections import RunConfig
from inf_jax.core.errors import UserError
from inf_jax.losses.objective import TAUGHT, parse_objective


class Needs(NamedTuple):
    """Keys that have an effect only in some configs.

    Attributes:
      names: dotted keys, with spaces between.
      met: whether a config, whose values are each allowed, gives them an effect.
      why: what is said where it does not.
      asks: whether they ask for something, and are refused.
    """

    names: str
    met: Callable[[ConfigDict], bool]
    why: str
    asks: bool = False


def _is_taught(config: ConfigDict) -> bool:
    """Whether the loss takes a teacher's scores; True for an objective that is none, which
    `checks` refuses by its own name."""
    try:
        return parse_objective(config.loss.objective).has(*TAUGHT)
    except UserError:
        return True


RUN_NEEDS = (
    Needs(
        "data.mixture_batches data.mixture_temperature data.at_max_epochs",
        lambda c: bool(c.data.mixture.strip()),
        "there is no data.mixture",
        asks=True,
    ),
    Needs(
        "data.at_max_epochs",
        lambda c: c.data.max_epochs > 0,
        "there is no data.max_epochs that a source could reach",
        asks=True,
    ),
    Needs(
        "data.source",
        lambda c: not c.data.mixture.strip(),
        "data.mixture names the sources (eval.source that of the evaluation)",
    ),
    Needs(
        "model.projection_bias",
        lambda c: c.model.projection > 0,
        "there is no model.projection",
        asks=True,
    ),
    Needs(
        "model.frozen_dtype",
        lambda c: bool(c.model.lora_rank or c.model.freeze or c.model.freeze_layers),
        "nothing is frozen without model.lora_rank or model.freeze",
        asks=True,
    ),
    Needs(
        "model.lora_alpha model.lora_targets",
        lambda c: c.model.lora_rank > 0,
        "there is no model.lora_rank",
    ),
    Needs(
        "model.remat_first",
        lambda c: c.model.remat_first_layers > 0,
        "there is no model.remat_first_layers",
    ),
    Needs("loss.max_scale", lambda c: c.loss.learn_scale, "loss.learn_scale is False"),
    Needs(
        "loss.bias",
        lambda c: parse_objective(c.loss.objective).has("sigmoid"),
        "loss.objective has no sigmoid",
    ),
    Needs(
        "loss.mask_relative",
        lambda c: c.loss.mask_margin != 0,
        "there is no loss.mask_margin",
        asks=True,
    ),
    Needs(
        "loss.teacher_scale",
        lambda c: _is_taught(c) and not c.loss.teacher,
        "no teacher's scores are read from records",
        asks=True,
    ),
    Needs("loss.hardness_of", lambda c: c.loss.hardness > 0, "there is no loss.hardness"),
    Needs(
        "optim.lr_batch",
        lambda c: c.optim.lr_scaling != "none",
        "there is no optim.lr_scaling",
        asks=True,
    ),
    Needs(
        "optim.final_ratio",
        lambda c: c.optim.schedule != "constant",
        "optim.schedule='constant' keeps the rate",
    ),
    Needs("optim.b1 optim.b2", lambda c: c.optim.name != "adafactor", "Adafactor has none"),
    Needs("optim.eps", lambda c: c.optim.name not in ("adafactor", "lion"), "optim.name has none"),
    Needs("train.keep_last_chunk", lambda c: c.train.chunks_per_device != 1, "there is one chunk"),
    Needs("train.dev_batches", lambda c: c.train.dev_every > 0, "there is no train.dev_every"),
    Needs(
        "train.best_metric train.best_mode",
        lambda c: c.train.keep_best > 0,
        "there is no train.keep_best",
    ),
    Needs("train.spike_steps", lambda c: c.train.max_spike > 0, "train.max_spike is 0"),
    Needs("mesh.gather", lambda c: c.mesh.fsdp > 1, "mesh.fsdp=1 shards no weights"),
    Needs(
        "eval.benchmark_split eval.identical_ids",
        lambda c: bool(c.eval.benchmark),
        "there is no eval.benchmark",
    ),
    Needs(
        "export.adapter",
        lambda c: c.model.lora_rank > 0,
        "a run without model.lora_rank has no adapter to export",
        asks=True,
    ),
)


def without_effect(
    config: ConfigDict, needs: Sequence[Needs] = RUN_NEEDS, *, asks: bool | None = None
) -> dict[str, str]:
    """The keys that have no effect in a config, whatever their values, and why.

    Args:
      config: its values must be allowed, each by itself.
      asks: only those that are refused (True), or said (False).
    """
    found: dict[str, str] = {}
    for each in needs:
        if asks in (None, each.asks) and not each.met(config):
            for name in each.names.split():
                found.setdefault(name, each.why)
    return found


def idle_keys(
    config: ConfigDict,
    needs: Sequence[Needs] = RUN_NEEDS,
    *,
    asks: bool,
    sections: Any = RunConfig(),
) -> list[str]:
    """The keys of `without_effect` that are not at their defaults, as `KEY=VALUE: why`.

    Args:
      sections: an instance with the defaults.
    """
    default = {each.name: each.default for each in keys(sections)}
    return [
        f"{name}={value_of(config, name)!r}: {why}"
        for name, why in without_effect(config, needs, asks=asks).items()
        if value_of(config, name) != default[name]
    ]
