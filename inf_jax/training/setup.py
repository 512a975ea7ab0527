"""A training run put together from its config: what `train`, `plan` and the benchmarks share."""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from inf_jax.config.sections import RunConfig
from inf_jax.core.batch import Batch
from inf_jax.core.errors import UserError
from inf_jax.core.trees import join
from inf_jax.data.from_config import tokenised_split
from inf_jax.data.loader import Loader, pairs_per_chunk, to_mesh
from inf_jax.data.records import PAIRS_PER_EXAMPLE
from inf_jax.distributed.coordination import primary_first
from inf_jax.distributed.mesh import (
    batch_devices,
    compiler_options,
    local_parts,
    make_mesh,
    replicated,
)
from inf_jax.distributed.sharding import state_shardings
from inf_jax.losses.objective import Objective, parse_objective
from inf_jax.models.encoder import Encoder
from inf_jax.models.hf.backbone import Backbone, load_model
from inf_jax.text.tokenizer import TextTokenizer
from inf_jax.training.initial_params import start_params
from inf_jax.training.optim import make_optimizer, make_schedule
from inf_jax.training.parameters import Split, make_split
from inf_jax.training.step import TrainState, init_coefficients, make_loss, make_train_step


class Program(NamedTuple):
    """The step of a run and its state, on a mesh whose devices need not be there (`plan`).

    Attributes:
      mesh, objective: as the config names them.
      step: jitted (state, batch) -> (state, metrics); the state is donated.
      measure: jitted (params, frozen, batch) -> the loss's metrics, without dropout.
      shapes: TrainState of ShapeDtypeStructs with shardings.
      init: jitted, {tower: tree} as `start.start_params` gives it -> TrainState at step 0 on its
        shards.
      split: which parameters are trained.
      frozen: jitted, {tower: tree} -> the frozen parameters alone.
    """

    mesh: jax.sharding.Mesh
    objective: Objective
    step: Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]
    measure: Callable[[dict, dict, Batch], dict[str, jax.Array]]
    shapes: TrainState
    init: Callable[[dict], TrainState]
    split: Split
    frozen: Callable[[dict], dict]


