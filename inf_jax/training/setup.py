"""Assembles a training run from its config: backbone, mesh, data and programs."""

import contextlib
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from inf_jax.checkpoints.resume import ResumeInfo, check_same_teacher
from inf_jax.checkpoints.saver import Saver
from inf_jax.config.sections import RunConfig
from inf_jax.data.from_config import make_loader
from inf_jax.data.loader import Loader, to_mesh
from inf_jax.distributed.mesh import batch_devices, local_parts, make_mesh
from inf_jax.models.hf.backbone import Backbone, load_model
from inf_jax.training.initial_params import Start, find_start, start_params
from inf_jax.training.program import TrainingProgram, make_program
from inf_jax.training.retrieval import StepScores
from inf_jax.training.run_model import load_teacher, teacher_fingerprint
from inf_jax.training.step import TrainState


class Training(NamedTuple):
    """The parts of a run.

    Attributes:
      model: the backbone, without its weights.
      loader: of the training split.
      scores: of the eval split at some steps; None without train.eval_every.
      dev: loader of the dev split, for the batches that are measured; None without train.dev_every.
      base: Start -> {tower: tree} and its fingerprint: the backbone's parameters or another run's.
      start_from, teacher_name: of the config.
      teacher: {tower: tree} on the mesh; {} without loss.teacher.
    """

    model: Backbone
    program: TrainingProgram
    loader: Loader
    scores: StepScores | None
    dev: Loader | None
    base: Callable[[Start], tuple[dict, str]]
    start_from: str
    teacher: dict
    teacher_name: str

    def fresh(self) -> TrainState:
        """The state at step 0 on its shards, without the teacher."""
        return self.program.init(self.base(find_start(self.start_from))[0])

    def frozen(self, recorded: ResumeInfo | None = None) -> dict:
        """The frozen parameters alone; {} where all are trained.

        Args:
          recorded: of the run that is resumed.
        """
        if not self.program.partition.frozen:
            return {}
        return self.program.frozen(self.base(find_start(self.start_from, recorded))[0])

    def start(self, saver: Saver) -> tuple[TrainState, int]:
        """The state, fresh or restored by `Saver.start`, and the first step of a run."""
        layout = self.loader.layout
        chunk_negatives = layout.block_i and not layout.query_encoder.samples_instructions
        start = Start() if saver.info else find_start(self.start_from)
        data = ResumeInfo(
            step=0,
            seed=self.loader.seed,
            batch_size=layout.batch_size,
            dataset=self.loader.fingerprint,
            groups=layout.chunks if chunk_negatives else 0,
            order=self.loader.order,
            start=start.fingerprint,
            start_step=start.step,
            mixture=str(self.loader.dataset.mixing) if layout.mixture else "",
            teacher=teacher_fingerprint(self.program.teacher, self.teacher),
        )
        if saver.info:
            check_same_teacher(saver.info, data.teacher, self.teacher_name)

        def fresh() -> tuple[dict, str]:
            params, fingerprint = self.base(start)
            return self.program.init(params)._asdict(), fingerprint

        shapes, frozen = self.program.shapes.saved, functools.partial(self.frozen, saver.info)
        state = saver.start(data, shapes=shapes, fresh=fresh, frozen=frozen)
        return TrainState(**state | {"teacher": self.teacher}), saver.first_step

    def dev_metrics(self, state: TrainState) -> dict[str, jax.Array]:
        """Means over always the same batches of the dev split, {"dev/...": scalar}; of a source's
        metrics over its pairs in all of them."""
        count = self.dev.steps
        on_devices = self.dev.batches(0, count, to_device=to_mesh(self.program.mesh), prefetch=1)
        with contextlib.closing(on_devices):
            # One at a time: virtual CPU devices share threads, and collectives of programs that do
            # not depend on each other can wait for each other until XLA ends the process.
            each = [jax.block_until_ready(self.program.measure(state, b)) for b in on_devices]
        means = {name: sum(one[name] for one in each) / count for name in each[0]}
        for source in self.program.sources:
            pairs = [one[f"pairs/{source}"] for one in each]
            for name in (n for n in means if n.endswith(f"/{source}")):
                parts = zip(pairs, each, strict=True)
                total = sum(jnp.where(n > 0, n * one[name], 0) for n, one in parts)
                means[name] = total / sum(pairs)
            means[f"pairs/{source}"] = sum(pairs) / count
        return {f"dev/{name}": value for name, value in means.items()}


def make_training(
    config: RunConfig, *, expected: str | None = None, order: int | None = None
) -> Training:
    """Loads the backbone and the data and builds the programs.

    Args:
      expected: fingerprint of the tokenised training split, of a run that is resumed.
      order: of the examples, of a run that is resumed; see `make_loader`.

    Raises:
      UserError: the model or the data are missing, or they do not suit the config or the mesh.
    """
    model = load_model(config)
    mesh = make_mesh(fsdp=config.mesh.fsdp, tensor=config.mesh.tensor)
    teacher = load_teacher(config, model)
    program = make_program(config, model.encoder, mesh, source=model.directory, teacher=teacher)
    share = {"devices": batch_devices(mesh), "parts": local_parts(mesh), "order": order}
    loader = make_loader(config, model.tokenizer, expected=expected, **share)
    dev = None
    if config.train.dev_every:
        share |= {"split": config.eval.split, "steps": config.train.dev_batches}
        dev = make_loader(config, model.tokenizer, **share)

    scores = None
    if config.train.eval_every:
        scores = StepScores(config, model, program.partition, mesh)
    base = functools.partial(start_params, model, program.partition, mesh)
    taught_by = {} if teacher is None else teacher.on_mesh(program.shapes.teacher)
    begins = config.model.start_from
    return Training(
        model, program, loader, scores, dev, base, begins, taught_by, config.loss.teacher
    )
