"""Health figures against their definitions in float64, and against other people's code."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from inf_jax.core.batch import TextIds, split_hashes
from inf_jax.core.errors import UserError
from inf_jax.distributed.mesh import batch_sharding, make_mesh
from inf_jax.training.health import health, sample_rows


def make(seed, b=48, *, e=12, texts=6, empty=True):
    """Unit embeddings of unequal spread around a mean, texts that repeat, NaN in empty slots."""
    rng = np.random.default_rng(seed)

    def unit():
        x = 0.3 + rng.normal(size=(b, e)) * np.linspace(0.2, 1.0, e)
        return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)

    names = rng.integers(0, texts, (3, b))
    valid = rng.random(b) < 0.8 if empty else np.ones(b, bool)
    queries, passages = unit(), unit()
    queries[~valid] = passages[~valid] = np.nan
    ids = TextIds(*split_hashes(names.astype(np.uint64) * 0x9E3779B97F4A7C15))
    return names, {"queries": queries, "passages": passages, "valid": valid, "ids": ids}


def oracle(names, arrays, *, mask, bins, sample):
    """The definitions by loops, float64."""
    valid = arrays["valid"]
    rows = np.flatnonzero(valid)
    q, p = (arrays[k].astype(np.float64) for k in ("queries", "passages"))
    chosen = [i for i in sample_rows(len(valid), sample) if valid[i]]

    def uniformity(x):
        pairs = [(i, j) for i in chosen for j in chosen if i != j]
        return np.log(np.mean([np.exp(-2 * np.sum((x[i] - x[j]) ** 2)) for i, j in pairs]))

    def rank(x):
        values = np.linalg.eigvalsh(np.cov(x[rows].T))
        return np.sum(values) ** 2 / np.sum(values**2)

    def negative(i, j):
        instruction, query, passage = names[:, i] == names[:, j]
        same = passage or (instruction and query)
        return i != j and not (mask == "identity" and same)

    def shares(scores):
        counts, _ = np.histogram(scores, bins=bins, range=(-1, 1))
        return counts / len(scores)

    return {
        "health/alignment": np.mean([np.sum((q[i] - p[i]) ** 2) for i in rows]),
        "health/uniformity_query": uniformity(q),
        "health/uniformity_passage": uniformity(p),
        "health/rank_query": rank(q),
        "health/rank_passage": rank(p),
        "health/positive_scores": shares([q[i] @ p[i] for i in rows]),
        "health/negative_scores": shares(
            [q[i] @ p[j] for i in chosen for j in chosen if negative(i, j)]
        ),
    }


@pytest.mark.parametrize("mask", ["identity", "faithful"])
@pytest.mark.parametrize("bins, sample", [(20, 512), (7, 17)])
def test_equals_the_definitions(mask, bins, sample):
    names, arrays = make(0)
    metrics = health(**arrays, mask=mask, bins=bins, sample=sample)
    expected = oracle(names, arrays, mask=mask, bins=bins, sample=sample)
    assert metrics.keys() == expected.keys()
    for key, value in metrics.items():
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, expected[key], rtol=2e-5, atol=1e-6, err_msg=key)


def test_identity_masks_change_the_negatives():
    _, arrays = make(1)
    masked = health(**arrays)["health/negative_scores"]
    assert not np.allclose(masked, health(**arrays, mask="faithful")["health/negative_scores"])


def test_equals_published_code():
    decomposition = pytest.importorskip("sklearn.decomposition")
    pairwise = pytest.importorskip("sklearn.metrics.pairwise")
    torch = pytest.importorskip("torch")
    _, arrays = make(2, b=64, empty=False)
    q, p = arrays["queries"], arrays["passages"]
    metrics = health(**arrays)
    np.testing.assert_allclose(
        metrics["health/alignment"], np.mean(pairwise.paired_distances(q, p) ** 2), rtol=1e-5
    )
    for tower, x in (("query", q), ("passage", p)):
        variances = decomposition.PCA().fit(x).explained_variance_
        expected = variances.sum() ** 2 / (variances**2).sum()
        np.testing.assert_allclose(metrics[f"health/rank_{tower}"], expected, rtol=1e-4)
        # the uniform_loss of Wang & Isola's repository, in one line
        expected = torch.pdist(torch.tensor(x), p=2).pow(2).mul(-2).exp().mean().log()
        np.testing.assert_allclose(metrics[f"health/uniformity_{tower}"], expected, rtol=1e-5)
    cosines = pairwise.cosine_similarity(q, p).diagonal()
    expected = np.histogram(cosines, bins=20, range=(-1, 1))[0] / len(q)
    np.testing.assert_allclose(metrics["health/positive_scores"], expected, atol=1e-6)


def test_metrics_of_known_geometries():
    """A collapsed space, a uniform one, and perfect alignment."""
    rng = np.random.default_rng(3)
    spread = rng.normal(size=(4096, 16))
    spread = (spread / np.linalg.norm(spread, axis=1, keepdims=True)).astype(np.float32)
    line = spread[:1] + 1e-4 * np.linspace(0, 1, 4096, dtype=np.float32)[:, None]
    metrics = health(spread, line, valid=np.ones(4096, bool), mask="faithful")
    assert 15.9 < metrics["health/rank_query"] <= 16  # b is much larger than e
    assert metrics["health/rank_passage"] == pytest.approx(1, abs=1e-3)
    assert metrics["health/uniformity_query"] < -3
    assert metrics["health/uniformity_passage"] == pytest.approx(0, abs=1e-4)
    same = health(spread, spread, valid=np.ones(4096, bool), mask="faithful")
    assert same["health/alignment"] == 0
    np.testing.assert_allclose(same["health/positive_scores"], [0] * 19 + [1])


@pytest.mark.parametrize("devices, fsdp", [(1, 1), (8, 1), (8, 4)])
def test_the_same_on_any_mesh(devices, fsdp):
    _, arrays = make(4)
    mesh = make_mesh(fsdp=fsdp, devices=jax.devices()[:devices])
    on_mesh = jax.device_put(arrays, batch_sharding(mesh))
    metrics = jax.jit(functools.partial(health, sample=20))(**on_mesh)
    for key, value in health(**arrays, sample=20).items():
        np.testing.assert_allclose(metrics[key], value, rtol=1e-5, atol=1e-7, err_msg=key)


@pytest.mark.parametrize("b, filled", [(1, 1), (1, 0), (8, 0), (8, 1), (8, 2)])
def test_finite_with_few_rows_or_none(b, filled):
    _, arrays = make(5, b=b, empty=False)
    arrays["valid"] = np.arange(b) < filled
    arrays["queries"][filled:] = arrays["passages"][filled:] = np.nan
    metrics = health(**arrays)
    for key, value in metrics.items():
        assert np.all(np.isfinite(value)), key
    assert np.sum(metrics["health/positive_scores"]) == pytest.approx(min(filled, 1))
    if filled < 2:
        assert not np.any(metrics["health/negative_scores"])
        assert metrics["health/uniformity_query"] == metrics["health/rank_query"] == 0


def test_bf16_embeddings_and_no_gradient():
    _, arrays = make(6, empty=False)
    half = {k: arrays[k].astype(jnp.bfloat16) for k in ("queries", "passages")}
    metrics, expected = health(**arrays | half), health(**arrays)
    assert metrics["health/alignment"].dtype == jnp.float32
    np.testing.assert_allclose(metrics["health/alignment"], expected["health/alignment"], rtol=0.01)

    def total(queries):
        return sum(jnp.sum(x) for x in health(**arrays | {"queries": queries}).values())

    assert not np.any(jax.grad(total)(arrays["queries"]))


def compiled(b, *, devices, e=64):
    sharding = batch_sharding(make_mesh(devices=jax.devices()[:devices]))
    shape = functools.partial(jax.ShapeDtypeStruct, sharding=sharding)
    vectors, ids = shape((b, e), jnp.float32), shape((b, 2), jnp.uint32)
    run = jax.jit(
        functools.partial(health, sample=64),
        out_shardings=NamedSharding(sharding.mesh, PartitionSpec()),
    )
    arguments = {"valid": shape((b,), bool), "ids": TextIds(ids, ids, ids)}
    return run.lower(vectors, vectors, **arguments).compile()


def test_memory_grows_linearly_and_the_batch_is_not_gathered():
    sizes = (8192, 16384, 32768)
    temps = [compiled(b, devices=1).memory_analysis().temp_size_in_bytes for b in sizes]
    both_towers = [2 * b * 64 * 4 for b in sizes]
    assert temps[2] < 2.1 * temps[1] < 2.1**2 * temps[0]
    assert temps[2] < 2 * both_towers[2]
    sharded = compiled(sizes[2], devices=8)
    assert sharded.memory_analysis().temp_size_in_bytes < temps[2] / 4
    text = sharded.as_text()
    assert "all-reduce" in text
    assert not any(name in text for name in ("all-gather", "all-to-all", "collective-permute"))


def test_sampled_rows():
    np.testing.assert_array_equal(sample_rows(7, 512), np.arange(7))
    rows = sample_rows(48 * 3, 48)
    assert len(rows) == 48
    np.testing.assert_array_equal(rows // 3, np.arange(48))  # one of each stride
    assert np.bincount(rows % 3).min() > 12  # no pair of the examples is preferred


def test_errors():
    _, arrays = make(7)
    for change, message in (
        ({"mask": "none"}, "mask='none'; choose one of identity, faithful"),
        ({"ids": None}, "needs ids"),
        ({"passages": arrays["passages"][:5]}, r"passages \(5, 12\): expected \[b, e\]"),
        ({"valid": arrays["valid"][:5]}, r"valid is bool\(5,\): expected bool\(48,\)"),
        ({"bins": 0}, "bins=0"),
    ):
        with pytest.raises(UserError, match=message):
            health(**arrays | change)
