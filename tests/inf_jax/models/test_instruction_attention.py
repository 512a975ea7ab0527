"""Instruction-query attention against the paper's code, torch, and single texts."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inf_jax.core.packing import Packed, pack_chunk, stack_chunks
from inf_jax.distributed.mesh import batch_sharding, make_mesh, replicated
from inf_jax.losses import contrastive_loss
from inf_jax.models import hf
from inf_jax.models.encoder import EncoderOptions, make_encoder
from inf_jax.models.hf.config import read_config
from inf_jax.models.instruction_attention import attend, attend_all
from inf_jax.models.pooling import normalise

GOLDEN = Path(__file__).parents[2] / "golden" / "pooling"
CASES = sorted(path.name for path in GOLDEN.glob("attnpool_*.npz"))
LONGEST = 11  # tokens of an instruction or query
N = 5  # instructions, queries and passages of a chunk


def states_of(golden) -> tuple:
    """(instructions, queries, instruction_mask, query_mask) in float32."""
    states = [jnp.asarray(golden[f"{x}_hidden"], jnp.float32) for x in ("instruction", "query")]
    return *states, *(jnp.asarray(golden[f"{x}_mask"] > 0) for x in ("instruction", "query"))


@pytest.mark.parametrize("name", CASES)
def test_golden(name):
    """Embeddings of the paper's code, and the loss and gradients of uni(P) on them."""
    golden = np.load(GOLDEN / name)
    *states, instruction_mask, query_mask = states_of(golden)
    for key, unit, scale in (("raw", False, 1.0), ("normalized", True, float(golden["scale"]))):

        def vectors(instructions, queries, unit=unit):
            raw = jax.vmap(attend)(instructions, queries, instruction_mask, query_mask)
            return normalise(raw) if unit else raw

        def loss(instructions, queries, passages, vectors=vectors, scale=scale):
            queries = vectors(instructions, queries)
            kind = {"objective": "uni(P)", "scale": scale, "mask": "faithful"}
            return contrastive_loss(queries, passages, **kind)[0]

        np.testing.assert_allclose(vectors(*states), golden[f"pooled_{key}"], atol=1e-6)
        passages = jnp.asarray(golden["passage"], jnp.float32)
        value, grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(*states, passages)
        np.testing.assert_allclose(value, golden[f"loss_qk_{key}"], rtol=1e-5)
        for grad, part in zip(
            grads, ("instruction_hidden", "query_hidden", "passage"), strict=True
        ):
            np.testing.assert_allclose(grad, golden[f"grad_{part}_{key}"], atol=2e-5, rtol=1e-4)


def test_goldens_cover_both_padding_sides():
    assert {name.split("_")[-2] for name in CASES} == {"left", "right"}


@pytest.mark.parametrize("name", CASES[:1])
@pytest.mark.parametrize("unit", [False, True])
def test_all_pairs_and_their_gradients_are_those_of_torch(name, unit):
    torch = pytest.importorskip("torch")
    states = states_of(np.load(GOLDEN / name))
    weight = np.random.default_rng(0).normal(size=(3, 3, 16)).astype(np.float32)

    def ours(*arrays):
        return attend_all(*arrays, states[2], states[3], normalise=unit)

    i, q = (
        torch.tensor(np.asarray(x), dtype=torch.float64, requires_grad=True) for x in states[:2]
    )
    i_mask, q_mask = (torch.tensor(np.asarray(x)) for x in states[2:])
    scores = torch.einsum("bid,aqd->abiq", i, q) / 16**0.5
    weights = scores.masked_fill(~q_mask[:, None, None, :], -torch.inf).softmax(-1)
    each = torch.einsum("abiq,aqd->abid", weights, q) * i_mask[None, :, :, None]
    expected = each.sum(2) / i_mask.sum(1)[None, :, None]
    if unit:
        expected = torch.nn.functional.normalize(expected, dim=-1)
    (expected * torch.tensor(weight)).sum().backward()

    np.testing.assert_allclose(ours(*states[:2]), expected.detach(), atol=1e-6)
    grads = jax.grad(lambda *x: jnp.sum(ours(*x) * weight), argnums=(0, 1))(*states[:2])
    for actual, theirs in zip(grads, (i.grad, q.grad), strict=True):
        np.testing.assert_allclose(actual, theirs, atol=1e-5)


