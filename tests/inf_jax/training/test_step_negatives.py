"""Hard negatives and teacher scores from records through the loader and the step to gradients."""

import copy
import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from inf_jax.config.defaults import run_config
from inf_jax.config.sections import LossConfig
from inf_jax.core.batch import TextIds
from inf_jax.core.errors import UserError
from inf_jax.core.query_encoders import Attention
from inf_jax.data.from_config import make_loader
from inf_jax.data.layout import BatchLayout
from inf_jax.data.loader import Loader, to_mesh
from inf_jax.data.records import Pair, PairExample
from inf_jax.data.step_shapes import batch_shapes, loader_inputs
from inf_jax.distributed.mesh import make_mesh
from inf_jax.distributed.sharding import state_shardings
from inf_jax.losses import contrastive_loss
from inf_jax.losses.objective import count_negatives, parse_objective
from inf_jax.models.encoder import Instructed
from inf_jax.models.hf.backbone import run_tokenizer
from inf_jax.training.forward import EncodingPlan, encode_pairs
from inf_jax.training.step import TrainState, make_loss, make_train_step
from tests.inf_jax.training import one_word
from tests.inf_jax.training.steps import init_params

GOLDEN = Path(__file__).parents[2] / "golden" / "losses"
PAPER = {"uni(P)": "uni__qk", "uni(P,IQ)": "uni__no_trick", "multi(P,IQ)": "multi__no_trick"}


def named(kind, *numbers):
    return "-".join([kind, *map(str, numbers)])


@pytest.mark.parametrize(
    "size, chunks, towers", [("B12_D16", 4, "shared"), ("B8_D16", 1, "separate")]
)
def test_the_papers_losses_with_hard_negatives(tmp_path, size, chunks, towers):
    """Goldens of N = 3 passages a query: text records, loader, train step."""
    golden = np.load(GOLDEN / f"losses_{size}_N3_div1_tied_seed0.npz")
    b = len(golden["query"])
    words = [named("q", i) for i in range(b)] + [named("p", j) for j in range(3 * b)]
    passages = np.array(words[b:]).reshape(b, 3).tolist()
    examples = [
        PairExample(str(i), (Pair("", words[i], own, tuple(hard)),))
        for i, (own, *hard) in enumerate(passages)
    ]
    layout = BatchLayout(
        batch_size=b,
        chunks=chunks,
        row_tokens=8,
        texts_per_row=8,
        pairs_per_example=1,
        negatives=2,
        towers=towers,
    )
    loader = Loader(one_word.dataset(tmp_path, examples, words), layout, seed=0, steps=1)
    batch = jax.tree.map(jnp.asarray, loader.host_batch(0))
    table = np.concatenate([golden["query"], golden["key"]])
    with jax.enable_x64(True):
        params = {name: {"word": jnp.asarray(table)} for name in ("query", "passage")}
        params = {"shared": params["query"]} if towers == "shared" else params
        config = LossConfig(scale=float(golden["scale"]), mask="faithful")
        plan = EncodingPlan(one_word.encode, groups=chunks)
        tx = optax.apply_if_finite(optax.sgd(1.0), 5)
        state = TrainState(jnp.int32(0), params, tx.init(params))

        def results(objective, state, batch):
            """The loss in float64, and the step's new state and metrics."""
            chosen = dataclasses.replace(config, objective=objective)
            loss, _ = make_loss(plan, chosen)(state.params, batch, None)
            return loss, *make_train_step(plan, chosen, tx)(state, batch)

        every = jax.jit(lambda *of: {key: results(each, *of) for each, key in PAPER.items()})
        for key, (loss, after, metrics) in every(state, batch).items():
            total = sum(params[tower]["word"] - after.params[tower]["word"] for tower in params)
            expected = np.concatenate([golden[f"{key}__grad_{n}"] for n in ("query", "key")])
            np.testing.assert_allclose(loss, golden[f"{key}__loss"], rtol=0, atol=1e-10)
            assert metrics["loss"] == np.float32(loss)
            np.testing.assert_allclose(total, expected, rtol=0, atol=1e-9)