class Training(NamedTuple):
    """The parts of a run.

    Attributes:
      model, mesh, objective, loader: as the config names them.
      step: jitted (state, batch) -> (state, metrics); the state is donated.
      dev: (state) -> "dev/..." metrics of the dev split; None where none are asked for.
      shapes: TrainState of ShapeDtypeStructs with shardings.
      fresh: () -> TrainState at step 0 on its shards, from the backbone's weights or those of
        another run.
      split: which parameters are trained.
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
    split: Split
    frozen: Callable[[], dict]


def make_training(config: RunConfig, *, expected: str | None = None) -> Training:
    """Reads the sections data, model, loss, optim, train and mesh.

    Args:
      expected: fingerprint of the tokenised training split, of a run that is resumed.

    Raises:
      UserError: the model, the data or the mesh are not to be had as configured.
    """
    model = load_model(config)
    mesh = make_mesh(fsdp=config.mesh.fsdp, tensor=config.mesh.tensor)
    program = make_program(config, model.encoder, mesh, source=model.directory)
    every, batches = config.train.dev_every, config.train.dev_batches
    deal = {"devices": batch_devices(mesh), "parts": local_parts(mesh)}
    loader = make_loader(config, model.tokenizer, expected=expected, **deal)
    dev = None
    if every:
        measured = make_loader(
            config, model.tokenizer, split=config.eval.split, steps=batches, **deal
        )
        dev = functools.partial(_measured, measured, batches, program)
    split, start_from = program.split, config.model.start_from

    def base() -> dict:
        return start_params(model, split, mesh, start_from=start_from)

    return Training(
        model=model,
        mesh=mesh,
        objective=program.objective,
        loader=loader,
        step=program.step,
        dev=dev,
        shapes=program.shapes,
        fresh=lambda: program.init(base()),
        split=split,
        frozen=lambda: program.frozen(base()) if split.frozen else {},
    )


def _measured(
    loader: Loader, batches: int, program: Program, state: TrainState
) -> dict[str, jax.Array]:
    """Means over always the same batches, {"dev/...": scalar}."""
    found = loader.batches(0, batches, to_device=to_mesh(program.mesh), prefetch=1)
    with contextlib.closing(found):
        measured = [program.measure(state.params, state.frozen, batch) for batch in found]
    return {f"dev/{name}": sum(each[name] for each in measured) / batches for name in measured[0]}


def make_loader(
    config: RunConfig,
    tokenizer: TextTokenizer,
    *,
    devices: int,
    parts: Sequence[int] | None = None,
    split: str | None = None,
    steps: int | None = None,
    expected: str | None = None,
) -> Loader:
    """The loader of a split, by default of the training split for the steps of the run.

    Args:
      devices: that a batch is split over.
      parts: this process's parts of a batch, see `mesh.local_parts`; None is all.
      split: a batch is at most all of it.
      steps: that are planned for.
      expected: fingerprint of the tokenised split, where it must be that one.

    Raises:
      UserError: there is no such dataset, or it cannot be dealt to these devices.
    """
    train, data, loss = config.train, config.data, config.loss
    objective, sampled = parse_objective(loss.objective), loss.instruction_negatives
    each, split = train.chunks_per_device, split or data.train_split
    pairs_per_chunk(train.batch_size, devices * each, whole_examples=False)  # before any long work
    with primary_first(f"tokenised {split}"):
        dataset = tokenised_split(config, tokenizer, split, expected=expected)
    whole = split == data.train_split
    if not whole and dataset.num_examples * PAIRS_PER_EXAMPLE < devices * each:
        raise UserError(
            f"eval.split={split}: its {dataset.num_examples} examples do not give each of "
            f"{devices * each} chunks a pair; set train.dev_every=0, or name a larger split"
        )
    return Loader(
        dataset,
        seed=config.seed,
        batch_size=train.batch_size if whole else min(train.batch_size, dataset.num_examples),
        chunks=devices * each,
        mine=None if parts is None else [n * each + i for n in parts for i in range(each)],
        steps=steps or train.steps,
        row_tokens=data.row_tokens,
        texts_per_row=data.texts_per_row,
        towers=config.model.towers,
        instruction_negatives=sampled if "I" in objective.blocks else None,
        query_encoder=config.model.query_encoder,
    )


def make_program(
    config: RunConfig, encoder: Encoder, mesh: jax.sharding.Mesh, *, source: object
) -> Program:
    """The step for an encoder on a mesh: no data, no weights, and no device that can run it.

    Args:
      encoder: with the options of the `model` section.
      mesh: of devices of one platform, this machine's or a topology's.
      source: where the encoder's shape is from, for messages.

    Raises:
      UserError: the loss does not suit the encoder or the mesh, or the mesh does not divide the
        parameters.
    """
    train, data, optim, loss = config.train, config.data, config.optim, config.loss
    objective, width = parse_objective(loss.objective), encoder.width
    if max(loss.dims, default=0) > width:
        raise UserError(f"loss.dims={loss.dims}: {source} has embeddings of {width}")
    shape, tensor = encoder.config, mesh.shape["tensor"]
    if shape.heads % tensor or shape.ffn % tensor:
        raise UserError(
            f"mesh.tensor={tensor} must divide the heads and the ffn, which the devices share: "
            f"{source} has {shape.heads} and {shape.ffn}"
        )
    if loss.engine == "blockwise" and mesh.size > 1:
        raise UserError(f"loss.engine=blockwise is for one device, here are {mesh.size}: use ring")
    encoder.attention_in_training(data.row_tokens)  # raises, before any long work
    split = make_split(config, encoder)
    schedule = make_schedule(
        lr=optim.lr,
        steps=train.steps,
        warmup_steps=optim.warmup_steps,
        schedule=optim.schedule,
        final_ratio=optim.final_ratio,
    )
    tx = make_optimizer(
        schedule,
        weight_decay=optim.weight_decay,
        b1=optim.b1,
        b2=optim.b2,
        eps=optim.eps,
        clip_norm=optim.clip_norm,
    )
    instructed = None
    if config.model.query_encoder == "attention":
        instructed = functools.partial(encoder.encode_instructed, max_tokens=data.max_query_tokens)
    how = {
        "scale": loss.scale,
        "bias": loss.bias,
        "mask": loss.mask,
        "options": {
            "dims": tuple(loss.dims),
            "dim_weights": tuple(loss.dim_weights),
            "engine": loss.engine,
            "tile_dtype": None if loss.tile_dtype == "float32" else loss.tile_dtype,
        },
        "instructed": instructed,
        "groups": train.chunks_per_device,
        "mesh": mesh,
        "gather": config.mesh.gather,
    }
    step = make_train_step(
        encoder.encode,
        objective,
        tx,
        max_scale=loss.max_scale,
        with_health=train.health,
        dropout_key=jax.random.key(config.seed) if config.model.dropout else None,
        schedule=schedule,
        frozen_layers=config.model.freeze_layers,
        **how,
    )
    loss_fn = make_loss(encoder.encode, objective, **how)

    def measure(params: dict, frozen: dict, batch: Batch) -> dict[str, jax.Array]:
        return loss_fn(join(params, frozen), batch, None)[1]

    def init(base: dict) -> TrainState:
        params = split.trained(base)
        if loss.learn_scale:
            params["loss"] = init_coefficients(
                loss.scale, loss.bias, sigmoid=objective.has("sigmoid")
            )
        return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), split.fixed(base))

    # Shapes first: the state is born on its shards, from a checkpoint or from the backbone.
    shapes = jax.eval_shape(init, split.base)
    shardings = state_shardings(mesh, shapes)
    return Program(
        mesh=mesh,
        objective=objective,
        step=jax.jit(
            step,
            donate_argnums=0,
            out_shardings=(shardings, replicated(mesh)),
            compiler_options=compiler_options(mesh),
        ),
        measure=jax.jit(
            measure, out_shardings=replicated(mesh), compiler_options=compiler_options(mesh)
        ),
        shapes=jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
        ),
        init=jax.jit(init, out_shardings=shardings),
        split=split,
        frozen=jax.jit(split.fixed, out_shardings=shardings.frozen),
    )
