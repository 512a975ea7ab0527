"""The attention implementations against each other; TPU kernels in Pallas's interpreter."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inf_jax.core import packing
from inf_jax.core.choices import ATTENTIONS
from inf_jax.core.errors import UserError
from inf_jax.distributed.gradcache import encode_in_chunks
from inf_jax.distributed.mesh import batch_sharding, make_mesh
from inf_jax.distributed.sharding import state_shardings
from inf_jax.models.attention import IMPLEMENTATIONS, attention, implementations_for
from inf_jax.models.cudnn_attention import cudnn_attention
from inf_jax.models.dropout import AttentionDropout, DropoutKey
from inf_jax.models.encoder import EncoderOptions, make_encoder
from inf_jax.models.splash_attention import splash_attention
from inf_jax.models.xla_attention import ScoreOptions, Window, visible, xla_attention
from inf_jax.planning.flops import product_flops
from tests.inf_jax.models.goldens import params_of, shape_of

TPU = SimpleNamespace(platform="tpu", device_kind="TPU v5 lite")
EITHER = Window((20, None), jnp.int32(0)), Window((20, None), jnp.int32(1))


def inputs(*, heads, groups, tokens, width=16, dtype=jnp.float32, seed=0):
    """(q, k, v) and {segments, positions} of two packed rows that end in empty slots."""
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


def assert_like_xla(function, operands, layout, scores):
    """Compares with `xla_attention`: values at real tokens, and gradients by q, k and v of a sum
    weighted there."""
    real = (np.asarray(layout["segments"]) > 0)[:, None, :, None]
    weight = np.random.default_rng(9).normal(size=operands[0].shape).astype(np.float32) * real

    def both(function):
        def scalar(*operands):
            mixed = function(*operands, **layout, scores=scores)
            return jnp.sum(mixed * weight), mixed

        return jax.jit(jax.value_and_grad(scalar, argnums=(0, 1, 2), has_aux=True))(*operands)

    (_, mixed), gradients = both(function)
    (_, expected), expected_gradients = both(xla_attention)
    np.testing.assert_allclose(mixed * real, expected * real, atol=2e-6)
    for a, b in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        ((4, 2, 128), {}),
        ((2, 1, 128), {"causal": True, "softcap": 3.0}),
        ((2, 2, 128), {"window": EITHER[0]}),
        ((2, 1, 640), {"window": Window((70,)), "causal": True}),  # five blocks
        ((2, 1, 640), {"softcap": 5.0}),
        ((2, 1, 184), {}),  # padded to 256
    ],
    ids=lambda x: None if isinstance(x, tuple) else "-".join(x) or "plain",
)
def test_splash(sizes, options):
    heads, groups, tokens = sizes
    operands, layout = inputs(heads=heads, groups=groups, tokens=tokens)
    splash = functools.partial(splash_attention, interpret=True)
    assert_like_xla(splash, operands, layout, ScoreOptions(0.3, **options))


@pytest.mark.parametrize(
    "options",
    [{}, {"causal": True, "window": EITHER[0]}, {"window": EITHER[1]}, {"window": Window((3,))}],
    ids=["plain", "causal-20", "alternating", "3"],
)
def test_call_of_cudnn(options):
    operands, layout = inputs(heads=4, groups=2, tokens=64)
    call = functools.partial(cudnn_attention, implementation="xla")
    assert_like_xla(call, operands, layout, ScoreOptions(0.3, **options))


def test_names_are_the_choices():
    assert {"auto", *IMPLEMENTATIONS} == set(ATTENTIONS)


def test_windows():
    segments = jnp.ones((1, 6), jnp.int32)
    layout = {"segments": segments, "positions": jnp.arange(6, dtype=jnp.int32)[None]}

    def mask(causal, window):
        return np.asarray(visible(**layout, causal=causal, window=window))[0, 0].astype(int)

    band = np.tri(6, k=2, dtype=int) - np.tri(6, k=-3, dtype=int)
    assert (mask(False, Window((2,))) == band).all()
    assert (mask(True, Window((2,))) == np.tri(6, dtype=int) - np.tri(6, k=-2, dtype=int)).all()
    for which, expected in ((0, band), (1, np.ones((6, 6), int))):
        assert (mask(False, Window((2, None), jnp.int32(which))) == expected).all()


LIMITATIONS = {
    "splash": [
        ({"bias": True}, {}, "adds a position bias"),
        ({"dropout": True}, {}, r"model\.attention_dropout drops attention weights"),
    ],
    "cudnn": [
        ({"bias": True}, {}, "adds a position bias"),
        ({"dropout": True}, {}, r"model\.attention_dropout drops attention weights"),
        ({"softcap": 2.0}, {}, "caps its attention scores"),
        ({}, {"dtype": jnp.float32}, r"model\.dtype is float32"),
        ({}, {"width": 12}, "head width is 12"),
        ({}, {"width": 256}, "head width is 256"),
        ({}, {"tokens": 127}, "rows have 127 tokens"),
    ],
}


@pytest.mark.parametrize(
    ("name", "used", "sizes", "message"),
    [(name, *case) for name, cases in LIMITATIONS.items() for case in cases],
)
def test_limitations(name, used, sizes, message):
    sizes = {"heads": 2, "groups": 2, "tokens": 128, "dtype": jnp.bfloat16} | sizes
    operands, layout = inputs(**sizes)
    scores = ScoreOptions(1.0, softcap=used.get("softcap"))
    if "bias" in used:
        shape = (1, 2, sizes["tokens"], sizes["tokens"])
        scores = scores._replace(bias=jnp.ones(shape, jnp.float32))
    if "dropout" in used:
        texts = layout["segments"].astype(jnp.uint32)
        key = DropoutKey(jnp.ones(2, jnp.uint32), texts, layout["positions"].astype(jnp.uint32))
        scores = scores._replace(dropout=AttentionDropout(0.5, key))

    def attend(*names):
        return attention(*operands, **layout, scores=scores, implementations=names)

    with pytest.raises(UserError, match=f"model.attention='{name}': .*{message}.*; 'auto' chooses"):
        attend(name)
    np.testing.assert_array_equal(attend(name, "xla"), attend("xla"))


def test_attention_in_training():
    def chosen(model, tokens, *, dropout=0.0, attention="auto"):
        shape = dataclasses.replace(shape_of(model), attention_dropout=dropout)
        options = EncoderOptions(attention=attention, device=TPU)
        return make_encoder(shape, options).attention_in_training(tokens)

    assert chosen("bert", 256) == "splash"
    assert chosen("bert", 256, attention="xla") == "xla"
    assert chosen("bert", 368) == "splash"
    reason = r"model\.attention_dropout drops attention weights"
    assert "adds a position bias" in chosen("t5_encoder", 256)
    assert "drops attention weights" in chosen("bert", 256, dropout=0.1)
    with pytest.raises(UserError, match=f"='splash': {reason}; 'auto' chooses 'xla' here"):
        chosen("bert", 256, dropout=0.1, attention="splash")


def test_device_decides():
    def gpu(capability):
        return SimpleNamespace(platform="gpu", device_kind="GPU", compute_capability=capability)

    cpu = jax.devices()[0]
    assert implementations_for("auto", cpu) == ("xla",)
    assert implementations_for("auto", TPU) == ("splash", "xla")
    assert implementations_for("auto", gpu("8.0")) == ("cudnn", "xla")
    for old in ("7.5", "gfx90a"):
        assert implementations_for("auto", gpu(old)) == ("xla",)
    for device in (cpu, TPU, gpu("9.0")):
        assert implementations_for("xla", device) == ("xla",)
    assert implementations_for("splash", TPU) == ("splash",)
    assert implementations_for("cudnn", gpu("10.0")) == ("cudnn",)
    with pytest.raises(UserError, match=r"model\.attention='splash': needs a TPU, not cpu"):
        implementations_for("splash", cpu)
    with pytest.raises(UserError, match="needs an NVIDIA GPU, Ampere or newer"):
        implementations_for("cudnn", gpu("7.5"))


@pytest.fixture
def interpreted(monkeypatch):
    """Runs splash attention in the interpreter."""
    attend = functools.partial(splash_attention, interpret=True)
    splash = IMPLEMENTATIONS["splash"]._replace(attend=attend)
    monkeypatch.setitem(IMPLEMENTATIONS, "splash", splash)


def test_gradients_of_a_model_on_a_mesh(interpreted):
    """ModernBERT's windows alternate, so the scan switches between two kernels."""
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
            return jnp.sum(
                encode_in_chunks(encoder.encode, params, packed, groups=1, mesh=mesh) * weight
            )

        return jax.grad(scalar)(params)

    mesh = make_mesh(fsdp=2, tensor=2)
    shardings = state_shardings(mesh, params)
    split = jax.device_put(params, shardings), jax.device_put(packed, batch_sharding(mesh))
    actual = jax.jit(lambda p, x: gradients(p, x, mesh, attention="splash", device=TPU))(*split)
    expected = jax.jit(gradients)(params, packed)
    largest = max(np.abs(x).max() for x in jax.tree.leaves(expected))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=3e-6 * largest, rtol=0), actual, expected
    )


