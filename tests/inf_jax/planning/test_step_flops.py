"""Operations of whole training steps: formula, traced program and hand counts."""

import json

import jax
import pytest

from inf_jax.config.defaults import defaults, run_config
from inf_jax.data.from_config import batch_layout
from inf_jax.data.step_shapes import batch_shapes, plan_inputs
from inf_jax.distributed.mesh import batch_sharding, make_mesh
from inf_jax.losses.objective import parse_objective
from inf_jax.models.hf.backbone import configured_encoder, run_tokenizer
from inf_jax.models.hf.config import config_from_hf
from inf_jax.planning.flops import model_flops, product_flops
from inf_jax.planning.model_shapes import PUBLIC, model_shape
from inf_jax.training.program import make_program


def bert_base(**options):
    config = defaults()
    config.model.name = "bert-base-uncased"
    config.model.scan_layers = False
    config.data.max_passage_tokens = config.data.row_tokens = 128
    config.data.texts_per_row = 1
    config.train.batch_size = 96
    config.train.health = False
    for key, value in options.items():
        section, _, name = key.partition("__")
        config[section][name] = value
    shape, source = model_shape(config.model.name)
    return config, shape, source


def test_flops_of_bert_base_against_a_hand_count():
    """Formula, traced step and XLA's analysis of it, all of rows full of one text each."""
    config, shape, source = bert_base()
    read, mesh = run_config(config), make_mesh(devices=jax.devices()[:1])
    inputs = plan_inputs(
        read, lambda: run_tokenizer(read), devices=1, query_tokens=40, passage_tokens=80
    )._replace(rows=(192,))
    program = make_program(
        read, configured_encoder(read, shape, source=source), mesh, source=source
    )
    layout = batch_layout(read, devices=1, pairs_per_example=3)
    batch = batch_shapes(layout, inputs.rows, sharding=batch_sharding(mesh))
    traced = program.step.trace(program.shapes, batch)
    tokens, pairs = 192 * 128, 96
    model = model_flops(shape, program.objective, tokens=tokens, squares=192 * 128**2, pairs=pairs)
    # by hand: BERT-base has 85,054,464 parameters in its layers, of which 84,934,656 multiply
    weights = 12 * (4 * 768**2 + 2 * 768 * 3072)
    assert weights == 84_934_656
    attention = 12 * 2 * (128 * 128 * 768) * 192  # multiply-adds of q k^T and of weights times v
    scores = pairs * pairs * 768
    assert model == 6 * (weights * tokens + attention + scores)
    assert product_flops(traced.jaxpr.jaxpr) == pytest.approx(model, rel=0.01)
    assert traced.lower().cost_analysis()["flops"] == pytest.approx(model, rel=0.05)


@pytest.mark.parametrize(("keep_last", "passes"), [(False, 4), (True, 3.5)])
def test_chunks_are_encoded_twice_but_the_last_need_not(keep_last, passes):
    """GradCache: one forward pass more than the formula's three, of two chunks; traced."""
    config, shape, source = bert_base(
        train__chunks_per_device=2, train__keep_last_chunk=keep_last, model__scan_layers=True
    )
    read, mesh = run_config(config), make_mesh(devices=jax.devices()[:1])
    encoder = configured_encoder(read, shape, source=source)
    program = make_program(read, encoder, mesh, source=source)
    layout = batch_layout(read, devices=1, pairs_per_example=3)
    traced = program.step.trace(program.shapes, batch_shapes(layout, (96,), sharding=None))
    tokens, squares = 192 * 128, 192 * 128**2
    model = model_flops(shape, program.objective, tokens=tokens, squares=squares, pairs=96)
    assert product_flops(traced.jaxpr.jaxpr) == pytest.approx(model * passes / 3, rel=0.01)


def test_a_program_with_adapters_has_no_gradients_of_the_kernels():
    """Formula and traced step; and what is at rest: the base in two bytes, without moments."""
    options = {"model__lora_rank": 16, "model__frozen_dtype": "bfloat16"}
    options["model__scan_layers"] = True  # unrolled, the first layer's input has no gradient
    config, shape, source = bert_base(**options)
    read, mesh = run_config(config), make_mesh(devices=jax.devices()[:1])
    inputs = plan_inputs(
        read, lambda: run_tokenizer(read), devices=1, query_tokens=40, passage_tokens=80
    )._replace(rows=(192,))
    program = make_program(
        read, configured_encoder(read, shape, source=source), mesh, source=source
    )
    layout = batch_layout(read, devices=1, pairs_per_example=3)
    batch = batch_shapes(layout, inputs.rows, sharding=batch_sharding(mesh))
    traced = program.step.trace(program.shapes, batch)
    adapters = 12 * 16 * (4 * 2 * 768 + 2 * (768 + 3072))
    assert program.partition.adapter_size == adapters
    assert sum(x.size for x in jax.tree.leaves(program.shapes.params)) == adapters
    tokens, pairs = 192 * 128, 96
    how = {"tokens": tokens, "squares": 192 * 128**2, "pairs": pairs}
    model = model_flops(shape, program.objective, **how, adapter=adapters)
    weights = 12 * (4 * 768**2 + 2 * 768 * 3072)
    whole = model_flops(shape, program.objective, **how)
    assert model == whole - 2 * weights * tokens + 6 * adapters * tokens
    assert product_flops(traced.jaxpr.jaxpr) == pytest.approx(model, rel=0.01)
    state = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(program.shapes))
    assert state == pytest.approx(2 * 109e6 + 3 * 4 * adapters, rel=0.01)


def test_flops_of_the_blocks():
    shape = config_from_hf(json.loads(PUBLIC.read_text())["bert-base-uncased"])
    none = {"tokens": 0, "squares": 0, "pairs": 10}

    def loss(objective, **more):
        return model_flops(shape, parse_objective(objective), **none, **more)

    one = 3 * 2 * 10 * 10 * 768
    assert loss("uni(P)") == loss("multi(P,IQ)") == one  # rows and columns of one matrix
    assert loss("uni(P,IQ,QQ,PP)") == 3 * one
    assert loss("uni(P,I)", candidates=3) == one + 3 * 2 * 10 * 3 * 768
    assert loss("uni(P)", dims=(768, 384)) == 1.5 * one
