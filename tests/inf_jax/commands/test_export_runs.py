"""Runs with projection, prompts and an appended EOS: training, export, other libraries."""

import json
from pathlib import Path

import numpy as np
import pytest

import inf_jax
from inf_jax import export, train
from inf_jax.config.defaults import run_config
from inf_jax.core.errors import UserError
from inf_jax.models.hf.backbone import load_model
from tests.inf_jax.models.tiny_backbones import backbone

QWEN3 = "Instruct: {instruction}\nQuery:{query}"


@pytest.fixture
def run(tiny_config, tmp_path):
    """Trains and exports a tiny backbone: (name, tokenizer, model values) -> config, export."""

    def make(golden: str, tokenizer: str, **model) -> tuple[dict, Path]:
        config = tiny_config
        config.model.name = str(backbone(tmp_path / golden, golden, tokenizer))
        config.model.update(model)
        config.data.max_query_tokens = config.data.max_passage_tokens = 48
        config.data.row_tokens, config.eval.max_passage_tokens = 96, 48
        config.train.steps, config.train.checkpoint_every, config.train.batch_size = 2, 2, 48
        config.optim.lr, config.train.health, config.loss.engine = 1e-2, False, "dense"
        train.main(config)
        export.main(config)
        return config, Path(config.out_dir) / "export"

    return make


def assert_same_vectors(directory: Path, template: str, passage_prompt: str) -> None:
    """Compares our vectors with those of sentence-transformers, for both padding sides."""
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
    kernel = np.asarray(ours.params["shared"]["projection"]["kernel"])
    assert np.abs(kernel - start).max() > 1e-3  # it was trained
    assert_same_vectors(directory, QWEN3, "")
    card = (directory / "README.md").read_text()
    assert "after their first 4, 12 entries" in card and "linear layer of `2_Dense/`" in card


def test_a_t5_with_a_projection_goes_on_from_its_own_export(run, tiny_config):
    tiny_config.data.query_template = "query: {query} {instruction}"
    tiny_config.data.passage_template = "passage: {passage}"
    config, directory = run("t5_gated_encoder", "t5", projection=40)
    assert_same_vectors(directory, "query: {query} {instruction}", "passage: ")
    # the export serves as a backbone: the next run starts from its projection
    config.model.name = str(directory)
    loaded = load_model(run_config(config)).load().params["projection"]
    exported = inf_jax.load(directory).params["shared"]["projection"]
    np.testing.assert_array_equal(loaded["kernel"], exported["kernel"])
    settings = directory / "inf_jax.json"
    settings.write_text(settings.read_text().replace('"projection": 40', '"projection": 8'))
    with pytest.raises(UserError, match=r"Dense modules are not the projection of inf_jax\.json"):
        inf_jax.load(directory)
    for width in (0, 8):
        config.model.projection = width
        with pytest.raises(UserError, match=r"ends in a Dense module: set model\.projection=40"):
            load_model(run_config(config)).load()
