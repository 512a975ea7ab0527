"""The texts of a run's steps, for a contender that is not inf_jax.

A worker in a process of its own writes them, so that the peak memory of the contender includes
nothing of JAX.
"""

import argparse
import importlib.metadata
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .torch_optim import NAMES

if TYPE_CHECKING:
    from inf_jax.config.sections import RunConfig
    from inf_jax.data.records import AnyExample
    from inf_jax.data.sampler import StepAssignment


def checked_config(args: argparse.Namespace, overrides: list[str]) -> "RunConfig":
    """The config of the run; UserError if it is impossible."""
    from inf_jax.config.command_line import parse
    from inf_jax.config.defaults import run_config

    return run_config(parse(["bench", f"--config={args.config}", *overrides]))


def rows_worker(args: argparse.Namespace, overrides: list[str]) -> Callable[[int], dict]:
    """Writes the texts and settings of the steps to args.rows; answers with facts.

    Raises:
      UserError: more steps than the run's, or rows that pairs of texts are not all of.
    """
    from inf_jax.core.errors import UserError, main_guard
    from inf_jax.data.from_config import dataset_dir, text_config
    from inf_jax.data.tokenise import read_examples
    from inf_jax.training.setup import make_training

    def answer(steps: int) -> dict:
        with main_guard():
            config = checked_config(args, overrides)
            # the loader plans its token grid for the steps of the run
            if steps > config.train.steps:
                raise UserError(f"{steps} steps to time, but train.steps={config.train.steps}")
            if config.data.mixture or config.loss.negatives:
                key = "data.mixture" if config.data.mixture else "loss.negatives"
                raise UserError(f"{key}: the contenders train on the pairs of one source alone")
            optim = config.optim
            if optim.name not in NAMES or optim.groups or optim.layer_decay < 1:
                raise UserError(
                    f"optim.name={optim.name} optim.groups={optim.groups} optim.layer_decay="
                    f"{optim.layer_decay:g}: the contenders train with {' or '.join(NAMES)} at one "
                    "rate; choose one, without groups and layer_decay"
                )
            training = make_training(config)
            loader, text = training.loader, text_config(config)
            examples = list(read_examples(dataset_dir(config), config.data.train_split))
        batches = [_texts(config, examples, loader.assignment(step)) for step in range(steps)]
        facts = {
            "model": config.model.name,
            "objective": str(training.program.objective),
            "batch_size": loader.layout.batch_size,
            "pairs": loader.plan.pairs,
            "max_query_tokens": text.max_query_tokens,
            "max_passage_tokens": text.max_passage_tokens,
            "versions": ", ".join(
                f"{name} {importlib.metadata.version(name)}"
                for name in ("jax", "torch", "sentence-transformers")
            ),
        }
        keys = ("name", "lr", "b1", "b2", "eps", "weight_decay")
        optim = {key: getattr(config.optim, key) for key in keys}
        rows = {
            "directory": str(training.model.directory),
            "scale": config.loss.scale,
            "clip_norm": config.optim.clip_norm,
            "optim": optim,
            "batches": batches,
        }
        Path(args.rows).write_text(json.dumps(rows | facts))
        return facts

    return answer


def _texts(
    config: "RunConfig", examples: Sequence["AnyExample"], step: "StepAssignment"
) -> list[tuple[str, str]]:
    """The (instructed query, passage) of each pair of a step, in the wording that the run draws."""
    from inf_jax.data.from_config import wordings_of
    from inf_jax.text.templates import instructed_query, passage_text

    wordings = wordings_of(config)
    texts = []
    for example, *chosen in step.examples.reshape(len(step.examples), -1):
        for place, pair in enumerate(wordings[0][1].pairs(examples[example])):
            if pair is None:
                continue
            own, rewriting = wordings[chosen[place] if chosen else 0]
            instruction = rewriting.instruction(pair) if rewriting.instructions else ""
            query = instructed_query(pair.query, instruction, own.data.query_template)
            texts.append((query, passage_text(pair.passage, config.data.passage_template)))
    return texts
