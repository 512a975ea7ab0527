"""Tiled and sharded top-k against a full sort."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from inf_jax.core.errors import UserError
from inf_jax.evaluation import search
from inf_jax.evaluation.search import QUERIES, topk, topk_blocks


def full_sort(queries, passages, k):
    """(scores, indices) of a stable full sort: ties to the lower index."""
    scores = queries.astype(np.float64) @ passages.astype(np.float64).T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), order


def with_ties(q, p, e=3):
    """Small whole numbers: sums are exact, so that equal scores are equal and very common."""
    rng = np.random.default_rng(p)
    numbers = [rng.integers(-2, 3, shape).astype(np.float32) for shape in ((q, e), (p, e))]
    return numbers


def assert_same(found, expected):
    scores, indices = found
    assert scores.dtype == jnp.float32 and indices.dtype == jnp.int32
    np.testing.assert_array_equal(indices, expected[1])
    np.testing.assert_array_equal(scores, expected[0])


@pytest.mark.parametrize(
    ("p", "k", "block"),
    [
        *((50, 7, 8), (50, 50, 8), (50, 20, 16), (50, 5, 50), (50, 5, 1000), (64, 9, 16)),
        (9, 3, 1),
        # tiles that are searched through the maxima of groups of 8 or 16 passages
        *((900, 5, 1000), (899, 3, 512), (900, 1, 300), (1000, 7, None)),
    ],
)
def test_ties_and_blocks(p, k, block):
    queries, passages = with_ties(6, p)
    assert_same(topk(queries, passages, k, block=block), full_sort(queries, passages, k))


@pytest.mark.parametrize("shape", [(1,), (2,), (8,), (4, 2)])
@pytest.mark.parametrize(("p", "k"), [(50, 7), (64, 64), (13, 12), (3, 2)])
def test_sharded_equals_full_sort(shape, p, k):
    devices = np.array(jax.devices()[: np.prod(shape)]).reshape(shape)
    mesh = Mesh(devices, ("data", "model")[: len(shape)])
    queries, passages = with_ties(6, p)
    found = topk(queries, passages, k, block=5, mesh=mesh)
    assert_same(found, full_sort(queries, passages, k))


def test_passages_on_the_mesh_already_and_explicit_axes():
    queries, passages = with_ties(6, 48)
    expected = full_sort(queries, passages, 10)
    for mesh in (Mesh(jax.devices(), ("data",)), jax.make_mesh((8,), ("data",))):
        sharded = jax.device_put(passages, NamedSharding(mesh, PartitionSpec("data")))
        assert_same(topk(queries, sharded, 10, block=4, mesh=mesh), expected)
        odd = jax.device_put(passages[:45], NamedSharding(mesh, PartitionSpec()))
        assert_same(topk(queries, odd, 10, mesh=mesh), full_sort(queries, passages[:45], 10))


@pytest.mark.parametrize("devices", [None, 3])
@pytest.mark.parametrize(
    ("q", "most", "sizes"), [(7, 3, [3, 3, 1]), (8, 4, [4, 4]), (5, 9, [5]), (0, 4, [])]
)
def test_blocks_of_queries(q, most, sizes, devices, monkeypatch):
    mesh = devices and Mesh(jax.devices()[:devices], ("data",))
    name = "_topk_sharded" if mesh else "_topk"
    compiled, shapes = getattr(search, name), []
    queries, passages = with_ties(q, 50)

    def spy(queries, passages, **options):
        assert isinstance(passages, jax.Array)  # on the devices, for all blocks
        shapes.append(queries.shape)
        return compiled(queries, passages, **options)

    monkeypatch.setattr(search, name, spy)
    found = list(topk_blocks(queries, passages, 7, block=8, mesh=mesh, most=most))
    assert [len(scores) for scores, _ in found] == sizes
    assert len(set(shapes)) <= 1  # one program
    expected = full_sort(queries, passages, 7)
    for n, part in enumerate(zip(*found, strict=True)):
        np.testing.assert_array_equal(np.concatenate(part), expected[n])
    with pytest.raises(UserError, match="k=51 with 50 passages"):
        next(topk_blocks(queries, passages, 51, mesh=mesh))


def test_scores_of_a_block_are_bounded():
    """No array of the search grows with the number of queries."""
    shapes = []
    for q in (QUERIES, 3 * QUERIES):
        queries, passages = with_ties(q, 9000)
        parts = topk_blocks(queries, passages, 1000)
        shapes.append({x.shape for x in next(parts)})
        parts.close()
    assert shapes[0] == shapes[1] == {(QUERIES, 1000)}


def test_random_embeddings():
    rng = np.random.default_rng(0)
    queries, passages = (rng.normal(size=(n, 64)).astype(np.float32) for n in (20, 1000))
    scores, indices = topk(queries, passages, 100, block=300)
    expected = full_sort(queries, passages, 100)
    np.testing.assert_allclose(scores, expected[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(indices, expected[1])


def test_bf16_is_accumulated_in_float32():
    rng = np.random.default_rng(1)
    queries, passages = (jnp.asarray(rng.normal(size=(n, 64)), jnp.bfloat16) for n in (4, 40))
    scores, _ = topk(queries, passages, 5, block=16)
    exact = full_sort(*(np.asarray(x, np.float32) for x in (queries, passages)), 5)[0]
    np.testing.assert_allclose(scores, exact, rtol=1e-5)


@pytest.mark.parametrize(
    ("shapes", "k", "block", "message"),
    [
        (((2, 4), (3, 4)), 4, 8, "k=4 with 3 passages"),
        (((2, 4), (3, 4)), 0, 8, "k=0"),
        (((2, 4), (3, 4)), 1, 0, "block=0"),
        (((2, 4), (3, 5)), 1, 8, "expected"),
        (((4,), (3, 4)), 1, 8, "expected"),
    ],
)
def test_bad_input(shapes, k, block, message):
    queries, passages = (np.zeros(shape, np.float32) for shape in shapes)
    with pytest.raises(UserError, match=message):
        topk(queries, passages, k, block=block)
