"""Directories like those of public embedding models give the same embeddings as in
sentence-transformers."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import inf_jax
from inf_jax.core import choices
from inf_jax.core.errors import UserError
from inf_jax.models.hf import sentence_transformers as st_files
from tests.inf_jax.models.tiny_backbones import backbone


def test_poolings_are_the_choices():
    assert tuple(st_files.POOLING_SPELLINGS) == choices.POOLINGS


WEB = "Instruct: Given a web search query, retrieve relevant passages\nQuery:"
QUERIES = ["amber", "what harms iris?"]
PASSAGES = ["amber grows on wet hills", "cooks boil iris slowly", "thyme " * 60]


def published(directory: Path, pooling: str, kinds: list[str], prompts: dict) -> None:
    """Adds the files that sentence-transformers 2 to 5 writes."""
    modules = []
    for n, kind in enumerate(kinds):
        path = "" if n == 0 else f"{n}_{kind}"
        (directory / path).mkdir(exist_ok=True)
        kind = f"sentence_transformers.models.{kind}"
        modules.append({"idx": n, "name": str(n), "path": path, "type": kind})
    switches = {switch: name == pooling for name, (_, switch) in st_files.POOLING_SPELLINGS.items()}
    files = {
        "modules.json": modules,
        "sentence_bert_config.json": {"max_seq_length": 96, "do_lower_case": False},
        "1_Pooling/config.json": {"word_embedding_dimension": 32, **switches},
        "config_sentence_transformers.json": {
            "__version__": {"sentence_transformers": "5.1.0"},
            "prompts": prompts,
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    }
    for name, value in files.items():
        (directory / name).write_text(json.dumps(value))


def dense(folder: Path, width: int, out: int, seed: int, *, bias: bool = False, **fields) -> None:
    config = {"in_features": width, "out_features": out, "bias": bias}
    config |= {"activation_function": "torch.nn.modules.linear.Identity"} | fields
    (folder / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(seed)
    tensors = {"linear.weight": rng.normal(size=(out, width)).astype(np.float32)}
    if bias:
        tensors["linear.bias"] = rng.normal(size=out).astype(np.float32)
    save_file(tensors, folder / "model.safetensors")


def qwen3_embedding(directory: Path) -> None:
    backbone(directory, "qwen3", "qwen3-embedding")
    prompts = {"query": WEB, "document": ""}
    published(directory, "last", ["Transformer", "Pooling", "Normalize"], prompts)


def embeddinggemma(directory: Path) -> None:
    backbone(directory, "gemma3_text", "embeddinggemma", use_bidirectional_attention=True)
    kinds = ["Transformer", "Pooling", "Dense", "Dense", "Normalize"]
    prompts = {
        "query": "task: search result | query: ",
        "document": "title: none | text: ",
        "Retrieval-query": "task: search result | query: ",
    }
    published(directory, "mean", kinds, prompts)
    dense(directory / "2_Dense", 32, 64, 1)
    dense(directory / "3_Dense", 64, 32, 2)


def gtr(directory: Path) -> None:
    backbone(directory, "t5_encoder", "t5")
    kinds = ["Transformer", "Pooling", "Dense", "Normalize"]
    published(directory, "mean", kinds, {})
    dense(directory / "2_Dense", 32, 24, 3)


def e5_mistral(directory: Path) -> None:
    backbone(directory, "mistral", "e5-mistral")
    prompts = {"web_search_query": WEB, "sts_query": "Instruct: Retrieve alike text.\nQuery: "}
    published(directory, "last", ["Transformer", "Pooling", "Normalize"], prompts)


@pytest.mark.parametrize(
    ("make", "pooling", "size", "query_template", "passage_template"),
    [
        (qwen3_embedding, "last", 32, WEB + "{query} {instruction}", "{passage}"),
        (
            embeddinggemma,
            "mean",
            32,
            "task: search result | query: {query} {instruction}",
            "title: none | text: {passage}",
        ),
        (gtr, "mean", 24, "{query} {instruction}", "{passage}"),
        (e5_mistral, "last", 32, "{query} {instruction}", "{passage}"),
    ],
)
def test_as_sentence_transformers(tmp_path, make, pooling, size, query_template, passage_template):
    st = pytest.importorskip("sentence_transformers")
    directory = tmp_path / "model"
    make(directory)
    ours = inf_jax.load(directory)
    text = ours.config.text
    assert (ours.config.pooling, ours.embedding_size) == (pooling, size)
    assert (text.query_template, text.passage_template) == (query_template, passage_template)
    assert text.max_passage_tokens == 96
    theirs = st.SentenceTransformer(str(directory), device="cpu", local_files_only=True)
    pairs = [
        (ours.encode_queries(QUERIES), theirs.encode_query(QUERIES)),
        (ours.encode_passages(PASSAGES), theirs.encode_document(PASSAGES)),
    ]
    for actual, expected in pairs:
        np.testing.assert_allclose(actual, expected, atol=2e-5, rtol=1e-4)
    cut = theirs.encode_document(PASSAGES, truncate_dim=8)
    if ours.config.normalise:
        cut /= np.linalg.norm(cut, axis=1, keepdims=True)
    np.testing.assert_allclose(ours.encode(PASSAGES, dim=8), cut, atol=2e-5, rtol=1e-4)
    with pytest.raises(UserError, match=f"dim=41: the vectors have {size} entries"):
        ours.encode(PASSAGES, dim=41)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"activation_function": "torch.nn.modules.activation.Tanh"}, "activation.Tanh'"),
        ({"use_residual": True}, "use_residual=True"),
        ({"module_input_name": "token_embeddings"}, "module_input_name='token_embeddings'"),
        ({"in_features": 16}, "in_features=16, its input has 32|its tensors are"),
        ({"bias": True}, "its tensors are .*linear.bias"),
    ],
)
def test_other_dense_modules_are_refused(tmp_path, fields, message):
    gtr(tmp_path / "model")
    path = tmp_path / "model/2_Dense/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises(UserError, match=rf"2_Dense.*({message})"):
        inf_jax.load(tmp_path / "model")


def test_consecutive_dense_modules_become_one_layer(tmp_path):
    for n, (width, out, bias) in enumerate([(32, 8, False), (8, 40, True), (40, 24, True)]):
        (tmp_path / str(n)).mkdir()
        dense(tmp_path / str(n), width, out, n, bias=bias)
    layer = st_files.read_projection(tmp_path, "012", width=32)
    x = np.random.default_rng(9).normal(size=(5, 32))
    expected = x
    for n in "012":
        tensors = load_file(tmp_path / n / "model.safetensors")
        expected = expected @ tensors["linear.weight"].T + tensors.get("linear.bias", 0)
    np.testing.assert_allclose(x @ layer["kernel"] + layer["bias"], expected, rtol=1e-4, atol=1e-3)
    assert st_files.read_projection(tmp_path, (), width=32) is None
    with pytest.raises(UserError, match=r"2: in_features=40, its input has 8"):
        st_files.read_projection(tmp_path, "02", width=32)


@pytest.mark.parametrize("path", ["../1_Pooling", "/1_Pooling", "a/../../1_Pooling"])
def test_a_module_elsewhere_is_refused(tmp_path, path):
    modules = [{"type": "x.Transformer", "path": ""}, {"type": "x.Pooling", "path": path}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UserError, match=r"modules\.json names .* which is outside of"):
        st_files.read_model(tmp_path)
