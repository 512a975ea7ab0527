"""The paper's runs pass all of plan but the compiler: nine backbones and twelve losses."""

import math

import jax
import pytest

import inf_jax.plan
from inf_jax.config.command_line import parse
from inf_jax.config.defaults import run_config
from inf_jax.planning.chips import CHIPS
from inf_jax.planning.options import PlanOptions
from inf_jax.planning.topology import topology
from launch.bench.paper.cells import CONFIG, objective_keys, paper_config

PAPER = paper_config()
DECODERS = {"llama-3.2-1b": 1_235_814_400, "qwen2.5-1.5b": 1_543_714_304}
DECODERS |= {"qwen2.5-3b": 3_085_938_688}
# Parameters: BERT's less the pooler's width^2 + width; ModernBERT's with an unused norm of the
# first layer, which is stacked with the others.
PUBLISHED = {
    "e5-base-v2": 109_482_240 - 590_592,
    "e5-large-v2": 335_141_888 - 1_049_600,
    "modernbert-base": 149_014_272 + 768,
    **DECODERS,
    **{f"{name}-instruct": parameters for name, parameters in DECODERS.items()},
}


@pytest.fixture
def prepared(monkeypatch):
    """(name, *keys) -> (the step that plan would compile for eight devices, its mesh)."""
    steps = []

    def uncompiled(step, target, mesh, *, hbm):
        steps.append((step, mesh))
        return {"hbm": {"fits": True}}

    monkeypatch.setattr(inf_jax.plan, "make_plan", uncompiled)
    eight = topology(f"cpu:{PAPER.DEVICES}")

    def prepare(name, *keys):
        flags = [f"--config.{key}" for key in keys]
        config = parse(["plan", f"--config={CONFIG}:{name}", *flags])
        options = PlanOptions(("cpu:8",), 1, None, False, "", 40, 120, None, None)
        inf_jax.plan.plan_run(run_config(config), eight, options)
        return steps[-1]

    return prepare


def test_every_backbone_has_a_published_size():
    assert set(PUBLISHED) == set(PAPER.BACKBONES)


@pytest.mark.parametrize("name", PUBLISHED)
def test_each_backbone_is_planned(name, prepared):
    step, mesh = prepared(name)
    assert step.facts["parameters"] == step.facts["trained_parameters"] == PUBLISHED[name]
    assert step.facts["batch"]["pairs"] == 96 and step.facts["batch"]["chunks"] == mesh.size == 8
    state = sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(step.state)
    )
    assert state < CHIPS["v5e"].usable / 3  # of which the step's own arrays leave room


@pytest.mark.parametrize("objective", PAPER.OBJECTIVES)
def test_each_loss_is_traced(objective, prepared):
    keys = objective_keys(objective, PAPER.INSTRUCTION_NEGATIVES)
    step, _ = prepared("e5-base-v2", *keys)
    assert step.facts["objective"] == objective
    state, metrics = jax.eval_shape(step.step, step.state, step.batch)
    shape_of = lambda x: (x.shape, x.dtype)  # noqa: E731
    assert jax.tree.map(shape_of, state) == jax.tree.map(shape_of, step.state)
    assert metrics["loss"].shape == ()
