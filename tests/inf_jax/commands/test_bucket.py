"""The commands with an out_dir in a bucket, against a fake of Google Cloud Storage."""

import json
import re
import signal
from pathlib import Path

import numpy as np
import pytest
from orbax.checkpoint.utils import checkpoint_steps

from inf_jax import evaluate, export, train
from inf_jax.checkpoints.saver import Saver
from inf_jax.core.errors import UserError
from inf_jax.io import gcs as bucket
from inf_jax.io import storage
from inf_jax.monitoring.metrics_log import read_metrics
from inf_jax.retriever import load
from inf_jax.retriever.settings import SETTINGS_FILE
from tests.doubles.gcs_server import Object
from tests.inf_jax.processes import finish, start, write_config

# aiohttp's advice on what gcsfs does
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")


@pytest.mark.parametrize("main", [train.main, evaluate.main, export.main])
def test_the_bucket_comes_before_all_work(gcs, tiny_config, main):
    tiny_config.out_dir = "gs://absent/run"
    tiny_config.model.name = "/no/model"
    with pytest.raises(UserError, match=r"gs://absent/.*: no bucket absent"):
        main(tiny_config)


# The main, but for a kill -9 of itself right after it logged step 5, the checkpoint of step 4 being
# on its way.
KILLED = """
import os, signal
from inf_jax import train
from inf_jax.config.command_line import run
from inf_jax.monitoring import metrics_log as report
write = report.MetricsLog.write
def write_then_die(self, step, metrics):
    write(self, step, metrics)
    if step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
report.MetricsLog.write = write_then_die
run(train.main, train.__doc__)
"""


@pytest.fixture
def killed(gcs, tiny_config, tmp_path, monkeypatch):
    """The config of a run in gs://runs/deep/run that was killed, and its log as the kill left it;
    the checkpoint of step 2 is whole, no later one is."""
    tiny_config.out_dir = "gs://runs/deep/run"
    tiny_config.train.update({"steps": 7, "health": False})
    tiny_config.optim.lr = 1e-3
    objects = gcs.make("runs", failures=1).objects
    file = write_config(tiny_config, tmp_path / "c.py")
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # a kill leaves its WorkDir there
    (out,), codes = finish(start(file, program=("-c", KILLED), cache=tmp_path / "cache"))
    assert codes == [-signal.SIGKILL], out
    assert "deep/run/checkpoints/2/commit_success.txt" in objects
    for name in [name for name in objects if "/checkpoints/4/" in name]:
        del objects[name]  # whole or not, as the kill came; from here on all but whole:
    for name in [name for name in objects if "/checkpoints/2/" in name]:
        if not name.endswith("/2/commit_success.txt"):
            objects[name.replace("/checkpoints/2/", "/checkpoints/4/")] = objects[name]
    log = objects["deep/run/metrics.jsonl"].data
    return tiny_config, [json.loads(line) for line in log.splitlines()]


def test_a_run_in_a_bucket(gcs, killed, tmp_path, capsys, no_torch, monkeypatch):
    """Killed on one device, it goes on from its last whole checkpoint on eight; then all else."""
    config, before = killed
    out_dir, objects = storage.as_path(config.out_dir), gcs.buckets["runs"].objects
    config.mesh.fsdp = 2

    def another_begins(resolved, path):
        bucket.upload(out_dir / "owner.txt", b"another host")

    with monkeypatch.context() as patch:
        patch.setattr(train, "save_resolved", another_begins)
        with pytest.raises(
            UserError, match=r"another run has started in it since \(another host\)"
        ):
            train.main(config)
    assert checkpoint_steps(out_dir / "checkpoints") == [2]

    start = Saver.start

    def another_saves(self, data, **options):
        began = start(self, data, **options)
        for name in [name for name in objects if "/checkpoints/2/" in name]:
            objects[name.replace("/checkpoints/2/", "/checkpoints/3/")] = objects[name]
        return began

    with monkeypatch.context() as patch:
        patch.setattr(Saver, "start", another_saves)
        with pytest.raises(UserError, match="has saved its step 3 while this one began at 2;"):
            train.main(config)
    for name in [name for name in objects if "/checkpoints/3/" in name]:
        del objects[name]
    assert len(objects["deep/run/metrics.jsonl"].data.splitlines()) == len(before)
    capsys.readouterr()

    train.main(config, resume=True)
    banner = capsys.readouterr().out
    assert "steps 2 to 7" in banner and re.search(r"attention\W+xla\W", banner)
    after = read_metrics(out_dir / "metrics.jsonl")
    assert [line["step"] for line in after] == list(range(7))
    assert [line["step"] for line in before] == [0, 1, 2, 3]  # as the checkpoint of step 4 needs
    assert after[:2] == before[:2]
    losses = ([line["loss"] for line in lines[:4]] for lines in (before, after))
    np.testing.assert_allclose(*losses, rtol=1e-4)
    assert sorted(checkpoint_steps(out_dir / "checkpoints")) == [6, 7]
    assert sum("/tensorboard/events" in name for name in objects) == 2
    assert not any("/." in name for name in objects)  # no probe is left

    train.main(config)
    assert "all 7 steps are done" in capsys.readouterr().out

    evaluate.main(config)
    found = json.loads((out_dir / "eval.json").read_text())
    assert found["step"] == 7 and found["gain"]["ndcg@10"] > 0
    assert objects["deep/run/eval.png"].data.startswith(b"\x89PNG")

    export.main(config)
    exported = bucket.files_below(out_dir / "export")
    assert max(exported, key=lambda n: objects[f"deep/run/export/{n}"].generation) == SETTINGS_FILE
    for name in exported:
        (tmp_path / "export" / name).parent.mkdir(parents=True, exist_ok=True)
        assert bucket.download(out_dir / "export" / name, tmp_path / "export" / name)
    assert json.loads((tmp_path / "export" / SETTINGS_FILE).read_text())["run"]["step"] == 7
    assert load(tmp_path / "export").config.text.max_passage_tokens == 32


def test_windows_of_a_bucket_go_on_bit_for_bit(
    gcs, tiny_config, tiny_dataset_dir, tmp_path, no_torch
):
    """A run on data in a bucket, which it tokenises there, killed by -9 and started again."""
    root, objects = tiny_dataset_dir.parents[2], gcs.make("data", failures=1).objects
    for path in tiny_dataset_dir.iterdir():
        objects[f"all/{path.relative_to(root).as_posix()}"] = Object(path.read_bytes(), 1)
    tiny_config.data.update({"dir": "gs://data/all", "shuffle": "windows"})
    tiny_config.train.update({"steps": 9, "health": False})  # more than an epoch
    tiny_config.optim.lr = 1e-3
    file = write_config(tiny_config, tmp_path / "c.py")
    (out,), codes = finish(start(file, program=("-c", KILLED), devices=8))
    assert codes == [-signal.SIGKILL], out
    log = Path(tiny_config.out_dir) / "metrics.jsonl"
    before = read_metrics(log)
    train.main(tiny_config, resume=True)
    after = read_metrics(log)
    assert [line["step"] for line in before] == [*range(6)]
    assert [line["step"] for line in after] == [*range(9)]
    for one, two in zip(before, after, strict=False):
        assert (one["loss"], one["grad_norm"]) == (two["loss"], two["grad_norm"])
    assert gcs.buckets["data"].served
