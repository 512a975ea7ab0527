"""Loading and saving weights: round trips, other people's files, all problems in one message."""

import dataclasses
import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from inf_jax.core.errors import UserError
from inf_jax.io.safetensors import stored_tensors
from inf_jax.models import hf
from inf_jax.models.hf import check as hf_check
from inf_jax.models.hf.config import read_config
from inf_jax.models.hf.weight_tables import table_of
from inf_jax.models.hf.weights import load_carried
from tests.inf_jax.models.goldens import GOLDEN as GOLDENS
from tests.inf_jax.models.goldens import NAMES, params_of, shape_of

GOLDEN = GOLDENS / "bert"


def assert_same_tensors(before, after):
    assert before.keys() == after.keys()
    for name in before:
        assert before[name].dtype == after[name].dtype
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)


@pytest.mark.parametrize("name", NAMES)
def test_load_save_load_is_bit_identical_and_opens_in_transformers(name, tmp_path):
    directory, shape = GOLDENS / name, shape_of(name)
    weights = hf.load_weights(directory, shape)
    hf.save_weights(weights.params, tmp_path, shape, weights.carried)
    assert_same_tensors(
        load_file(directory / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    )
    jax.tree.map(
        np.testing.assert_array_equal, hf.load_weights(tmp_path, shape).params, weights.params
    )
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    shutil.copy(directory / "config.json", tmp_path)
    kind = getattr(transformers, table_of(shape).architecture)
    _, info = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    golden = np.load(directory / "golden.npz")
    mask = golden["right_attention_mask"].astype(bool)
    texts = [ids[m] for ids, m in zip(golden["right_input_ids"], mask, strict=True)]
    states = np.concatenate(hf_check.torch_states(tmp_path, shape, texts))
    np.testing.assert_allclose(states, golden["right_last_hidden_state"][mask], atol=2e-5)


@pytest.mark.parametrize("name", ["modernbert", "qwen2", "bert"])
def test_bfloat16_files(name, tmp_path):
    directory, shape = GOLDENS / name, shape_of(name)
    weights = hf.load_weights(directory, shape)
    hf.save_weights(weights.params, tmp_path / "a", shape, weights.carried, dtype="bfloat16")
    stored = stored_tensors(tmp_path / "a")
    assert {x.dtype for n, x in stored.items() if n not in weights.carried} == {"BF16"}
    assert {stored[n].dtype for n in weights.carried} <= {"F32"}  # saved unchanged
    loaded = hf.load_weights(tmp_path / "a", shape).params
    jax.tree.map(
        lambda x, y: np.testing.assert_array_equal(
            x.astype(ml_dtypes.bfloat16).astype(np.float32), y
        ),
        weights.params,
        loaded,
    )
    assert {x.dtype for x in jax.tree.leaves(loaded)} == {np.dtype(np.float32)}
    hf.save_weights(loaded, tmp_path / "b", shape, weights.carried, dtype="bfloat16")
    first, second = (tmp_path / d / "model.safetensors" for d in "ab")
    assert first.read_bytes() == second.read_bytes()


def test_several_files_and_prefixes(tmp_path):
    """Sharded files of ours; sharded and prefixed files of others, loaded by us."""
    shape, before = shape_of("gemma2"), load_file(GOLDENS / "gemma2" / "model.safetensors")
    largest = max(x.nbytes for x in before.values())
    params = params_of("gemma2")
    hf.save_weights(params, tmp_path / "ours", shape)  # replaced below, with its single file
    hf.save_weights(params, tmp_path / "ours", shape, max_file_bytes=largest)
    files = sorted(p.name for p in (tmp_path / "ours").glob("*.safetensors"))
    assert len(files) > 3 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
    index = json.loads((tmp_path / "ours" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in before.values())
    saved = {}
    for file in files:
        part = load_file(tmp_path / "ours" / file)
        assert sum(x.nbytes for x in part.values()) <= largest
        assert {n for n, f in index["weight_map"].items() if f == file} == part.keys()
        saved |= part
    assert_same_tensors(before, saved)
    jax.tree.map(
        np.testing.assert_array_equal, hf.load_weights(tmp_path / "ours", shape).params, params
    )
    hf.save_weights(params, tmp_path / "ours", shape)  # and back to one file
    assert [p.name for p in (tmp_path / "ours").iterdir()] == ["model.safetensors"]
    (tmp_path / "theirs").mkdir()
    prefixed = {"model." + name: value for name, value in before.items()}
    prefixed["lm_head.weight"] = prefixed["model.embed_tokens.weight"]  # a tied head
    names = sorted(prefixed)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({n: prefixed[n] for n in part}, tmp_path / "theirs" / file)
    weight_map = {n: file for file, part in halves.items() for n in part}
    index_file = tmp_path / "theirs" / "model.safetensors.index.json"
    index_file.write_text(json.dumps({"weight_map": weight_map}))
    weights = hf.load_weights(tmp_path / "theirs", shape)
    jax.tree.map(np.testing.assert_array_equal, weights.params, params)
    assert weights.carried == {}
    index_file.write_text(json.dumps({"weight_map": weight_map | {"x": "a.safetensors"}}))
    with pytest.raises(UserError, match=r"names tensors that the files lack: x"):
        hf.load_weights(tmp_path / "theirs", shape)


def linked(directory, source=GOLDEN):
    """A copy of a model as the hub's cache has it: links to files elsewhere."""
    directory.mkdir()
    for name in ("config.json", "model.safetensors"):
        (directory / name).symlink_to(source / name)
    return directory


@pytest.mark.parametrize(
    "index", ['{"weight_map": {"a": "model-00001-of-00002.safetensors"}}', "{}", "[", ""]
)
def test_a_whole_file_counts_before_an_index_beside_it(tmp_path, index):
    directory = linked(tmp_path / "model")
    (directory / "model.safetensors.index.json").write_text(index)
    loaded = hf.load_weights(directory, shape_of("bert"))
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params_of("bert"))


@pytest.mark.parametrize(
    ("index", "problem"),
    [
        ({"a": "../outside.safetensors"}, r"names '\.\./outside\.safetensors', .*outside of"),
        ({"a": "x/../../outside.safetensors"}, r"outside\.safetensors', which is outside of"),
        ({"a": "{tmp}/outside.safetensors"}, r"outside\.safetensors', which is outside of"),
        ({"a": "a\0.safetensors"}, r"which is outside of"),
        ({"a": "gone.safetensors"}, r"names 'gone\.safetensors', which is missing"),
        ({"a": ""}, r"names '', which is missing"),
        ({"a": 3}, r"not an index of weights"),
        (["a.safetensors"], r"not an index of weights"),
        (None, r"not an index of weights"),
        (
            {f"layers.{n}.x.weight": "part.safetensors" for n in range(9)},
            r"that the files lack: layers\.\*\.x\.weight \(9 times\)",
        ),
    ],
)
def test_an_index_of_others(tmp_path, index, problem):
    shutil.copy(GOLDEN / "model.safetensors", tmp_path / "outside.safetensors")
    (tmp_path / "model").mkdir()
    shutil.copy(GOLDEN / "model.safetensors", tmp_path / "model" / "part.safetensors")
    file = tmp_path / "model" / "model.safetensors.index.json"
    file.write_text(json.dumps({"weight_map": index}).replace("{tmp}", str(tmp_path)))
    with pytest.raises(UserError, match=rf"index\.json.*{problem}"):
        hf.load_weights(tmp_path / "model", shape_of("bert"))


def test_heads_poolers_and_older_names(tmp_path):
    shape, tensors = shape_of("bert"), load_file(GOLDEN / "model.safetensors")
    old = {
        "bert."
        + n.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): x
        for n, x in tensors.items()
        if not n.startswith("pooler")  # some files have none
    }
    old["cls.predictions.bias"] = np.zeros(99, np.float32)
    old["bert.embeddings.position_ids"] = np.arange(64)
    save_file(old, tmp_path / "model.safetensors")
    weights = hf.load_weights(tmp_path, shape)
    jax.tree.map(np.testing.assert_array_equal, weights.params, params_of("bert"))
    assert weights.carried == {}
    carried = load_carried(GOLDEN, shape)
    assert carried.keys() == {"pooler.dense.weight", "pooler.dense.bias"}
    np.testing.assert_array_equal(carried["pooler.dense.bias"], tensors["pooler.dense.bias"])


