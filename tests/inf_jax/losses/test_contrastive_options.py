"""contrastive_loss: meshes, precision, weights, prefixes, distillation and refused input."""

import doctest
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from inf_jax.core.batch import TextIds
from inf_jax.core.errors import UserError
from inf_jax.losses import contrastive, contrastive_loss
from tests.inf_jax.losses.batches import (
    EMBEDDINGS,
    MULTI,
    UNI,
    assert_close,
    make,
    value_and_grad,
)


@pytest.mark.parametrize("objective", [UNI, MULTI])
def test_logits_of_a_thousand(objective):
    """exp(1000) is beyond float32 and float64; loss and gradients stay exact."""
    _, arrays = make(4, empty=False)
    (loss, _), grads = value_and_grad(arrays, objective, scale=1000.0)
    assert loss > 100
    with jax.enable_x64(True):
        exact = {
            k: v.astype(np.float64) if isinstance(v, np.ndarray) and v.dtype == np.float32 else v
            for k, v in arrays.items()
        }
        (exact_loss, _), exact_grads = value_and_grad(exact, objective, scale=1000.0)
    assert exact_loss.dtype == np.float64
    np.testing.assert_allclose(loss, exact_loss, rtol=1e-6)
    assert_close(grads, exact_grads, 2e-3)


def test_a_small_loss_at_large_logits_is_not_lost():
    """At pos = 1000 and negatives of 990 the loss, 1e-4, is the rounding error of the logits."""
    eye = np.eye(4, dtype=np.float32)
    passages = 0.01 * eye + 0.99
    arrays = {"queries": eye, "passages": passages}
    (loss, _), _ = value_and_grad(arrays, "uni(P)", scale=1000.0, mask="faithful")
    np.testing.assert_allclose(loss, np.log1p(3 * np.exp(-10)), rtol=1e-3)


def test_bf16_embeddings_are_scored_in_float32():
    _, arrays = make(6)
    rounded = {**arrays, **{k: jnp.asarray(arrays[k], jnp.bfloat16) for k in EMBEDDINGS}}
    same = {**arrays, **{k: rounded[k].astype(jnp.float32) for k in EMBEDDINGS}}
    (loss, metrics), (grads, _) = value_and_grad(rounded, MULTI)
    (expected, expected_metrics), (expected_grads, _) = value_and_grad(same, MULTI)
    assert loss.dtype == jnp.float32
    assert_close((loss, metrics), (expected, expected_metrics))
    for name in EMBEDDINGS:
        assert grads[name].dtype == jnp.bfloat16
        assert_close(grads[name].astype(jnp.float32), expected_grads[name], 0.02)


MESHES = [(MULTI, (n,), AxisType.Auto) for n in (1, 2, 4, 8)] + [
    (UNI, (8,), AxisType.Auto),
    (UNI, (4, 2), AxisType.Auto),
    (MULTI, (4, 2), AxisType.Explicit),
]


