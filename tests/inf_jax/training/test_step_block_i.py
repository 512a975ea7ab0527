"""The step with instruction negatives: right vectors in right places, the same on every mesh."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from inf_jax.config.defaults import run_config
from inf_jax.config.sections import LossConfig
from inf_jax.core import packing
from inf_jax.data.from_config import tokenised_split
from inf_jax.data.layout import BatchLayout
from inf_jax.data.loader import Loader, to_mesh
from inf_jax.data.records import pairs, text_hash
from inf_jax.data.tokenise import read_examples
from inf_jax.distributed.mesh import make_mesh
from inf_jax.distributed.sharding import state_shardings
from inf_jax.models.hf.backbone import load_model
from inf_jax.text.templates import TextConfig
from inf_jax.training.forward import EncodingPlan, encode_pairs
from inf_jax.training.step import TrainState, make_train_step
from tests.inf_jax.training.steps import init_params

TEXT = TextConfig(max_query_tokens=16, max_passage_tokens=32)


@pytest.fixture
def parts(tiny_config):
    """(model, weights, dataset); dropout is on where a step is given a key."""
    tiny_config.model.dropout = 0.1
    log = run_config(tiny_config)
    model = load_model(log)
    return model, model.load().params, tokenised_split(log, model.tokenizer, "train")


def batch_of(dataset, *, chunks=1, towers="shared", sampled=2):
    # 7 examples, 21 pairs: no even number of chunks divides them, so empty slots take part
    layout = BatchLayout(
        batch_size=7,
        chunks=chunks,
        row_tokens=64,
        texts_per_row=8,
        towers=towers,
        instruction_negatives=sampled,
    )
    return Loader(dataset, layout, seed=4, steps=3).host_batch(2)


@pytest.mark.parametrize("towers", ["shared", "separate"])
@pytest.mark.parametrize("sampled", [0, 2])
def test_vectors_are_those_of_the_texts(parts, tiny_dataset_dir, towers, sampled):
    model, weights, dataset = parts
    batch = batch_of(dataset, chunks=4, towers=towers, sampled=sampled)
    plan = EncodingPlan(model.encoder.encode, groups=2)
    embeddings = jax.jit(encode_pairs, static_argnums=0)(plan, init_params(weights, towers), batch)
    b = batch.valid.size
    assert embeddings.instruction_negatives.shape == (b, 1 + sampled, 32)

    # every query of the data under every instruction, each in a row of its own
    texts = {}
    for example in read_examples(tiny_dataset_dir, "train"):
        for pair in filter(None, pairs(example)):
            texts[text_hash(pair.query)] = pair.query
            texts[text_hash(pair.instruction)] = pair.instruction

    def digest(halves):
        return int(halves[0]) | int(halves[1]) << 32

    wanted, places = [], []
    for row in np.flatnonzero(batch.valid):
        query = texts[digest(batch.ids.query[row])]
        for k in np.flatnonzero(batch.negatives.valid[row]):
            wanted.append((query, texts[digest(batch.negatives.ids[row, k])]))
            places.append((row, k))
    assert len(wanted) == 21 * sampled + 14
    ids = model.tokenizer.queries(wanted, TEXT)
    packed = packing.stack_chunks(
        [packing.pack_chunk(ids, np.zeros(len(ids)), rows=len(ids), row_tokens=16, texts_per_row=1)]
    )
    expected = model.encoder.encode(weights, packed)[0]
    vectors = np.asarray(embeddings.instruction_negatives)[tuple(np.transpose(places))]
    np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_without_block_i_there_are_no_negatives(parts):
    model, weights, dataset = parts
    batch = batch_of(dataset, sampled=None)
    plan = EncodingPlan(model.encoder.encode)
    embeddings = jax.eval_shape(partial(encode_pairs, plan), {"shared": weights}, batch)
    assert batch.negatives is embeddings.instruction_negatives is None


def loss_and_grads(
    parts, objective, *, devices, chunks, groups=1, fsdp=1, towers="shared", engine="dense"
):
    """Loss, metrics and gradients through the step itself: SGD of rate 1 leaves params - grads."""
    model, weights, dataset = parts
    mesh = make_mesh(fsdp=fsdp, devices=jax.devices()[:devices])
    tx = optax.apply_if_finite(optax.sgd(1.0), 5)
    step = make_train_step(
        EncodingPlan(model.encoder.encode, groups=groups, mesh=mesh),
        LossConfig(objective=objective, scale=20.0, engine=engine),
        tx,
        dropout_key=jax.random.key(3),
    )
    params = init_params(weights, towers)
    state = TrainState(jnp.int32(0), params, tx.init(params))
    shardings = state_shardings(mesh, jax.eval_shape(lambda: state))
    batch = to_mesh(mesh)(batch_of(dataset, chunks=chunks, towers=towers))
    after, metrics = jax.jit(step, out_shardings=(shardings, None))(
        jax.device_put(state, shardings), batch
    )
    grads = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), params, after.params)
    return float(metrics["loss"]), grads, metrics


def assert_same(actual, expected):
    assert actual[0] == pytest.approx(expected[0], rel=1e-5)
    for a, b in zip(jax.tree.leaves(actual[1]), jax.tree.leaves(expected[1]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("objective", ["uni(P,I)", "multi(P,I,IQ)"])
def test_any_mesh_and_chunking_gives_the_same_gradients_with_dropout(parts, objective):
    expected = loss_and_grads(parts, objective, devices=1, chunks=1)
    # 21 rows: 2 drawn each, and 14 have a poison
    assert float(expected[2]["negatives/I"]) == pytest.approx(2 + 14 / 21)
    assert float(expected[2]["loss/I"]) > 0
    for options in (
        {"devices": 8, "chunks": 16, "groups": 2, "fsdp": 2, "engine": "ring"},
        {"devices": 2, "chunks": 4, "groups": 2},
    ):
        assert_same(loss_and_grads(parts, objective, **options), expected)


def test_separate_towers_split_the_gradient(parts):
    shared = loss_and_grads(parts, "uni(I)", devices=1, chunks=1)
    options = {"devices": 2, "chunks": 4, "groups": 2, "fsdp": 2}
    separate = loss_and_grads(parts, "uni(I)", towers="separate", **options)
    total = jax.tree.map(np.add, separate[1]["query"], separate[1]["passage"])
    assert_same((separate[0], total), (shared[0], shared[1]["shared"]))
    assert np.abs(separate[1]["passage"]["word"]).max() > 0


def test_block_i_takes_nothing_from_other_devices(parts):
    """The poison is in the row's own chunk: no device holds the whole batch's embeddings."""
    model, weights, dataset = parts
    mesh = make_mesh()
    batch = to_mesh(mesh)(batch_of(dataset, chunks=8))

    def loss(params, batch):
        embeddings = encode_pairs(EncodingPlan(model.encoder.encode, mesh=mesh), params, batch)
        return sum(jnp.sum(jnp.sin(x)) for x in embeddings)

    program = jax.jit(jax.grad(loss)).lower({"shared": weights}, batch).compile().as_text()
    assert " all-reduce(" in program  # of the gradients
    assert " all-gather(" not in program and " collective-permute(" not in program
    assert not re.search(r"f32\[(24|8,3),32\]\S* all-reduce", program)
