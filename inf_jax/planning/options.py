"""Options of `inf_jax.plan` besides the config; without jax, so that others can check them too."""

import dataclasses
from typing import Any

from inf_jax.core.cli_flags import FlagParser, above_zero, at_least, names_among
from inf_jax.core.errors import UsageError


@dataclasses.dataclass(frozen=True)
class PlanOptions:
    """What to plan for, and how.

    Attributes:
      topologies: names, see `planning.topology`; several are compared.
      slices: how many of the topology, joined by the data-centre network.
      search: "batch_size": look for the largest one that fits; "fastest": for the fastest form of
        the step that fits (`planning.advice`); or None.
      try_advice: compile each option that may help a run that does not fit.
      json: file for the result; "" for the default.
      query_tokens, passage_tokens: mean lengths, if there is no dataset to measure.
      model_config: path of a config.json instead of the model's own, or None.
      hbm_gib: memory that a program may use per device, instead of the chip's, or None.
    """

    topologies: tuple[str, ...]
    slices: int
    search: str | None
    try_advice: bool
    json: str
    query_tokens: int
    passage_tokens: int
    model_config: str | None
    hbm_gib: float | None


def add_plan_flags(parser: FlagParser) -> None:
    """Adds the flags of `PlanOptions`."""
    add = parser.add
    names = "v4:AxBxC, v5e:AxB, v5p:AxBxC, v6e:AxB, tpu7x:AxBxC, h100:N (a100, h200, b200), cpu:N"
    add("--topology", names, default="", metavar="NAME")
    text = "a table of several topologies"
    add("--compare", text, of=names_among(()), default=(), metavar="NAME,NAME")
    text = "number of slices, joined by the data-centre network"
    add("--slices", text, of=at_least(1), default=1, metavar="N")
    text = "the largest train.batch_size that fits, within 1/16; or the fastest form of the step"
    add("--search", text, choices=("batch_size", "fastest"))
    parser.add_boolean("--try", "if it does not fit: compile each option that may help")
    add("--json", "default: OUT_DIR/plan/TOPOLOGY.json", default="", metavar="FILE")
    text = "mean length of queries, if there is no dataset to measure"
    add("--query-tokens", text, of=at_least(1), default=40, metavar="N")
    text = "the same of passages"
    add("--passage-tokens", text, of=at_least(1), default=120, metavar="N")
    add("--model-config", "a Hugging Face config.json instead of the model's own", metavar="FILE")
    text = "memory that a program may use per device, instead of the chip's"
    add("--hbm-gib", text, of=above_zero, metavar="X")


def plan_options(values: dict[str, Any]) -> PlanOptions:
    """The options of parsed flags.

    Raises:
      UsageError: nothing to plan for, or flags that exclude each other.
    """
    values = dict(values)
    one, several = values.pop("topology"), values.pop("compare")
    if bool(one) == bool(several):
        raise UsageError("name what to plan for: --topology=v5e:16x16, or --compare=NAME,NAME")
    if values["search"] and several:
        raise UsageError("--search takes one --topology, not --compare")
    if values["try"] and (values["search"] or several):
        raise UsageError("--try is of the plan of one --topology; leave it out")
    return PlanOptions(tuple(several) or (one,), try_advice=values.pop("try"), **values)
