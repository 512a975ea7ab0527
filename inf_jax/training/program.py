"""Builds the jitted programs of a run for a mesh, from its config and the encoder's shape alone."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from inf_jax.config.mixture import mixture_sources
from inf_jax.config.sections import RunConfig
from inf_jax.core.batch import Batch
from inf_jax.core.errors import UserError
from inf_jax.core.query_encoders import query_encoder
from inf_jax.core.trees import join_trees
from inf_jax.distributed.layer_shards import HOST_MEMORY
from inf_jax.distributed.mesh import compiler_options, replicated
from inf_jax.distributed.sharding import state_shardings
from inf_jax.losses.objective import Objective, parse_objective
from inf_jax.models.encoder import COMPUTE_DTYPES, Encoder
from inf_jax.optim.ema import average_of, with_ema
from inf_jax.optim.groups import check_groups
from inf_jax.optim.optimisers import make_optimizer
from inf_jax.optim.schedules import make_schedule
from inf_jax.training.forward import EncodingPlan
from inf_jax.training.parameters import ParameterPartition, make_partition
from inf_jax.training.run_model import Teacher
from inf_jax.training.step import (
    TrainState,
    init_coefficients,
    make_loss,
    make_train_step,
    with_teacher,
)


class TrainingProgram(NamedTuple):
    """The programs of a run, on a mesh whose devices need not exist here (`inf_jax.plan`).

    Attributes:
      mesh, objective: as in the config.
      sources: names of the mixture's sources; () without one.
      step: jitted (state, batch) -> (state, metrics); the state is donated.
      measure: jitted (state, batch) -> the loss's metrics, without dropout.
      shapes: TrainState of ShapeDtypeStructs with shardings.
      init: jitted, {tower: tree} of `start_params` -> TrainState at step 0 on its shards.
      frozen: jitted, {tower: tree} -> the frozen parameters alone.
      teacher: its encoder; None without loss.teacher. Its parameters are in the state's shapes, but
        not in what `init` gives.
    """

    mesh: jax.sharding.Mesh
    sources: tuple[str, ...]
    objective: Objective
    step: Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]
    measure: Callable[[TrainState, Batch], dict[str, jax.Array]]
    shapes: TrainState
    init: Callable[[dict], TrainState]
    partition: ParameterPartition
    frozen: Callable[[dict], dict]
    teacher: Encoder | None = None


def make_program(
    config: RunConfig,
    encoder: Encoder,
    mesh: jax.sharding.Mesh,
    *,
    source: object,
    teacher: Teacher | None = None,
) -> TrainingProgram:
    """The programs for an encoder on a mesh: needs no data, no weights, and no device to run on.

    Args:
      encoder: with the options of the `model` section.
      mesh: devices of one platform, this machine's or a topology's.
      source: where the encoder's shape is from, for messages.
      teacher: with parameters or their shapes; None: without loss.teacher.

    Raises:
      UserError: loss or parameters do not suit the encoder or the mesh.
    """
    _check(config, encoder, mesh, source)
    train, loss = config.train, config.loss
    partition = make_partition(config, encoder)
    objective = parse_objective(loss.objective)
    encoding = _encoding(config, encoder, mesh)
    schedule = make_schedule(config.optim, steps=train.steps, pairs=train.batch_size)
    tx = make_optimizer(config.optim, schedule, layers=encoder.config.layers)
    drops = config.model.dropout or config.model.attention_dropout
    step = make_train_step(
        encoding,
        loss,
        tx,
        schedule=schedule,
        dropout_key=jax.random.key(config.seed) if drops else None,
        frozen_layers=config.model.freeze_layers,
        with_health=train.health,
    )
    if config.optim.ema:
        step = with_ema(step, config.optim.ema)
    loss_fn = make_loss(encoding, loss)

    def measure(state: TrainState, batch: Batch) -> dict[str, jax.Array]:
        return loss_fn(join_trees(state.scored, state.frozen), batch, None)[1]

    if teacher is not None:
        teacher.encoder.attention_in_training(config.data.row_tokens)  # raises
        teaching = _encoding(config, teacher.encoder, mesh)
        teaching = dataclasses.replace(teaching, keep_last=False)  # of backward alone
        step, measure = (with_teacher(f, teaching, loss.scale) for f in (step, measure))

    def init(base: dict) -> TrainState:
        params = partition.trained(base)
        if loss.learn_scale:
            sigmoid = objective.has("sigmoid")
            params["loss"] = init_coefficients(loss.scale, loss.bias, sigmoid=sigmoid)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=tx.init(params),
            frozen=partition.fixed(base),
            ema=average_of(params) if config.optim.ema else {},
        )

    check_groups(config.optim.groups, jax.eval_shape(partition.trained, partition.base))
    # Shapes first: the state is created on its shards, from a checkpoint or from the backbone.
    shapes = jax.eval_shape(init, partition.base)
    if teacher is not None:
        shapes = shapes._replace(teacher=jax.eval_shape(lambda: teacher.params))
    shardings = state_shardings(mesh, shapes)
    options = compiler_options(mesh)
    return TrainingProgram(
        mesh=mesh,
        sources=encoding.sources,
        objective=objective,
        step=jax.jit(
            step,
            donate_argnums=0,
            out_shardings=(shardings, replicated(mesh)),
            compiler_options=options,
        ),
        measure=jax.jit(measure, out_shardings=replicated(mesh), compiler_options=options),
        shapes=jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
        ),
        init=jax.jit(init, out_shardings=shardings._replace(teacher={})),
        partition=partition,
        frozen=jax.jit(partition.fixed, out_shardings=shardings.frozen),
        teacher=None if teacher is None else teacher.encoder,
    )


def _encoding(config: RunConfig, encoder: Encoder, mesh: jax.sharding.Mesh) -> EncodingPlan:
    instructed = query_encoder(config.model.query_encoder).instructed(encoder)
    if instructed is not None:
        instructed = functools.partial(instructed, max_tokens=config.data.max_query_tokens)
    return EncodingPlan(
        encode=encoder.encode,
        instructed=instructed,
        groups=config.train.chunks_per_device,
        mesh=mesh,
        gather=config.mesh.gather,
        keep_last=config.train.keep_last_chunk,
        dtype=COMPUTE_DTYPES[encoder.options.dtype],
        sources=tuple(source.name for source in mixture_sources(config.data.mixture)),
    )


def _check(config: RunConfig, encoder: Encoder, mesh: jax.sharding.Mesh, source: object) -> None:
    loss, width, shape = config.loss, encoder.width, encoder.config
    if max(loss.dims, default=0) > width:
        raise UserError(f"loss.dims={loss.dims}: {source} has embeddings of {width}")
    tensor = mesh.shape["tensor"]
    if shape.heads % tensor or shape.ffn % tensor:
        raise UserError(
            f"mesh.tensor={tensor} must divide the heads and the ffn, which the devices share: "
            f"{source} has {shape.heads} and {shape.ffn}"
        )
    if loss.engine == "blockwise" and mesh.size > 1:
        raise UserError(f"loss.engine=blockwise is for one device, here are {mesh.size}: use ring")
    options = encoder.options
    early = options.remat_first if options.remat_first_layers else options.remat
    if "offload" in (options.remat, early):
        devices = list(mesh.devices.flat)
        mine = next((d for d in devices if d.process_index == jax.process_index()), devices[0])
        kinds = [memory.kind for memory in mine.addressable_memories()]
        if HOST_MEMORY not in kinds:
            raise UserError(
                f"model.remat: offload needs memory of the kind {HOST_MEMORY}, which "
                f"{mine.device_kind} does not have ({', '.join(kinds)}): choose full"
            )
    encoder.attention_in_training(config.data.row_tokens)  # raises, before any long work
