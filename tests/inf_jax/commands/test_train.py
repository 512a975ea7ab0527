"""The command train: killed and resumed in processes of its own; on one device and on eight."""

import json
import re
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from inf_jax import evaluate, train
from inf_jax.checkpoints import manager as checkpoint
from inf_jax.config.defaults import run_config
from inf_jax.core.errors import UserError
from inf_jax.monitoring.metrics_log import read_metrics
from inf_jax.training.setup import make_training
from inf_jax.training.step import TrainState
from tests.inf_jax.processes import finish, start, write_config

# The command train, which kills itself (SIGKILL) right after it logged step 11, while step 12 runs
# and a checkpoint is being written.
KILLED = """
import os, signal
from inf_jax import train
from inf_jax.config.command_line import run
from inf_jax.monitoring import metrics_log as report
write = report.MetricsLog.write
def write_then_die(self, step, metrics):
    write(self, step, metrics)
    if step == 11:
        os.kill(os.getpid(), signal.SIGKILL)
report.MetricsLog.write = write_then_die
run(train.main, train.__doc__)
"""


def run(file, *overrides, **options):
    """The output of a run of one process that ends well."""
    (out,), codes = finish(start(file, *overrides, **options))
    assert codes == [0], out
    return out


@pytest.fixture
def train_on(tiny_config, tmp_path, monkeypatch, capsys):
    """Trains on the first of this process's eight devices, with these keys of sections."""

    def call(name, devices, **sections):
        config = tiny_config.copy_and_resolve_references()
        config.out_dir = str(tmp_path / name)
        for section, values in sections.items():
            config[section].update(values)
        with monkeypatch.context() as patch:
            for list_devices in ("devices", "local_devices"):
                found = getattr(jax, list_devices)()[:devices]
                patch.setattr(jax, list_devices, lambda found=found: found)
            train.main(config)
        out = capsys.readouterr().out
        assert f"{devices} x cpu" in out
        return out, read_metrics(Path(config.out_dir) / "metrics.jsonl")

    return call


def final_state(config):
    training = make_training(run_config(config))
    manager = checkpoint.make_manager(Path(config.out_dir) / "checkpoints", keep=9)
    state, info = checkpoint.restore(manager, training.program.shapes.saved)
    return TrainState(**jax.tree.map(np.asarray, state)), info