COUNTS = [0, 1, 7, 2, 3, 0, 7, 1, 5, 0, 1, 7, 2]  # hard negatives of a pair
SCORED = [n % 4 != 3 for n in range(len(COUNTS))]


def score(word):
    """A teacher's score of a passage."""
    return float(np.sin(13.7 * sum(map(ord, word))) * 3)


def mixed():
    """Examples of one pair or two, in which a passage is a negative of another pair, one of its own
    pair, and one of the same query's."""
    examples, words = [], ["?"]
    for n, count in enumerate(COUNTS):
        query, passage = named("q", n // 2), named("p", n % 11)
        negatives = [named("n", n, j) for j in range(count)]
        if count > 1:
            negatives[1] = passage  # masked by identity
        if count > 2:
            negatives[2] = named("p", (n + 1) % 11)
        texts = (passage, *negatives)
        scores = tuple(map(score, texts)) if SCORED[n] else ()
        pair = Pair("" if n % 3 else named("i", n % 2), query, passage, tuple(negatives), scores)
        examples.append(PairExample(str(n), (pair, None) if n % 5 else (pair,)))
        words += [pair.instruction, query, *texts]
    return examples, sorted({*words} - {""})


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """(examples, words, dataset, table): random unit vectors of the words."""
    examples, words = mixed()
    table = np.random.default_rng(0).normal(size=(len(words), 16))
    table = (table / np.linalg.norm(table, axis=1, keepdims=True)).astype(np.float32)
    directory = tmp_path_factory.mktemp("mixed")
    return examples, words, one_word.dataset(directory, examples, words), table


def layout(**changes):
    shapes = {"batch_size": len(COUNTS), "chunks": 1, "row_tokens": 8, "texts_per_row": 8}
    return BatchLayout(**shapes | {"pairs_per_example": 2, "negatives": 7, **changes})


def step_result(parts, objective, *, devices=1, fsdp=1, groups=1, engine="dense", **changes):
    """Loss and gradients by the table, through the train step: SGD of rate 1."""
    *_, dataset, table = parts
    mesh = make_mesh(fsdp=fsdp, devices=jax.devices()[:devices])
    config = LossConfig(objective=objective, scale=5.0, engine=engine, negatives=7)
    tx = optax.apply_if_finite(optax.sgd(1.0), 5)
    plan = EncodingPlan(one_word.encode, groups=groups, mesh=mesh)
    step = make_train_step(
        plan, config, tx, tile=(4, 4), with_health=objective == OBJECTIVES[0] and engine == "dense"
    )
    teacher = "distil" in objective
    chosen = layout(chunks=devices * groups, teacher=teacher, **changes)
    batch = to_mesh(mesh)(Loader(dataset, chosen, seed=3, steps=4).host_batch(1))
    params = init_params({"word": jnp.asarray(table)}, chosen.towers)
    state = TrainState(jnp.int32(0), params, tx.init(params))
    shardings = state_shardings(mesh, jax.eval_shape(lambda: state))
    jitted = jax.jit(step, out_shardings=(shardings, None))
    after, metrics = jitted(jax.device_put(state, shardings), batch)
    changes = [before["word"] - after.params[tower]["word"] for tower, before in params.items()]
    return metrics, sum(map(np.asarray, changes))


def by_hand(parts, objective):
    """The same of the examples' texts, in their order, by the loss alone."""
    examples, words, _, table = parts
    pairs = [example.pairs[0] for example in examples]
    id_of, most = {word: n for n, word in enumerate(words)}, max(COUNTS)
    queries = [id_of[p.query] for p in pairs]
    texts = [[p.passage, *p.negatives] for p in pairs]
    passages = np.array([[id_of[t] for t in x] + [0] * (1 + most - len(x)) for x in texts])
    there = np.arange(1 + most) < 1 + np.array(COUNTS)[:, None]
    teacher = np.array(
        [[score(t) for t in x] + [-np.inf] * (1 + most - len(x)) for x in texts], np.float32
    )
    teacher[~np.array(SCORED)] = -np.inf
    eye = lambda ids: np.stack([ids, ids * 0 + 1], -1).astype(np.uint32)  # noqa: E731
    instructions = np.array([["", "i-0", "i-1"].index(p.instruction) for p in pairs])
    ids = TextIds(eye(instructions), eye(np.array(queries)), eye(passages))

    def vectors(table):
        parts = [[p.query, p.instruction] if p.instruction else [p.query] for p in pairs]
        return jnp.stack([sum(table[id_of[word]] for word in words) for words in parts])

    def loss(table):
        return contrastive_loss(
            vectors(table),
            table[passages],
            objective=objective,
            scale=5.0,
            ids=ids,
            passage_valid=there,
            teacher_scores=teacher if "distil" in objective else None,
            engine="dense",
        )

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(jnp.asarray(table))


OBJECTIVES = ["multi(P,IQ)", "uni(P,PP) + 0.3*distil(P) + 0.1*margin(P)"]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_lists_of_0_to_7_negatives_against_the_loss_of_their_texts(parts, objective):
    (loss, expected), grads = by_hand(parts, objective)
    metrics, found = step_result(parts, objective)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(found, grads, atol=2e-6)
    for name in expected:
        np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-5, err_msg=name)
    hard = sum(COUNTS) + len(COUNTS) - 1
    assert expected["negatives/P"] < hard and expected["masked/P"] > 0
    # other meshes, chunks and engines in test_step_mixture
    options = {"devices": 4, "fsdp": 2, "groups": 2, "engine": "ring"}
    if objective == OBJECTIVES[0]:
        options = {"devices": 2, "engine": "gather", "towers": "separate"}
    metrics, again = step_result(parts, objective, **options)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(again, grads, atol=2e-6)


