"""The command train: checkpoints, resuming, and what stops a run."""

import itertools
import json
import re
import shutil
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from inf_jax import evaluate, train
from inf_jax.checkpoints import manager as checkpoint
from inf_jax.checkpoints.integrity import fingerprint
from inf_jax.config.defaults import run_config
from inf_jax.core.errors import UserError
from inf_jax.core.interrupts import INTERRUPTED
from inf_jax.distributed.preemption import STOPPED
from inf_jax.io import storage
from inf_jax.io.tfrecord import read_records
from inf_jax.models.hf.backbone import load_model
from inf_jax.monitoring.metrics_log import read_metrics
from inf_jax.training.setup import make_training
from tests.inf_jax.processes import LIMIT_S, finish, start, write_config

# The command train, but after the first checkpoint no file may grow beyond 16 KiB: enough for the
# log, too little for a checkpoint, as on a full disk.
FULL = """
import resource
from inf_jax import train
from inf_jax.config.command_line import run
from inf_jax.checkpoints import manager as checkpoint
save = checkpoint.save
def save_on_a_full_disk(manager, *args, **options):
    if manager.latest_step() == 4:
        manager.wait_until_finished()
        resource.setrlimit(resource.RLIMIT_FSIZE, (16384, resource.RLIM_INFINITY))
    save(manager, *args, **options)
checkpoint.save = save_on_a_full_disk
run(train.main, train.__doc__)
"""


# The command train, but the batch of step 10 waits until a file "go" exists.
GATED = """
import os
import time
from inf_jax import train
from inf_jax.config.command_line import run
from inf_jax.data import loader
host_batch = loader.Loader.host_batch
def gated(self, step):
    while step >= 10 and not os.path.exists("go"):
        time.sleep(0.01)
    return host_batch(self, step)
loader.Loader.host_batch = gated
run(train.main, train.__doc__)
"""


@pytest.fixture
def tiny_config(tiny_config):
    """A run that compiles fast."""
    tiny_config.train.health = False
    return tiny_config


def steps_in(directory):
    return sorted(int(path.name) for path in Path(directory).iterdir())


def test_restored_on_another_mesh(tiny_config):
    """From eight copies of the state to two of four shards each, and to one device's worth."""
    train.main(tiny_config)
    states = []
    for fsdp in (1, 4, 8):
        tiny_config.mesh.fsdp = fsdp
        shapes = make_training(run_config(tiny_config)).program.shapes.saved
        with checkpoint.make_manager(f"{tiny_config.out_dir}/checkpoints", keep=9) as manager:
            state, _ = checkpoint.restore(manager, shapes)
        for array, shape in zip(jax.tree.leaves(state), jax.tree.leaves(shapes), strict=True):
            assert array.sharding == shape.sharding
        states.append(jax.tree.map(np.asarray, state))
    for other in states[1:]:
        jax.tree.map(np.testing.assert_array_equal, states[0], other)


def test_best_metric(tiny_config):
    tiny_config.train.update({"keep_best": 1, "checkpoint_every": 1, "keep_checkpoints": 1})
    tiny_config.train.best_metric = "lr"  # falls
    tiny_config.train.best_mode = "max"
    train.main(tiny_config)
    assert steps_in(Path(tiny_config.out_dir, "checkpoints")) == [1, 4]
    tiny_config.out_dir += "2"
    tiny_config.train.best_metric = "ndcg"
    with pytest.raises(UserError, match=r"train\.best_metric='ndcg': no metric .* loss, "):
        train.main(tiny_config)


def test_the_best_on_dev_is_kept(tiny_config):
    """The dev loss falls, is the same in a resumed run, and is measured without dropout."""
    tiny_config.train.update({"steps": 6, "checkpoint_every": 2, "keep_checkpoints": 1})
    tiny_config.train.update({"dev_every": 2, "dev_batches": 2, "keep_best": 1})
    tiny_config.train.best_metric = "dev/loss"
    tiny_config.optim.update({"lr": 1e-3, "schedule": "constant"})
    tiny_config.model.dropout = 0.1
    train.main(tiny_config)
    lines = read_metrics(Path(tiny_config.out_dir, "metrics.jsonl"))
    assert [line["step"] for line in lines if "dev/loss" in line] == [1, 3, 5]
    losses = [line["dev/loss"] for line in lines if "dev/loss" in line]
    assert losses == sorted(losses, reverse=True)
    assert steps_in(Path(tiny_config.out_dir, "checkpoints")) == [6]
    tiny_config.out_dir += "2"
    tiny_config.train.steps = 2
    train.main(tiny_config)
    tiny_config.train.steps = 6
    tiny_config.train.best_mode = "max"
    train.main(tiny_config)
    assert read_metrics(Path(tiny_config.out_dir, "metrics.jsonl")) == lines
    assert steps_in(Path(tiny_config.out_dir, "checkpoints")) == [2, 6]


