"""Processes that hang: each ends by itself, with its stacks."""

import os
import re
import subprocess
import sys
from pathlib import Path

from inf_jax.monitoring.watchdog import HUNG
from tests.inf_jax.processes import free_port, place

ROOT = Path(__file__).parents[2]

# Hangs as its second argument says.
ALONE = """
import ctypes, sys, threading, time
from pathlib import Path
from inf_jax.monitoring.watchdog import Watchdog

def stuck_in_python():
    time.sleep(600)

def stuck_with_the_lock():
    ctypes.PyDLL(None).sleep(600)

how = sys.argv[2]
with Watchdog(Path(sys.argv[1]), minutes=0.5 / 60, process=3, first=7) as watchdog:
    if how == "healthy":
        time.sleep(1.2)  # the first step may take longer than the others
        for step in range(7, 18):
            watchdog.finished(step)
            time.sleep(0.1)
    elif how == "lock":
        watchdog.finished(7)
        stuck_with_the_lock()
    else:
        if how == "step":
            watchdog.finished(7)
        stuck_in_python()
time.sleep(1)  # closed: it watches no more
print("ended well")
"""

# A run of two whose process 1 comes to no collective after step 2.
TWO = """
import sys, time
from pathlib import Path
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from inf_jax.distributed.cluster import initialise
from inf_jax.monitoring.watchdog import Watchdog

def never_comes():
    time.sleep(600)

def collective():
    assert float(total(ones)) == 2

initialise()
mesh = jax.make_mesh((2,), ("x",))
ones = jax.make_array_from_callback(
    (2,), NamedSharding(mesh, PartitionSpec("x")), lambda index: jnp.ones(1)
)
total = jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, PartitionSpec()))
total(ones).block_until_ready()
process = jax.process_index()
with Watchdog(Path(sys.argv[1]), minutes=3 / 60, process=process, first=0) as watchdog:
    for step in range(5):
        if step == 3 and process == 1:
            never_comes()
        collective()
        watchdog.finished(step)
"""


def start(program, *arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_one_process(tmp_path):
    """Healthy; hanging in the first step and in a later one; and with Python's lock held."""
    processes = {
        how: start(ALONE, tmp_path / how, how) for how in ("healthy", "first", "step", "lock")
    }
    found = {}
    for how, process in processes.items():
        out, errors = process.communicate(timeout=120)
        found[how] = process.returncode, out, errors
    assert found["healthy"] == (0, "ended well\n", "")
    assert not (tmp_path / "healthy").exists()

    for how, what in (
        ("first", "step 7, the first of this start, did not finish in 0.0"),
        ("step", "nothing finished after step 7 in 0.00"),
    ):
        code, out, errors = found[how]
        assert (code, out) == (HUNG, "")
        assert errors.startswith(f"process 3 hangs: {what}"), errors
        assert re.search(r" in stuck_in_python\n.* in <module>\n", errors)
        written = (tmp_path / how / "hang-3.txt").read_text()
        assert written.splitlines()[0] == errors.splitlines()[0]
        assert re.search(r" in stuck_in_python\n.* in <module>\n", written)

    code, _, errors = found["lock"]
    assert code == 1
    assert re.search(r" in stuck_with_the_lock\n.* in <module>\n", errors)


def test_of_two_processes_both_report(tmp_path):
    port = free_port()
    processes = [start(TWO, tmp_path, **place(2, number, port)) for number in range(2)]
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [HUNG, HUNG], "\n".join(errors)
    for number, function in enumerate(("collective", "never_comes")):
        text = (tmp_path / f"hang-{number}.txt").read_text()
        assert text.startswith(f"process {number} hangs: nothing finished after step 2 in 0.05")
        assert re.search(rf" in {function}\n.* in <module>\n", text), text
        assert text.splitlines()[0] in errors[number]
