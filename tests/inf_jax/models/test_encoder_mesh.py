"""Encoders of all families on a mesh: weights gathered by layer, heads and ffn split."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from inf_jax.core import packing
from inf_jax.core.trees import path_name
from inf_jax.distributed.gradcache import encode_in_chunks
from inf_jax.distributed.mesh import batch_devices, batch_sharding, make_mesh
from inf_jax.distributed.sharding import state_shardings
from inf_jax.models.config import EncoderConfig
from inf_jax.models.encoder import EncoderOptions, make_encoder
from inf_jax.models.lora import initial_adapters, make_lora
from inf_jax.models.transformer import Execution
from tests.inf_jax.models.goldens import NAMES, all_rows, params_of, shape_of


def packed_chunks(chunks=4, texts=5):
    rng = np.random.default_rng(1)
    made = []
    for n in range(chunks):
        ids = [rng.integers(4, 99, rng.integers(1, 20)).astype(np.int32) for _ in range(texts)]
        numbers = np.arange(texts, dtype=np.uint32) + texts * n
        made.append(packing.pack_chunk(ids, numbers, rows=3, row_tokens=40, texts_per_row=4))
    return packing.stack_chunks(made)


FEW = [name for name in NAMES if shape_of(name).kv_heads % 4]  # for a "tensor" of four


@pytest.mark.parametrize(
    ("name", "mesh"),
    [(name, mesh) for mesh in ({"fsdp": 8}, {"fsdp": 2, "tensor": 2}) for name in NAMES]
    + [(name, {"fsdp": 2, "tensor": 4}) for name in FEW],
    ids=lambda x: x if isinstance(x, str) else "-".join(f"{axis}{n}" for axis, n in x.items()),
)
def test_hidden_states_are_the_goldens(name, mesh):
    """Padded on either side and packed, with recomputed layers."""
    assert len(NAMES) == 14 and len(FEW) == 9
    encoder, mesh = make_encoder(shape_of(name)), make_mesh(**mesh)
    rows, real, expected = all_rows(name)
    repeats = [np.resize(x, (-(-len(x) // 8) * 8, *x.shape[1:])) for x in rows]

    def states(params, rows, shards):
        rest = shards.whole({n: x for n, x in params.items() if n != "blocks"})
        whole = rest | {"blocks": params["blocks"]}
        return encoder.hidden(whole, *rows, shards=shards, execution=Execution(remat="full"))

    params = jax.device_put(params_of(name), state_shardings(mesh, params_of(name)))
    run = jax.jit(lambda params, rows: encode_in_chunks(states, params, rows, groups=1, mesh=mesh))
    actual = np.asarray(run(params, jax.device_put(repeats, batch_sharding(mesh))))
    np.testing.assert_allclose(actual[: len(real)][real], expected[real], atol=2e-5, rtol=0)


def with_kv_heads(name: str, kv_heads: int | None) -> tuple[EncoderConfig, dict]:
    """A golden with fewer key and value heads; three of them get six query heads."""
    shape, params = shape_of(name), dict(params_of(name))
    if kv_heads == 3:
        shape = dataclasses.replace(shape, heads=6, kv_heads=3)
        shapes = jax.eval_shape(make_encoder(shape).init, jax.random.key(0))
        rng = np.random.default_rng(0)
        random = lambda x: 0.2 * rng.standard_normal(x.shape, np.float32)  # noqa: E731
        return shape, jax.tree.map(random, shapes)
    if kv_heads is None:
        return shape, params
    cut = [path for path in params["blocks"] if re.match("(key|value)_(kernel|bias)", path)]
    blocks = params["blocks"] | {path: params["blocks"][path][..., :kv_heads, :] for path in cut}
    return dataclasses.replace(shape, kv_heads=kv_heads), params | {"blocks": blocks}


@pytest.mark.parametrize(
    ("name", "tensor", "kv_heads"),
    [
        ("modernbert", 2, None),
        ("t5_gated_encoder", 2, None),
        ("gemma3_text", 2, None),
        ("qwen2", 4, None),  # two key heads for four devices
        ("gemma3_text", 2, 1),
        ("gemma3_text", 4, 1),
        ("qwen2", 2, 3),  # a device's three query heads use two key heads
    ],
)
def test_embeddings_and_gradients_are_those_of_one_device(name, tensor, kv_heads):
    shape, params = with_kv_heads(name, kv_heads)
    shape = dataclasses.replace(shape, dropout=0.1, attention_dropout=0.1)
    paths = [f"blocks/{name}_kernel" for name in ("query", "key", "value", "out", "up", "down")]
    lora = make_lora(paths, rank=2, alpha=4.0, targets="(key|value|out)_kernel")
    encoder = make_encoder(shape, EncoderOptions(normalise=False, remat="dots", lora=lora))
    adapters = initial_adapters(jax.random.key(1), params["blocks"], lora)
    adapters = jax.tree.map(lambda x: x + 0.02, adapters)  # B starts at zero
    params, packed = params | {"blocks": params["blocks"] | adapters}, packed_chunks()
    weight = np.random.default_rng(2).normal(size=(4, 5, 32)).astype(np.float32)
    key = jax.random.key(0)

    def scalar(params, packed, mesh=None):
        def encode(params, packed, **options):
            return encoder.encode(params, packed, key, **options)

        groups = 1 if mesh is None else len(weight) // batch_devices(mesh)
        vectors = encode_in_chunks(encode, params, packed, groups=groups, mesh=mesh)
        return jnp.sum(vectors * weight), vectors

    mesh = make_mesh(fsdp=2, tensor=tensor)  # with four devices two chunks each: GradCache
    shardings = state_shardings(mesh, params)
    split = jax.device_put(params, shardings), jax.device_put(packed, batch_sharding(mesh))
    expected, vectors = jax.jit(jax.grad(scalar, has_aux=True))(params, packed)
    both = jax.grad(lambda p, x: scalar(p, x, mesh), has_aux=True)
    actual, on_mesh = jax.jit(both)(*split)
    np.testing.assert_allclose(on_mesh, vectors, atol=1e-5, rtol=0)
    largest = max(np.abs(x).max() for x in jax.tree.leaves(expected))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=3e-6 * largest, rtol=0), actual, expected
    )


@pytest.mark.parametrize(
    ("tensor", "kv_heads", "whole"), [(2, 2, False), (2, 1, True), (4, 2, True)]
)
def test_moments_are_sharded_like_their_parameters(tensor, kv_heads, whole):
    """What "tensor" splits, of a model with key norms, biases and adapters and of its moments."""
    shape = dataclasses.replace(shape_of("qwen3"), kv_heads=kv_heads, qkv_bias=True)
    paths = [f"blocks/{name}_kernel" for name in ("query", "key", "value")]
    lora = make_lora(paths, rank=2, alpha=4.0, targets="_kernel")
    encoder = make_encoder(shape, EncoderOptions(lora=lora))
    params = jax.eval_shape(encoder.init, jax.random.key(0))
    mesh = make_mesh(fsdp=2, tensor=tensor)
    state = {"params": params, "moments": jax.eval_shape(optax.adam(1e-3).init, params)}
    split = {"params": set(), "moments": set()}
    for path, sharding in jax.tree_util.tree_leaves_with_path(state_shardings(mesh, state)):
        place, *_, name = path_name(path).split("/")
        if "tensor" in sharding.spec:
            split[place].add(name)
    parts = ("kernel", "bias", "lora_b")
    expected = {f"query_{part}" for part in parts} | {"out_kernel"}
    expected |= {f"{name}_kernel" for name in ("up", "gate", "down")}
    if not whole:
        expected |= {f"{name}_{part}" for name in ("key", "value") for part in parts}
    assert split == {"params": expected, "moments": expected}
