"""Describes the step that training runs for `planning.compile`, from shapes alone."""

import math

import jax

from inf_jax.config.sections import RunConfig
from inf_jax.data.from_config import batch_layout
from inf_jax.data.step_shapes import StepInputs, batch_shapes
from inf_jax.distributed.mesh import batch_devices, batch_sharding
from inf_jax.models.encoder import Encoder
from inf_jax.planning.compile import StepToPlan
from inf_jax.planning.flops import encoder_flops, model_flops
from inf_jax.training.program import make_program
from inf_jax.training.run_model import planned_teacher


def planned_step(
    config: RunConfig,
    encoder: Encoder,
    mesh: jax.sharding.Mesh,
    inputs: StepInputs,
    *,
    source: object,
) -> StepToPlan:
    """The step that training runs with this config; for the arguments see `make_program`.

    Args:
      inputs: of a step on this mesh.

    Raises:
      UserError: the config does not suit the model or the devices.
    """
    teacher = planned_teacher(config, encoder)
    program = make_program(config, encoder, mesh, source=source, teacher=teacher)
    shape = encoder.config
    flops = model_flops(
        shape,
        program.objective,
        tokens=inputs.tokens,
        squares=inputs.squares,
        pairs=inputs.pairs,
        candidates=inputs.candidates(program.objective),
        dims=config.loss.dims or (encoder.width,),
        adapter=program.partition.adapter_size,
    )
    if teacher is not None:
        shape_of = teacher.encoder.config
        flops += encoder_flops(shape_of, tokens=inputs.tokens, squares=inputs.squares)
    facts = {
        "tensor_divides": math.gcd(shape.heads, shape.ffn),  # a multiple of mesh.tensor
        "model": config.model.name,
        "model_shape_from": source,
        "attention": encoder.attention_in_training(config.data.row_tokens),
        "parameters": _size(program.shapes.whole),
        "trained_parameters": _size(program.shapes.params),
        **({"teacher_parameters": _size(program.shapes.teacher)} if teacher else {}),
        "objective": str(program.objective),
        "steps": config.train.steps,
        "batch": {
            **inputs._asdict(),
            "examples": round(inputs.examples),
            "row_tokens": config.data.row_tokens,
        },
    }
    k = inputs.pairs_per_example
    layout = batch_layout(config, devices=batch_devices(mesh), pairs_per_example=k)
    batch = batch_shapes(layout, inputs.rows, sharding=batch_sharding(mesh))
    return StepToPlan(program.step, program.shapes, batch, flops, facts)


def _size(tree: dict) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))