def test_a_whole_t5_gives_its_encoder(tmp_path):
    shape = shape_of("t5_encoder")
    tensors = load_file(GOLDENS / "t5_encoder" / "model.safetensors")
    tensors["decoder.final_layer_norm.weight"] = np.zeros(3, np.float32)
    tensors["lm_head.weight"] = np.zeros(3, np.float32)
    tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"]  # tied, stored twice
    save_file(tensors, tmp_path / "model.safetensors")
    params = hf.load_weights(tmp_path, shape).params
    jax.tree.map(np.testing.assert_array_equal, params, params_of("t5_encoder"))
    del tensors["shared.weight"]  # or under the other name
    save_file(tensors, tmp_path / "model.safetensors")
    params = hf.load_weights(tmp_path, shape).params
    jax.tree.map(np.testing.assert_array_equal, params, params_of("t5_encoder"))
    tensors["shared.weight"] = 2 * tensors["encoder.embed_tokens.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"differs from another tensor for shared\.weight"):
        hf.load_weights(tmp_path, shape)


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


def test_other_numbers_than_floats_are_refused(tmp_path):
    tensors = load_file(GOLDEN / "model.safetensors")
    name = "encoder.layer.1.output.dense.weight"
    tensors[name] = tensors[name].astype(np.int8)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"a tensor of I8; supported: F64, F32, F16, BF16"):
        hf.load_weights(tmp_path, read_config(GOLDEN))


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


def test_layers_of_another_shape_are_one_line(tmp_path):
    shape = shape_of("qwen2")
    hf.save_weights(params_of("qwen2"), tmp_path, shape)
    with pytest.raises(UserError) as error:
        hf.load_weights(tmp_path, dataclasses.replace(shape, ffn=7))
    message = str(error.value)
    assert "layers.*.mlp.up_proj.weight has shape (64, 32), expected (7, 32) (2 times)" in message
    assert message.count("mlp.up_proj") == 1


def test_missing_layers_are_one_line(tmp_path):
    shape = dataclasses.replace(shape_of("qwen2"), layers=2)
    hf.save_weights(params_of("qwen2"), tmp_path, shape)
    deeper = dataclasses.replace(shape, layers=40, windows=(None,) * 40, ropes=shape.ropes[:1] * 40)
    with pytest.raises(UserError) as error:
        hf.load_weights(tmp_path, deeper)
    assert "missing layers.*.mlp.down_proj.weight (38 times)" in str(error.value)
    assert len(str(error.value)) < 2000
