"""Identity masks against a plain Python oracle; what must hold for any batch, mesh, precision."""

import doctest
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from inf_jax.core.batch import TextIds, split_hashes
from inf_jax.core.errors import UserError
from inf_jax.losses import contrastive, contrastive_loss
from inf_jax.losses.blocks import BLOCKS

ALL = "P,I,IQ,QQ,PP"
UNI, MULTI = f"uni({ALL})", f"multi({ALL})"
OBJECTIVES = [f"uni({t})" for t in BLOCKS] + [
    f"{kind}({blocks})" for kind in ("uni", "multi") for blocks in ("P,IQ", "P,I,IQ", "QQ,PP", ALL)
]
EMBEDDINGS = ("queries", "passages", "instruction_negatives")
QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
}  # compiling is most of the time
seeds = st.integers(0, 2**32 - 1)


def make(seed, *, b=8, h=1, m=2, e=8, texts=3, empty=True):
    """A batch in which texts repeat: the texts, and the arrays that contrastive_loss takes."""
    rng = np.random.default_rng(seed)
    names = {
        "instruction": rng.integers(0, texts, b),
        "query": rng.integers(0, texts, b),
        "passage": rng.integers(0, 2 * texts, (b, 1 + h)),
        "other": rng.integers(0, texts, (b, m)),
    }
    halves = {k: split_hashes(v.astype(np.uint64) * 0x9E3779B97F4A7C15) for k, v in names.items()}
    arrays = {
        "queries": unit(rng, b, e),
        "passages": unit(rng, b, 1 + h, e),
        "instruction_negatives": unit(rng, b, m, e),
        "ids": TextIds(halves["instruction"], halves["query"], halves["passage"]),
        "instruction_negative_ids": halves["other"],
        "valid": rng.random(b) < 0.7 if empty else np.ones(b, bool),
    }
    return names, arrays


def unit(rng, *shape):
    x = rng.normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def oracle(names, arrays, *, objective, scale, mask):
    """Loss and metrics by loops over texts, in float64; from the definition, not from the code."""
    kind, blocks = objective[:-1].split("(")
    q, p = (arrays[k].astype(np.float64) for k in ("queries", "passages"))
    n = arrays["instruction_negatives"].astype(np.float64)
    rows = [i for i in range(len(q)) if arrays["valid"][i]]
    passage, other = names["passage"], names["other"]
    pair_query = list(zip(names["instruction"], names["query"], strict=True))
    losses, stats = [], {t: [] for t in blocks.split(",")}
    for i in rows:

        def known(j, i=i):
            return pair_query[j] == pair_query[i] or passage[j, 0] == passage[i, 0]

        found = {}
        for t in stats:
            if t == "P":
                found[t] = [(q[i] @ p[j, 0], known(j)) for j in rows if j != i]
                found[t] += [
                    (q[i] @ p[j, k], passage[j, k] == passage[i, 0])
                    for j in rows
                    for k in range(1, p.shape[1])
                ]
            elif t == "I":
                found[t] = [
                    (n[i, k] @ p[i, 0], other[i, k] == names["instruction"][i])
                    for k in range(n.shape[1])
                ]
            else:
                left, right = {"IQ": (p[i, 0], q), "QQ": (q[i], q), "PP": (p[i, 0], p[:, 0])}[t]
                found[t] = [(left @ right[j], known(j)) for j in rows if j != i]
        kept = {t: [s for s, k in c if not k or mask == "faithful"] for t, c in found.items()}
        positive = q[i] @ p[i, 0]

        def nll(scores, positive=positive):
            return math.log(1 + sum(math.exp(scale * (s - positive)) for s in scores))

        for t, scores in kept.items():
            above = sum(s > positive for s in scores)
            stats[t].append((nll(scores), len(scores), len(found[t]), above == 0, above))
        union = [s for scores in kept.values() for s in scores]
        losses.append((nll(union), positive, max(union, default=None)))
    mean = lambda x: float(np.mean(x)) if len(x) else 0.0  # noqa: E731
    metrics = {
        "positive": mean([x[1] for x in losses]),
        "hardest_negative": mean([x[2] for x in losses if x[2] is not None]),
    }
    for t, values in stats.items():
        kept, total = sum(x[1] for x in values), sum(x[2] for x in values)
        metrics[f"loss/{t}"] = mean([x[0] for x in values])
        metrics[f"negatives/{t}"] = mean([x[1] for x in values])
        metrics[f"masked/{t}"] = (total - kept) / total if total else 0.0
        metrics[f"accuracy/{t}"] = mean([x[3] for x in values])
        metrics[f"false_negatives/{t}"] = mean([x[4] for x in values])
    single = [metrics[f"loss/{t}"] for t in stats]
    metrics["loss"] = mean([x[0] for x in losses]) if kind == "uni" else sum(single)
    return metrics


