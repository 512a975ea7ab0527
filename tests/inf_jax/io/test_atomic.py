"""A file is whole or absent, whatever ends its writer."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from inf_jax.core.errors import UserError
from inf_jax.io import atomic
from inf_jax.io.atomic import atomic_file

ROOT = Path(__file__).parents[3]  # where the children find inf_jax


def test_appears_at_the_end_and_makes_directories(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    with atomic_file(path) as file:
        file.write(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    assert os.listdir(path.parent) == ["file"]


def test_an_error_in_the_block_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), atomic_file(path) as file:
        file.write(b"new")
        raise ZeroDivisionError
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("size", [10, 3 << 20])  # fails at the final flush; fails at a write
def test_full_disk(tmp_path, size):
    path = tmp_path / "file"
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(UserError) as caught, atomic_file(path) as file:
            os.dup2(full, file.fileno())
            file.write(b"x" * size)
    finally:
        os.close(full)
    message = str(caught.value)
    assert str(path) in message
    assert "No space left" in message
    assert "free some space" in message
    assert os.listdir(tmp_path) == []


def test_an_os_error_of_another_file_is_not_ours(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "file"):
        (tmp_path / "missing").read_bytes()

    with pytest.raises(OSError, match="elsewhere"), atomic_file(tmp_path / "file"):
        raise OSError(errno.ENOSPC, "No space left on device", "elsewhere")


def test_synced_before_it_appears(tmp_path, monkeypatch):
    path, synced, fsync = tmp_path / "file", [], os.fsync

    def spy(descriptor):
        synced.append((os.fstat(descriptor).st_size, path.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    with atomic_file(path) as file:
        file.write(b"whole")
    assert synced[0] == (5, False)


def test_unwritable_parent(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    path = tmp_path / "file" / "below"
    with pytest.raises(UserError, match=r"cannot write .*below.* may write"), atomic_file(path):
        pass


def test_stale_partials_are_deleted_and_live_ones_kept(tmp_path):
    path = tmp_path / "file"
    script = (
        "import sys, time\n"
        "from inf_jax.io.atomic import atomic_file\n"
        "with atomic_file(sys.argv[1]) as file:\n"
        "    file.write(b'half'); file.flush()\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(600)\n"
    )
    command = [sys.executable, "-c", script, path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as child:
        assert child.stdout.readline() == b"ready\n"
        (partial,) = os.listdir(tmp_path)
        assert partial.startswith(f"file.partial-{child.pid}-")
        with atomic_file(path) as file:
            file.write(b"first")
        assert sorted(os.listdir(tmp_path)) == ["file", partial]
        child.send_signal(signal.SIGKILL)
    assert sorted(os.listdir(tmp_path)) == ["file", partial]
    with atomic_file(path) as file:
        file.write(b"second")
    assert os.listdir(tmp_path) == ["file"]
    assert path.read_bytes() == b"second"


def test_a_partial_deleted_before_its_lock_is_replaced(tmp_path, monkeypatch):
    """Between a partial's creation and its lock another process may lock it and delete it."""
    path, try_lock, rivals = tmp_path / "file", atomic.try_lock, []

    def rival(descriptor, **options):
        if len(rivals) < 2:
            (partial,) = os.listdir(tmp_path)
            rivals.append(partial)
            os.unlink(tmp_path / partial)
            if len(rivals) == 1:
                return False
        return try_lock(descriptor, **options)

    monkeypatch.setattr(atomic, "try_lock", rival)
    with atomic_file(path) as file:
        file.write(b"whole")
    assert len(set(rivals)) == 2
    assert path.read_bytes() == b"whole"


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    other = tmp_path / "file.partial-1-ab"  # alive or dead: it cannot be known
    other.write_bytes(b"")
    with atomic_file(tmp_path / "file") as file:
        file.write(b"whole")
    assert sorted(os.listdir(tmp_path)) == ["file", other.name]


def test_two_writers_of_one_file(tmp_path):
    path = tmp_path / "file"
    with atomic_file(path) as outer, atomic_file(path) as inner:
        outer.write(b"outer")
        inner.write(b"inner")
    assert path.read_bytes() == b"outer"  # the last to finish
    assert os.listdir(tmp_path) == ["file"]
