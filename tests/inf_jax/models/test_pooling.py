"""Pooling against goldens and by hand; the projection, alone and in an encoder on a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inf_jax.core.choices import POOLINGS
from inf_jax.distributed.gradcache import encode_in_chunks
from inf_jax.distributed.mesh import batch_sharding, make_mesh
from inf_jax.distributed.sharding import state_shardings
from inf_jax.models.encoder import EncoderOptions, make_encoder
from inf_jax.models.pooling import POOLING_FUNCTIONS, init_projection, pool, project
from inf_jax.optim.optimisers import decay_mask
from tests.inf_jax.models.goldens import GOLDEN, pack, params_of, random_texts, shape_of
from tests.inf_jax.models.test_encoder_mesh import packed_chunks


def test_names_are_the_choices():
    assert tuple(POOLING_FUNCTIONS) == POOLINGS


@pytest.mark.parametrize("side", ["none", "left", "right"])
def test_golden_pooling(side):
    """Padding on either side: the weights depend on segments and positions only."""
    golden = np.load(GOLDEN.parent / "pooling" / f"pooling_B6_L16_D16_{side}_seed0.npz")
    mask = jnp.asarray(golden["attention_mask"], jnp.int32)
    positions = jnp.maximum(jnp.cumsum(mask, 1) - 1, 0)
    for pooling, key in {"mean": "pool_avg", "last": "pool_last"}.items():
        got = pool(
            jnp.asarray(golden["last_hidden_states"], jnp.float32),
            mask,
            positions,
            texts_per_row=1,
            pooling=pooling,
        )
        np.testing.assert_allclose(got[:, 0], golden[key], atol=1e-6)
    if side != "left":  # there the golden takes slot 0, which is padding
        got = pool(
            jnp.asarray(golden["last_hidden_states"], jnp.float32),
            mask,
            positions,
            texts_per_row=1,
            pooling="cls",
        )
        np.testing.assert_allclose(got[:, 0], golden["pool_cls"], atol=1e-6)


def test_pooling_against_hidden_states_by_hand():
    encoder, params = make_encoder(shape_of("bert")), params_of("bert")
    texts = random_texts(99, count=5)
    packed = pack(texts, row_tokens=48, texts_per_row=4)
    chunk = [x[0] for x in (packed.tokens, packed.segments, packed.positions)]
    states = np.asarray(jax.jit(encoder.hidden)(params, *chunk))
    pooled = {
        pooling: pool(
            jnp.asarray(states), *map(jnp.asarray, chunk[1:]), texts_per_row=4, pooling=pooling
        )
        for pooling in POOLING_FUNCTIONS
    }
    for i, text in enumerate(texts):
        row, place = divmod(int(packed.slots[0, i]), 4)
        own, n = states[row][chunk[1][row] == place + 1], len(text)
        by_hand = {
            "mean": own.mean(0),
            "cls": own[0],
            "last": own[-1],
            "weighted_mean": np.arange(1, n + 1) @ own / (n * (n + 1) / 2),
        }
        assert by_hand.keys() == pooled.keys()
        for pooling, expected in by_hand.items():
            np.testing.assert_allclose(pooled[pooling][row, place], expected, atol=1e-5)


@pytest.mark.parametrize("out", [8, 32, 48])
def test_a_random_projection_is_semi_orthogonal(out):
    layer = init_projection(jax.random.key(0), 32, out, bias=True)
    kernel = np.asarray(layer["kernel"])
    assert kernel.shape == (32, out) and not layer["bias"].any()
    gram = kernel.T @ kernel if out < 32 else kernel @ kernel.T
    np.testing.assert_allclose(gram, np.eye(min(32, out)), atol=1e-5)
    x = np.random.default_rng(0).normal(size=(3, 32)).astype(np.float32)
    bias = jnp.arange(out, dtype=jnp.float32)
    actual = project(x, {"kernel": layer["kernel"], "bias": bias})
    np.testing.assert_allclose(actual, x @ kernel + np.arange(out), atol=1e-5)
    decayed = decay_mask({"shared": {"projection": layer}})["shared"]["projection"]
    assert decayed == {"kernel": True, "bias": False}


def test_projection_follows_pooling_and_has_the_same_gradient_on_a_mesh():
    shape, options = shape_of("qwen2"), {"pooling": "weighted_mean", "normalise": False}
    plain = make_encoder(shape, EncoderOptions(**options))
    encoder = make_encoder(shape, EncoderOptions(**options, projection=12, projection_bias=True))
    assert (plain.width, encoder.width) == (32, 12)
    made = jax.eval_shape(encoder.init, jax.random.key(0))
    layer = init_projection(jax.random.key(3), 32, 12, bias=True)
    layer["bias"] = jnp.arange(12, dtype=jnp.float32)
    params = params_of("qwen2") | {"projection": layer}
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, made)
    packed, weight = packed_chunks(), np.random.default_rng(2).normal(size=(4, 5, 12))
    weight = weight.astype(np.float32)

    def scalar(params, packed, mesh=None, gather="auto"):
        encode = encoder.encode
        vectors = encode_in_chunks(encode, params, packed, groups=1, mesh=mesh, gather=gather)
        return jnp.sum(vectors * weight), vectors

    (_, vectors), expected = jax.jit(jax.value_and_grad(scalar, has_aux=True))(params, packed)
    before = jax.jit(plain.encode)(params_of("qwen2"), packed)
    np.testing.assert_allclose(vectors, project(before, layer), atol=1e-4)

    mesh = make_mesh(fsdp=2, tensor=2)
    shardings = state_shardings(mesh, params)
    assert shardings["projection"]["kernel"].spec == jax.sharding.PartitionSpec("fsdp", None)
    split = jax.device_put(params, shardings), jax.device_put(packed, batch_sharding(mesh))
    actual = jax.jit(jax.grad(lambda p, x: scalar(p, x, mesh)[0]))(*split)
    largest = max(np.abs(x).max() for x in jax.tree.leaves(expected))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=3e-6 * largest, rtol=0), actual, expected
    )