def test_hosts_together_are_one_host(parts):
    dataset = parts[2]
    options = {"chunks": 4, "negatives": 3, "teacher": True}
    whole = Loader(dataset, layout(**options), seed=1, steps=3).host_batch(2)
    for shares in ([0, 3], [1, 2]), ([2], [0], [3], [1]):
        batches = [
            Loader(dataset, layout(**options), seed=1, steps=3, mine=mine).host_batch(2)
            for mine in shares
        ]
        order = np.argsort(np.concatenate(shares))

        def joined(expected, *each, order=order):
            chunks = [x.reshape(-1, len(expected) // 4, *x.shape[1:]) for x in each]
            found = np.concatenate(chunks)[order].reshape(expected.shape)
            np.testing.assert_array_equal(found, expected)

        jax.tree.map(joined, whole, *batches)


@pytest.mark.parametrize("towers", ["shared", "separate"])
def test_passages_of_the_query_encoder_attention(parts, towers):
    """A pair's own passages, from a stand-in that encodes as `Encoder.encode_instructed` does."""
    *_, dataset, table = parts

    def instructed(params, packed, key, *, max_tokens, all_pairs, passages, shards):
        vectors = one_word.encode(params, packed)
        n = vectors.shape[1] // (2 + passages)
        rest = vectors[:, 2 * n :] if passages else None
        return Instructed(vectors[:, n : 2 * n], None, rest)

    chosen = layout(chunks=2, negatives=3, towers=towers, query_encoder=Attention())
    with pytest.raises(UserError, match="some pairs have no instruction, and this tokenizer adds"):
        Loader(dataset, chosen, seed=3, steps=4)
    spaced = copy.copy(dataset)
    spaced.special = np.array([0], np.int32), np.empty(0, np.int32)
    batch = Loader(spaced, chosen, seed=3, steps=4).host_batch(1)
    joint = layout(chunks=2, negatives=3)
    expected = Loader(dataset, joint, seed=3, steps=4).host_batch(1)
    plan = EncodingPlan(
        one_word.encode, instructed=functools.partial(instructed, max_tokens=8), groups=2
    )
    found = encode_pairs(plan, init_params({"word": jnp.asarray(table)}, towers), batch).passages
    whole = encode_pairs(
        EncodingPlan(one_word.encode), {"shared": {"word": jnp.asarray(table)}}, expected
    )
    by_hash = {
        hashes.tobytes(): vector
        for hashes, vector, there in zip(
            expected.ids.passage.reshape(-1, 2),
            np.asarray(whole.passages).reshape(-1, 16),
            expected.passage_valid.ravel(),
            strict=True,
        )
        if there
    }
    there = batch.passage_valid
    assert there.sum() == expected.passage_valid.sum()
    wanted = np.array([by_hash[x.tobytes()] for x in batch.ids.passage[there]])
    np.testing.assert_allclose(found[there], wanted, atol=1e-6)


def test_the_plan_counts_them(parts):
    """Shapes without a batch, and the work of a step by its texts."""
    dataset = parts[2]
    for towers in ("shared", "separate"):
        chosen = layout(chunks=2, negatives=7, teacher=True, towers=towers)
        loader = Loader(dataset, chosen, seed=3, steps=4)
        shapes = batch_shapes(chosen, loader.plan.rows, sharding=None)
        told = jax.tree.map(lambda x: (x.shape, np.dtype(x.dtype)), shapes)
        assert told == jax.tree.map(lambda x: (x.shape, x.dtype), loader.host_batch(0))
    inputs, count = loader_inputs(loader), sum(COUNTS)
    assert inputs.hard_negatives == pytest.approx(count)
    lengths = dataset.text_lengths.astype(float)
    assert inputs.tokens == lengths.sum() + count  # of one token each
    assert inputs.squares == pytest.approx(np.square(lengths).sum() + count)
    by_block = [inputs.candidates(parse_objective(each)) for each in ("uni(P)", "uni(IQ)")]
    assert by_block == pytest.approx([count, 0])
    negatives = count_negatives("uni(P,IQ)", pairs=13, hard_negatives=loader.plan.negatives)
    assert negatives == {"P": 12 + count, "IQ": 12}


def test_negatives_are_drawn_anew_in_each_step(parts):
    dataset = parts[2]
    loader = Loader(dataset, layout(negatives=2), seed=1, steps=40)
    drawn = np.array([loader.assignment(step).negatives for step in range(40)])  # [steps, pairs, 2]
    examples = np.array([loader.example_indices(step) for step in range(40)])
    counts = dataset.negative_counts[examples].reshape(40, -1)
    assert ((drawn >= 0).sum(2) == np.minimum(counts, 2)).all()
    assert (drawn < counts[..., None]).all()
    both = (drawn >= 0).all(2)
    assert (drawn[both][:, 0] < drawn[both][:, 1]).all()
    share = np.bincount(drawn[counts == 7].ravel(), minlength=7) / both[counts == 7].sum()
    assert len(share) == 7 and abs(share - 2 / 7).max() < 0.12
    again = Loader(dataset, layout(negatives=2), seed=1, steps=40).assignment(7)
    np.testing.assert_array_equal(again.negatives, drawn[7])


def test_negatives_that_the_data_lacks_are_refused(tmp_path):
    words = ["q", "p"]
    plain = one_word.dataset(tmp_path, [PairExample("0", (Pair("", "q", "p"),))], words)
    shapes = {"batch_size": 1, "pairs_per_example": 1}
    with pytest.raises(UserError, match=r"no pair has hard negatives, but loss\.negatives=7"):
        Loader(plain, layout(**shapes), seed=0, steps=1)
    with pytest.raises(UserError, match=r"no pair has a teacher's scores, which loss\.objective"):
        Loader(plain, layout(**shapes, negatives=0, teacher=True), seed=0, steps=1)
    measured = Loader(plain, layout(**shapes, teacher=True), seed=0, steps=1, measured=True)
    batch = measured.host_batch(0)  # as of a dev split beside a train split that has them
    assert batch.passage_valid.tolist() == [[True] + [False] * 7]
    assert (batch.teacher_scores == -np.inf).all() and batch.teacher_scores.shape == (1, 8)


def test_a_dev_split_without_negatives_is_measured(tiny_config):
    tiny_config.loss.objective, tiny_config.loss.negatives = "uni(P)", 2
    config = run_config(tiny_config)
    dev = make_loader(config, run_tokenizer(config), devices=1, split=config.eval.split)
    assert not dev.host_batch(0).passage_valid[:, 1:].any()
