"""Identity masks against a plain Python oracle; what must hold for any batch."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from inf_jax.losses import contrastive_loss
from inf_jax.losses.blocks import BLOCKS
from tests.inf_jax.losses.batches import (
    ALL,
    EMBEDDINGS,
    MULTI,
    UNI,
    assert_close,
    make,
    seeds,
    value_and_grad,
)

OBJECTIVES = [f"uni({t})" for t in BLOCKS] + [
    f"{kind}({blocks})" for kind in ("uni", "multi") for blocks in ("P,IQ", "P,I,IQ", "QQ,PP", ALL)
]


def oracle(names, arrays, *, objective, scale, mask):
    """Loss and metrics by loops over texts, in float64; from the definition, not from the code."""
    kind, blocks = objective[:-1].split("(")
    q, p = (arrays[k].astype(np.float64) for k in ("queries", "passages"))
    n = arrays["instruction_negatives"].astype(np.float64)
    rows = [i for i in range(len(q)) if arrays["valid"][i]]
    passage, other = names["passage"], names["other"]
    pair_query = list(zip(names["instruction"], names["query"], strict=True))
    triplets = {(*pair_query[j], passage[j, 0]) for j in rows}
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
                    (n[i, k] @ p[i, 0], (other[i, k], names["query"][i], passage[i, 0]) in triplets)
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


@jax.jit
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

    @jax.jit
    @jax.grad
    def gradient_of_the_sum(queries):
        changed = {**arrays, "queries": queries}
        return sum(contrastive_loss(**changed, objective=UNI, scale=20.0)[1].values())

    assert not np.any(gradient_of_the_sum(arrays["queries"]))
