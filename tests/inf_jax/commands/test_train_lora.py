"""Runs with adapters or frozen parameters: what moves, what is saved, resumed, exported."""

import importlib.util
import json
import math
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from inf_jax import evaluate, export, load, train
from inf_jax.checkpoints import manager as checkpoint
from inf_jax.config.defaults import run_config
from inf_jax.core.errors import UserError
from inf_jax.models import hf
from inf_jax.models.hf.config import read_config
from inf_jax.monitoring.metrics_log import read_metrics
from inf_jax.training.setup import make_training
from inf_jax.training.step import TrainState


@pytest.fixture
def lora_config(tiny_config):
    tiny_config.model.lora_rank = 4
    tiny_config.model.lora_targets = "(query|value|down)_kernel"
    tiny_config.optim.lr = 2e-2
    tiny_config.optim.schedule = "constant"
    tiny_config.train.health = False
    return tiny_config


def final_state(config):
    """(state, the same at step 0), as numpy arrays."""
    training = make_training(run_config(config))
    manager = checkpoint.make_manager(Path(config.out_dir) / "checkpoints", keep=9)
    state, _ = checkpoint.restore(manager, training.program.shapes.saved)
    manager.close()
    state = TrainState(**state, frozen=training.frozen())
    return jax.tree.map(np.asarray, state), jax.tree.map(np.asarray, training.fresh())


def same(a, b) -> bool:
    """Bit for bit."""
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        x.dtype == y.dtype and np.array_equal(x, y)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def paths_of(tree) -> set[str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves}


def test_adapters_train_resume_evaluate_and_export(lora_config, tiny_model_dir, tmp_path):
    config = lora_config
    model = tmp_path / "model"
    shutil.copytree(tiny_model_dir, model)
    config.model.name = str(model)
    config.train.dev_every = 4
    train.main(config)
    out_dir = Path(config.out_dir)
    lines = read_metrics(out_dir / "metrics.jsonl")
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    assert np.isfinite(lines[-1]["dev/loss"])
    state, start = final_state(config)

    # the base stays, adapters move; a checkpoint holds the adapters and their moments alone
    names = ("query", "value", "down")
    adapters = {f"shared/blocks/{name}_lora_{x}" for name in names for x in "ab"}
    assert paths_of(state.params) == adapters
    backbone = hf.load_weights(model, read_config(model)).params
    assert same(state.frozen, {"shared": backbone})
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max() > 1e-4, state.params, start.params)
    assert all(jax.tree.leaves(moved))
    with ocp.PyTreeCheckpointer() as checkpointer:
        saved = checkpointer.metadata(out_dir / "checkpoints/4/state").item_metadata.tree
    assert saved.keys() == {"step", "params", "opt_state"}
    assert paths_of(saved["params"]) == adapters
    size = sum(math.prod(x.shape) for x in jax.tree.leaves(saved))
    assert size < 0.5 * sum(x.size for x in jax.tree.leaves(backbone))

    # from the middle, bit for bit
    other = config.copy_and_resolve_references()
    other.out_dir = str(tmp_path / "resumed")
    shutil.copytree(out_dir / "checkpoints/2", tmp_path / "resumed/checkpoints/2")
    train.main(other, resume=True)
    assert same(final_state(other)[0], state)

    # merged into the weights, and alone
    evaluate.main(config)
    scores = json.loads((out_dir / "eval.json").read_text())
    assert scores["base"] != scores["trained"]
    config.export.adapter = True
    export.main(config)
    merged = hf.load_weights(out_dir / "export", read_config(model)).params
    a, b = (state.params["shared"]["blocks"][f"down_lora_{x}"] for x in "ab")
    kernel = backbone["blocks"]["down_kernel"] + 16 / 4 * np.einsum("lfr,lrd->lfd", a, b)
    np.testing.assert_allclose(merged["blocks"]["down_kernel"], kernel, atol=1e-6)
    assert same(merged["blocks"]["up_kernel"], backbone["blocks"]["up_kernel"])
    parity = json.loads((out_dir / "export/parity.json").read_text())
    if importlib.util.find_spec("peft") and importlib.util.find_spec("torch"):
        assert parity["loaders"]["peft"]["min_cosine"] >= 0.9999
    else:
        assert "peft" in parity["not_verified"]
    peft = json.loads((out_dir / "export/adapter/adapter_config.json").read_text())
    assert (peft["r"], peft["lora_alpha"]) == (4, 16.0)
    assert peft["base_model_name_or_path"] == str(model)
    card = (out_dir / "export/README.md").read_text()
    assert "Adapters of rank 4 and alpha 16" in card and "PeftModel.from_pretrained" in card

    # other settings, and another backbone of the same name
    other.model.lora_alpha = 1.0
    with pytest.raises(UserError, match=r"lora_alpha was 16\.0, is now 1\.0"):
        evaluate.main(other)
    other.model.lora_alpha = 16.0
    backbone["blocks"]["up_kernel"][1, 2, 3] += 1e-3
    hf.save_weights(backbone, model, read_config(model))
    other.train.steps = 6
    for main in (train.main, evaluate.main):
        with pytest.raises(UserError, match="not what the run began with"):
            main(other)


