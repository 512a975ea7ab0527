"""Attention's implementations against each other; the TPU's kernels by Pallas's interpreter."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inf_jax.core import packing
from inf_jax.core.errors import UserError
from inf_jax.distributed.gradcache import in_chunks
from inf_jax.distributed.mesh import batch_sharding, make_mesh
from inf_jax.distributed.sharding import state_shardings
from inf_jax.models import attention as module
from inf_jax.models.attention import attention, cudnn_attention, implementations
from inf_jax.models.dropout import DropoutKey
from inf_jax.models.encoder import EncoderOptions, make_encoder
from inf_jax.models.splash_attention import splash_attention
from inf_jax.models.xla_attention import Window, visible, xla_attention
from inf_jax.planning.flops import product_flops
from tests.inf_jax.models.goldens import params_of, quick_jit, shape_of

TPU = SimpleNamespace(platform="tpu", device_kind="TPU v5 lite")
EITHER = Window((20, None), jnp.int32(0)), Window((20, None), jnp.int32(1))


def rows(*, heads, groups, tokens, width=16, dtype=jnp.float32, seed=0):
    """q, k, v, and {segments, positions} of two packed rows whose ends are empty."""
    rng = np.random.default_rng(seed)
    segments, positions = np.zeros((2, 2, tokens), np.int32)
    for row in range(2):
        start = 0
        for number in range(1, 4):
            end = min(start + rng.integers(9, tokens // 2), tokens - 5)
            segments[row, start:end] = number
            positions[row, start:end] = np.arange(end - start)
            start = end
    q, k, v = (
        jnp.asarray(rng.normal(size=(2, n, tokens, width)), dtype) for n in (heads, groups, groups)
    )
    return (q, k, v), {"segments": jnp.asarray(segments), "positions": jnp.asarray(positions)}


def assert_same(found, expected, operands, where):
    """Values at real tokens, and gradients by q, k and v of a sum weighted there."""
    real = (np.asarray(where["segments"]) > 0)[:, None, :, None]
    weight = np.random.default_rng(9).normal(size=operands[0].shape).astype(np.float32) * real

    def both(function):
        def scalar(*operands):
            mixed = function(*operands, **where)
            return jnp.sum(mixed * weight), mixed

        return quick_jit(jax.value_and_grad(scalar, argnums=(0, 1, 2), has_aux=True))(*operands)

    (_, mixed), gradients = both(found)
    (_, right), right_gradients = both(expected)
    np.testing.assert_allclose(mixed * real, right * real, atol=2e-6)
    for a, b in zip(gradients, right_gradients, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(
    ("sizes", "how"),
    [
        ((4, 2, 128), {}),
        ((2, 1, 128), {"causal": True, "softcap": 3.0}),
        ((2, 2, 128), {"window": EITHER[0]}),
        ((2, 1, 640), {"window": Window((70,)), "causal": True}),  # five blocks
        ((2, 1, 640), {"softcap": 5.0}),
    ],
    ids=lambda x: None if isinstance(x, tuple) else "-".join(x) or "plain",
)
def test_splash(sizes, how):
    heads, groups, tokens = sizes
    operands, where = rows(heads=heads, groups=groups, tokens=tokens)
    how = {"scale": 0.3, "causal": False, "window": Window(), "softcap": None} | how

    def splash(*operands, **where):
        return splash_attention(*operands, **where, **how, interpret=True)

    def xla(*operands, **where):
        return xla_attention(*operands, **where, **how)

    assert_same(splash, xla, operands, where)


@pytest.mark.parametrize(
    "how",
    [{}, {"causal": True, "window": EITHER[0]}, {"window": EITHER[1]}, {"window": Window((3,))}],
    ids=["plain", "causal-20", "alternating", "3"],
)
def test_cudnn_s_call(how):
    operands, where = rows(heads=4, groups=2, tokens=64)
    how = {"scale": 0.3, "causal": False, "window": Window()} | how

    def call(*operands, **where):
        return cudnn_attention(*operands, **where, **how, implementation="xla")

    assert_same(call, lambda *o, **w: xla_attention(*o, **w, **how), operands, where)


def test_windows():
    segments = jnp.ones((1, 6), jnp.int32)
    how = {"segments": segments, "positions": jnp.arange(6, dtype=jnp.int32)[None]}

    def seen(causal, window):
        return np.asarray(visible(**how, causal=causal, window=window))[0, 0].astype(int)

    band = np.tri(6, k=2, dtype=int) - np.tri(6, k=-3, dtype=int)
    assert (seen(False, Window((2,))) == band).all()
    assert (seen(True, Window((2,))) == np.tri(6, dtype=int) - np.tri(6, k=-2, dtype=int)).all()
    for which, expected in ((0, band), (1, np.ones((6, 6), int))):
        assert (seen(False, Window((2, None), jnp.int32(which))) == expected).all()


REFUSED = {
    "splash": [
        ({"bias": True}, {}, "adds a bias by distance"),
        ({"dropout": True}, {}, r"model\.dropout drops attention weights"),
        ({}, {"tokens": 64}, "rows of 64 tokens, which is no multiple of 128"),
    ],
    "cudnn": [
        ({"bias": True}, {}, "adds a bias by distance"),
        ({"dropout": True}, {}, r"model\.dropout drops attention weights"),
        ({"softcap": 2.0}, {}, "caps its scores"),
        ({}, {"dtype": jnp.float32}, r"model\.dtype is float32"),
        ({}, {"width": 12}, "heads of width 12"),
        ({}, {"width": 256}, "heads of width 256"),
        ({}, {"tokens": 127}, "rows of 127 tokens"),
    ],
}


@pytest.mark.parametrize(
    ("name", "how", "sizes", "message"),
    [(name, *case) for name, cases in REFUSED.items() for case in cases],
)
def test_what_an_implementation_cannot_do(name, how, sizes, message):
    sizes = {"heads": 2, "groups": 2, "tokens": 128, "dtype": jnp.bfloat16} | sizes
    operands, where = rows(**sizes)
    how = dict(how)
    if how.pop("bias", False):
        how["bias"] = jnp.ones((1, 2, sizes["tokens"], sizes["tokens"]), jnp.float32)
    if how.pop("dropout", False):
        texts = where["segments"].astype(jnp.uint32)
        key = DropoutKey(jnp.ones(2, jnp.uint32), texts, where["positions"].astype(jnp.uint32))
        how |= {"dropout_rate": 0.5, "dropout_key": key}
    with pytest.raises(UserError, match=f"model.attention='{name}': .*{message}.*; 'auto' takes"):
        attention(*operands, **where, scale=1.0, **how, by=(name,))
    found = attention(*operands, **where, scale=1.0, **how, by=(name, "xla"))
    expected = attention(*operands, **where, scale=1.0, **how)
    np.testing.assert_array_equal(found, expected)


def test_what_a_run_says_of_its_attention():
    def said(model, tokens, *, dropout=0.0, by="auto"):
        shape = dataclasses.replace(shape_of(model), attention_dropout=dropout)
        options = EncoderOptions(attention=by, device=TPU)
        return make_encoder(shape, options).attention_in_training(tokens)

    assert said("bert", 256) == "splash"
    assert said("bert", 256, by="xla") == "xla"
    rows_at_fault = "rows of 100 tokens, which is no multiple of 128"
    assert said("bert", 100) == f"xla (model.attention='splash': {rows_at_fault})"
    assert "adds a bias by distance" in said("t5_encoder", 256)
    assert "drops attention weights" in said("bert", 256, dropout=0.1)
    with pytest.raises(UserError, match=f"='splash': {rows_at_fault}; 'auto' takes 'xla' there"):
        said("bert", 100, by="splash")


def test_device_decides():
    def gpu(capability):
        return SimpleNamespace(platform="gpu", device_kind="GPU", compute_capability=capability)

    cpu = jax.devices()[0]
    assert implementations("auto", cpu) == ("xla",)
    assert implementations("auto", TPU) == ("splash", "xla")
    assert implementations("auto", gpu("8.0")) == ("cudnn", "xla")
    for old in ("7.5", "gfx90a"):
        assert implementations("auto", gpu(old)) == ("xla",)
    for device in (cpu, TPU, gpu("9.0")):
        assert implementations("xla", device) == ("xla",)
    assert implementations("splash", TPU) == ("splash",)
    assert implementations("cudnn", gpu("10.0")) == ("cudnn",)
    with pytest.raises(UserError, match=r"model\.attention='splash': needs a TPU, not cpu"):
        implementations("splash", cpu)
    with pytest.raises(UserError, match="needs an NVIDIA GPU, Ampere or newer"):
        implementations("cudnn", gpu("7.5"))


@pytest.fixture
def interpreted(monkeypatch):
    """Splash attention as on a TPU, by the interpreter."""
    splash = module.IMPLEMENTATIONS["splash"]

    def attend(*operands, **how):
        return splash_attention(*operands, **how, interpret=True)

    monkeypatch.setitem(module.IMPLEMENTATIONS, "splash", splash._replace(attend=attend))


def test_a_model_s_gradients_on_a_mesh(interpreted):
    """ModernBERT: windows alternate, so that the scan switches between two kernels."""
    shape = dataclasses.replace(shape_of("modernbert"), dropout=0.0)
    assert len(set(shape.windows)) == 2
    rng = np.random.default_rng(1)
    texts = [rng.integers(4, 99, n).astype(np.int32) for n in (50, 61, 17, 99, 3)]
    chunk = packing.pack_chunk(
        texts, np.arange(5, dtype=np.uint32), rows=2, row_tokens=128, texts_per_row=4
    )
    packed, params = packing.stack_chunks([chunk] * 4), params_of("modernbert")
    weight = rng.normal(size=(4, 5, shape.width)).astype(np.float32)

    def gradients(params, packed, mesh=None, **options):
        encoder = make_encoder(shape, EncoderOptions(normalise=False, remat="dots", **options))

        def scalar(params):
            return jnp.sum(in_chunks(encoder.encode, params, packed, groups=1, mesh=mesh) * weight)

        return jax.grad(scalar)(params)

    mesh = make_mesh(fsdp=2, tensor=2)
    shardings = state_shardings(mesh, params)
    split = jax.device_put(params, shardings), jax.device_put(packed, batch_sharding(mesh))
    found = quick_jit(lambda p, x: gradients(p, x, mesh, attention="splash", device=TPU))(*split)
    expected = quick_jit(gradients)(params, packed)
    largest = max(np.abs(x).max() for x in jax.tree.leaves(expected))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=3e-6 * largest, rtol=0), found, expected
    )


def test_program_for_a_tpu_has_the_kernels():
    """Lowered on this machine for another; what the kernels compute is counted by their grid."""
    (q, k, v), where = rows(heads=4, groups=2, tokens=640, width=64, dtype=jnp.bfloat16)

    def loss(q, k, v, window):
        by = implementations("auto", TPU)
        mixed = attention(q, k, v, **where, scale=0.1, causal=True, window=window, by=by)
        return jnp.sum(mixed.astype(jnp.float32))

    def traced(size):
        gradients = jax.grad(lambda *x: loss(*x, Window((size,))), argnums=(0, 1, 2))
        return jax.jit(gradients).trace(q, k, v)

    text = traced(None).lower(lowering_platforms=("tpu",)).as_text()
    for kernel in ("fwd", "dkv", "dq"):
        assert f"splash_mha_{kernel}_segmented" in text
    products, pair = 2 + 4 + 3, 2 * 64  # see hlo_kernels
    beside = 2 * 4 * 640 * pair  # of each token's mixed values and their gradient
    whole = 2 * 4 * 640 * 640 * products * pair
    assert product_flops(traced(None).jaxpr.jaxpr) == whole + beside
    narrow = whole * 2 / 5  # of five blocks of keys a query sees two
    assert product_flops(traced(100).jaxpr.jaxpr) == narrow + beside
