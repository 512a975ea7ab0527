"""A training run put together from its config: what `train`, `plan` and the benchmarks share."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from inf_jax.config import ReadLog
from inf_jax.embed import Batch
from inf_jax.errors import UserError
from inf_jax.loader import Loader
from inf_jax.mesh import compiler_options, make_mesh, replicated, state_shardings
from inf_jax.objective import Objective, parse_objective
from inf_jax.optim import make_optimizer, make_schedule
from inf_jax.run import Model, load_model, tokenised_split
from inf_jax.step import TrainState, init_coefficients, init_params, make_train_step


class Training(NamedTuple):
    """The parts of a run.

    Attributes:
      model, mesh, objective, loader: as the config names them.
      step: jitted (state, batch) -> (state, metrics); the state is donated.
      shapes: TrainState of ShapeDtypeStructs with shardings.
      fresh: () -> TrainState at step 0 on its shards, from the backbone's weights.
    """

    model: Model
    mesh: jax.sharding.Mesh
    objective: Objective
    loader: Loader
    step: Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]
    shapes: TrainState
    fresh: Callable[[], TrainState]


def make_training(config: ReadLog) -> Training:
    """Reads the sections data, model, loss, optim, train and mesh.

    Raises:
      UserError: the model, the data or the mesh are not to be had as configured.
    """
    train, data, optim, loss = config.train, config.data, config.optim, config.loss
    model, mesh = load_model(config), make_mesh(fsdp=config.mesh.fsdp)
    objective, sampled = parse_objective(loss.objective), loss.instruction_negatives
    width = model.encoder.config.width
    if max(loss.dims, default=0) > width:
        raise UserError(f"loss.dims={loss.dims}: {model.directory} has embeddings of {width}")
    if loss.engine == "blockwise" and mesh.size > 1:
        raise UserError(f"loss.engine=blockwise is for one device, here are {mesh.size}: use ring")
    loader = Loader(
        tokenised_split(config, model.tokenizer, data.train_split),
        seed=config.seed,
        batch_size=train.batch_size,
        chunks=mesh.size * train.chunks_per_device,
        steps=train.steps,
        row_tokens=data.row_tokens,
        texts_per_row=data.texts_per_row,
        towers=config.model.towers,
        instruction_negatives=sampled if "I" in objective.blocks else None,
        query_encoder=config.model.query_encoder,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
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
        instructed = functools.partial(
            model.encoder.encode_instructed, max_tokens=data.max_query_tokens
        )
    step = make_train_step(
        model.encoder.encode,
        objective,
        tx,
        scale=loss.scale,
        bias=loss.bias,
        max_scale=loss.max_scale,
        mask=loss.mask,
        options={
            "dims": tuple(loss.dims),
            "dim_weights": tuple(loss.dim_weights),
            "engine": loss.engine,
            "tile_dtype": None if loss.tile_dtype == "float32" else loss.tile_dtype,
        },
        instructed=instructed,
        groups=train.chunks_per_device,
        mesh=mesh,
        with_health=train.health,
        dropout_key=jax.random.key(config.seed) if config.model.dropout else None,
        schedule=schedule,
    )

    def init(tree: dict) -> TrainState:
        params = init_params(tree, config.model.towers)
        if loss.learn_scale:
            params["loss"] = init_coefficients(
                loss.scale, loss.bias, sigmoid=objective.has("sigmoid")
            )
        return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))

    # Shapes first: the state is born on its shards, from a checkpoint or from the backbone.
    shapes = jax.eval_shape(init, jax.eval_shape(model.encoder.init, jax.random.key(0)))
    shardings = state_shardings(mesh, shapes)
    return Training(
        model=model,
        mesh=mesh,
        objective=objective,
        loader=loader,
        step=jax.jit(
            step,
            donate_argnums=0,
            out_shardings=(shardings, replicated(mesh)),
            compiler_options=compiler_options(),
        ),
        shapes=jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
        ),
        fresh=lambda: jax.jit(init, out_shardings=shardings)(model.load().params),
    )