def test_a_text_without_tokens_gives_zeros_and_finite_gradients():
    instructions, queries, instruction_mask, query_mask = states_of(np.load(GOLDEN / CASES[0]))
    instruction_mask = instruction_mask.at[1].set(False)
    query_mask = query_mask.at[0].set(False)

    def run(*states):
        return attend_all(*states, instruction_mask, query_mask, normalise=True)

    vectors = np.asarray(run(instructions, queries))
    zero = (vectors == 0).all(-1)
    assert zero.tolist() == [[True] * 3, [False, True, False], [False, True, False]]
    grads = jax.grad(lambda *x: run(*x).sum(), argnums=(0, 1))(instructions, queries)
    assert all(np.isfinite(grad).all() for grad in grads)
    assert not grads[0][1].any() and not grads[1][0].any() and grads[1][1].any()


@pytest.fixture(scope="module")
def tiny(tiny_model_dir):
    """(encoder without dropout, its parameters)."""
    shape = dataclasses.replace(read_config(tiny_model_dir), dropout=0.0, attention_dropout=0.0)
    return make_encoder(shape), hf.load_weights(tiny_model_dir, shape).params


@pytest.fixture(scope="module")
def texts():
    """Two chunks of 5 instructions, 5 queries and 5 passages each, of many lengths."""
    rng = np.random.default_rng(1)
    lengths = [*rng.integers(2, LONGEST, 2 * N - 1), LONGEST, *rng.integers(2, 30, N)]
    return [[rng.integers(5, 500, n).astype(np.int32) for n in lengths] for _ in range(2)]


def pack(chunks: list, rows=6, row_tokens=32, texts_per_row=4) -> Packed:
    grid = {"rows": rows, "row_tokens": row_tokens, "texts_per_row": texts_per_row}
    count = np.cumsum([0, *map(len, chunks)])
    return stack_chunks(
        [
            pack_chunk(texts, np.arange(a, b, dtype=np.uint32), **grid)
            for texts, a, b in zip(chunks, count, count[1:], strict=False)
        ]
    )


def by_hand(tiny, instruction, query) -> np.ndarray:
    """The embedding of one instructed query, each text encoded in a row of its own."""
    encoder, params = tiny
    positions = np.arange(LONGEST)[None]
    hidden = jax.jit(encoder.hidden)

    def states(text):
        tokens = np.pad(text, (0, LONGEST - len(text)))[None]
        segments = (positions < len(text)).astype(np.int32)
        return np.asarray(hidden(params, tokens, segments, positions))[0, : len(text)]

    i, q = states(instruction), states(query)
    scores = i @ q.T / 32**0.5
    weights = np.exp(scores - scores.max(1, keepdims=True))
    vector = ((weights / weights.sum(1, keepdims=True)) @ q).mean(0)
    return vector / np.linalg.norm(vector)


def test_packed_chunks_give_the_embedding_of_each_pair(tiny, texts):
    encoder, params = tiny
    packed = pack(texts)
    assert packed.slots[0].max() >= 4 and len(set(packed.slots[0] % 4)) > 1  # several texts per row
    instructed = encoder.encode_instructed(params, packed, max_tokens=LONGEST)
    assert [x.shape for x in instructed] == [(2, N, 32), (2, N, N, 32), (2, N, 32)]
    assert all(x.dtype == jnp.float32 for x in instructed)
    for chunk, a, b in [(0, 0, 0), (0, 4, 2), (1, 3, 4), (1, 4, 3)]:
        expected = by_hand(tiny, texts[chunk][b], texts[chunk][N + a])
        np.testing.assert_allclose(instructed.negatives[chunk, a, b], expected, atol=1e-5)
    own = np.arange(N)
    np.testing.assert_array_equal(instructed.queries, instructed.negatives[:, own, own])
    np.testing.assert_array_equal(instructed.passages, encoder.encode(params, packed)[:, 2 * N :])


def test_grid_tokens_and_flags_change_nothing(tiny, texts):
    encoder, params = tiny
    whole = encoder.encode_instructed(params, pack(texts), max_tokens=LONGEST)
    wide = pack(texts, rows=15, row_tokens=48, texts_per_row=1)
    other = encoder.encode_instructed(params, wide, max_tokens=40)
    for a, b in zip(whole, other, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)
    few = encoder.encode_instructed(params, pack(texts), max_tokens=LONGEST, all_pairs=False)
    assert few.negatives is None
    np.testing.assert_allclose(few.queries, whole.queries, atol=1e-6)
    # the query tower of separate ones: no passages in the grid
    apart = pack([chunk[: 2 * N] for chunk in texts])
    queries = encoder.encode_instructed(params, apart, max_tokens=LONGEST, passages=0)
    assert queries.passages is None
    np.testing.assert_allclose(queries.negatives, whole.negatives, atol=2e-6)
    np.testing.assert_allclose(encoder.encode_queries(params, apart), whole.queries, atol=2e-6)
    # two passages a query, as with a hard negative
    more = pack([[*chunk, *chunk[2 * N :]] for chunk in texts], rows=9)
    found = encoder.encode_instructed(params, more, max_tokens=LONGEST, passages=2).passages
    np.testing.assert_allclose(found, np.concatenate([whole.passages] * 2, 1), atol=2e-6)
    with pytest.raises(ValueError, match="10 texts of a chunk are not a multiple of 3"):
        encoder.encode_instructed(params, apart, max_tokens=LONGEST)


