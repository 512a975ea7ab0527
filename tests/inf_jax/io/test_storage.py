"""Files of an out_dir, on a local disk and in a bucket of the fake server, alike."""

from pathlib import Path

import pytest

from inf_jax.core.errors import UserError
from inf_jax.io import gcs as bucket
from inf_jax.io import storage

# aiohttp's advice on what gcsfs does
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")


def test_files_in_a_bucket_behave_like_local_ones(gcs, run_dir, tmp_path):
    for directory in (tmp_path / "deep" / "run", run_dir):
        storage.check_access(directory)
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


def test_a_run_ends_where_another_has_started(gcs, run_dir, tmp_path, capsys):
    objects = gcs.buckets["runs"].objects
    ended = pytest.raises(
        UserError, match=r"runs/run: another run has started in it since \(.* UTC"
    )
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

    write = bucket.upload

    def fail_at_b(path, source):
        if path.name == "b":
            raise UserError("as if killed")
        write(path, source)

    monkeypatch.setattr(bucket, "upload", fail_at_b)
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
    with pytest.raises(UserError, match="holds no other, so it was not created by inf_jax"), export:
        pass


def test_unwritable_local_disk(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file.*in which you may write"):
        storage.check_access(tmp_path / "file" / "run")
    with pytest.raises(UserError, match="cannot write /proc/"):
        storage.check_access(Path("/proc/run"))
