"""Other families than BERT on a mesh: weights split and gathered by layer, heads and ffn shared."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inf_jax import packing
from inf_jax.gradcache import in_chunks
from inf_jax.mesh import batch_sharding, make_mesh, state_shardings
from inf_jax.models.encoder import EncoderOptions, make_encoder
from tests.inf_jax.models.goldens import params_of, quick_jit, shape_of


def packed_chunks(chunks=4, texts=5):
    rng = np.random.default_rng(1)
    made = []
    for n in range(chunks):
        ids = [rng.integers(4, 99, rng.integers(1, 20)).astype(np.int32) for _ in range(texts)]
        numbers = np.arange(texts, dtype=np.uint32) + texts * n
        made.append(packing.pack_chunk(ids, numbers, rows=3, row_tokens=40, texts_per_row=4))
    return packing.stack_chunks(made)


@pytest.mark.parametrize("name", ["modernbert", "t5_gated_encoder", "gemma3_text"])
def test_gradients_are_those_of_one_device(name):
    shape = dataclasses.replace(shape_of(name), dropout=0.1, attention_dropout=0.1)
    encoder = make_encoder(shape, EncoderOptions(normalise=False, remat="dots"))
    params, packed = params_of(name), packed_chunks()
    weight = np.random.default_rng(2).normal(size=(4, 5, 32)).astype(np.float32)
    key = jax.random.key(0)

    def scalar(params, packed, mesh=None):
        def encode(params, packed, **how):
            return encoder.encode(params, packed, key, **how)

        return jnp.sum(in_chunks(encode, params, packed, groups=1, mesh=mesh) * weight)

    mesh = make_mesh(fsdp=2, tensor=2)
    shardings = state_shardings(mesh, params)
    split = jax.device_put(params, shardings), jax.device_put(packed, batch_sharding(mesh))
    expected = quick_jit(jax.grad(scalar))(params, packed)
    found = quick_jit(jax.grad(lambda p, x: scalar(p, x, mesh)))(*split)
    largest = max(np.abs(x).max() for x in jax.tree.leaves(expected))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=3e-6 * largest, rtol=0), found, expected
    )
