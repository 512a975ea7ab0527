"""Mixtures of sources through the loader and the step: loss and metrics by source on any mesh."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from inf_jax.config.sections import LossConfig
from inf_jax.core.batch import TextIds
from inf_jax.data.layout import BatchLayout
from inf_jax.data.loader import Loader, to_mesh
from inf_jax.data.mixture.dataset import MixtureDataset
from inf_jax.data.mixture.order import Mixing
from inf_jax.data.records import Pair, PairExample
from inf_jax.data.step_shapes import batch_shapes, loader_inputs
from inf_jax.distributed.mesh import make_mesh
from inf_jax.distributed.sharding import state_shardings
from inf_jax.losses import contrastive_loss
from inf_jax.training.forward import EncodingPlan
from inf_jax.training.step import TrainState, make_train_step
from tests.inf_jax.training import one_word

OBJECTIVE = "multi(P,IQ) + 0.3*distil(P)"
NAMES = ("medquad", "pubmedqa", "nevir")
UNIT, UNITS = 3, 5


def score(word):
    """A teacher's score of a passage."""
    return float(np.sin(13.7 * sum(map(ord, word))) * 3)


def examples_of(source):
    """Three pairs under instructions; plain pairs; pairs with negatives and scores. A passage is in
    all sources, one source's negatives are passages of another."""
    for n in range(6):
        passage = "shared" if n == 2 else f"p{n}"
        if source == "medquad":
            twin = Pair("i1", f"q{n}", f"m{n}")
            yield PairExample(
                f"{n}", (Pair("i0", f"q{n}", passage), twin, Pair("i0", f"r{n}", f"o{n}"))
            )
        elif source == "pubmedqa":
            yield PairExample(f"{n}", (Pair("", f"w{n}", passage if n % 2 else f"a{n}"),))
        else:
            texts = (passage if n == 2 else f"y{n}", *["p1", f"z{n}", f"p{n}"][: n % 4])
            scores = tuple(map(score, texts)) if n % 3 else ()
            yield PairExample(f"{n}", (Pair("", f"v{n}", texts[0], texts[1:], scores),))


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """(dataset, words, table): the mixture, and random unit vectors of the words."""
    sources = {name: [*examples_of(name)] for name in NAMES}
    pairs = [p for of_source in sources.values() for e in of_source for p in e.pairs]
    texts = [t for p in pairs for t in (p.instruction, p.query, p.passage, *p.negatives)]
    words = ["?", *sorted({*texts} - {""})]
    table = np.random.default_rng(0).normal(size=(len(words), 16)).astype(np.float32)
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    datasets = [
        one_word.dataset(tmp_path_factory.mktemp(name), examples, words)
        for name, examples in sources.items()
    ]
    return MixtureDataset(datasets, Mixing(NAMES, (2, 1, 2))), words, table, sources


def make_loader(parts, **changes):
    shapes = {"batch_size": UNITS, "chunks": 1, "row_tokens": 8, "texts_per_row": 8}
    more = {"pairs_per_example": UNIT, "negatives": 3, "teacher": True, "mixture": True}
    return Loader(parts[0], BatchLayout(**shapes | more | changes), seed=3, steps=6)


