"""A frozen teacher in the step: its scores, the losses and gradients, meshes, resuming, plans."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import inf_jax
from inf_jax.checkpoints.saver import Saver
from inf_jax.config.checks import check_config
from inf_jax.config.defaults import run_config
from inf_jax.core.errors import UserError
from inf_jax.data.loader import to_mesh
from inf_jax.data.records import Pair, PairExample, text_hash
from inf_jax.data.step_shapes import loader_inputs
from inf_jax.models import hf
from inf_jax.models.encoder import make_encoder
from inf_jax.models.hf.backbone import load_model
from inf_jax.models.hf.config import read_config
from inf_jax.planning.flops import encoder_flops
from inf_jax.training.banner import work_of
from inf_jax.training.forward import EncodingPlan
from inf_jax.training.planned import planned_step
from inf_jax.training.run_model import load_teacher, planned_teacher
from inf_jax.training.setup import make_training
from inf_jax.training.step import TrainState, with_teacher
from tests.inf_jax.data.batches import hash_of
from tests.inf_jax.data.small_split import make_dataset

SCALE, BATCH, HARD = 20.0, 8, 2
QUERIES = "amber birch cedar dahlia elder fennel ginger hazel".split()
TEXTS = "{} grows on wet hills", "cooks boil {} slowly with salt", "frost and beetles kill {}"


def examples(score=None):
    """A pair a query; its own passages are three texts, in turn the positive one. With `score`
    (query, instruction, passages) -> numbers, records have these."""
    found = []
    for n, word in enumerate(QUERIES):
        positive, *hard = np.roll(TEXTS, n).tolist()
        texts = [each.format(word) for each in (positive, *hard)]
        pair = Pair("Tell it." if n % 3 else "", word, texts[0], tuple(texts[1:]))
        if score:
            scores = tuple(float(x) for x in score(pair.query, pair.instruction, texts))
            pair = pair._replace(scores=scores)
        found.append(PairExample(str(n), (pair,)))
    return found


@pytest.fixture(scope="module")
def teacher_dir(tiny_model_dir, tmp_path_factory):
    """A BERT of another width and depth than the tiny model, with its tokenizer."""
    directory = tmp_path_factory.mktemp("models") / "teacher"
    shutil.copytree(tiny_model_dir, directory)
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    change(directory / "config.json", sizes | {"intermediate_size": 24})
    shape = read_config(directory)
    rng = np.random.default_rng(5)

    def draw(path, x):
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return (centre + 0.3 * rng.standard_normal(x.shape)).astype(np.float32)

    shapes = jax.eval_shape(make_encoder(shape).init, jax.random.key(0))
    hf.save_weights(jax.tree_util.tree_map_with_path(draw, shapes), directory, shape)
    return directory


def vectors(retriever, pairs):
    """[b, e] and [b, 1 + h, e]: unit vectors of each pair's query and of its own passages."""
    queries = retriever.encode([p.query for p in pairs], instruction=[p.instruction for p in pairs])
    texts = [text for p in pairs for text in (p.passage, *p.negatives)]
    return queries, retriever.encode(texts).reshape(len(pairs), 1 + HARD, -1)


@pytest.fixture(scope="module")
def by_hand(teacher_dir, tiny_model_dir):
    """name -> (queries, passages) of teacher and student, in the order of `examples`."""
    pairs = [each.pairs[0] for each in examples()]
    models = {"teacher": teacher_dir, "student": tiny_model_dir}
    return {name: vectors(inf_jax.load(path), pairs) for name, path in models.items()}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory, by_hand):
    """Datasets `plain`, without scores, and `cosines` and `scored`, with those of the teacher's
    vectors, plain and times SCALE."""
    directory = tmp_path_factory.mktemp("taught")
    queries, passages = by_hand["teacher"]
    cosines = dict(zip(QUERIES, np.einsum("be,bke->bk", queries, passages), strict=True))
    scored = examples(lambda query, _, texts: SCALE * cosines[query])
    plain = {"plain": examples(), "cosines": examples(lambda query, _, texts: cosines[query])}
    for name, each in {**plain, "scored": scored}.items():
        make_dataset(directory / "inf_ir" / name / "1.0.0", {"train": [each]})
    return directory


@pytest.fixture
def config(tiny_config, data_dir, teacher_dir):
    tiny_config.data.update({"dir": str(data_dir), "source": "plain"})
    objective = "distil(P) + 0.5*margin(P)"
    tiny_config.loss.update({"objective": objective, "negatives": HARD, "scale": SCALE})
    tiny_config.loss.teacher = str(teacher_dir)
    tiny_config.train.update({"batch_size": BATCH, "health": False})
    check_config(tiny_config)
    return tiny_config


