"""out_dir in a bucket: a stand-in for Google Cloud Storage, and the real clients."""

import importlib.util
import json
import os
import re
import signal
import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest
from orbax.checkpoint.utils import checkpoint_steps

from inf_jax import evaluate, export, train
from inf_jax.checkpoints.saver import Saver
from inf_jax.config.checks import check as check_config
from inf_jax.core.errors import UserError
from inf_jax.io import gcs as bucket
from inf_jax.io import storage
from inf_jax.monitoring.metrics_log import read_metrics
from inf_jax.retriever import load
from inf_jax.retriever.settings import SETTINGS_FILE
from tests.doubles.gcs_server import GcsServer
from tests.inf_jax.processes import finish, start, write_config

# aiohttp's advice on what gcsfs does
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")


@pytest.fixture(scope="module")
def gcs():
    """The stand-in; this process's clients, and those of processes started from it, are its own."""
    if importlib.util.find_spec("gcsfs") is None:
        pytest.skip("needs gcsfs, of the extra [tpu]")
    with GcsServer() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        patch.setitem(fsspec.config.conf, "gcs", json.loads(server.environment["FSSPEC_GCS"]))
        bucket._connect.cache_clear()
        yield server


@pytest.fixture
def run_dir(gcs):
    """gs://runs/run, of a bucket that is empty."""
    gcs.make("runs")
    return storage.as_path("gs://runs/run")


def test_files_and_their_local_equals(gcs, run_dir, tmp_path):
    for directory in (tmp_path / "deep" / "run", run_dir):
        storage.check(directory)
        assert not directory.exists()
        with storage.new_file(directory / "config.json") as file:
            file.write(b"one")
        with pytest.raises(ZeroDivisionError), storage.new_file(directory / "config.json") as file:
            file.write(b"two")
            raise ZeroDivisionError
        assert (directory / "config.json").read_text() == "one"
        assert [path.name for path in directory.iterdir()] == ["config.json"]
    gcs.put("runs", "run/another host's", b"", {})
    assert (run_dir / "another host's").exists()
    assert len(list(run_dir.iterdir())) == 2  # no listing is remembered


def test_files_that_grow(gcs, run_dir):
    objects = gcs.buckets["runs"].objects
    with storage.WorkDir(run_dir) as work:
        work.pull("metrics.jsonl")
        assert not list(work.path.iterdir())
        log = work.path / "metrics.jsonl"
        log.write_text("0\n")
        (work.path / "tensorboard").mkdir()
        (work.path / "tensorboard" / "events").write_bytes(b"e")
        work.push()
        first = objects["run/tensorboard/events"]
        with log.open("a") as file:
            file.write("1\n")
        work.push()
        assert objects["run/metrics.jsonl"].data == b"0\n1\n"
        assert objects["run/tensorboard/events"] == first  # not again
        with log.open("a") as file:
            file.write("2\n")
    assert not work.path.exists()
    with storage.WorkDir(run_dir) as work:
        work.pull("metrics.jsonl")
        assert (work.path / "metrics.jsonl").read_text() == "0\n1\n2\n"


def test_an_error_is_not_hidden_by_the_last_upload(gcs, run_dir, capsys):
    with pytest.raises(ZeroDivisionError), storage.WorkDir(run_dir) as work:
        (work.path / "a").write_text("a")
        gcs.buckets["runs"].denied = {"storage.objects.create"}
        raise ZeroDivisionError
    assert "no permission to write it" in capsys.readouterr().err
    denied = pytest.raises(UserError, match=r"gs://runs/run/a: no permission to write it")
    with denied, storage.WorkDir(run_dir) as work:
        (work.path / "a").write_text("a")


def test_a_run_ends_where_another_has_begun(gcs, run_dir, tmp_path, capsys):
    objects = gcs.buckets["runs"].objects
    ended = pytest.raises(UserError, match=r"runs/run: another run has begun in it since \(.* UTC")
    with ended, storage.WorkDir(run_dir) as first:
        first.claim()
        first.push()
        with storage.WorkDir(run_dir) as second:
            second.claim()
            (second.path / "metrics.jsonl").write_text("second")
        (first.path / "metrics.jsonl").write_text("first")
        first.push()
    assert objects["run/metrics.jsonl"].data == b"second"
    assert not capsys.readouterr().err  # it is said once

    local = tmp_path / "run"
    with storage.WorkDir(local) as work:
        work.claim()
    assert not list(local.iterdir())


def test_a_directory_is_replaced_with_its_marker_last(gcs, run_dir, monkeypatch):
    objects = gcs.buckets["runs"].objects
    for names in (["marker", "a", "deep/b"], ["marker", "c"]):
        with storage.new_directory(run_dir / "export", marker="marker") as folder:
            for name in names:
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_text(name)
        assert objects.keys() == {f"run/export/{name}" for name in names}
        assert max(objects, key=lambda name: objects[name].generation) == "run/export/marker"
    export = storage.new_directory(run_dir / "export", marker="marker")
    with pytest.raises(ZeroDivisionError), export as folder:
        (folder / "d").write_text("d")
        raise ZeroDivisionError
    assert objects.keys() == {"run/export/marker", "run/export/c"}

    write = bucket.write

    def fail_at_b(path, source):
        if path.name == "b":
            raise UserError("as if killed")
        write(path, source)

    monkeypatch.setattr(bucket, "write", fail_at_b)
    export = storage.new_directory(run_dir / "export", marker="marker")
    with pytest.raises(UserError, match="as if killed"), export as folder:
        for name in ("marker", "a", "b"):
            (folder / name).write_text("new")
    assert "run/export/marker" not in objects and "run/export/a" in objects
    monkeypatch.undo()
    with storage.new_directory(run_dir / "export", marker="marker") as folder:
        (folder / "marker").write_text("new")
    assert objects.keys() == {"run/export/marker"}

    export = storage.new_directory(run_dir / "export", marker="other")
    with pytest.raises(UserError, match="holds no other, so it was not written from here"), export:
        pass


