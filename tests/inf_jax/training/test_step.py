"""The step: the same loss and gradients on every mesh, chunking, packing and sharding."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from inf_jax.config.sections import LossConfig
from inf_jax.distributed.mesh import make_mesh
from inf_jax.losses import contrastive_loss
from inf_jax.losses.objective import parse_objective
from inf_jax.training.forward import EncodingPlan, encode_pairs
from inf_jax.training.step import TrainState, init_coefficients, make_train_step
from tests.inf_jax.training.steps import (
    assert_same,
    encoder,
    init_params,
    loss_and_grads,
    make_batch,
    make_pairs,
)


@pytest.fixture(scope="module")
def reference(weights):
    batch = make_batch(make_pairs(22), chunks=1)
    return loss_and_grads(weights, batch, mesh=make_mesh(devices=jax.devices()[:1]))


@pytest.mark.parametrize(
    ("mesh", "groups", "engine", "options"),
    [
        ((1, 1, 1), 2, "dense", {}),
        ((1, 1, 1), 8, "blockwise", {}),
        ((2, 1, 1), 1, "ring", {}),
        ((1, 2, 1), 8, "gather", {"keep_last": True}),
        ((2, 2, 1), 2, "ring", {}),
        ((8, 1, 1), 1, "ring", {}),
        ((2, 4, 1), 2, "ring", {"gather": "layer", "remat": "dots"}),
        ((8, 1, 1), 2, "dense", {}),
        ((1, 8, 1), 1, "dense", {"remat": "offload"}),
        ((2, 2, 1), 1, "ring", {"scan_layers": False}),
        ((2, 1, 2), 2, "ring", {}),
        ((2, 2, 2), 1, "gather", {"remat": "full", "gather": "step"}),
        ((1, 2, 4), 2, "ring", {"gather": "layer"}),
        ((1, 2, 2), 2, "ring", {"gather": "weights", "scan_layers": False}),
    ],
)
def test_any_mesh_and_chunking_gives_the_same_gradients(
    weights, reference, mesh, groups, engine, options
):
    # 22 pairs divide among none of these chunk numbers but 2: empty slots take part
    data, fsdp, tensor = mesh
    batch = make_batch(make_pairs(22), chunks=data * fsdp * groups)
    mesh = make_mesh(fsdp=fsdp, tensor=tensor, devices=jax.devices()[: data * fsdp * tensor])
    actual = loss_and_grads(weights, batch, mesh=mesh, groups=groups, engine=engine, **options)
    assert_same(actual, reference)


@pytest.mark.parametrize(
    ("gather", "fsdp", "other"), [("step", 1, "step"), ("weights", 2, "layer")]
)
def test_chunks_gradients_of_bfloat16_weights_are_summed_in_float32(weights, gather, fsdp, other):
    # programs that round alike in a chunk; sums in bfloat16 would differ by 4e-3
    batch = make_batch(make_pairs(48), chunks=16)
    one, four = (make_mesh(fsdp=n, devices=jax.devices()[: n * n]) for n in (fsdp, 2))
    options = {"dtype": "bfloat16", "engine": "gather"}
    groups = 16 // one.size
    expected = loss_and_grads(weights, batch, mesh=one, groups=groups, gather=other, **options)
    actual = loss_and_grads(weights, batch, mesh=four, groups=4, gather=gather, **options)
    assert actual[0] == pytest.approx(expected[0], rel=1e-6)
    for a, b in zip(jax.tree.leaves(actual[1]), jax.tree.leaves(expected[1]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6 * np.abs(b).max(), rtol=0)


def test_separate_towers_start_equal_and_split_the_gradient(weights, reference):
    mesh = make_mesh(devices=jax.devices()[:2])
    batch = make_batch(make_pairs(22), chunks=2, towers="separate")
    loss, grads = loss_and_grads(weights, batch, mesh=mesh, towers="separate")
    total = jax.tree.map(np.add, grads["query"], grads["passage"])
    assert_same((loss, total), (reference[0], reference[1]["shared"]))
    assert np.abs(grads["query"]["word"]).max() > 0
    assert np.abs(grads["query"]["word"] - grads["passage"]["word"]).max() > 1e-3


def test_dropout_is_the_same_on_any_mesh_and_chunking(weights, reference):
    one = make_mesh(devices=jax.devices()[:1])
    plain = make_batch(make_pairs(22), chunks=1)
    expected = loss_and_grads(weights, plain, mesh=one, dropout=0.1)
    assert expected[0] != pytest.approx(reference[0], rel=1e-3)  # dropout is on
    chunked = make_batch(make_pairs(22), chunks=8)
    actual = loss_and_grads(weights, chunked, mesh=make_mesh(fsdp=2), dropout=0.1)
    assert_same(actual, expected)
    actual = loss_and_grads(weights, chunked, mesh=one, groups=8, dropout=0.1)
    assert_same(actual, expected)
    four = make_mesh(fsdp=2, devices=jax.devices()[:4])
    actual = loss_and_grads(weights, chunked, mesh=four, groups=2, dropout=0.1, engine="ring")
    assert_same(actual, expected)
    actual = loss_and_grads(weights, chunked, mesh=make_mesh(tensor=2), groups=2, dropout=0.1)
    assert_same(actual, expected)


def test_a_learned_scale_stops_at_its_limit(weights):
    tx = optax.apply_if_finite(optax.sgd(1.0), 5)
    params = init_params(weights, "shared")
    batch = make_batch(make_pairs(8), chunks=1)
    objective = parse_objective("sigmoid(P)")

    def run(max_scale):
        loss = LossConfig(objective="sigmoid(P)", scale=1.0, bias=0.0, max_scale=max_scale)
        step = make_train_step(EncodingPlan(encoder().encode), loss, tx)
        learned = params | {"loss": init_coefficients(10.0, -5.0, sigmoid=True)}
        return jax.jit(step)(TrainState(jnp.int32(0), learned, tx.init(learned)), batch)

    plan = EncodingPlan(encoder().encode)
    embeddings = jax.jit(encode_pairs, static_argnums=0)(plan, params, batch)

    def loss(log_scale, bias):
        return contrastive_loss(
            embeddings.queries,
            embeddings.passages,
            objective=objective,
            scale=jnp.exp(log_scale),
            bias=bias,
            ids=batch.ids,
            valid=batch.valid,
        )[0]

    log_scale, bias = np.float32(np.log(10.0)), np.float32(-5.0)
    slopes = jax.jit(jax.grad(loss, (0, 1)))(log_scale, bias)
    state, metrics = run(100.0)
    np.testing.assert_allclose(metrics["scale"], 10.0, rtol=1e-6)
    assert metrics["bias"] == -5.0
    after = state.params["loss"]
    np.testing.assert_allclose(after["log_scale"], log_scale - slopes[0], rtol=1e-4)
    np.testing.assert_allclose(after["bias"], bias - slopes[1], rtol=1e-4)
    low = float(np.exp(after["log_scale"])) / 2
    np.testing.assert_allclose(run(low)[0].params["loss"]["log_scale"], np.log(low), rtol=1e-6)
