"""`python -m inf_jax.models.hf --check`: our token states against transformers'."""

import json
import shutil
import sys

import numpy as np
import pytest

from inf_jax.config.defaults import defaults, run_config
from inf_jax.models.config import UNLIMITED
from inf_jax.models.hf import check
from inf_jax.models.hf.__main__ import main
from inf_jax.models.hf.backbone import configured_encoder
from inf_jax.models.hf.weights import save_weights
from tests.inf_jax.models.goldens import GOLDEN, params_of, shape_of


def test_check_prints_a_table_and_fails_where_states_differ(tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch")
    monkeypatch.setattr(sys, "argv", ["hf", "--check", str(GOLDEN / "qwen2")])
    main()
    row = next(line for line in capsys.readouterr().out.splitlines() if "qwen2" in line)
    assert "21,888" in row and "26" in row and "yes" in row
    wrong = check.packed_states

    def perturbed(params, shape, texts):
        return [x + 0.01 for x in wrong(params, shape, texts)]

    monkeypatch.setattr(check, "packed_states", perturbed)
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 1
    out = capsys.readouterr()
    assert "NO" in out.out and "qwen2: token states differ from transformers'" in out.err


def test_check_of_several_models(tmp_path, monkeypatch, capsys):
    """A directory that is no model, an export with two towers, windows of thousands of tokens."""
    pytest.importorskip("torch")
    large = tmp_path / "large"
    shutil.copytree(GOLDEN / "mistral_sliding8", large)
    fields = json.loads((large / "config.json").read_text())
    fields |= {"sliding_window": 4096, "max_position_embeddings": 32768}
    (large / "config.json").write_text(json.dumps(fields))
    save_weights(params_of("mistral_sliding8"), large, shape_of("mistral_sliding8"))
    for tower in ("query", "passage"):
        shutil.copytree(large, tmp_path / "export" / tower)
    names = [str(tmp_path / name) for name in ("large", "none", "export")]
    monkeypatch.setattr(sys, "argv", ["hf", "--check", *names])
    longest = []
    states = check.packed_states
    monkeypatch.setattr(
        check,
        "packed_states",
        lambda params, shape, texts: (
            longest.append((max(map(len, texts)), shape.windows)) or states(params, shape, texts)
        ),
    )
    with pytest.raises(SystemExit) as exit_:
        main()
    out = capsys.readouterr()
    assert exit_.value.code == 1 and "none" in out.err
    assert out.out.count("yes") == 3 and out.out.count("64, on both sides in place of 4096") == 3
    assert longest == [(128, (64, 64))] * 3


@pytest.mark.parametrize(
    ("name", "change", "windows"),
    [
        ("modernbert", {"local_attention": 2048}, "64, on both sides in place of 1024"),
        (
            "gemma3_text",
            {"sliding_window": 512, "use_bidirectional_attention": True},
            "32, on both sides in place of 256",
        ),
        ("mistral_sliding8", {}, "8"),
        ("bert", {}, "none"),
    ],
)
def test_check_with_windows(tmp_path, name, change, windows):
    pytest.importorskip("torch")
    fields = json.loads((GOLDEN / name / "config.json").read_text()) | change
    if "max_position_embeddings" in fields and name != "bert":
        fields |= {"max_position_embeddings": 8192}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    shutil.copy(GOLDEN / name / "model.safetensors", tmp_path)
    result = check.check_model(tmp_path)
    assert result.ok and result.windows == windows and result.tokens <= 128
    assert windows == "none" or result.tokens >= 2 * int(windows.split(",")[0])


def test_results_are_printed_if_a_later_model_fails(tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch")
    shutil.copytree(GOLDEN / "gemma2", tmp_path / "refused")
    path = tmp_path / "refused" / "config.json"
    # a type that transformers' validation rejects
    path.write_text(json.dumps(json.loads(path.read_text()) | {"query_pre_attn_scalar": 8.5}))
    monkeypatch.setattr(sys, "argv", ["hf", "--check", str(GOLDEN / "bert"), str(path.parent)])
    with pytest.raises(SystemExit):
        main()
    out = capsys.readouterr()
    assert out.out.count("yes") == 1 and "transformers cannot load it" in out.err

    def bug(directory, name):
        if name.endswith("refused"):
            raise ZeroDivisionError
        return check_all(directory, name)

    check_all = check.check_all
    monkeypatch.setattr(check, "check_all", bug)
    with pytest.raises(ZeroDivisionError):
        main()
    assert capsys.readouterr().out.count("yes") == 1


@pytest.mark.parametrize("name", ["t5_encoder", "t5_gated_encoder"])
def test_t5_has_no_limit_of_length(name):
    """transformers accepts texts over n_positions too, and gives the same states."""
    pytest.importorskip("torch")
    shape = shape_of(name)
    assert shape.max_positions == UNLIMITED
    config = defaults()
    config.data.max_passage_tokens = 700
    configured_encoder(run_config(config), shape, source=name)
    texts = [np.random.default_rng(0).integers(4, shape.vocab_size, 700).astype(np.int32)]
    (theirs,) = check.torch_states(GOLDEN / name, shape, texts)
    (ours,) = check.packed_states(params_of(name), shape, texts)
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())


def test_padding_tokens_inside_a_text():
    """ "<pad>" is in some corpora; RoBERTa's positions do not count it."""
    pytest.importorskip("torch")
    fields = json.loads((GOLDEN / "xlm_roberta" / "config.json").read_text())
    pad = fields["pad_token_id"]
    texts = [[0, 5, pad, pad, 7, 8, 2], [0, pad, 6, 2], [pad], [0, 9, 10, 2]]
    texts = [np.array(text, np.int32) for text in texts]
    shape = shape_of("xlm_roberta")
    ours = check.packed_states(params_of("xlm_roberta"), shape, texts)
    theirs = check.torch_states(GOLDEN / "xlm_roberta", shape, texts)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