@functools.partial(jax.jit, compiler_options=QUICK)
def every_objective(scale, arrays):
    """{mask: {objective: metrics}}; one graph."""
    return {
        mask: {
            o: contrastive_loss(**arrays, objective=o, scale=scale, mask=mask)[1]
            for o in OBJECTIVES
        }
        for mask in ("identity", "faithful")
    }


@pytest.mark.parametrize("h", [0, 1, 3])
@settings(max_examples=12, deadline=None)
@given(seed=seeds, scale=st.floats(0.5, 30))
def test_against_the_oracle(h, seed, scale):
    names, arrays = make(seed, h=h)
    found = every_objective(np.float32(scale), arrays)
    for mask, objectives in found.items():
        for objective, metrics in objectives.items():
            expected = oracle(names, arrays, objective=objective, scale=scale, mask=mask)
            assert metrics.keys() == expected.keys()
            for name, value in metrics.items():
                assert value.dtype == jnp.float32
                assert value == pytest.approx(expected[name], rel=2e-4, abs=2e-5), (objective, name)


def loss_and_gradients(arrays, objective, *, scale=20.0, mask="identity"):
    """((loss, metrics), gradients of the embeddings and of the scale)."""

    def loss(embeddings, scale):
        rest = {k: v for k, v in arrays.items() if k not in embeddings}
        return contrastive_loss(**embeddings, **rest, objective=objective, scale=scale, mask=mask)

    embeddings = {k: arrays[k] for k in EMBEDDINGS if k in arrays}
    return jax.value_and_grad(loss, (0, 1), has_aux=True)(embeddings, scale)


value_and_grad = jax.jit(
    loss_and_gradients, static_argnums=1, static_argnames=("mask",), compiler_options=QUICK
)


def assert_close(found, expected, tolerance=1e-6):
    """Relative to the largest entry of each array."""
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            a, b, rtol=0, atol=tolerance * max(1e-6, np.max(np.abs(b), initial=0))
        ),
        found,
        expected,
    )


@pytest.mark.parametrize("objective", [UNI, MULTI])
@settings(max_examples=10, deadline=None)
@given(seed=seeds)
@example(seed=62021952)  # the mean of the positives' cosines is -0.0006
def test_order_of_the_batch_does_not_matter(objective, seed):
    _, arrays = make(seed)
    order = np.random.default_rng(seed).permutation(8)
    value, grads = value_and_grad(arrays, objective)
    moved, moved_grads = value_and_grad(jax.tree.map(lambda x: x[order], arrays), objective)
    for name in ("positive", "hardest_negative"):  # means of cosines, which may cancel
        np.testing.assert_allclose(moved[1].pop(name), value[1].pop(name), rtol=0, atol=3e-7)
    assert_close(moved, value, 3e-6)
    assert_close(moved_grads[0], jax.tree.map(lambda x: x[order], grads[0]), 3e-6)


@pytest.mark.parametrize(("objective", "mask"), [(MULTI, "identity"), (UNI, "faithful")])
def test_empty_slots_are_ignored(objective, mask):
    _, full = make(3, empty=False)
    keep = np.array([1, 0, 1, 1, 0, 1, 0, 1], bool)
    small = jax.tree.map(lambda x: x[keep], full)
    holes = {**full, "valid": keep}
    for name in EMBEDDINGS:
        holes[name] = np.where(keep.reshape(-1, *[1] * (full[name].ndim - 1)), full[name], np.nan)
    value, grads = value_and_grad(holes, objective, mask=mask)
    expected_value, expected_grads = value_and_grad(small, objective, mask=mask)
    assert_close(value, expected_value)
    for name, grad in grads[0].items():
        assert_close(grad[keep], expected_grads[0][name])
        assert not np.any(grad[~keep])
    assert_close(grads[1], expected_grads[1], 1e-5)


def test_no_valid_row_at_all():
    _, arrays = make(0)
    (loss, metrics), grads = value_and_grad({**arrays, "valid": np.zeros(8, bool)}, UNI)
    assert loss == 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((metrics, grads)))


def test_copies_of_one_pair_are_not_negatives_of_each_other():
    """A batch of n copies: 0 under identity; log n a block and log(4 n - 3) in all by index."""
    n = 5
    _, arrays = make(0, b=1, h=0, m=1, empty=False)
    arrays = jax.tree.map(lambda x: np.repeat(x, n, 0), arrays)
    arrays["passages"] = arrays["queries"][:, None]  # every score equal
    (loss, metrics), grads = value_and_grad(arrays, "uni(P,IQ,QQ,PP)")
    assert loss == 0 and metrics["negatives/P"] == 0 and metrics["masked/PP"] == 1
    assert metrics["accuracy/P"] == 1 and metrics["hardest_negative"] == 0
    assert not any(np.any(x) for x in jax.tree.leaves(grads))
    (loss, metrics), _ = value_and_grad(arrays, "uni(P,IQ,QQ,PP)", mask="faithful")
    np.testing.assert_allclose(loss, np.log(4 * n - 3), rtol=1e-6)
    np.testing.assert_allclose(metrics["loss/P"], np.log(n), rtol=1e-6)
    assert metrics["masked/P"] == 0 and metrics["negatives/P"] == n - 1