def test_the_best_by_a_retrieval_score_is_the_one_that_evaluate_finds(tiny_config, monkeypatch):
    """Also between two of train.eval_every's steps, with frozen parameters, and of an average;
    TensorBoard and W&B have all these scores."""
    sent = {}
    run = SimpleNamespace(log=lambda values, step: sent.setdefault(step, {}).update(values))
    run.finish = lambda **_: None
    wandb = SimpleNamespace(Error=RuntimeError, Settings=dict, Histogram=dict)
    wandb.init = lambda **_: run
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    tiny_config.train.wandb_project = "plants"
    tiny_config.train.update({"steps": 6, "checkpoint_every": 2, "keep_checkpoints": 9})
    tiny_config.train.update({"eval_every": 5, "keep_best": 1, "best_metric": "dev/p_mrr"})
    tiny_config.train.best_mode = "max"
    tiny_config.model.freeze = "word$"
    tiny_config.eval.max_passages = 17
    tiny_config.optim.update({"lr": 3e-3, "schedule": "constant", "ema": 0.3})
    train.main(tiny_config)
    out_dir = Path(tiny_config.out_dir)
    lines = read_metrics(out_dir / "metrics.jsonl")
    scored = {x["step"] + 1: x for x in lines if "dev/p_mrr" in x}
    assert list(scored) == [2, 4, 5, 6]
    (file,) = (out_dir / "tensorboard").glob("events*")
    drawn = {}
    for event in map(Event.FromString, read_records(file)):
        drawn |= {(event.step, value.tag): value.simple_value for value in event.summary.value}
    for step, line in scored.items():
        for name in ("dev/ndcg@10", "dev/p_mrr"):
            tag = name.replace("@", "_")  # TensorBoard's rule for names
            assert drawn[step - 1, tag] == pytest.approx(line[name])
            assert sent[step - 1][name] == line[name]
    found = {}
    for step in (2, 4, 6):
        tiny_config.eval.checkpoint = str(step)
        evaluate.main(tiny_config)
        result = json.loads((out_dir / "eval.json").read_text())
        assert result["passages"] == 17
        found[step] = result["trained"]
        in_loop = {name: scored[step][f"dev/{name}"] for name in found[step]}
        assert in_loop == pytest.approx(found[step], abs=1e-5)
    assert len({scores["p_mrr"] for scores in found.values()}) == 3
    best = checkpoint.read_saved(out_dir / "checkpoints", "best")
    assert best.step == max(found, key=lambda step: found[step]["p_mrr"])
    assert best.scored == "ema"
    (*_, window) = read_metrics(out_dir / "timing.jsonl")
    assert 0 < window["scoring_share"] < 1 - window["goodput"] and window["scoring_s"] > 0


def test_resume_flags(tiny_config, capsys):
    with pytest.raises(UserError, match=r"run/checkpoints: no checkpoint to resume from"):
        train.main(tiny_config, resume=True)
    train.main(tiny_config, resume=False)
    start = load_model(run_config(tiny_config)).load().params
    saved = checkpoint.read_saved(f"{tiny_config.out_dir}/checkpoints")
    assert (saved.info.start, saved.info.start_step) == (fingerprint(start), None)
    with pytest.raises(UserError, match=r"run/checkpoints: has a checkpoint of step 4; give a new"):
        train.main(tiny_config, resume=False)
    tiny_config.train.steps = 6
    capsys.readouterr()
    train.main(tiny_config, resume=True)
    assert "continuing; changed since then: train.steps was 4, is now 6" in capsys.readouterr().out
    lines = read_metrics(Path(tiny_config.out_dir, "metrics.jsonl"))
    assert [line["step"] for line in lines] == list(range(6))


