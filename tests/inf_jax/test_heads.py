"""From token states to the exported vector: projection, dims, EOS, prompts, through a real run."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import inf_jax
from inf_jax import export, train
from inf_jax.config.defaults import run_config
from inf_jax.core.errors import UserError
from inf_jax.core.packing import pack_chunk, stack_chunks
from inf_jax.distributed.gradcache import in_chunks
from inf_jax.distributed.mesh import batch_sharding, make_mesh
from inf_jax.distributed.sharding import state_shardings
from inf_jax.models.encoder import EncoderOptions, make_encoder
from inf_jax.models.hf.backbone import load_model
from inf_jax.models.pooling import init_projection, project
from inf_jax.retriever.encode import shortened
from inf_jax.training.optim import decay_mask
from tests.inf_jax.models.goldens import params_of, quick_jit, shape_of
from tests.inf_jax.tiny_backbones import backbone

QWEN3 = "Instruct: {instruction}\nQuery:{query}"


@pytest.mark.parametrize("out", [8, 32, 48])
def test_a_new_projection_keeps_angles_as_far_as_it_can(out):
    layer = init_projection(jax.random.key(0), 32, out, bias=True)
    kernel = np.asarray(layer["kernel"])
    assert kernel.shape == (32, out) and not layer["bias"].any()
    gram = kernel.T @ kernel if out < 32 else kernel @ kernel.T
    np.testing.assert_allclose(gram, np.eye(min(32, out)), atol=1e-5)
    x = np.random.default_rng(0).normal(size=(3, 32)).astype(np.float32)
    bias = jnp.arange(out, dtype=jnp.float32)
    found = project(x, {"kernel": layer["kernel"], "bias": bias})
    np.testing.assert_allclose(found, x @ kernel + np.arange(out), atol=1e-5)
    decayed = decay_mask({"shared": {"projection": layer}})["shared"]["projection"]
    assert decayed == {"kernel": True, "bias": False}


def packed_chunks(chunks=4, texts=5):
    rng = np.random.default_rng(1)
    made = []
    for n in range(chunks):
        ids = [rng.integers(4, 99, rng.integers(1, 20)).astype(np.int32) for _ in range(texts)]
        numbers = np.arange(texts, dtype=np.uint32) + texts * n
        made.append(pack_chunk(ids, numbers, rows=3, row_tokens=40, texts_per_row=4))
    return stack_chunks(made)


def test_projection_follows_pooling_and_its_gradient_is_that_of_one_device():
    shape, options = shape_of("qwen2"), {"pooling": "weighted_mean", "normalise": False}
    plain = make_encoder(shape, EncoderOptions(**options))
    encoder = make_encoder(shape, EncoderOptions(**options, projection=12, projection_bias=True))
    assert (plain.width, encoder.width) == (32, 12)
    made = jax.eval_shape(encoder.init, jax.random.key(0))
    layer = init_projection(jax.random.key(3), 32, 12, bias=True)
    layer["bias"] = jnp.arange(12, dtype=jnp.float32)
    params = params_of("qwen2") | {"projection": layer}
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, made)
    packed, weight = packed_chunks(), np.random.default_rng(2).normal(size=(4, 5, 12))
    weight = weight.astype(np.float32)

    def scalar(params, packed, mesh=None, gather="auto"):
        encode = encoder.encode
        found = in_chunks(encode, params, packed, groups=1, mesh=mesh, gather=gather)
        return jnp.sum(found * weight), found

    (_, vectors), expected = quick_jit(jax.value_and_grad(scalar, has_aux=True))(params, packed)
    before = quick_jit(plain.encode)(params_of("qwen2"), packed)
    np.testing.assert_allclose(vectors, project(before, layer), atol=1e-4)

    mesh = make_mesh(fsdp=2, tensor=2)
    shardings = state_shardings(mesh, params)
    assert shardings["projection"]["kernel"].spec == jax.sharding.PartitionSpec("fsdp", None)
    split = jax.device_put(params, shardings), jax.device_put(packed, batch_sharding(mesh))
    found = quick_jit(jax.grad(lambda p, x: scalar(p, x, mesh)[0]))(*split)
    largest = max(np.abs(x).max() for x in jax.tree.leaves(expected))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=3e-6 * largest, rtol=0), found, expected
    )


def test_shortened():
    x = np.array([[3, 4, 0, 12], [0, 0, 1, 1]], np.float32)
    assert shortened(x, None, normalise=True) is x
    np.testing.assert_allclose(shortened(x, 2, normalise=True), [[0.6, 0.8], [0, 0]])
    np.testing.assert_array_equal(shortened(x, 3, normalise=False), x[:, :3])
    for dim in (0, 5):
        with pytest.raises(UserError, match=f"dim={dim}: the vectors have 4 entries"):
            shortened(x, dim, normalise=True)


@pytest.fixture
def run(tiny_config, tmp_path):
    """A function of golden, tokenizer and changes of the config: trained and exported."""

    def make(golden: str, tokenizer: str, **model) -> tuple[dict, Path]:
        config = tiny_config
        config.model.name = str(backbone(tmp_path / golden, golden, tokenizer))
        config.model.update(model)
        config.data.max_query_tokens = config.data.max_passage_tokens = 48
        config.data.row_tokens, config.eval.max_passage_tokens = 96, 48
        config.train.steps, config.train.checkpoint_every, config.train.batch_size = 2, 2, 16
        config.optim.lr, config.train.health, config.loss.engine = 1e-2, False, "dense"
        train.main(config)
        export.main(config)
        return config, Path(config.out_dir) / "export"

    return make


def same_both_ways(directory: Path, template: str, passage_prompt: str) -> None:
    """Our vectors and those of sentence-transformers, whatever side it pads."""
    st = pytest.importorskip("sentence_transformers")
    ours = inf_jax.load(directory)
    theirs = st.SentenceTransformer(str(directory), device="cpu", local_files_only=True)
    queries, instruction = ["amber", "old birch and young cedar", "iris"], "Tell what harms it."
    passages = ["amber grows on wet hills", "thyme", "frost and beetles kill young cedar " * 9]
    prompt = template[: template.index("{")]
    rendered = [template.format(query=q, instruction=instruction) for q in queries]
    expected = ours.encode(queries, instruction=instruction), ours.encode(passages)
    for side in ("left", "right"):
        theirs.tokenizer.padding_side = side
        found = (
            theirs.encode_query([text.removeprefix(prompt) for text in rendered]),
            theirs.encode_document(passages),
        )
        for a, b in zip(found, expected, strict=True):
            cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
            assert cosines.min() >= 0.9999 and a.shape == b.shape
    assert theirs.prompts == {"query": prompt, "document": passage_prompt}


def test_a_decoder_with_last_pooling_eos_projection_and_prompts(run, tiny_config):
    pytest.importorskip("torch")
    tiny_config.data.query_template = QWEN3
    tiny_config.loss.dims = (12, 4)
    tiny_config.mesh.fsdp = 2
    config, directory = run("qwen3", "qwen3", pooling="last", projection=12, projection_bias=True)
    parity = json.loads((directory / "parity.json").read_text())
    assert min(found["min_cosine"] for found in parity["loaders"].values()) >= 0.9999
    assert len(parity["loaders"]) == 3
    ours = inf_jax.load(directory)
    assert (ours.embedding_size, ours.config.dims) == (12, (12, 4))
    text = json.loads((directory / "inf_jax.json").read_text())["text"]
    assert text["query_template"] == QWEN3
    # the tokens end with an EOS, in any library
    fields = json.loads((directory / "tokenizer_config.json").read_text())
    assert fields["add_eos_token"] is True and fields["padding_side"] == "left"
    assert ours.tokenizer.passages(["iris"], ours.config.text)[0][-1] == ours.tokenizer.special[1]
    start = load_model(run_config(config)).load().params["projection"]["kernel"]
    kernel = np.asarray(ours._params["shared"]["projection"]["kernel"])
    assert np.abs(kernel - start).max() > 1e-3  # it was trained
    same_both_ways(directory, QWEN3, "")
    card = (directory / "README.md").read_text()
    assert "after their first 4, 12 entries" in card and "linear layer of `2_Dense/`" in card


def test_a_t5_with_a_projection_goes_on_from_its_own_export(run, tiny_config):
    tiny_config.data.query_template = "query: {query} {instruction}"
    tiny_config.data.passage_template = "passage: {passage}"
    config, directory = run("t5_gated_encoder", "t5", projection=40)
    same_both_ways(directory, "query: {query} {instruction}", "passage: ")
    # the export is a backbone: its layer is where the next run starts
    config.model.name = str(directory)
    loaded = load_model(run_config(config)).load().params["projection"]
    exported = inf_jax.load(directory)._params["shared"]["projection"]
    np.testing.assert_array_equal(loaded["kernel"], exported["kernel"])
    settings = directory / "inf_jax.json"
    settings.write_text(settings.read_text().replace('"projection": 40', '"projection": 8'))
    with pytest.raises(UserError, match=r"Dense modules are not the projection of inf_jax\.json"):
        inf_jax.load(directory)
    for width in (0, 8):
        config.model.projection = width
        with pytest.raises(UserError, match=r"ends in a Dense module: set model\.projection=40"):
            load_model(run_config(config)).load()