def test_large_files_and_passing_failures(gcs, run_dir, tmp_path):
    data = os.urandom(6 << 20)  # more than one request
    (tmp_path / "large").write_bytes(data)
    gcs.buckets["runs"].failures = 1
    bucket.write(run_dir / "large", tmp_path / "large")
    assert gcs.buckets["runs"].objects["run/large"].data == data
    assert bucket.read(run_dir / "large", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data
    assert bucket.files_below(run_dir) == ["large"]


DENIED = {
    "storage.buckets.get": "find the bucket",
    "storage.objects.create": "write",
    "storage.objects.list": "list",
    "storage.objects.get": "read",
    "storage.objects.delete": "delete",
}


@pytest.mark.parametrize("permission", DENIED)
def test_a_bucket_without_a_permission(gcs, permission, caplog):
    gcs.make("denied", denied={permission})
    with pytest.raises(UserError) as error:
        storage.check(storage.as_path("gs://denied/run"))
    message = str(error.value)
    assert "\n" not in message
    assert f"gs://denied/run: no permission to {DENIED[permission]} ({permission})" in message
    assert "add-iam-policy-binding gs://denied --member=" in message
    assert not caplog.records
    left = gcs.buckets["denied"].objects
    assert not left or permission == "storage.objects.delete"


def test_no_bucket_no_credentials_no_answer(gcs):
    with pytest.raises(UserError, match=r"no bucket absent .* storage buckets create gs://absent "):
        storage.check(storage.as_path("gs://absent/run"))
    gcs.make("private", needs_token=True)
    with pytest.raises(UserError, match=r"no valid Google credentials .*gcloud auth appl"):
        storage.check(storage.as_path("gs://private/run"))
    gcs.make("ill", failures=10**6)
    with pytest.raises(UserError, match=r"not answered within 0\.5 s, asked to find the bucket"):
        bucket.check(storage.as_path("gs://ill/run"), timeout_s=0.5)
    gcs.make("well", failures=1)
    bucket.check(storage.as_path("gs://well/run"))


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
from inf_jax import config, train
from inf_jax.monitoring import metrics_log as report
write = report.MetricsLog.write
def write_then_die(self, step, metrics):
    write(self, step, metrics)
    if step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
report.MetricsLog.write = write_then_die
config.run(train.main, train.__doc__)
"""


@pytest.fixture
def killed(gcs, tiny_config, tmp_path, monkeypatch):
    """The config of a run in gs://runs/deep/run that was killed, and its log as the kill left it;
    the checkpoint of step 2 is whole, no later one is."""
    tiny_config.out_dir = "gs://runs/deep/run"
    tiny_config.train.steps, tiny_config.optim.lr = 7, 1e-3
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
        bucket.write(out_dir / "owner.txt", b"another host")

    with monkeypatch.context() as patch:
        patch.setattr(train, "save_resolved", another_begins)
        with pytest.raises(UserError, match=r"another run has begun in it since \(another host\)"):
            train.main(config)
    assert checkpoint_steps(out_dir / "checkpoints") == [2]

    start = Saver.start

    def another_saves(self, training):
        began = start(self, training)
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
        assert bucket.read(out_dir / "export" / name, tmp_path / "export" / name)
    assert json.loads((tmp_path / "export" / SETTINGS_FILE).read_text())["run"]["step"] == 7
    assert load(tmp_path / "export").config.text.max_passage_tokens == 32


def test_without_gcsfs(monkeypatch):
    bucket._connect.cache_clear()
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match=r'gs:// need gcsfs.*pip install "inf_jax\[tpu\]"'):
        storage.as_path("gs://runs/run")


def test_a_local_disk_that_takes_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file.*in which you may write"):
        storage.check(tmp_path / "file" / "run")
    with pytest.raises(UserError, match="cannot write /proc/"):
        storage.check(Path("/proc/run"))


@pytest.mark.parametrize("place", ["gs:/runs/run", "gs://runs", "gs:///run", "s3://runs/run"])
def test_config_refuses_what_is_no_place(tiny_config, place):
    tiny_config.out_dir = place
    with pytest.raises(UserError, match=r"out_dir=.*a local directory, or gs://BUCKET/"):
        check_config(tiny_config)


def test_config_takes_a_bucket_for_results_only(tiny_config):
    tiny_config.out_dir = "gs://my-runs.example/a/b"
    check_config(tiny_config)
    tiny_config.data.dir = "gs://runs/data"
    with pytest.raises(UserError, match=r"data\.dir=.*gcloud storage cp"):
        check_config(tiny_config)
