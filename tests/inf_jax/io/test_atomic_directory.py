"""Directories are whole or absent, whatever happens while they are written."""

import os
import subprocess
import sys

import pytest

from inf_jax.core.errors import UserError
from inf_jax.io.atomic import atomic_directory

KILLED = """
import os, sys
from inf_jax.io.atomic import atomic_directory
with atomic_directory(sys.argv[1], marker="m") as partial:
    (partial / "m").write_text("half")
    os.kill(os.getpid(), 9)
"""


def fill(path, text):
    with atomic_directory(path, marker="m") as partial:
        (partial / "sub").mkdir()
        (partial / "sub" / "file").write_text(text)
        (partial / "m").write_text(text)


def test_new_then_replaced_as_a_whole(tmp_path):
    fill(tmp_path / "a" / "b", "one")
    (tmp_path / "a" / "b" / "extra").write_text("of the first")
    fill(tmp_path / "a" / "b", "two")
    assert os.listdir(tmp_path / "a") == ["b"]
    assert sorted(os.listdir(tmp_path / "a" / "b")) == ["m", "sub"]
    assert (tmp_path / "a" / "b" / "sub" / "file").read_text() == "two"


def test_an_error_inside_leaves_what_was_there(tmp_path):
    fill(tmp_path / "b", "one")
    with pytest.raises(KeyError), atomic_directory(tmp_path / "b", marker="m") as partial:
        (partial / "m").write_text("two")
        raise KeyError("oh")
    assert os.listdir(tmp_path) == ["b"] and (tmp_path / "b" / "m").read_text() == "one"


def test_foreign_directories_are_never_replaced(tmp_path):
    (tmp_path / "b").mkdir()
    fill(tmp_path / "b", "an empty directory is nobody's")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "thesis.tex").write_text("x")
    (tmp_path / "d").write_text("a file")
    for name in "cd":
        with pytest.raises(UserError, match="will not be overwritten: choose another directory"):
            fill(tmp_path / name, "one")
    assert sorted(os.listdir(tmp_path)) == ["b", "c", "d"]


def test_a_killed_writer_leaves_nothing_for_good(tmp_path):
    fill(tmp_path / "b", "one")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "b")])
    assert killed.returncode == -9
    assert (tmp_path / "b" / "m").read_text() == "one" and len(os.listdir(tmp_path)) == 2
    fill(tmp_path / "b", "two")
    assert os.listdir(tmp_path) == ["b"] and (tmp_path / "b" / "m").read_text() == "two"


def test_killed_between_the_two_renames(tmp_path):
    fill(tmp_path / "b", "one")
    (tmp_path / "b").rename(tmp_path / "b.partial-1-aa-old")
    (tmp_path / "b.partial-1-aa").mkdir()
    with pytest.raises(KeyError), atomic_directory(tmp_path / "b", marker="m"):
        raise KeyError("the next writer fails")
    assert os.listdir(tmp_path) == ["b"] and (tmp_path / "b" / "m").read_text() == "one"


def test_a_living_writer_is_left_alone(tmp_path):
    with atomic_directory(tmp_path / "b", marker="m") as first:
        (first / "m").write_text("one")
        fill(tmp_path / "b", "two")
        assert (first / "m").exists()
    assert (tmp_path / "b" / "m").read_text() == "one"


def test_unwritable_directory(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"cannot write .*choose another directory"):
        fill(tmp_path / "file" / "b", "one")
