"""Ctrl-C ends a command wherever it comes: in a callback, in C code, a second time, in imports."""

import gc
import os
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest

from inf_jax.core.errors import main_guard
from inf_jax.core.interrupts import INTERRUPTED, interruptible
from inf_jax.distributed.preemption import STOP, STOPPED, PreemptionGuard

ROOT = Path(__file__).resolve().parents[3]


def interrupt(*_):
    signal.raise_signal(signal.SIGINT)


class Deleted:
    __del__ = interrupt


class Referred:
    pass


def in_gc():
    begun = []

    def at_first(*_):  # at the end of a long collection it would count as a second one
        if not begun:
            begun.append(True)
            interrupt()

    gc.callbacks.append(at_first)
    try:
        gc.collect()
    finally:
        gc.callbacks.remove(at_first)


def in_weakref():
    referred = Referred()
    reference = weakref.ref(referred, interrupt)
    del referred
    return reference


MOMENTS = {"plain code": interrupt, "__del__": Deleted, "weakref": in_weakref, "gc": in_gc}


@pytest.fixture
def handlers():
    """Puts back what a KeyboardInterrupt leaves in place until the process ends."""
    before = signal.getsignal(signal.SIGINT), sys.unraisablehook
    yield
    from inf_jax.core import interrupts

    signal.signal(signal.SIGINT, before[0])
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    sys.unraisablehook = before[1]
    os.close(signal.set_wakeup_fd(-1))
    interrupts._active = False


@pytest.mark.parametrize("moment", MOMENTS)
def test_no_interrupt_is_lost_in_a_command(handlers, capsys, moment):
    with pytest.raises(SystemExit) as ended, main_guard():
        MOMENTS[moment]()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            pass
        raise AssertionError("lost")
    assert ended.value.code == INTERRUPTED == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_step_loop_stops_after_its_step(monkeypatch, moment):
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    with PreemptionGuard() as guard:
        assert guard.action(1) != STOP
        MOMENTS[moment]()
        assert guard.action(2) == STOP
        assert guard.exit_code == INTERRUPTED
        interrupt()  # a launcher sends it on
        clock[0] += 1
        with pytest.raises(KeyboardInterrupt):
            interrupt()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_before_the_first_step_an_interrupt_ends_the_run():
    with PreemptionGuard() as guard:
        assert guard.exit_code == STOPPED
        with pytest.raises(KeyboardInterrupt):
            interrupt()
        assert guard.action(1) == STOP  # even if a callback has swallowed the exception


def test_an_ignored_interrupt_stays_ignored():
    """As in a background job of a script."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible(), PreemptionGuard() as guard:
            interrupt()
            assert guard.action(1) != STOP
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_second_interrupt_ends_what_python_cannot_reach():
    """C code that no signal interrupts, as a compilation: a mutex that is locked twice."""
    code = (
        "import ctypes\n"
        "from inf_jax.core.errors import main_guard\n"
        "with main_guard():\n"
        "    mutex, libc = ctypes.create_string_buffer(256), ctypes.CDLL(None)\n"
        "    print('ready', flush=True)\n"
        "    while True:\n"
        "        try:\n"
        "            libc.pthread_mutex_lock(mutex)\n"
        "        except KeyboardInterrupt:\n"  # it came before
        "            pass\n"
    )
    command, pipe = [sys.executable, "-c", code], subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, text=True, stdout=pipe, stderr=pipe) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            deadline = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < deadline:
                process.send_signal(signal.SIGINT)
                time.sleep(0.02)
        finally:
            process.kill()
        assert process.stderr.read() == "interrupted\n"
    assert process.returncode == INTERRUPTED


def test_an_interrupt_while_a_command_is_imported(tmp_path):
    """In one line, although no code of the command has run yet."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'inf_jax.train' or name == 'jax':\n"
        "            sys.meta_path.remove(self)\n"
        "            signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "inf_jax.train", "--help"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr, done.stdout) == (INTERRUPTED, "interrupted\n", "")
