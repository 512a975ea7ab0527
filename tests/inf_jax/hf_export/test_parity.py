"""An export gives the trained embeddings in every library, or it is not written."""

import dataclasses
import json
import os
import runpy

import jax
import numpy as np
import pytest

import inf_jax
from inf_jax.core.errors import UserError
from inf_jax.hf_export import writer
from inf_jax.hf_export.writer import ExportOptions
from inf_jax.models import hf
from tests.inf_jax.hf_export.tiny_exports import (
    ATTENTION,
    CONFIGS,
    E5,
    PASSAGES,
    QUERIES,
    bytes_of,
    export_tiny,
    params_of,
)


@pytest.mark.parametrize("name", CONFIGS)
def test_sentence_transformers_embeds_alike(exports, name):
    st = pytest.importorskip("sentence_transformers")
    directory, report = exports(name)
    assert report.verified and report.min_cosine >= 0.9999
    assert list(report.loaders) == ["inf_jax", "transformers", "sentence-transformers"]
    assert all(found["texts"] >= 12 for found in report.loaders.values())
    model, config = inf_jax.load(directory), CONFIGS[name]
    assert model.config == config
    folders = config.folders(directory)
    towers = [
        st.SentenceTransformer(str(folders.get(role, directory)), device="cpu")
        for role in ("query", "passage")
    ]
    assert [tower.max_seq_length for tower in towers] == (
        [24, 32] if config.towers == "separate" else [32, 32]
    )
    rendered = [f"{query} {instruction}".strip() for query, instruction in QUERIES]
    found = towers[0].encode_query(rendered), towers[1].encode_document(PASSAGES)
    expected = model.encode_queries(*zip(*QUERIES, strict=True)), model.encode(PASSAGES)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-5)
    assert np.abs(expected[1][0] - expected[1][1]).max() > 1e-3


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_queries_are_embedded_alike(exports, name):
    """Queries by the file in the export, passages by sentence-transformers."""
    st = pytest.importorskip("sentence_transformers")
    directory, report = exports(name)
    assert report.verified and report.min_cosine >= 0.9999
    assert {name: found["texts"] for name, found in report.loaders.items()} == {
        "inf_jax": 18,
        "transformers": 10,
        "sentence-transformers": 10,
        "instructed_encoder.py": 8,
    }
    model, config = inf_jax.load(directory), ATTENTION[name]
    assert model.config == config
    encoder = runpy.run_path(directory / "instructed_encoder.py")["InstructedEncoder"](directory)
    queries, instructions = zip(*QUERIES, ("iris " * 40, "Tell cooks. " * 20), strict=True)
    found = encoder.encode(queries, instructions, batch_size=2)
    assert found.dtype == np.float32 and found.shape == (3, 32)
    expected = model.encode_queries(queries, instructions)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)
    assert encoder.encode([], []).shape == (0, 32)
    with pytest.raises(ValueError, match="1 queries but 2 instructions"):
        encoder.encode(["amber"], ["a", "b"])
    separate = config.towers == "separate"
    passages = st.SentenceTransformer(
        str(directory / "passage" if separate else directory), device="cpu"
    ).encode_document(PASSAGES)
    np.testing.assert_allclose(passages, model.encode(PASSAGES), atol=1e-5, rtol=1e-5)
    # no file tells a library to pool queries
    assert not (directory / "query" / "modules.json").exists()
    assert "query: " not in (directory / "README.md").read_text()
    if not separate:
        fields = json.loads((directory / "config_sentence_transformers.json").read_text())
        assert fields["prompts"] == {"query": "", "document": "passage: "}


def test_without_torch_it_is_marked_not_verified(tiny_model_dir, tmp_path, no_torch):
    report = export_tiny(tiny_model_dir, tmp_path / "out")
    assert list(report.loaders) == ["inf_jax"] and not report.verified
    assert report.rows()[1][::3] == ("transformers", "NOT verified")
    assert "Not verified" in (tmp_path / "out" / "README.md").read_text()
    saved = json.loads((tmp_path / "out" / "parity.json").read_text())
    assert saved["not_verified"] == ["transformers", "sentence-transformers"]


