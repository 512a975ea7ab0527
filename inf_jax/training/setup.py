"""Puts a training run together from its config: backbone, mesh, data and programs."""

import contextlib
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax

from inf_jax.checkpoints.resume import ResumeInfo
from inf_jax.checkpoints.saver import Saver
from inf_jax.config.sections import RunConfig
from inf_jax.core.batch import Batch
from inf_jax.data.from_config import make_loader
from inf_jax.data.loader import Loader, to_mesh
from inf_jax.distributed.mesh import batch_devices, local_parts, make_mesh
from inf_jax.losses.objective import Objective
from inf_jax.models.hf.backbone import Backbone, load_model
from inf_jax.training.initial_params import start_params
from inf_jax.training.parameters import ParameterPartition
from inf_jax.training.program import TrainingProgram, make_program
from inf_jax.training.step import TrainState


class Training(NamedTuple):
    """The parts of a run.

    Attributes:
      model, mesh, objective, loader: as in the config.
      step: jitted (state, batch) -> (state, metrics); the state is donated.
      dev: (state) -> "dev/..." metrics of the dev split; None where train.dev_every is 0.
      shapes: TrainState of ShapeDtypeStructs with shardings.
      fresh: () -> TrainState at step 0 on its shards, from the backbone's weights or those of
        another run.
      partition: which parameters are trained.
      frozen: () -> the frozen parameters alone, read from there again; {} where all is trained.
    """

    model: Backbone
    mesh: jax.sharding.Mesh
    objective: Objective
    loader: Loader
    step: Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]
    dev: Callable[[TrainState], dict[str, jax.Array]] | None
    shapes: TrainState
    fresh: Callable[[], TrainState]
    partition: ParameterPartition
    frozen: Callable[[], dict]

    def start(self, saver: Saver) -> tuple[TrainState, int]:
        """The state that a run begins with or continues from, and its first step.

        Raises:
          UserError: see `Saver.start`.
        """
        loader = self.loader
        shares_chunks = (
            loader.layout.block_i and not loader.layout.query_encoder.samples_instructions
        )
        data = ResumeInfo(
            step=0,
            seed=loader.seed,
            batch_size=loader.layout.batch_size,
            dataset=loader.dataset.fingerprint,
            groups=loader.layout.chunks if shares_chunks else 0,
        )
        state = saver.start(
            data,
            shapes=self.shapes.saved,
            fresh=lambda: self.fresh()._asdict(),
            frozen=self.frozen,
        )
        return TrainState(**state), saver.first_step


def make_training(config: RunConfig, *, expected: str | None = None) -> Training:
    """Loads the backbone and the data and builds the programs.

    Args:
      expected: fingerprint of the tokenised training split, of a run that is resumed.

    Raises:
      UserError: the model or the data are missing, or they do not suit the config or the mesh.
    """
    model = load_model(config)
    mesh = make_mesh(fsdp=config.mesh.fsdp, tensor=config.mesh.tensor)
    program = make_program(config, model.encoder, mesh, source=model.directory)
    every, batches = config.train.dev_every, config.train.dev_batches
    share = {"devices": batch_devices(mesh), "parts": local_parts(mesh)}
    loader = make_loader(config, model.tokenizer, expected=expected, **share)
    dev = None
    if every:
        dev_loader = make_loader(
            config, model.tokenizer, split=config.eval.split, steps=batches, **share
        )
        dev = functools.partial(_dev_metrics, dev_loader, batches, program)
    partition, start_from = program.partition, config.model.start_from

    def base() -> dict:
        return start_params(model, partition, mesh, start_from=start_from)

    return Training(
        model=model,
        mesh=mesh,
        objective=program.objective,
        loader=loader,
        step=program.step,
        dev=dev,
        shapes=program.shapes,
        fresh=lambda: program.init(base()),
        partition=partition,
        frozen=lambda: program.frozen(base()) if partition.frozen else {},
    )


def _dev_metrics(
    loader: Loader, batches: int, program: TrainingProgram, state: TrainState
) -> dict[str, jax.Array]:
    """Means over always the same batches, {"dev/...": scalar}."""
    on_devices = loader.batches(0, batches, to_device=to_mesh(program.mesh), prefetch=1)
    with contextlib.closing(on_devices):
        each = [program.measure(state.params, state.frozen, batch) for batch in on_devices]
    return {f"dev/{name}": sum(one[name] for one in each) / batches for name in each[0]}