def by_hand(parts, loader, step):
    """Loss, metrics and gradients of the step's texts alone, and each pair's source."""
    _, words, table, sources = parts
    id_of, every = {word: n for n, word in enumerate(words)}, [*itertools.chain(*sources.values())]
    examples = loader.example_indices(step)
    numbers = examples[examples >= 0].tolist()
    pairs = [pair for n in numbers for pair in every[n].pairs]
    mine = [n // 6 for n in numbers for _ in every[n].pairs]
    texts = [[p.passage, *p.negatives] for p in pairs]
    passages = np.array([[id_of[t] for t in x] + [0] * (4 - len(x)) for x in texts])
    there = np.arange(4) < np.array([len(x) for x in texts])[:, None]
    teacher = np.array(
        [[*map(score, x if p.scores else [])] for x, p in zip(texts, pairs, strict=True)],
        dtype=object,
    )
    teacher = np.array([x + [-np.inf] * (4 - len(x)) for x in teacher.tolist()], np.float32)
    hashed = lambda ids: np.stack([ids, ids * 0 + 1], -1).astype(np.uint32)  # noqa: E731
    queries = np.array([id_of[p.query] for p in pairs])
    instructions = np.array([id_of.get(p.instruction, 0) for p in pairs])
    ids = TextIds(hashed(instructions), hashed(queries), hashed(passages))
    instructed = instructions[:, None] > 0

    def loss(table):
        return contrastive_loss(
            table[queries] + jnp.where(instructed, table[instructions], 0),
            table[passages],
            objective=OBJECTIVE,
            scale=5.0,
            ids=ids,
            passage_valid=there,
            teacher_scores=teacher,
            engine="dense",
            sources=jnp.array(mine, jnp.int32),
            source_names=NAMES,
        )

    (_, metrics), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(jnp.asarray(table))
    return metrics, grads, mine


@pytest.fixture(scope="module")
def expected(parts):
    """`by_hand` of steps 0 and 1, of any layout."""
    loader = make_loader(parts)
    return [by_hand(parts, loader, step) for step in (0, 1)]


def step_result(loader, table, *, mesh, groups, engine):
    """Metrics, and gradients by the table, through the train step: SGD of rate 1."""
    tx = optax.apply_if_finite(optax.sgd(1.0), 5)
    plan = EncodingPlan(one_word.encode, groups=groups, mesh=mesh, sources=NAMES)
    config = LossConfig(objective=OBJECTIVE, scale=5.0, engine=engine, negatives=3)
    params = {"shared": {"word": jnp.asarray(table)}}
    state = TrainState(jnp.int32(0), params, tx.init(params))
    shardings = state_shardings(mesh, jax.eval_shape(lambda: state))
    step = make_train_step(plan, config, tx, tile=(4, 4))
    step = jax.jit(step, out_shardings=(shardings, None))
    state, results = jax.device_put(state, shardings), []
    for number in (0, 1):  # one program
        after, metrics = step(state, to_mesh(mesh)(loader.host_batch(number)))
        results.append((metrics, np.asarray(table - after.params["shared"]["word"])))
    return results


# (data, fsdp), chunks a device: 15 pairs divide among 1, 3 and 5, so empty slots take part. Pairs
# without instructions, of three, with negatives and with scores are in each.
@pytest.mark.parametrize(
    ("mesh", "groups", "engine"),
    [
        ((1, 1), 1, "dense"),
        ((1, 1), 3, "blockwise"),
        ((1, 2), 4, "gather"),
        ((2, 2), 2, "ring"),
        ((8, 1), 1, "ring"),
        ((2, 4), 1, "dense"),
    ],
    ids=lambda x: "x".join(map(str, x)) if isinstance(x, tuple) else None,
)
def test_loss_and_metrics_by_source(parts, expected, mesh, groups, engine):
    devices = mesh[0] * mesh[1]
    loader = make_loader(parts, chunks=devices * groups)
    mesh = make_mesh(fsdp=mesh[1], devices=jax.devices()[:devices])
    results = step_result(loader, parts[2], mesh=mesh, groups=groups, engine=engine)
    for (found, grads), (metrics, by_table, mine) in zip(results, expected, strict=True):
        np.testing.assert_allclose(grads, by_table, atol=2e-6)
        for name in metrics:
            np.testing.assert_allclose(found[name], metrics[name], rtol=1e-5, err_msg=name)
        counts = np.bincount(mine, minlength=3)
        assert [int(found[f"pairs/{name}"]) for name in NAMES] == counts.tolist()
        assert counts.sum() == UNIT * UNITS and (counts > 0).all()
        # the parts are those of the whole
        for metric in ("loss", "accuracy/P", "accuracy/IQ"):
            whole = sum(n * found[f"{metric}/{s}"] for n, s in zip(counts, NAMES, strict=True))
            np.testing.assert_allclose(whole / counts.sum(), found[metric], rtol=1e-5)


def test_losses_of_each_source_are_those_of_its_rows():
    """The rows of a source, whatever the candidates: by leave-one-out of the mean."""
    rng = np.random.default_rng(1)
    queries, passages = (
        x / np.linalg.norm(x, axis=1, keepdims=True) for x in rng.normal(size=(2, 6, 8))
    )
    sources = np.array([0, 1, 0, 2, 1, 0], np.int32)
    options = {"objective": "uni(P)", "scale": 5.0, "mask": "faithful", "engine": "dense"}
    _, found = contrastive_loss(
        queries, passages, sources=jnp.array(sources), source_names=("a", "b", "c", "d"), **options
    )
    logits = 5 * queries @ passages.T
    rows = np.log(np.exp(logits).sum(1)) - np.diag(logits)
    right = logits.argmax(1) == np.arange(6)
    for n, name in enumerate("abc"):
        np.testing.assert_allclose(found[f"loss/{name}"], rows[sources == n].mean(), rtol=1e-5)
        np.testing.assert_allclose(found[f"accuracy/P/{name}"], right[sources == n].mean())
        assert found[f"masked/P/{name}"] == 0
    assert found["pairs/d"] == 0 and all(np.isnan(found[f"{m}/d"]) for m in ("loss", "masked/P"))
    doubled, plain = (
        contrastive_loss(queries, passages, dims=(4, 8), dim_weights=(0.5, 2.0), **more, **options)[
            1
        ]
        for more in ({"sources": jnp.zeros(6, jnp.int32), "source_names": ("a",)}, {})
    )
    np.testing.assert_allclose(doubled["loss/a"], plain["loss"], rtol=1e-6)


def test_shapes_and_work_are_known_before(parts):
    loader = make_loader(parts, chunks=2)
    told = jax.tree.map(
        lambda x: (x.shape, np.dtype(x.dtype)),
        batch_shapes(loader.layout, loader.plan.rows, sharding=None),
    )
    assert told == jax.tree.map(lambda x: (x.shape, x.dtype), loader.host_batch(0))
    inputs = loader_inputs(loader)
    assert inputs.pairs == UNIT * UNITS
    each = [loader.example_indices(step) for step in range(6)]
    assert inputs.examples == pytest.approx(np.mean([(x >= 0).sum() for x in each]))
