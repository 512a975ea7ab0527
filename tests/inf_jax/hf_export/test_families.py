"""Exports of other families than BERT: opened again by transformers and sentence-transformers."""

import json
import shutil

import numpy as np
import pytest

from inf_jax.hf_export.writer import ExportOptions, export_hf
from inf_jax.io.safetensors import stored_tensors
from inf_jax.models import hf
from inf_jax.models.hf.config import config_from_hf, read_config
from inf_jax.retriever import RetrieverConfig, load
from inf_jax.text.templates import TextConfig
from inf_jax.text.tokenizer import load_tokenizer
from tests.inf_jax.models import tiny_backbones
from tests.inf_jax.models.goldens import GOLDEN, NAMES, params_of

TEXT = TextConfig(max_query_tokens=32, max_passage_tokens=32)  # one shape to compile


@pytest.fixture(scope="module")
def backbone(tiny_model_dir, tmp_path_factory):
    """A function of a golden's name: a directory of that family with the tiny tokenizer, whose
    words get random vectors; Qwen 2 gets one of its own kind, transformers opens no other."""

    def make(name: str):
        directory = tmp_path_factory.mktemp(name)
        if name == "qwen2":
            tiny_backbones.write("qwen3", directory)
        else:
            for file in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
                shutil.copy(tiny_model_dir / file, directory)
        fields = json.loads((GOLDEN / name / "config.json").read_text()) | {"vocab_size": 500}
        if name == "xlm_roberta":  # it gives no position to the padding token, here "[PAD]"
            fields["pad_token_id"] = 0
        (directory / "config.json").write_text(json.dumps(fields))
        words = np.random.default_rng(0).normal(size=(500, 32)).astype(np.float32)
        params = params_of(name) | {"word": 0.5 * words}
        hf.save_weights(params, directory, config_from_hf(fields))
        return directory

    return make


@pytest.mark.parametrize(
    ("name", "mask", "pooling"),
    [
        ("qwen3", "bidirectional", "weighted_mean"),
        ("gemma2", "model", "last"),
        *((name, "model", "mean") for name in NAMES if name not in ("qwen3", "gemma2")),
    ],
)
def test_export(backbone, tmp_path, name, mask, pooling):
    pytest.importorskip("torch")
    directory = backbone(name)
    before = json.loads((directory / "config.json").read_text())
    # as models that came with code of their own have it
    own_code = json.dumps(before | {"auto_map": {"AutoModel": "modeling_own.Own"}})
    (directory / "config.json").write_text(own_code)
    shape = read_config(directory)
    params = {"shared": hf.load_weights(directory, shape).params}
    config = RetrieverConfig(pooling=pooling, text=TEXT)
    options = ExportOptions(mask=mask)
    report = export_hf(
        params,
        config,
        load_tokenizer(directory),
        tmp_path / "out",
        backbone=directory,
        options=options,
    )
    assert report.verified and report.min_cosine > 0.9999
    fields = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "auto_map" not in fields
    card = (tmp_path / "out" / "README.md").read_text()
    assert ("Tokens also attend to later tokens" in card) == (mask == "bidirectional")
    assert fields["architectures"] == before["architectures"]
    assert fields.get("is_causal") == (False if mask == "bidirectional" else None)
    assert read_config(tmp_path / "out") == shape.with_mask(mask)
    assert load(tmp_path / "out").encode("amber grows on hills").shape == (32,)


@pytest.mark.parametrize("name", ["modernbert", "qwen3", "t5_gated_encoder"])
def test_export_in_bfloat16(backbone, tmp_path, name):
    torch = pytest.importorskip("torch")
    from sentence_transformers import SentenceTransformer

    directory = backbone(name)
    shape = read_config(directory)
    tree = hf.load_weights(directory, shape).params
    kernel = np.random.default_rng(0).normal(size=(32, 16)).astype(np.float32)
    config = RetrieverConfig(pooling="mean", text=TEXT, projection=16)
    params = {"shared": tree | {"projection": {"kernel": kernel}}}
    options = {"backbone": directory, "options": ExportOptions("bfloat16", min_cosine=0.999)}
    report = export_hf(params, config, load_tokenizer(directory), tmp_path / "out", **options)
    assert report.verified and 0.999 < report.min_cosine < 1 - 1e-7  # rounded, and no more
    names = stored_tensors(tmp_path / "out")
    assert {x.dtype for name, x in names.items()} == {"BF16"}
    model = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert next(model.parameters()).dtype == torch.bfloat16  # as it comes
    texts = ["amber grows on hills", "a b"]
    theirs = model.encode_document(texts, convert_to_tensor=True).float().numpy()
    ours = load(tmp_path / "out", dtype="bfloat16").encode(texts)
    assert (ours * theirs).sum(1).min() > 0.99  # both compute in bfloat16