def first_step(config):
    """Metrics of the first step and the first moments after it, a tenth of the gradients."""
    training = make_training(run_config(config))
    batch = to_mesh(training.program.mesh)(training.loader.host_batch(0))
    state = training.fresh()._replace(teacher=training.teacher)
    state, metrics = training.program.step(state, batch)
    moments = {
        jax.tree_util.keystr(path): np.asarray(x)
        for path, x in jax.tree_util.tree_leaves_with_path(state.opt_state)
        if ".mu" in jax.tree_util.keystr(path)
    }
    assert moments
    return training, jax.device_get(metrics), moments


def test_scores_loss_and_gradients_are_those_of_records_on_any_mesh(config, monkeypatch, by_hand):
    """By scores in records on one device, by the teacher in the step on eight, in chunks; the loss
    also by sentence-transformers, and with adapters, which begin as zeros."""
    config.mesh.update({"fsdp": 2, "tensor": 2})
    config.train.chunks_per_device = 2
    training, metrics, moments = first_step(config)
    assert "teacher" not in training.program.shapes.saved

    recorded = config.copy_and_resolve_references()
    recorded.data.source, recorded.loss.teacher = "scored", ""
    recorded.mesh.update({"fsdp": 1, "tensor": 1})
    recorded.train.chunks_per_device = 1
    with monkeypatch.context() as patch:
        for name in ("devices", "local_devices"):
            found = getattr(jax, name)()[:1]
            patch.setattr(jax, name, lambda found=found: found)
        plain, expected, wanted = first_step(recorded)
    assert plain.teacher == {} and plain.loader.host_batch(0).teacher_scores is not None
    assert training.loader.host_batch(0).teacher_scores is None
    assert expected["loss"] > 0.1 and expected["grad_norm"] > 0.1
    for name in ("loss", "grad_norm", "positive"):
        assert_allclose(metrics[name], expected[name], rtol=1e-5)
    for name, value in wanted.items():
        assert_allclose(moments[name], value, atol=1e-6, err_msg=name)

    config.model.lora_rank = 2
    assert_allclose(first_step(config)[1]["loss"], expected["loss"], rtol=1e-5)

    recorded.data.source = "cosines"
    assert abs(first_step(recorded)[1]["loss"] - expected["loss"]) > 0.01
    recorded.loss.teacher_scale = SCALE
    assert_allclose(first_step(recorded)[1]["loss"], expected["loss"], rtol=1e-5)

    torch = pytest.importorskip("torch")
    losses = pytest.importorskip("sentence_transformers.losses")
    from sentence_transformers.util import pairwise_dot_score

    queries, passages = by_hand["teacher"]
    scores = torch.tensor(SCALE * np.einsum("be,bke->bk", queries, passages))
    queries, passages = map(torch.tensor, by_hand["student"])
    texts = [queries, *passages.unbind(1)]
    both = [
        loss(None, similarity_fct=lambda a, b: SCALE * pairwise_dot_score(a, b))
        .compute_loss_from_embeddings(texts, scores)
        .item()
        for loss in (losses.DistillKLDivLoss, losses.MarginMSELoss)
    ]
    assert_allclose(metrics["loss"], both[0] + 0.5 * both[1], rtol=1e-4)


@pytest.mark.parametrize("towers", ["shared", "separate"])
def test_scores_are_those_of_the_teachers_own_retriever(config, by_hand, towers):
    """Of a run in float32 with block I, by the pairs' hashes; an empty slot has no part."""
    config.model.towers = towers
    read = run_config(config)
    training = make_training(read)
    queries, passages = by_hand["teacher"]
    cosines = np.einsum("be,bke->bk", queries, passages)
    place = {text_hash(each.pairs[0].query): n for n, each in enumerate(examples())}
    texts = [(p.passage, *p.negatives) for p in (each.pairs[0] for each in examples())]
    score = {text_hash(t): cosines[n, k] for n, ts in enumerate(texts) for k, t in enumerate(ts)}
    encoder = training.program.teacher
    plan = EncodingPlan(encoder.encode, mesh=training.program.mesh)
    scores_of = with_teacher(lambda state, batch: batch.teacher_scores, plan, 3.0)
    batch = training.loader.host_batch(1)
    state = TrainState(None, {}, None, teacher=training.teacher)
    found = jax.jit(scores_of)(state, to_mesh(training.program.mesh)(batch))
    assert found.shape == (BATCH, 1 + HARD) and batch.valid.all() and batch.passage_valid.all()
    assert {place[int(x)] for x in hash_of(batch.ids.query)} == set(range(BATCH))
    expected = np.vectorize(lambda x: score[int(x)])(hash_of(batch.ids.passage))
    assert_allclose(found, 3.0 * expected, atol=1e-5)