@pytest.mark.parametrize(("objective", "shape", "axis_type"), MESHES)
def test_any_mesh_gives_the_same_loss_and_gradients(objective, shape, axis_type):
    _, arrays = make(7)
    value, grads = value_and_grad(arrays, objective)
    assert value[0] > 0 and 0 < value[1]["masked/P"] < 1 and not arrays["valid"].all()
    axes = ("data", "fsdp")[: len(shape)]
    devices = np.array(jax.devices()[: math.prod(shape)]).reshape(shape)
    mesh = Mesh(devices, axes, axis_types=(axis_type,) * len(axes))
    sharded = jax.device_put(arrays, NamedSharding(mesh, PartitionSpec(axes)))
    found, found_grads = value_and_grad(sharded, objective)
    assert_close(found, value)
    assert_close(found_grads, grads)
    rows = found_grads[0]["queries"]
    assert rows.sharding.shard_shape(rows.shape) == (8 // mesh.size, 8)


def test_passages_without_hard_negatives_may_be_flat():
    _, arrays = make(9, h=0)
    flat = {**arrays, "passages": arrays["passages"][:, 0]}
    flat["ids"] = arrays["ids"]._replace(passage=arrays["ids"].passage[:, 0])
    found, expected = (value_and_grad(a, "uni(P,IQ)") for a in (flat, arrays))
    assert_close(found[0], expected[0], 0)
    assert_close(found[1][0]["passages"], expected[1][0]["passages"][:, 0])


def test_weights():
    """multi: factors of the parts. uni: a block of weight 2 counts as if it were there twice."""
    _, arrays = make(8)
    metrics = {o: value_and_grad(arrays, o)[0][1] for o in ("multi(P,IQ)", "multi(P,0.3*IQ)")}
    parts = metrics["multi(P,IQ)"]
    expected = parts["loss/P"] + 0.3 * parts["loss/IQ"]
    np.testing.assert_allclose(metrics["multi(P,0.3*IQ)"]["loss"], expected, rtol=1e-6)
    doubled = {
        **arrays,
        "instruction_negatives": np.tile(arrays["instruction_negatives"], (1, 2, 1)),
        "instruction_negative_ids": np.tile(arrays["instruction_negative_ids"], (1, 2, 1)),
    }
    twice = value_and_grad(doubled, "uni(P,I)")[0][0]
    np.testing.assert_allclose(value_and_grad(arrays, "uni(P,2*I)")[0][0], twice, rtol=1e-6)


def test_terms_are_summed():
    _, arrays = make(8)
    (loss, _), grads = value_and_grad(arrays, "0.5*uni(P,QQ) + 2*sigmoid(IQ)")
    parts = [value_and_grad(arrays, o) for o in ("uni(P,QQ)", "sigmoid(IQ)")]
    np.testing.assert_allclose(loss, 0.5 * parts[0][0][0] + 2 * parts[1][0][0], rtol=1e-6)
    expected = jax.tree.map(lambda a, b: 0.5 * a + 2 * b, parts[0][1], parts[1][1])
    assert_close(grads, expected, 3e-6)


@pytest.mark.parametrize("engine", ["dense", "blockwise"])
def test_matryoshka(engine):
    """The loss of each prefix at unit length, weighted; metrics are of the longest."""
    _, arrays = make(9)
    options = {"objective": "multi(P,I)", "scale": 20.0, "engine": engine}
    whole = partial(contrastive_loss, **options, dims=(2, 8, 5), dim_weights=(1, 2, 0.5))
    part = jax.jit(lambda arrays: contrastive_loss(**arrays, **options))
    loss, metrics = jax.jit(lambda arrays: whole(**arrays))(arrays)
    parts = {}
    for d in (2, 5, 8):
        cut = {k: arrays[k][..., :d] for k in EMBEDDINGS}
        cut = {k: v / np.linalg.norm(v, axis=-1, keepdims=True) for k, v in cut.items()}
        parts[d] = part({**arrays, **cut})
        np.testing.assert_allclose(metrics[f"loss/dim{d}"], parts[d][0], rtol=1e-5)
    np.testing.assert_allclose(loss, parts[2][0] + 2 * parts[8][0] + 0.5 * parts[5][0], rtol=1e-5)
    assert metrics["loss"] == loss
    np.testing.assert_allclose(metrics["accuracy/P"], parts[8][1]["accuracy/P"])


def test_distillation_is_torchs_kl():
    torch = pytest.importorskip("torch")
    _, arrays = make(10, h=3)
    teacher = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    teacher[:, 3] = -np.inf  # an absent passage
    valid, scale = arrays["valid"], 7.0

    def ours(queries, passages):
        changed = {**arrays, "queries": queries, "passages": passages}
        holes = np.where(valid[:, None], teacher, np.nan)
        return contrastive_loss(
            **changed, objective="0.5*distil(P)", scale=scale, teacher_scores=holes
        )[0]

    gradients = jax.jit(jax.value_and_grad(ours, (0, 1)))
    loss, grads = gradients(arrays["queries"], arrays["passages"])
    q, p = (torch.tensor(arrays[k][valid], requires_grad=True) for k in ("queries", "passages"))
    log_ours = torch.log_softmax(scale * torch.einsum("be,bke->bk", q, p), -1)
    theirs = torch.softmax(torch.tensor(teacher[valid]), -1)
    expected = 0.5 * torch.nn.functional.kl_div(log_ours, theirs, reduction="batchmean")
    expected.backward()
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
    for grad, tensor in zip(grads, (q, p), strict=True):
        assert_close(grad[valid], tensor.grad.numpy(), 1e-5)
        assert not np.any(grad[~valid])


@pytest.mark.parametrize("kind", ["distil", "margin"])
def test_losses_by_a_teacher_are_those_of_sentence_transformers(kind):
    """On the same vectors and scores; a passage that is not there and a row without scores change
    nothing but the row's share."""
    torch = pytest.importorskip("torch")
    losses = pytest.importorskip("sentence_transformers.losses")
    from sentence_transformers.util import pairwise_dot_score

    _, arrays = make(12, h=3, empty=False)
    teacher = np.random.default_rng(1).normal(size=(8, 4)).astype(np.float32) * 3
    scale = 4.0
    theirs = {"distil": losses.DistillKLDivLoss, "margin": losses.MarginMSELoss}[kind](
        None, similarity_fct=lambda a, b: scale * pairwise_dot_score(a, b)
    )
    q = torch.tensor(arrays["queries"], requires_grad=True)
    p = [torch.tensor(arrays["passages"][:, n], requires_grad=True) for n in range(4)]
    expected = theirs.compute_loss_from_embeddings([q, *p], torch.tensor(teacher))
    expected.backward()

    def ours(queries, passages, **more):
        changed = {**arrays, "queries": queries, "passages": passages}
        options = {"objective": f"{kind}(P)", "scale": scale, "teacher_scores": teacher}
        return contrastive_loss(**changed | options | more)[0]

    loss, grads = jax.value_and_grad(ours, (0, 1))(arrays["queries"], arrays["passages"])
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
    assert_close(grads[0], q.grad.numpy(), 1e-5)
    assert_close(grads[1], np.stack([x.grad.numpy() for x in p], 1), 1e-5)

    # five passages of which the last is not there, and a ninth row without scores
    wider = {
        name: np.pad(x, ((0, 1), *[(0, 0)] * (x.ndim - 1)))
        for name, x in arrays.items()
        if name in ("queries", "valid")
    }
    wider["valid"][8] = True
    passages = np.pad(arrays["passages"], ((0, 1), (0, 1), (0, 0)), constant_values=np.nan)
    passages[8, :4] = 1
    there = np.tile(np.arange(5) < 4, (9, 1))
    scores = np.pad(teacher, ((0, 1), (0, 1)), constant_values=-np.inf)
    more = {"passage_valid": there, "teacher_scores": scores, "mask": "faithful"}
    more |= {"ids": None, "instruction_negatives": None, "instruction_negative_ids": None}
    loss, grads = jax.value_and_grad(ours, 1)(
        wider["queries"], passages, **more, valid=wider["valid"]
    )
    np.testing.assert_allclose(loss, expected.item() * 8 / 9, rtol=1e-5)
    assert_close(grads[:8, :4], np.stack([x.grad.numpy() for x in p], 1) * 8 / 9, 1e-5)
    assert not np.any(grads[8]) and not np.any(grads[:, 4])


def test_missing_passages_are_ignored():
    """As if the pairs had fewer, whatever stands in their places."""
    _, arrays = make(13, h=3)
    there = np.tile(np.arange(4) < 2, (8, 1))
    fewer = {
        **arrays,
        "passages": arrays["passages"][:, :2],
        "ids": arrays["ids"]._replace(passage=arrays["ids"].passage[:, :2]),
    }
    holes = {**arrays, "passages": np.where(there[:, :, None], arrays["passages"], np.nan)}
    for mask in ("identity", "faithful"):
        options = {"objective": "uni(P,IQ,PP)", "scale": 20.0, "mask": mask}
        found = contrastive_loss(**holes, **options, passage_valid=there)
        assert_close(found, contrastive_loss(**fewer, **options))


def test_missing_instruction_negatives_are_ignored():
    _, arrays = make(11)
    filled = np.zeros(arrays["instruction_negative_ids"].shape[:2], bool)
    filled[:, 0] = True
    arrays["instruction_negatives"][:, 1] = np.nan
    fewer = {
        **arrays,
        "instruction_negatives": arrays["instruction_negatives"][:, :1],
        "instruction_negative_ids": arrays["instruction_negative_ids"][:, :1],
    }
    for mask in ("identity", "faithful"):
        options = {"objective": "uni(I)", "scale": 20.0, "mask": mask}
        run = jax.jit(lambda arrays, options=options: contrastive_loss(**arrays, **options))
        loss, metrics = run({**arrays, "instruction_negative_valid": filled})
        expected, expected_metrics = run(fewer)
        assert_close((loss, metrics), (expected, expected_metrics))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": None}, 'mask="identity" needs the hashes'),
        ({"bias": np.ones(2)}, "bias=.*one number"),
        ({"objective": "uni(P) + distil(P)"}, r"teacher_scores are None, expected \(8, 2\)"),
        ({"dims": (4, 9)}, "from 1 to 8"),
        ({"dims": (4.5,)}, "from 1 to 8"),
        ({"instruction_negative_valid": np.ones((8, 1), bool)}, r"expected bool\(8, 2\)"),
        ({"dims": (4, 4)}, "different numbers"),
        ({"dims": (4,), "dim_weights": (1, 2)}, "for each of dims"),
        ({"mask": "index"}, "mask='index'"),
        ({"objective": "uni(X)"}, "unknown block 'X'"),
        ({"objective": "margin(P,IQ)"}, r"margin takes block P only: write margin\(P\)"),
        ({"passage_valid": np.ones((8, 3), bool)}, r"expected bool\(8, 2\)"),
        ({"scale": 0.0}, "scale=0.0"),
        ({"scale": np.ones(2)}, "one number"),
        ({"queries": np.zeros((8, 7), np.float32)}, r"queries \(8, 7\)"),
        ({"queries": np.zeros((8, 8), np.int32)}, "expected floats"),
        ({"valid": np.ones(5, bool)}, "valid is bool"),
        ({"valid": np.ones(8, np.int32)}, "valid is int32"),
        ({"instruction_negatives": None}, "block I: give"),
        ({"instruction_negatives": np.zeros((8, 0, 8), np.float32)}, "m above 0"),
        ({"instruction_negative_ids": None}, "needs instruction_negative_ids"),
        ({"instruction_negative_ids": np.zeros((8, 1, 2), np.uint32)}, "instruction_negative_ids"),
        ({"ids": TextIds(*[np.zeros((8, 2), np.uint32)] * 3)}, r"ids.passage is uint32\(8, 1, 2\)"),
        ({"ids": TextIds(*[np.zeros((8, 2), np.int32)] * 3)}, "ids.instruction is int32"),
    ],
)
def test_bad_input(change, message):
    _, arrays = make(0)
    with pytest.raises(UserError, match=message):
        contrastive_loss(**{**arrays, "objective": UNI, "scale": 20.0, **change})


def test_the_example_of_the_docstring():
    assert doctest.testmod(contrastive) == (0, 5)
