"""Where datasets cannot be built: URLs, and on Beam names that its writer takes for patterns."""

import argparse

import pytest

from data_pipeline.dataset import beam_runner
from data_pipeline.dataset.command import run_build
from inf_jax.core.errors import UserError


@pytest.mark.parametrize("name", ["x[1]", "x*", "x?", "{a,b}", "a\\b"])
def test_beam_would_leave_its_files_under_temporary_names(tmp_path, name, monkeypatch):
    with pytest.raises(UserError, match=r"--data-dir=.*: Beam cannot write to a path that holds"):
        beam_runner.check_paths(data_dir=str(tmp_path / name), path_train="a[1].jsonl")
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    with pytest.raises(UserError, match=r"--data-dir=data: Beam cannot write to a path"):
        beam_runner.check_paths(data_dir="data")


def test_other_names_are_taken(tmp_path):
    beam_runner.check_paths(data_dir=str(tmp_path / "a b-é"), path_train="a[1].jsonl")


def test_a_url_is_no_local_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"--data-dir=gs://b/x: is a URL"):
        run_build(argparse.Namespace(data_dir="gs://b/x"))
    assert not list(tmp_path.iterdir())
