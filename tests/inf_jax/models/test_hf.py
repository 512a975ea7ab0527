"""Weights: every key has one rule, both ways, and all problems come in one message."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from inf_jax.errors import UserError
from inf_jax.models import hf
from inf_jax.models.config import read_config

GOLDEN = Path(__file__).parents[2] / "golden" / "models" / "bert"


def test_load_save_load_is_bit_identical(tmp_path):
    config = read_config(GOLDEN)
    weights = hf.load_weights(GOLDEN, config)
    hf.save_weights(weights.params, tmp_path / "model.safetensors", weights.carried)
    before = load_file(GOLDEN / "model.safetensors")
    after = load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)


def test_sharded_and_prefixed_checkpoints_load(tmp_path):
    import json

    tensors = load_file(GOLDEN / "model.safetensors")
    prefixed = {"bert." + name: value for name, value in tensors.items()}
    prefixed["cls.predictions.bias"] = np.zeros(99, np.float32)
    names = sorted(prefixed)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({n: prefixed[n] for n in part}, tmp_path / file)
    weight_map = {n: file for file, part in halves.items() for n in part}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    config = read_config(GOLDEN)
    expected = hf._flatten(hf.load_weights(GOLDEN, config).params)
    found = hf._flatten(hf.load_weights(tmp_path, config).params)
    for name in expected:
        np.testing.assert_array_equal(expected[name], found[name])


def test_all_problems_in_one_message(tmp_path):
    shutil.copy(GOLDEN / "config.json", tmp_path)
    tensors = load_file(GOLDEN / "model.safetensors")
    del tensors["embeddings.LayerNorm.bias"]
    tensors["encoder.layer.1.output.dense.weight"] = np.zeros((3, 4), np.float32)
    tensors["encoder.layer.7.output.dense.weight"] = np.zeros((3, 4), np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError) as error:
        hf.load_weights(tmp_path, read_config(tmp_path))
    for part in (
        "missing embeddings.LayerNorm.bias",
        "encoder.layer.1.output.dense.weight has shape (3, 4), expected (32, 64)",
        "no rule for encoder.layer.7.output.dense.weight",
    ):
        assert part in str(error.value)


def test_truncated_and_absent_files(tmp_path):
    config = read_config(GOLDEN)
    with pytest.raises(UserError, match="no such file"):
        hf.load_weights(tmp_path, config)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UserError, match=r"pytorch_model\.bin.*to safetensors first"):
        hf.load_weights(tmp_path, config)
    data = (GOLDEN / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="not a readable safetensors file"):
        hf.load_weights(tmp_path, config)


def test_resolve_model():
    assert hf.resolve_model(str(GOLDEN)) == GOLDEN
    with pytest.raises(UserError, match="package no_such_thing is not installed"):
        hf.resolve_model("package:no_such_thing/model")
    with pytest.raises(UserError, match="no such directory"):
        hf.resolve_model("./not/here/at/all")
    with pytest.raises(UserError, match="neither a local directory nor to be had"):
        hf.resolve_model("nobody/nothing")  # the hub is offline in tests