def test_from_a_full_run_to_adapters_of_one_tower(lora_config, tmp_path, no_torch):
    """The start is a run with frozen layers and embeddings; then the query tower alone learns."""
    full = lora_config.copy_and_resolve_references()
    full.model.lora_rank = 0
    full.model.freeze = "/word$|embeddings|^shared/norm"
    full.model.freeze_layers = 1
    full.optim.weight_decay = 0.5
    full.train.steps = 2
    full.out_dir = str(tmp_path / "full")
    train.main(full)
    state, start = final_state(full)
    assert paths_of(state.frozen) == {"shared/word", "shared/norm/scale", "shared/norm/bias"}
    assert same(state.frozen, start.frozen)
    for name, x in state.params["shared"]["blocks"].items():
        first = start.params["shared"]["blocks"][name]
        if isinstance(x, np.ndarray):
            assert np.array_equal(x[0], first[0]), name
    kernels = (s.params["shared"]["blocks"]["up_kernel"] for s in (state, start))
    assert np.abs(np.subtract(*kernels))[1].max() > 1e-3
    moments = state.opt_state.inner_state[1][0].nu["shared"]["blocks"]["up_kernel"]
    assert not moments[0].any() and moments[1].all()
    assert "word" not in state.opt_state.inner_state[1][0].nu["shared"]

    config = lora_config
    config.model.towers = "separate"
    config.model.start_from = full.out_dir
    config.model.freeze = "^passage/"
    config.model.frozen_dtype = "bfloat16"
    config.train.steps = 2
    config.train.batch_size = 48
    train.main(config)
    after, start = final_state(config)
    assert after.params.keys() == {"query"}
    assert after.frozen.keys() == {"query", "passage"}
    assert same(after.frozen, start.frozen) and not same(after.params, start.params)
    source = state.whole["shared"]
    for tower in ("query", "passage"):
        frozen = after.frozen[tower]
        assert np.array_equal(frozen["word"], source["word"].astype(frozen["word"].dtype))
        assert same(frozen["norm"], source["norm"])  # float32
    export.main(config)
    out = Path(config.out_dir) / "export"
    shape = read_config(config.model.name)
    passages = hf.load_weights(out / "passage", shape).params
    half = after.frozen["passage"]["blocks"]["down_kernel"].astype(np.float32)
    assert np.array_equal(passages["blocks"]["down_kernel"], half)
    queries = hf.load_weights(out / "query", shape).params
    assert np.abs(queries["blocks"]["down_kernel"] - half).max() > 1e-4

    config.export.adapter = True
    with pytest.raises(UserError, match="which PEFT cannot open"):
        export.main(config)
    config.export.adapter = False
    config.out_dir = str(tmp_path / "again")
    config.model.towers = "shared"
    config.model.freeze = ""
    config.model.start_from = f"{lora_config.out_dir}/checkpoints/2".replace("again", "run")
    with pytest.raises(UserError, match="separate towers, which cannot start shared ones"):
        train.main(config)
    config.model.start_from = str(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"start_from=.*nothing: no checkpoint there"):
        train.main(config)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("freeze", "nothing", r"freeze='nothing' matches no parameter; there are shared/blocks/"),
        ("freeze", ".", r"freeze='\.' leaves nothing to train"),
        ("freeze_layers", 2, "the model has 2 layers"),
        ("lora_targets", "word", "matches word, not linear"),
    ],
)
def test_impossible_choices(lora_config, key, value, reason):
    lora_config.model[key] = value
    with pytest.raises(UserError, match=reason):
        make_training(run_config(lora_config))


def test_a_projection_is_trained_beside_adapters(lora_config, tmp_path):
    config = lora_config
    config.model.projection = 8
    config.model.projection_bias = True
    config.mesh.fsdp = 2
    config.train.steps = config.train.checkpoint_every = 2
    train.main(config)
    state, start = final_state(config)
    head = {"shared/projection/kernel", "shared/projection/bias"}
    assert head < paths_of(state.params) and not head & paths_of(state.frozen)
    kernels = [s.params["shared"]["projection"]["kernel"] for s in (state, start)]
    assert np.abs(np.subtract(*kernels)).max() > 1e-3
    evaluate.main(config)
    config.export.adapter = True
    export.main(config)
    out = Path(config.out_dir) / "export"
    loaded = load(out)
    assert loaded.embedding_size == 8
    exported = loaded.params["shared"]["projection"]["kernel"]
    np.testing.assert_array_equal(exported, kernels[0])
    parity = json.loads((out / "parity.json").read_text())
    assert "peft" in parity["not_verified"] or parity["loaders"]["peft"]["min_cosine"] >= 0.9999
    assert "An adapter does not hold the layer after pooling" in (out / "README.md").read_text()

    # from that run's merged parameters, and its layer with them
    other = config.copy_and_resolve_references()
    other.model.start_from, other.out_dir = config.out_dir, str(tmp_path / "next")
    other.model.freeze = "projection/"
    training = make_training(run_config(other))
    first = training.frozen()["shared"]["projection"]["kernel"]
    np.testing.assert_array_equal(first, kernels[0])
    other.model.projection_bias = False
    with pytest.raises(UserError, match=r"trained with model\.projection=8 and model\.projection_"):
        make_training(run_config(other)).fresh()
    other.model.projection_bias = True
    other.model.name = str(shutil.copytree(config.model.name, tmp_path / "model"))
    file = tmp_path / "model" / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    (one, a), (another, b) = list(vocabulary.items())[-2:]
    vocabulary |= {one: b, another: a}
    file.write_text(json.dumps(tokenizer))
    told = rf"another tokenizer .*the token '{re.escape(one)}' had the id {a}, now {b}"
    with pytest.raises(UserError, match=told):
        make_training(run_config(other)).fresh()
    config.model.projection = 0
    config.model.projection_bias = False
    with pytest.raises(UserError, match="projection was 8, is now 0"):
        evaluate.main(config)