def test_wrong_configs_are_refused_before_any_long_work(tiny_config, tiny_model_dir, tmp_path):
    """Another tokenizer, an impossible batch size or mesh: nothing is written."""
    train.main(tiny_config)
    data = Path(tiny_config.data.dir, "tokenised", "inf_ir")
    before, tiny_config.train.steps = set(data.iterdir()), 6
    shutil.copytree(tiny_model_dir, tmp_path / "other")
    file = tmp_path / "other" / "tokenizer.json"
    fields = json.loads(file.read_text())
    ids = fields["model"]["vocab"]
    ids["amber"], ids["birch"] = ids["birch"], ids["amber"]
    file.write_text(json.dumps(fields))
    with pytest.raises(UserError, match=r"in this out_dir had another config \(model\.name was"):
        other = tiny_config.copy_and_resolve_references()
        other.model.name = str(tmp_path / "other")
        train.main(other)
    original = tiny_model_dir / "tokenizer.json"
    kept = original.read_bytes()
    try:
        original.write_bytes(file.read_bytes())
        with pytest.raises(UserError, match=r"train: not the data of the resumed run"):
            train.main(tiny_config)
    finally:
        original.write_bytes(kept)
    for key, value, message in (
        ("train.batch_size", 2, r"train\.batch_size=2 gives fewer pairs than there are chunks \(8"),
        ("mesh.fsdp", 3, r"mesh\.fsdp=3 does not divide the 8 devices"),
        ("mesh.tensor", 8, r"mesh\.tensor=8 must divide the heads"),
    ):
        config = tiny_config.copy_and_resolve_references()
        config.out_dir, config.data.max_query_tokens = str(tmp_path / "new"), 15
        config.update_from_flattened_dict({key: value})
        with pytest.raises(UserError, match=message):
            train.main(config)
    assert set(data.iterdir()) == before


def test_no_room_for_a_checkpoint(tiny_config, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=4096))
    with pytest.raises(UserError, match=r"checkpoints: a checkpoint takes up to \d+ MiB, 0 MiB"):
        train.main(tiny_config)


def test_a_full_disk_stops_the_run_and_leaves_the_last_checkpoint(tiny_config, tmp_path, capsys):
    tiny_config.train.update({"steps": 20, "checkpoint_every": 4})
    file = write_config(tiny_config, tmp_path / "c.py")
    (out,), codes = finish(start(file, program=("-c", FULL)))
    assert codes == [1]
    (said,) = [line for line in out.splitlines() if line.startswith("error: ")]
    assert re.match(
        r"error: .*run/checkpoints: a checkpoint cannot be written \(.+\); the last complete "
        r"one is of step 4\. Free some space",
        said,
    ), out
    assert "inf_jax/" not in out  # TensorStore's own threads may print as well
    train.main(tiny_config, resume=True)
    assert "steps 4 to 20" in capsys.readouterr().out
    assert steps_in(Path(tiny_config.out_dir, "checkpoints")) == [16, 20]


def test_sigterm_saves_and_ends(tiny_config, tmp_path):
    tiny_config.train.update({"steps": 300, "checkpoint_every": 300})
    file, log = write_config(tiny_config, tmp_path / "c.py"), Path(tiny_config.out_dir)
    (process,) = start(file, program=("-c", GATED))
    while process.poll() is None and len(read_metrics(log / "metrics.jsonl")) < 3:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    (tmp_path / "go").touch()
    (out,), codes = finish([process])
    assert codes == [STOPPED], out
    (done,) = steps_in(log / "checkpoints")
    assert f"run: asked to stop, saved after {done} of 300 steps" in out
    assert "Traceback" not in out
    assert len(read_metrics(log / "metrics.jsonl")) == done
    assert json.loads((log / "config.json").read_text())["train"]["steps"] == 300


def test_ctrl_c_saves_and_ends_although_nobody_reads_the_output(tiny_config, tmp_path):
    tiny_config.train.update({"steps": 300, "checkpoint_every": 300})
    file, log = write_config(tiny_config, tmp_path / "c.py"), Path(tiny_config.out_dir)
    (process,) = start(file, program=("-c", GATED))
    assert process.stdout.readline()
    process.stdout.close()  # train | head -1
    while process.poll() is None and len(read_metrics(log / "metrics.jsonl")) < 3:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    (tmp_path / "go").touch()
    assert process.wait(LIMIT_S) == INTERRUPTED
    (done,) = steps_in(log / "checkpoints")
    assert 3 <= done < 300
    assert len(read_metrics(log / "metrics.jsonl")) == done


def test_two_runs_in_one_out_dir_are_refused(tiny_config, monkeypatch):
    out_dir = Path(tiny_config.out_dir)
    out_dir.mkdir()
    clock = itertools.count(0, 5)
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    with storage.locked(out_dir):
        with pytest.raises(UserError, match=r"run: another run is using it"):
            train.main(tiny_config)
        assert not list(out_dir.iterdir())
    with storage.locked(out_dir):
        pass
