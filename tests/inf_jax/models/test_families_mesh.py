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
from inf_jax.models.lora import first_adapters, make_lora
from inf_jax.models.shape import EncoderConfig
from tests.inf_jax.models.goldens import NAMES, all_rows, params_of, quick_jit, shape_of


def packed_chunks(chunks=4, texts=5):
    rng = np.random.default_rng(1)
    made = []
    for n in range(chunks):
        ids = [rng.integers(4, 99, rng.integers(1, 20)).astype(np.int32) for _ in range(texts)]
        numbers = np.arange(texts, dtype=np.uint32) + texts * n
        made.append(packing.pack_chunk(ids, numbers, rows=3, row_tokens=40, texts_per_row=4))
    return packing.stack_chunks(made)


@pytest.mark.parametrize(
    "mesh", [{"fsdp": 8}, {"fsdp": 2, "tensor": 2}], ids=["fsdp8", "fsdp2-tensor2"]
)
@pytest.mark.parametrize("name", NAMES)
def test_hidden_states_are_the_goldens(name, mesh):
    """Padded on either side and packed, with layers recomputed."""
    encoder, mesh = make_encoder(shape_of(name)), make_mesh(**mesh)
    rows, real, expected = all_rows(name)
    repeats = [np.resize(x, (-(-len(x) // 8) * 8, *x.shape[1:])) for x in rows]

    def states(params, rows, shards):
        rest = shards.whole({n: x for n, x in params.items() if n != "blocks"})
        whole = rest | {"blocks": params["blocks"]}
        return encoder.hidden(whole, *rows, shards=shards, remat="full")

    params = jax.device_put(params_of(name), state_shardings(mesh, params_of(name)))
    run = quick_jit(lambda params, rows: in_chunks(states, params, rows, groups=1, mesh=mesh))
    found = np.asarray(run(params, jax.device_put(repeats, batch_sharding(mesh))))
    np.testing.assert_allclose(found[: len(real)][real], expected[real], atol=2e-5, rtol=0)


def of_heads(name: str, kv_heads: int | None) -> tuple[EncoderConfig, dict]:
    """A golden with some of its heads of keys and values left out; three are for six others."""
    shape, params = shape_of(name), dict(params_of(name))
    if kv_heads == 3:
        shape = dataclasses.replace(shape, heads=6, kv_heads=3)
        return shape, make_encoder(shape).init(jax.random.key(0))
    if kv_heads is None:
        return shape, params
    blocks = {
        path: x[..., :kv_heads, :] if path.startswith(("key_", "value_")) else x
        for path, x in params["blocks"].items()
        if "norm" not in path
    }
    blocks |= {path: x for path, x in params["blocks"].items() if "norm" in path}
    return dataclasses.replace(shape, kv_heads=kv_heads), params | {"blocks": blocks}


@pytest.mark.parametrize(
    ("name", "tensor", "kv_heads"),
    [
        ("modernbert", 2, None),
        ("t5_gated_encoder", 2, None),
        ("gemma3_text", 2, None),
        ("qwen2", 4, None),  # two heads of keys for four devices
        ("gemma3_text", 2, 1),
        ("gemma3_text", 4, 1),
        ("qwen2", 2, 3),  # a device's three heads of queries go by two of keys
    ],
)
def test_gradients_are_those_of_one_device(name, tensor, kv_heads):
    shape, params = of_heads(name, kv_heads)
    shape = dataclasses.replace(shape, dropout=0.1, attention_dropout=0.1)
    paths = [f"blocks/{name}_kernel" for name in ("query", "key", "value", "out", "up", "down")]
    lora = make_lora(paths, rank=2, alpha=4.0, targets="(key|value|out)_kernel")
    encoder = make_encoder(shape, EncoderOptions(normalise=False, remat="dots", lora=lora))
    adapters = first_adapters(jax.random.key(1), params["blocks"], lora)
    adapters = jax.tree.map(lambda x: x + 0.02, adapters)  # B starts at zero
    params, packed = params | {"blocks": params["blocks"] | adapters}, packed_chunks()
    weight = np.random.default_rng(2).normal(size=(4, 5, 32)).astype(np.float32)
    key = jax.random.key(0)

    def scalar(params, packed, mesh=None):
        def encode(params, packed, **how):
            return encoder.encode(params, packed, key, **how)

        return jnp.sum(in_chunks(encode, params, packed, groups=1, mesh=mesh) * weight)

    mesh = make_mesh(fsdp=2, tensor=tensor)
    shardings = state_shardings(mesh, params)
    split = jax.device_put(params, shardings), jax.device_put(packed, batch_sharding(mesh))
    expected = quick_jit(jax.grad(scalar))(params, packed)
    found = quick_jit(jax.grad(lambda p, x: scalar(p, x, mesh)))(*split)
    largest = max(np.abs(x).max() for x in jax.tree.leaves(expected))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=3e-6 * largest, rtol=0), found, expected
    )