def test_the_weights_are_recorded_and_another_teacher_is_refused(config, tiny_model_dir):
    """In the step but in no checkpoint; in the work of a step and in its plan."""
    read = run_config(config)
    training = make_training(read)
    saver = Saver(read, config)
    state, first = training.start(saver)
    assert first == 0 and saver.info.teacher
    saver.save(state.saved, 2)
    saver.wait()
    saver.close()
    again = Saver(read, config, resume=True)
    resumed, first = training.start(again)
    assert first == 2
    for a, b in zip(jax.tree.leaves(resumed.teacher), jax.tree.leaves(state.teacher), strict=True):
        np.testing.assert_array_equal(a, b)
    other = jax.tree.map(lambda x: x * 2, training.teacher)
    for changed in (training._replace(teacher=other), training._replace(teacher={})):
        with pytest.raises(UserError, match=r"loss\.teacher=.* is not the teacher that the run"):
            changed.start(again)
    teacher = training.program.teacher
    by_cls = dataclasses.replace(
        teacher, options=dataclasses.replace(teacher.options, pooling="cls")
    )
    causal = dataclasses.replace(teacher, config=dataclasses.replace(teacher.config, causal=True))
    others = [
        training._replace(program=training.program._replace(teacher=x)) for x in (by_cls, causal)
    ]
    for changed in others:
        with pytest.raises(UserError, match="but another pooling, mask or architecture"):
            changed.start(again)
    recorded = again._info
    again._info = recorded._replace(
        teacher=recorded.teacher.partition("-")[0]
    )  # an older version's
    for each in (training, *others):
        assert each.start(again)[1] == 2
    again.close()

    inputs = loader_inputs(training.loader)
    planned = planned_step(read, training.model.encoder, training.program.mesh, inputs, source="m")
    assert planned.state == training.program.shapes
    assert planned.facts["teacher_parameters"] == sum(
        x.size for x in jax.tree.leaves(training.teacher)
    )
    config.loss.teacher = ""
    without = planned_step(
        run_config(config), training.model.encoder, training.program.mesh, inputs, source="m"
    )
    assert without.state.teacher == {} and "teacher_parameters" not in without.facts
    shape = training.program.teacher.config
    more = encoder_flops(shape, tokens=inputs.tokens, squares=inputs.squares)
    assert planned.model_flops - without.model_flops == pytest.approx(more)
    assert work_of(training).flops == pytest.approx(planned.model_flops)

    # a run as the teacher, in the run's dtype
    config.loss.teacher, config.model.dtype = config.out_dir, "bfloat16"
    read = run_config(config)
    taught_by = load_teacher(read, training.model)
    kernel, bias = (taught_by.params["shared"]["blocks"][n] for n in ("up_kernel", "up_bias"))
    own = training.fresh().params["shared"]["blocks"]
    np.testing.assert_array_equal(kernel, np.asarray(own["up_kernel"]).astype(jnp.bfloat16))
    np.testing.assert_array_equal(bias, own["up_bias"])
    shapes = planned_teacher(read, training.model.encoder).params
    assert shapes == jax.eval_shape(lambda: taught_by.params)


def change(path, fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def keep_case(directory):
    path = directory / "tokenizer.json"
    normalizer = json.loads(path.read_text())["normalizer"]
    change(path, {"normalizer": normalizer | {"lowercase": False}})
    change(directory / "tokenizer_config.json", {"do_lower_case": False})


@pytest.mark.parametrize(
    ("keys", "damage", "message"),
    [
        ({}, keep_case, r"its tokenizer is not that of .*name a teacher and a model\.name"),
        ({"data.query_template": "q: {query}"}, None, r"set data\.query_template='\{query\} \{ins"),
        ({"data.passage_template": "p: {passage}"}, None, r"set data\.passage_template='\{passa"),
        (
            {"data.more_templates": ("q: {query}",)},
            None,
            r"data\.more_templates=.*leave them empty",
        ),
        ({"data.max_passage_tokens": 65}, None, "texts of 65 tokens, but it has 64 positions"),
        ({"model.query_encoder": "attention"}, None, r"set model\.query_encoder='joint'"),
        ({}, shutil.rmtree, r"loss\.teacher: .*"),
    ],
)
def test_a_teacher_that_cannot_read_the_batches_is_refused(
    config, teacher_dir, tmp_path, keys, damage, message
):
    model = load_model(run_config(config))
    if damage:
        shutil.copytree(teacher_dir, tmp_path / "teacher")
        damage(tmp_path / "teacher")
        config.loss.teacher = str(tmp_path / "teacher")
    for key, value in keys.items():
        section, name = key.split(".")
        config[section][name] = value
    with pytest.raises(UserError, match=message) as error:
        load_teacher(run_config(config), model)
    assert config.loss.teacher in str(error.value)


def test_a_teacher_without_an_objective_that_has_one_is_refused(config):
    config.loss.objective = "multi(P,IQ)"
    with pytest.raises(UserError, match=r"loss\.teacher=.* has no distil\(P\) or margin\(P\)"):
        check_config(config)
