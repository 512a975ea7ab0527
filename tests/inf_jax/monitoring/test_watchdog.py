"""Processes that hang: each ends by itself, with its stacks.

The watchdogs read a clock that these programs set, so that nothing depends on how fast they run;
real time counts only where a thread holds the GIL.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

from inf_jax.monitoring.watchdog import HUNG
from tests.inf_jax.processes import free_port, place

ROOT = Path(__file__).parents[3]

CLOCK = """
import sys, threading, time
from pathlib import Path
from types import SimpleNamespace
from inf_jax.monitoring import watchdog as module
from inf_jax.monitoring.watchdog import Watchdog

class Clock:
    now, looks = 0.0, 0

    def monotonic(self):
        self.looks += 1
        return self.now

    def advance(self, seconds):
        self.now += seconds
        looks = self.looks
        while self.looks < looks + 2:  # the second look began after the change
            time.sleep(0.01)

clock = Clock()
directory = Path(sys.argv[1])
module.time = SimpleNamespace(
    monotonic=clock.monotonic, sleep=lambda _: None, strftime=time.strftime, gmtime=time.gmtime
)
"""

# Hangs as its second argument says; a step may take 3 s, a start's first one 12 s.
ALONE = """
import ctypes

def stuck_in_python():
    time.sleep(600)

def stuck_with_the_gil():
    ctypes.PyDLL(None).sleep(600)

case = sys.argv[2]
with Watchdog(directory, minutes=3 / 60, process=3, first=7) as watchdog:
    clock.advance(11.9)
    if case == "healthy":
        for step in range(7, 12):
            watchdog.finished(step)
            clock.advance(2.9)
    elif case == "gil":
        watchdog.finished(7)
        stuck_with_the_gil()
    else:
        if case == "step":
            watchdog.finished(7)
            clock.advance(2.9)
        clock.now += 0.2
        stuck_in_python()
clock.now += 1000  # closed: it no longer watches
time.sleep(0.5)
print("ended well")
"""

# A run of two processes of which process 1 comes to no collective after step 2.
TWO = """
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from inf_jax.distributed.cluster import initialise

def stuck_elsewhere():
    (directory / "waits-1").touch()
    time.sleep(600)

def collective(step):
    if step == 3:
        (directory / "waits-0").touch()
    assert float(total(ones)) == 2

def wait_for_both(_):
    while not all((directory / f"hang-{number}.txt").exists() for number in range(2)):
        time.sleep(0.01)

initialise()
mesh = jax.make_mesh((2,), ("x",))
ones = jax.make_array_from_callback(
    (2,), NamedSharding(mesh, PartitionSpec("x")), lambda index: jnp.ones(1)
)
total = jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, PartitionSpec()))
total(ones).block_until_ready()
process = jax.process_index()
module.time.monotonic = lambda: 1000.0 * (directory / "late").exists()
module.time.sleep = wait_for_both  # the first to end would end the other
with Watchdog(directory, minutes=1, process=process, first=0) as watchdog:
    for step in range(5):
        if step == 3 and process == 1:
            stuck_elsewhere()
        collective(step)
        watchdog.finished(step)
"""


def start(program, *arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", CLOCK + program, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_one_process(tmp_path):
    """Healthy; hanging in the first step and in a later one; and with the GIL held."""
    processes = {
        case: start(ALONE, tmp_path / case, case) for case in ("healthy", "first", "step", "gil")
    }
    ended = {}
    for case, process in processes.items():
        out, errors = process.communicate(timeout=900)
        ended[case] = process.returncode, out, errors
    assert ended["healthy"] == (0, "ended well\n", "")
    assert not (tmp_path / "healthy").exists()

    for case, what in (
        ("first", "step 7, the first of this start, did not finish in 0.202 minutes"),
        ("step", "nothing finished after step 7 in 0.0517 minutes"),
    ):
        code, out, errors = ended[case]
        assert (code, out) == (HUNG, ""), errors
        assert errors.startswith(f"process 3 hangs: {what}"), errors
        assert re.search(r" in stuck_in_python\n.* in <module>\n", errors)
        written = (tmp_path / case / "hang-3.txt").read_text()
        assert written.splitlines()[0] == errors.splitlines()[0]
        assert re.search(r" in stuck_in_python\n.* in <module>\n", written)

    code, _, errors = ended["gil"]
    assert code == 1
    assert re.search(r" in stuck_with_the_gil\n.* in <module>\n", errors)


def test_of_two_processes_both_report(tmp_path):
    port = free_port()
    processes = [start(TWO, tmp_path, **place(2, number, port)) for number in range(2)]
    try:
        while not all((tmp_path / f"waits-{number}").exists() for number in range(2)):
            assert all(process.poll() is None for process in processes), "ended early"
            time.sleep(0.02)
        (tmp_path / "late").touch()
        errors = [process.communicate(timeout=900)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [HUNG, HUNG], "\n".join(errors)
    for number, function in enumerate(("collective", "stuck_elsewhere")):
        text = (tmp_path / f"hang-{number}.txt").read_text()
        assert text.startswith(f"process {number} hangs: nothing finished after step 2 in 16.7")
        assert re.search(rf" in {function}\n.* in <module>\n", text), text
        assert text.splitlines()[0] in errors[number]