def test_options_reach_the_queries(tiny, texts):
    encoder, params = tiny
    packed = pack(texts)
    exact = encoder.encode_instructed(params, packed, max_tokens=LONGEST)
    raw = make_encoder(encoder.config, EncoderOptions(normalise=False))
    for all_pairs in (True, False):
        vectors = raw.encode_instructed(
            params, packed, max_tokens=LONGEST, all_pairs=all_pairs
        ).queries
        assert np.abs(np.linalg.norm(vectors, axis=-1) - 1).min() > 0.01
        np.testing.assert_allclose(normalise(vectors), exact.queries, atol=1e-6)
    half = make_encoder(encoder.config, EncoderOptions(dtype="bfloat16"))
    rounded = half.encode_instructed(params, packed, max_tokens=LONGEST)
    assert all(x.dtype == jnp.float32 for x in rounded)
    cosine = np.einsum("cabe,cabe->cab", rounded.negatives, exact.negatives)
    assert 0.999 < cosine.min() < cosine.max() < 1 - 1e-8


def test_absent_texts_do_not_change_the_others(tiny, texts):
    """An empty slot in a chunk, and an empty chunk: all values are finite."""
    encoder, params = tiny
    absent = np.zeros(0, np.int32)
    some = [absent if n % N == 2 else text for n, text in enumerate(texts[0])]
    packed = pack([some, [absent] * (3 * N)])

    def run(params):
        return encoder.encode_instructed(params, packed, max_tokens=LONGEST)

    instructed = run(params)
    whole = encoder.encode_instructed(params, pack(texts[:1]), max_tokens=LONGEST)
    present = np.ix_([0, 1, 3, 4], [0, 1, 3, 4])
    np.testing.assert_allclose(
        instructed.negatives[0][present], whole.negatives[0][present], atol=2e-6
    )
    assert not instructed.negatives[1].any()
    grads = jax.jit(jax.grad(lambda p: run(p).negatives.sum()))(params)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))


def test_dropout_follows_the_text(tiny, texts):
    config = dataclasses.replace(tiny[0].config, dropout=0.2, attention_dropout=0.1)
    encoder, params = make_encoder(config), tiny[1]
    grids = pack(texts), pack(texts, rows=15, row_tokens=48, texts_per_row=1)
    instructed = [
        encoder.encode_instructed(params, packed, jax.random.key(3), max_tokens=LONGEST)
        for packed in grids
    ]
    np.testing.assert_allclose(instructed[0].negatives, instructed[1].negatives, atol=1e-5)
    off = encoder.encode_instructed(params, grids[0], max_tokens=LONGEST)
    assert np.abs(off.queries - instructed[0].queries).max() > 1e-2


def test_scores_of_all_pairs_are_never_in_memory():
    """Temporary memory of forward and backward."""
    n, t, d = 64, 32, 16
    shapes = [jax.ShapeDtypeStruct((n, t, d), jnp.float32)] * 2
    shapes += [jax.ShapeDtypeStruct((n, t), jnp.bool_)] * 2

    def loss(*arrays):
        return (attend_all(*arrays, normalise=True) ** 3).sum()

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*shapes).compile()
    temp = compiled.memory_analysis().temp_size_in_bytes
    assert temp < 4 * n * n * t * t / 4  # float32 scores of all pairs are 16 MiB


def test_chunks_of_a_mesh_stay_on_their_device(tiny, texts):
    encoder, params = tiny
    mesh = make_mesh(devices=jax.devices())
    packed = jax.device_put(pack(texts * 4), batch_sharding(mesh))
    params = jax.device_put(params, replicated(mesh))
    run = jax.jit(lambda p, x: encoder.encode_instructed(p, x, max_tokens=LONGEST))
    compiled = run.lower(params, packed).compile()
    assert not [
        x for x in ("all-gather", "all-reduce", "all-to-all", "permute(") if x in compiled.as_text()
    ]
    instructed = compiled(params, packed)
    expected = encoder.encode_instructed(tiny[1], pack(texts), max_tokens=LONGEST)
    np.testing.assert_allclose(instructed.negatives[2:4], expected.negatives, atol=2e-6)