def test_program_for_a_tpu_has_the_kernels():
    """Lowered for a TPU on this machine; the kernels' operations are counted by their grid."""
    operands, layout = inputs(heads=4, groups=2, tokens=640, width=64, dtype=jnp.bfloat16)

    def loss(q, k, v, window):
        mixed = attention(
            *(q, k, v),
            **layout,
            scores=ScoreOptions(0.1, causal=True, window=window),
            implementations=implementations_for("auto", TPU),
        )
        return jnp.sum(mixed.astype(jnp.float32))

    def traced(size):
        gradients = jax.grad(lambda *x: loss(*x, Window((size,))), argnums=(0, 1, 2))
        return jax.jit(gradients).trace(*operands)

    text = traced(None).lower(lowering_platforms=("tpu",)).as_text()
    for kernel in ("fwd", "dkv", "dq"):
        assert f"splash_mha_{kernel}_segmented" in text
    products, pair = 2 + 4 + 3, 2 * 64  # see planning's table of attention kernels
    outside = 2 * 4 * 640 * pair  # of each token's mixed values and their gradient
    whole = 2 * 4 * 640 * 640 * products * pair
    assert product_flops(traced(None).jaxpr.jaxpr) == whole + outside
    narrow = whole * 2 / 5  # with the window a query sees two of five blocks of keys
    assert product_flops(traced(100).jaxpr.jaxpr) == narrow + outside
