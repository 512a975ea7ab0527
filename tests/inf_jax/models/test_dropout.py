"""Dropout: a function of text and position, at the right rate."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from inf_jax.models.dropout import DropoutKey, dropout
from inf_jax.models.encoder import make_encoder
from tests.inf_jax.models.goldens import pack, params_of, random_texts, shape_of


def test_dropout_depends_on_text_and_position_only():
    config = dataclasses.replace(shape_of("bert"), dropout=0.2, attention_dropout=0.1)
    encode, params = jax.jit(make_encoder(config).encode), params_of("bert")
    texts = random_texts(99)
    wide = pack(texts, row_tokens=64, texts_per_row=8)
    narrow = pack(texts, row_tokens=40, texts_per_row=1)
    key = jax.random.key(5)
    first = encode(params, wide, key)
    np.testing.assert_allclose(first, encode(params, narrow, key), atol=1e-5)
    assert np.abs(encode(params, wide, jax.random.key(6)) - first).max() > 1e-2


def test_dropout_rate_and_mean():
    text = jnp.arange(40, dtype=jnp.uint32)[:, None].repeat(50, 1)
    position = jnp.arange(50, dtype=jnp.uint32)[None].repeat(40, 0)
    key = DropoutKey(jnp.array([1, 2], jnp.uint32), text, position)
    y = np.asarray(dropout(jnp.ones((40, 50, 256)), 0.25, key, 3))
    assert set(np.unique(y)) == {0.0, np.float32(1 / 0.75)}
    # 512,000 draws: three standard deviations of the share are 0.0018
    assert abs((y == 0).mean() - 0.25) < 0.002
    # along texts, positions and features alike: 12,800 draws or fewer a slice
    for axis in ((1, 2), (0, 2), (0, 1)):
        assert np.abs((y == 0).mean(axis) - 0.25).max() < 0.05
    # a site has bits of its own
    z = np.asarray(dropout(jnp.ones((40, 50, 256)), 0.25, key, 4))
    assert abs(((y == 0) & (z == 0)).mean() - 0.0625) < 0.002
