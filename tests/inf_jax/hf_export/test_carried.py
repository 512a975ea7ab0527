"""An export of a sentence-transformers model gives that library the vectors of the model."""

import json
import shutil

import jax
import numpy as np
import pytest
from tokenizers import BertWordPieceTokenizer

import inf_jax
from inf_jax.hf_export.writer import export_hf
from inf_jax.models.hf import sentence_transformers as st_files
from inf_jax.models.hf.module_settings import TransformerSettings

TEXTS = ["what harms Iris?", "Amber GROWS on wet hills", "an old monk wrote of thyme " * 12]


@pytest.fixture
def model(tiny_model_dir, tmp_path):
    """With lower-casing that the tokenizer does not do, two limits, truncated vectors, a prompt."""
    directory = shutil.copytree(tiny_model_dir, tmp_path / "model")
    vocab = (directory / "vocab.txt").read_text().split("\n")[:-1]
    tokenizer = BertWordPieceTokenizer({word: n for n, word in enumerate(vocab)}, lowercase=False)
    tokenizer.save(str(directory / "tokenizer.json"))
    fields = json.loads((directory / "tokenizer_config.json").read_text())
    fields["do_lower_case"] = False
    (directory / "tokenizer_config.json").write_text(json.dumps(fields))
    model = st_files.StModel(
        "mean",
        True,
        query_prompt="Text OF: ",
        truncate_dim=8,
        similarity="dot",
        transformer=TransformerSettings(40, 12, 32, True),
    )
    st_files.write(directory, model, width=32)
    return directory


def test_what_was_read_is_written(model, tmp_path):
    st = pytest.importorskip("sentence_transformers")
    ours, out = inf_jax.load(model), tmp_path / "out"
    params = jax.device_get(ours.params)
    assert export_hf(params, ours.config, ours.tokenizer, out, backbone=model).verified
    again = inf_jax.load(out)
    assert again.config == ours.config and again.embedding_size == 8
    before, after = (
        st.SentenceTransformer(str(path), device="cpu", local_files_only=True)
        for path in (model, out)
    )
    assert after.similarity_fn_name == "dot" and after.truncate_dim == 8
    card = (out / "README.md").read_text()
    assert "cut after their first 8 entries" in card
    assert "then scaling to unit length, then the first 8 entries." in card
    for calls in (
        (ours.encode_queries, again.encode_queries, before.encode_query, after.encode_query),
        (
            ours.encode_passages,
            again.encode_passages,
            before.encode_document,
            after.encode_document,
        ),
    ):
        first, *others = (call(TEXTS) for call in calls)
        for other in others:
            np.testing.assert_allclose(other, first, atol=2e-5)
