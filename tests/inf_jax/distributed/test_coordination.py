"""What processes tell each other: barriers, shared directories, facts that must be the same."""

import re

from tests.inf_jax.processes import finish, start

# Process 1 comes to no barrier, and sees another directory than process 0.
APART = """
import os, pathlib, sys
from inf_jax.distributed.cluster import initialise
from inf_jax.distributed.coordination import barrier, check_shared, is_primary
from inf_jax.distributed.jax_internals import coordination_client
from inf_jax.io.storage import check_access
from inf_jax.core.errors import UserError
initialise()
client = coordination_client()
if is_primary():
    try:
        barrier("meeting", timeout_s=1)
    except UserError as error:
        print(error)
    client.key_value_set("told", "yes")
client.blocking_key_value_get("told", 600_000)
directory = pathlib.Path(sys.argv[1].removeprefix("--config=")).parent / "out"
try:
    check_shared(directory if is_primary() else directory / "elsewhere", check_access)
except UserError as error:
    print(error)
"""

# Every helper twice, in two processes; the second time something is wrong.
TWICE = """
import contextlib, pathlib, sys
import jax
from inf_jax.core.errors import UserError
from inf_jax.distributed import coordination
from inf_jax.distributed.cluster import initialise
from inf_jax.io.storage import check_access
initialise()
directory = pathlib.Path(sys.argv[1].removeprefix("--config=")).parent / "out"
me = jax.process_index()

@contextlib.contextmanager
def context(wrong):
    if wrong:
        raise UserError("taken")
    yield

for wrong in (False, False, True):
    try:
        with coordination.on_primary(context(wrong)):
            print("entered")
    except UserError as error:
        print(error)
    try:
        coordination.check_same({"jax": "1", "seed": str(me if wrong else 0)})
        print("same")
    except UserError as error:
        print(error)
    coordination.check_shared(directory, check_access)
    with coordination.primary_first("work"):
        print("work")
    coordination.barrier("end", timeout_s=600)
"""


def run_two(program, tmp_path):
    return finish(start(tmp_path / "c.py", count=2, devices=2, program=("-c", program)))


def test_missing_processes_and_unshared_directories_are_reported(tmp_path):
    outs, codes = run_two(APART, tmp_path)
    assert codes == [0, 0], "\n".join(outs)
    assert "process 0 waited 1 s at 'meeting': process 1 missing; look at" in outs[0]
    for out in outs:
        assert re.search(
            r"process 1 \(.+\): what process 0 writes in .*/out(/elsewhere)? is not visible there",
            out,
        )
    assert not list((tmp_path / "out").iterdir())


def test_helpers_may_be_used_more_than_once(tmp_path):
    outs, codes = run_two(TWICE, tmp_path)
    assert codes == [0, 0], "\n".join(outs)
    for out in outs:
        lines = [line for line in out.splitlines() if "Gloo" not in line]
        assert lines[:6] == ["entered", "same", "work"] * 2
        assert lines[6] == "process 0: taken"
        assert "seed: 1 in process 1, 0 in process 0" in lines[7]
        assert lines[8] == "work"
    assert not list((tmp_path / "out").iterdir())