def _perturbed_weights(monkeypatch):
    save = hf.save_weights

    def sabotaged(params, *rest, **options):
        up = params["blocks"]["up_kernel"].copy()
        up[1, 0, :] += 0.5
        save({**params, "blocks": {**params["blocks"], "up_kernel": up}}, *rest, **options)

    monkeypatch.setattr(writer, "save_weights", sabotaged)


def _sentence_transformers(**changes):
    def sabotage(monkeypatch):
        write = writer.write_sentence_transformers
        monkeypatch.setattr(
            writer,
            "write_sentence_transformers",
            lambda folder, config, **sizes: write(
                folder, dataclasses.replace(config, **changes), **sizes
            ),
        )

    return sabotage


def _short_tokenizer(monkeypatch):
    write = writer.write_tokenizer
    monkeypatch.setattr(
        writer,
        "write_tokenizer",
        lambda *a, max_length, **more: write(*a, max_length=max_length - 9, **more),
    )


def _settings(monkeypatch):
    write = writer.write_json

    def sabotaged(path, value):
        write(path, value | {"pooling": "cls"} if path.name == "inf_jax.json" else value)

    monkeypatch.setattr(writer, "write_json", sabotaged)


def _no_config(monkeypatch):
    monkeypatch.setattr(writer, "write_config", lambda *a, **options: None)


@pytest.mark.parametrize(
    "sabotage, message",
    [
        (_perturbed_weights, "inf_jax gives another embedding .*cosine"),
        (_settings, "inf_jax gives another embedding .*cosine"),
        (_no_config, r"inf_jax cannot use it: UserError.*config\.json"),
        (_short_tokenizer, "transformers gives another .*cosine"),
        (_sentence_transformers(pooling="cls"), "sentence-transformers gives another .*cosine"),
        (
            _sentence_transformers(normalise=False),
            "sentence-transformers gives another .*times the vector's length",
        ),
        (
            _sentence_transformers(text=E5),
            "sentence-transformers gives another .*cosine",
        ),
    ],
)
def test_a_wrong_export_is_refused_and_the_old_one_stays(
    tiny_model_dir, tmp_path, monkeypatch, sabotage, message
):
    if "transformers" in message:
        pytest.importorskip("sentence_transformers")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "inf_jax.json").write_text("the older export")
    sabotage(monkeypatch)
    with pytest.raises(UserError, match=f"export refused: {message}"):
        export_tiny(tiny_model_dir, tmp_path / "out")
    assert bytes_of(tmp_path) == {"out/inf_jax.json": b"the older export"}


def test_a_wrong_instructed_encoder_is_refused(tiny_model_dir, tmp_path, monkeypatch):
    pytest.importorskip("torch")
    copy = writer.shutil.copyfile

    def sabotaged(source, target):
        copy(source, target)
        target.write_text(target.read_text().replace(" * instruction_mask[:, :, None]", ""))

    monkeypatch.setattr(writer.shutil, "copyfile", sabotaged)
    expected = r"refused: instructed_encoder\.py gives another embedding of the query .*cosine"
    with pytest.raises(UserError, match=expected):
        export_tiny(tiny_model_dir, tmp_path / "out", ATTENTION["attention-shared-e5"])
    assert not os.listdir(tmp_path)


def test_without_torch_the_instructed_encoder_is_not_verified(tiny_model_dir, tmp_path, no_torch):
    report = export_tiny(tiny_model_dir, tmp_path / "out", ATTENTION["attention-shared-e5"])
    assert list(report.loaders) == ["inf_jax"]
    assert report.not_verified[-1] == "instructed_encoder.py"


def test_min_cosine_is_enforced(tiny_model_dir, tmp_path):
    with pytest.raises(UserError, match=r"export\.min_cosine=1.5: must be in \(0, 1\]"):
        export_tiny(tiny_model_dir, tmp_path / "out", options=ExportOptions(min_cosine=1.5))
    nan = {
        "shared": jax.tree.map(lambda x: x * np.nan, params_of(tiny_model_dir, "shared")["shared"])
    }
    with pytest.raises(UserError, match="cosine -1"):
        export_tiny(tiny_model_dir, tmp_path / "out", params=nan)
    assert not os.listdir(tmp_path)