@pytest.mark.parametrize("copies", [1, 3])
def test_hard_negatives_equal_to_the_positive_change_nothing_for_their_row(copies):
    """Exact with one pair only: other rows rightly see each copy as one more negative."""
    _, arrays = make(1, b=1, h=1, empty=False)
    hard = {k: arrays[k] for k in ("queries", "passages", "ids")}
    hard["ids"].passage[0, :, 0] = [7, 8]
    copied = dict(hard)
    index = [0, 1, *[0] * copies]
    copied["passages"] = hard["passages"][:, index]
    copied["ids"] = hard["ids"]._replace(passage=hard["ids"].passage[:, index])
    (loss, _), grads = value_and_grad(hard, "uni(P)")
    (with_copies, metrics), copied_grads = value_and_grad(copied, "uni(P)")
    assert loss > 0
    np.testing.assert_allclose(with_copies, loss, rtol=1e-6)
    assert_close(copied_grads[0]["passages"][:, :2], grads[0]["passages"])
    assert not np.any(copied_grads[0]["passages"][:, 2:])
    np.testing.assert_allclose(metrics["masked/P"], copies / (1 + copies))


def test_a_copy_of_a_row_weighs_twice_in_the_other_rows_only():
    """b rows with row 0 twice: rows 0 keep their loss, the others see column 0 with weight 2."""
    _, arrays = make(5, b=4, h=0, texts=1000, empty=False)
    arrays = {k: arrays[k] for k in ("queries", "passages", "ids")}
    twice = jax.tree.map(lambda x: x[[0, 0, 1, 2, 3]], arrays)
    (loss, metrics), _ = value_and_grad(twice, "uni(P)")
    scores = 20 * arrays["queries"].astype(np.float64) @ arrays["passages"][:, 0].T
    weight = np.where(np.eye(4), 1, np.array([2, 1, 1, 1]))
    rows = np.log(np.sum(weight * np.exp(scores), axis=1)) - np.diag(scores)
    np.testing.assert_allclose(loss, (2 * rows[0] + rows[1:].sum()) / 5, rtol=1e-5)
    np.testing.assert_allclose(metrics["negatives/P"], (3 + 3 + 4 + 4 + 4) / 5)


def test_the_scale_learns():
    _, arrays = make(2)
    (_, _), (_, slope) = value_and_grad(arrays, MULTI, scale=5.0)
    up, down = (value_and_grad(arrays, MULTI, scale=s)[0][0] for s in (5.01, 4.99))
    np.testing.assert_allclose(slope, (up - down) / 0.02, rtol=1e-2)


def test_metrics_have_no_gradient():
    _, arrays = make(2)

    @functools.partial(jax.jit, compiler_options=QUICK)
    @jax.grad
    def gradient_of_the_sum(queries):
        changed = {**arrays, "queries": queries}
        return sum(contrastive_loss(**changed, objective=UNI, scale=20.0)[1].values())

    assert not np.any(gradient_of_the_sum(arrays["queries"]))


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
    loss, metrics = contrastive_loss(**arrays, **options, dims=(2, 8, 5), dim_weights=(1, 2, 0.5))
    parts = {}
    for d in (2, 5, 8):
        cut = {k: arrays[k][..., :d] for k in EMBEDDINGS}
        cut = {k: v / np.linalg.norm(v, axis=-1, keepdims=True) for k, v in cut.items()}
        parts[d] = contrastive_loss(**{**arrays, **cut}, **options)
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

    loss, grads = jax.value_and_grad(ours, (0, 1))(arrays["queries"], arrays["passages"])
    q, p = (torch.tensor(arrays[k][valid], requires_grad=True) for k in ("queries", "passages"))
    log_ours = torch.log_softmax(scale * torch.einsum("be,bke->bk", q, p), -1)
    theirs = torch.softmax(torch.tensor(teacher[valid]), -1)
    expected = 0.5 * torch.nn.functional.kl_div(log_ours, theirs, reduction="batchmean")
    expected.backward()
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
    for grad, tensor in zip(grads, (q, p), strict=True):
        assert_close(grad[valid], tensor.grad.numpy(), 1e-5)
        assert not np.any(grad[~valid])


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
        loss, metrics = contrastive_loss(**arrays, **options, instruction_negative_valid=filled)
        expected, expected_metrics = contrastive_loss(**fewer, **options)
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
