"""Encoding many texts: a vector depends on its text, not on other texts or the grid."""

import jax
import numpy as np
import pytest

from inf_jax.core.errors import UserError
from inf_jax.core.packing import pack_chunk, stack_chunks
from inf_jax.distributed.mesh import make_mesh
from inf_jax.models import hf
from inf_jax.models.encoder import make_encoder
from inf_jax.models.hf.config import read_config
from inf_jax.retriever.encode import Grid, encode_texts, shortened

TOKENS = 32  # per row
GRID = Grid(rows=3, row_tokens=TOKENS)


@pytest.fixture(scope="module")
def encoder(tiny_model_dir):
    return make_encoder(read_config(tiny_model_dir))


@pytest.fixture(scope="module")
def tree(tiny_model_dir, encoder):
    return hf.load_weights(tiny_model_dir, encoder.config).params


@pytest.fixture(scope="module")
def texts():
    """150 texts of all lengths from 1 token to a whole row."""
    rng = np.random.default_rng(0)
    lengths = np.concatenate((np.arange(1, TOKENS + 1), rng.integers(2, 20, 118)))
    return [rng.integers(5, 500, n).astype(np.int32) for n in rng.permutation(lengths)]


@pytest.fixture(scope="module")
def vectors(encoder, tree, texts):
    return encode_texts(encoder.encode, tree, texts, grid=GRID)


def test_vectors_are_those_of_each_text_by_itself(encoder, tree, texts, vectors):
    grid = {"rows": 1, "row_tokens": TOKENS, "texts_per_row": 1}
    alone = [pack_chunk([text], np.zeros(1, np.uint32), **grid) for text in texts]
    expected = jax.jit(encoder.encode)(tree, stack_chunks(alone))[:, 0]
    assert vectors.shape == (150, 32) and vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    assert np.ptp(vectors, axis=0).min() > 0.01  # otherwise swapped vectors would pass


def test_order_and_subset_change_nothing(encoder, tree, texts, vectors):
    order = np.random.default_rng(1).permutation(len(texts))[:40]
    chosen = [texts[i] for i in order]
    found = encode_texts(encoder.encode, tree, chosen, grid=GRID)
    np.testing.assert_allclose(found, vectors[order], atol=1e-6)


@pytest.mark.parametrize(
    "rows, row_tokens, texts_per_row, devices", [(1, TOKENS, 1, 8), (5, 50, 4, 1), (40, 64, 16, 3)]
)
def test_grid_and_devices_change_nothing(
    encoder, tree, texts, vectors, rows, row_tokens, texts_per_row, devices
):
    found = encode_texts(
        encoder.encode,
        tree,
        texts[:60],
        grid=Grid(rows, row_tokens, texts_per_row),
        mesh=make_mesh(devices=jax.devices()[:devices]),
    )
    np.testing.assert_allclose(found, vectors[:60], atol=1e-6)


@pytest.mark.parametrize("fsdp, devices", [(8, 8), (2, 6)])
def test_parameters_that_are_split(encoder, tree, texts, vectors, fsdp, devices):
    mesh = make_mesh(fsdp=fsdp, devices=jax.devices()[:devices])
    options = {"grid": GRID, "mesh": mesh}
    found = encode_texts(encoder.encode, tree, texts, **options)
    np.testing.assert_allclose(found, vectors, atol=1e-6)
    short = [text for text in texts if len(text) <= TOKENS // 2]
    found = encode_texts(encoder.encode_queries, tree, short[:20], short[20:40], **options)
    whole = encode_texts(encoder.encode_queries, tree, short[:20], short[20:40], grid=GRID)
    np.testing.assert_allclose(found, whole, atol=1e-6)


def test_one_compilation_whatever_the_texts(encoder, tree, texts):
    shapes = []

    def encode(params, packed, *, shards):  # runs only when traced
        shapes.append(packed.tokens.shape)
        return encoder.encode(params, packed, shards=shards)

    for part in (texts, texts[:1], texts[5:70], []):
        encode_texts(encode, tree, part, grid=GRID)
    assert set(shapes) == {(1, 3, TOKENS)}  # of one device
    assert len(shapes) <= 2  # once for the width of the result


def test_no_texts(encoder, tree):
    found = encode_texts(encoder.encode, tree, [], grid=GRID)
    assert found.shape == (0, 32) and found.dtype == np.float32


@pytest.mark.parametrize("length", [TOKENS + 1, 0])
def test_text_that_no_row_holds(encoder, tree, texts, length):
    bad = [texts[0], np.zeros(length, np.int32)]
    with pytest.raises(UserError, match=f"text 1 has {length} tokens, a row holds 1 to {TOKENS}"):
        encode_texts(encoder.encode, tree, bad, grid=GRID)


def test_progress_counts_texts(encoder, tree, texts):
    counts = []
    encode_texts(encoder.encode, tree, texts[:7], grid=GRID, on_progress=counts.append)
    assert sum(counts) == 7


def test_pairs_are_those_of_each_pair_by_itself(encoder, tree, texts):
    """With instructions too, order, other pairs and the grid change nothing."""
    short = [text for text in texts if len(text) <= TOKENS // 2]
    pairs = [(short[n], short[-1 - n]) for n in range(60)]
    instructions, queries = zip(*pairs, strict=True)
    apart = encoder.encode_queries
    found = encode_texts(apart, tree, queries, instructions, grid=GRID)
    assert found.shape == (60, 32) and found.dtype == np.float32
    grid = {"rows": 2, "row_tokens": TOKENS, "texts_per_row": 1}
    alone = [pack_chunk(pair, np.zeros(2, np.uint32), **grid) for pair in pairs]
    expected = jax.jit(apart)(tree, stack_chunks(alone))[:, 0]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.ptp(found, axis=0).min() > 0.01
    mesh = make_mesh(devices=jax.devices()[:3])
    some = {"grid": Grid(5, 48, 6), "mesh": mesh}
    part = encode_texts(apart, tree, queries[:0:-1], instructions[:0:-1], **some)
    np.testing.assert_allclose(part, expected[:0:-1], atol=1e-6)
    assert encode_texts(apart, tree, [], [], grid=GRID).shape == (0, 32)


@pytest.mark.parametrize("length", [TOKENS // 2 + 1, 0])
@pytest.mark.parametrize("which", [0, 1])
def test_a_pair_that_no_row_holds(encoder, tree, length, which):
    good, bad = (np.ones(n, np.int32) for n in (3, length))
    pairs = [[good, good], [good, good]]
    pairs[which][1] = bad
    with pytest.raises(UserError, match=f"text 1 has {length} tokens, a row holds 1 to 16"):
        encode_texts(encoder.encode_queries, tree, *pairs, grid=GRID)


def test_shortened():
    x = np.array([[3, 4, 0, 12], [0, 0, 1, 1]], np.float32)
    assert shortened(x, None, normalise=True) is x
    np.testing.assert_allclose(shortened(x, 2, normalise=True), [[0.6, 0.8], [0, 0]])
    np.testing.assert_array_equal(shortened(x, 3, normalise=False), x[:, :3])
    for dim in (0, 5):
        with pytest.raises(UserError, match=f"dim={dim}: the vectors have 4 entries"):
            shortened(x, dim, normalise=True)