def test_killed_and_resumed_equals_undisturbed_bit_for_bit(tiny_config, tmp_path, capsys):
    tiny_config.train.steps = 20
    tiny_config.train.checkpoint_every = 3
    tiny_config.model.dropout = 0.1  # its bits must be the same as well
    tiny_config.optim.update({"lr": 1e-3, "ema": 0.9})
    file = write_config(tiny_config, tmp_path / "c.py")
    run(file)
    straight, where = final_state(tiny_config)
    assert where.step == 20
    moved = straight.ema["shared"]["word"] - straight.params["shared"]["word"]
    assert np.abs(moved).max() > 1e-4

    killed = tiny_config.copy_and_resolve_references()
    killed.out_dir = str(tmp_path / "killed")
    log = Path(killed.out_dir) / "metrics.jsonl"
    to_killed = f"--config.out_dir={killed.out_dir}"
    _, codes = finish(start(file, to_killed, program=("-c", KILLED)))
    assert codes == [-signal.SIGKILL]
    assert len(read_metrics(log)) == 12
    with log.open("a") as f:
        f.write('{"step": 12, "lo')  # a line that a kill truncated
    out = run(file, to_killed)
    assert "steps 0 to 20" not in out  # it did resume
    resumed, where = final_state(killed)
    assert where.step == 20
    for a, b in zip(jax.tree.leaves(straight), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    assert read_metrics(log) == read_metrics(Path(tiny_config.out_dir) / "metrics.jsonl")

    train.main(killed)
    assert "all 20 steps are done" in capsys.readouterr().out


def test_eight_devices_give_the_loss_curve_of_one(tiny_config, train_on):
    tiny_config.train.update({"steps": 20, "checkpoint_every": 20, "health": False})
    tiny_config.optim.lr = 1e-3
    curves = {}
    for name, devices, sections in (
        ("one", 1, {}),
        ("eight", 8, {}),
        ("fsdp_gradcache", 8, {"mesh": {"fsdp": 4}, "train": {"chunks_per_device": 2}}),
        ("tensor", 4, {"mesh": {"fsdp": 2, "tensor": 2}, "train": {"health": True}}),
    ):
        out, lines = train_on(name, devices, **sections)
        assert "negatives a query, block P" in out
        curves[name] = [line["loss"] for line in lines]
        assert len(curves[name]) == 20
    assert curves["one"][-1] < 0.8 * curves["one"][0]  # it learns
    np.testing.assert_allclose(curves["eight"], curves["one"], rtol=1e-4)
    for name in ("fsdp_gradcache", "tensor"):
        np.testing.assert_allclose(curves[name], curves["one"], rtol=1e-4)


@pytest.mark.parametrize("objective", ["uni(P,I)", "multi(P,I,IQ)"])
def test_instruction_negatives_give_one_loss_curve(tiny_config, train_on, objective):
    tiny_config.train.update({"steps": 20, "checkpoint_every": 20, "health": False})
    tiny_config.optim.lr = 1e-3
    tiny_config.loss.objective = objective
    tiny_config.loss.instruction_negatives = 2
    curves = {}
    for name, devices, sections in (
        ("one", 1, {}),
        ("gradcache", 8, {"train": {"chunks_per_device": 2}, "mesh": {"fsdp": 2}}),
    ):
        out, lines = train_on(name, devices, **sections)
        assert re.search(r"block I, a query .* 2\.00 sampled, 0\.67 poisoned at no cost", out)
        assert re.search(r"block I, tokens a step .* \d+, \d\d\.\d% of all", out)
        assert re.search(r"negatives a query, block I .* 3 ", out)
        assert all(line["negatives/I"] == pytest.approx(2 + 2 / 3) for line in lines)
        curves[name] = [line["loss"] for line in lines]
    assert len(curves["one"]) == 20
    assert curves["one"][-1] < 0.8 * curves["one"][0]
    np.testing.assert_allclose(curves["gradcache"], curves["one"], rtol=1e-4)


@pytest.mark.parametrize("change", ["towers", "bfloat16", "scan"])
def test_variants_train(tiny_config, change):
    if change == "towers":
        tiny_config.model.towers = "separate"
    elif change == "bfloat16":
        tiny_config.model.dtype = "bfloat16"
    else:
        tiny_config.model.scan_layers = False
        tiny_config.model.remat = "full"
    tiny_config.train.batch_size = 48
    train.main(tiny_config)
    out_dir = Path(tiny_config.out_dir)
    lines = read_metrics(out_dir / "metrics.jsonl")
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert all(np.isfinite(line["loss"]) for line in lines)
    assert json.loads((out_dir / "config.json").read_text())["model"]["name"]
    assert list((out_dir / "tensorboard").glob("events*"))
    state, _ = final_state(tiny_config)
    expected = {"query", "passage"} if change == "towers" else {"shared"}
    assert state.params.keys() == expected


LOSSES = {
    "learned": {"objective": "multi(P,0.5*IQ) + 0.1*sigmoid(P)", "learn_scale": True, "scale": 9.0},
    "matryoshka": {"objective": "uni(P,IQ)", "dims": (32, 8), "dim_weights": (1.0, 0.5)},
    "tiles": {"objective": "multi(P,IQ)", "engine": "ring", "tile_dtype": "bfloat16"},
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_train_and_evaluate(tiny_config, name):
    tiny_config.loss.update(LOSSES[name])
    tiny_config.train.batch_size = 48
    train.main(tiny_config)
    out_dir = Path(tiny_config.out_dir)
    lines = read_metrics(out_dir / "metrics.jsonl")
    assert all(np.isfinite(line["loss"]) for line in lines)
    assert len(lines[-1]["health/negative_scores"]) == 20
    state, _ = final_state(tiny_config)
    if name == "learned":
        assert lines[0]["scale"] == pytest.approx(9.0) and lines[0]["bias"] == -10.0
        assert set(state.params) == {"shared", "loss"}
        assert state.params["loss"]["bias"] != -10.0
        evaluate.main(tiny_config)  # the learned scale is no part of the model
        assert json.loads((out_dir / "eval.json").read_text())["step"] == 4
    if name == "matryoshka":
        assert lines[-1]["loss"] == pytest.approx(
            lines[-1]["loss/dim32"] + 0.5 * lines[-1]["loss/dim8"], rel=1e-5
        )


@pytest.mark.parametrize("towers", ["shared", "separate"])
def test_attention_query_encoder_is_the_same_in_chunks_and_on_a_mesh(tiny_config, train_on, towers):
    """Block I over all pairs of a chunk: the same 16 chunks on 8 devices and on one."""
    tiny_config.model.query_encoder = "attention"
    tiny_config.model.towers = towers
    tiny_config.loss.objective = "multi(P,I,IQ)"
    tiny_config.train.update({"batch_size": 96, "health": False})
    curves = []
    for devices, chunks in ((8, 2), (1, 16)):
        _, lines = train_on(str(devices), devices, train={"chunks_per_device": chunks})
        curves.append([[x["loss"], x["negatives/I"], x["masked/I"]] for x in lines])
        assert all(x["negatives/I"] > 0 for x in lines)
    np.testing.assert_allclose(curves[0], curves[1], rtol=1e-4)


def test_non_finite_runs_stop_with_the_reason(tiny_config):
    tiny_config.optim.max_nonfinite = 2
    tiny_config.train.steps = 6
    tiny_config.optim.lr = 1e38  # the first update overflows all that follows
    with pytest.raises(UserError, match="gradients were not finite for 2 steps in a row"):
        train.main(tiny_config)


def test_resuming_with_another_order_or_model_is_refused(tiny_config):
    train.main(tiny_config)
    tiny_config.train.steps = 6
    tiny_config.seed = 5
    with pytest.raises(UserError, match="seed was 0, is now 5"):
        train.main(tiny_config)
    tiny_config.seed = 0
    tiny_config.optim.lr = 0.5
    with pytest.raises(UserError, match=r"optim\.lr was 1e-05, is now 0\.5"):
        train.main(tiny_config)
    tiny_config.optim.lr = 1e-5
    tiny_config.model.towers = "separate"
    with pytest.raises(UserError, match=r"model\.towers was 'shared', is now 'separate'"):
        train.main(tiny_config)


def test_missing_dataset_names_the_command(tiny_config):
    tiny_config.data.source = "medquad"
    with pytest.raises(UserError, match=r"python -m data_pipeline\.build --source=medquad"):
        train.main(tiny_config)
