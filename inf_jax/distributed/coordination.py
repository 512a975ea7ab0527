"""Several processes as one run: who they are, that all have come, and how all of them end.

Without any of this a run is one process, and nothing here does anything. A process learns its place
from, in this order:

- JAX_COORDINATOR_ADDRESS=HOST:PORT (of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID;
- Slurm, a TPU pod or whatever else JAX detects. JAX_NUM_PROCESSES=1 turns that off.

INF_JAX_START_TIMEOUT is how many seconds a process waits at the start for the others (300).

JAX's own start ends a process with a stack trace and without saying who was missing (jax 0.10): so
process 0 first calls the roll, on the port that its coordination service takes over afterwards.
"""

import contextlib
import json
import os
import re
import secrets
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
from jax._src import clusters, distributed  # pinned: launch/constraints.txt
from ml_collections import ConfigDict

from inf_jax.core.errors import UserError, in_one_line
from inf_jax.distributed.cluster import roll_call
from inf_jax.io.storage import AnyPath, check

_PLACE = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_START_TIMEOUT = "INF_JAX_START_TIMEOUT"
_LONG_WORK_S = 24 * 3600.0  # tokenising a large corpus; a process that dies ends the wait at once
_GRACE_S = 5.0  # for an error that all processes find at about the same time


class Place(NamedTuple):
    """Attributes: address ("host:port" of process 0), count, process (0 is the lead), devices (the
    local ones to use; None is all)."""

    address: str
    count: int
    process: int
    devices: list[int] | None


def find_place() -> Place | None:
    """This process's place among several, or None where it is alone.

    Raises:
      UserError: the variables are incomplete or contradict each other, or a cluster that JAX
        detects does not answer.
    """
    given = {name: os.environ[name] for name in _PLACE if os.environ.get(name)}
    if given.get("JAX_NUM_PROCESSES") == "1":
        return None
    devices = os.environ.get("JAX_LOCAL_DEVICE_IDS")
    devices = [int(number) for number in devices.split(",")] if devices else None
    if given:
        place = _given_place(given, devices)
    else:
        try:
            with warnings.catch_warnings(action="ignore"):
                place = Place(
                    *clusters.ClusterEnv.auto_detect_unset_distributed_params(
                        None, None, None, devices, None, int(_start_timeout())
                    )
                )
        except Exception as error:  # a metadata server's, a scheduler's: whatever is there
            raise UserError(
                f"JAX sees a cluster but not this process's place in it ({error}); set "
                f"{', '.join(_PLACE)}, or JAX_NUM_PROCESSES=1 for one process alone"
            ) from error
    return None if place.address is None or place.count == 1 else place


def _given_place(given: dict[str, str], devices: list[int] | None) -> Place:
    absent = [name for name in _PLACE if name not in given]
    if absent:
        raise UserError(f"{', '.join(given)} without {', '.join(absent)}: set all three or none")
    address, count, process = given.values()
    if not re.fullmatch(r".+:\d+", address):
        raise UserError(f"JAX_COORDINATOR_ADDRESS={address}: must be HOST:PORT, of process 0")
    numbers = count.isdecimal() and process.isdecimal()
    if not numbers or not 0 <= int(process) < int(count):
        raise UserError(
            f"JAX_PROCESS_ID={process}, JAX_NUM_PROCESSES={count}: the first counts from 0 and is "
            "below the second"
        )
    return Place(address, int(count), int(process), devices)


def initialise() -> None:
    """Joins the run's other processes, before any device is touched; nothing where there are none.

    Raises:
      UserError: some did not come in time (names them), or they do not agree.
    """
    place = find_place()
    if place is None:
        return
    timeout_s = _start_timeout()
    # its answer to SIGTERM is ours (distributed.preemption): Orbax threads would count steps too
    jax.config.update("jax_enable_preemption_service", False)
    roll_call(place.address, place.count, place.process, timeout_s=timeout_s)
    jax.distributed.initialize(
        place.address,
        place.count,
        place.process,
        place.devices,
        cluster_detection_method="deactivate",
        initialization_timeout=int(timeout_s),
    )


def is_lead() -> bool:
    """Whether this process writes the run's files and speaks for it."""
    return jax.process_index() == 0


def barrier(name: str, *, timeout_s: float) -> None:
    """Waits until all processes are here; nothing where there is one.

    Args:
      name: of the place in the program.

    Raises:
      UserError: some did not come in time (names them), or one ended.
    """
    client = distributed.global_state.client
    if client is None:
        return
    try:
        client.wait_at_barrier(f"inf_jax/{name}", int(1000 * timeout_s))
    except jax.errors.JaxRuntimeError as error:
        listed = re.search(r"timed out task names:\s*\n((?:\s*\d+\s*\n)+)", str(error))
        who = f"no sign of process {', '.join(listed[1].split())}" if listed else str(error)
        raise UserError(
            f"process {jax.process_index()} waited {timeout_s:g} s at {name!r}: {who}; look at the "
            "logs of the others, then start all processes again"
        ) from error


@contextlib.contextmanager
def lead_first(name: str) -> Iterator[None]:
    """The body, on the lead first: the others find on a shared disk what it made, and make it
    themselves, at the same time, where each has a disk of its own. All leave it together."""
    lead = is_lead()
    if not lead:
        barrier(name, timeout_s=_LONG_WORK_S)
    yield
    if lead:
        barrier(name, timeout_s=_LONG_WORK_S)
    barrier(f"{name}, all", timeout_s=_LONG_WORK_S)


def check_shared(directory: AnyPath) -> None:
    """Makes the directory, once a run, and checks that every process can use it.

    Raises:
      UserError: in all processes, where some cannot write in it, or do not see what the lead writes
        there.
    """
    client, count = distributed.global_state.client, jax.process_count()
    if client is None:
        check(directory)
        return
    wait_ms, here, problem = int(1000 * _start_timeout()), socket.gethostname(), ""
    try:
        check(directory)
    except UserError as error:
        problem = str(error)
    name = f".hosts-{secrets.token_hex(8)}"
    if is_lead():
        if not problem:
            directory.mkdir(parents=True, exist_ok=True)
            (directory / name).write_bytes(b"seen?")
        client.key_value_set("inf_jax/probe", name)
    probe = directory / client.blocking_key_value_get("inf_jax/probe", wait_ms)
    blind = not problem and not probe.exists()
    mine = json.dumps({"host": here, "problem": problem, "blind": blind})
    client.key_value_set(f"inf_jax/sees/{jax.process_index()}", mine)
    said = [
        json.loads(client.blocking_key_value_get(f"inf_jax/sees/{n}", wait_ms))
        for n in range(count)
    ]
    if is_lead() and not problem:
        probe.unlink()
    for process, theirs in enumerate(said):
        if theirs["problem"]:
            raise UserError(f"process {process} ({theirs['host']}): {theirs['problem']}")
    blind = ", ".join(f"{n} ({theirs['host']})" for n, theirs in enumerate(said) if theirs["blind"])
    if blind:
        raise UserError(
            f"process {blind}: what process 0 writes in {directory} is not there; out_dir must be "
            "on a disk that all hosts share, or in a bucket"
        )


@contextlib.contextmanager
def on_lead(context: contextlib.AbstractContextManager) -> Iterator[None]:
    """A context that the lead alone enters; its UserError there is raised in all processes."""
    client, problem = distributed.global_state.client, ""
    with contextlib.ExitStack() as stack:
        if is_lead():
            try:
                stack.enter_context(context)
            except UserError as error:
                if client is None:
                    raise
                problem = str(error)
        if client is not None:
            if is_lead():
                client.key_value_set("inf_jax/lead", json.dumps(problem))
            said = client.blocking_key_value_get("inf_jax/lead", int(1000 * _start_timeout()))
            if json.loads(said):
                raise UserError(f"process 0: {json.loads(said)}")
        yield


def check_same(facts: Mapping[str, str]) -> None:
    """Raises UserError, in all processes, where one has other facts than the lead; names which.

    A process that goes its own way would hang the others at the next collective.

    Args:
      facts: what all must have alike, by name, such as versions and fingerprints.
    """
    client, count = distributed.global_state.client, jax.process_count()
    if client is None:
        return
    wait_ms, me = int(1000 * _start_timeout()), jax.process_index()
    client.key_value_set(f"inf_jax/facts/{me}", json.dumps(dict(facts)))
    lead, *others = (
        json.loads(client.blocking_key_value_get(f"inf_jax/facts/{n}", wait_ms))
        for n in range(count)
    )
    differ = [
        f"{name}: {theirs.get(name)} in process {process}, {value} in process 0"
        for process, theirs in enumerate(others, 1)
        for name, value in lead.items()
        if theirs.get(name) != value
    ]
    if differ:
        raise UserError(
            f"the processes are not of one run ({'; '.join(differ[:4])}): give all hosts the same "
            "commit, packages, config and data"
        )


def on_all(main: Callable[..., None]) -> Callable[..., None]:
    """A main that all processes run together: joined before it, and none left over after it.

    An error ends its process at once, without the wait for the others that JAX has at the end of a
    process: they may be inside a collective that only a death ends (of a process on CPUs: at once;
    on TPUs and GPUs after the 100 s in which the coordination service misses its heartbeats).
    """

    def joined(*args: Any, **options: Any) -> None:
        initialise()
        if jax.distributed.is_initialized():
            with _ending_all():
                main(*args, **options)
        else:
            main(*args, **options)

    return joined


def alone(main: Callable[[ConfigDict], None]) -> Callable[[ConfigDict], None]:
    """A main for one process, that refuses to be started as several."""

    def checked(resolved: ConfigDict) -> None:
        place = find_place()
        if place is not None:
            raise UserError(
                f"this command is for one process, here are {place.count}: start it once, with "
                "JAX_NUM_PROCESSES=1 in its environment (and JAX_PLATFORMS=cpu on one host of "
                "a TPU slice of several)"
            )
        main(resolved)

    return checked


@contextlib.contextmanager
def _ending_all() -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        status, found = 1, in_one_line(error)
        if found:
            print(found[0], file=sys.stderr)
            status = found[1]
        elif isinstance(error, SystemExit) and isinstance(error.code, int):
            status = error.code
        else:
            traceback.print_exc()
        with contextlib.suppress(Exception):
            barrier("failed", timeout_s=_GRACE_S)
        if is_lead():  # gone first, it would have the others aborted
            time.sleep(0.5)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _start_timeout() -> float:
    given = os.environ.get(_START_TIMEOUT, "300")
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0
    if not 1 <= seconds < 1e6:
        raise UserError(f"{_START_TIMEOUT}={given}: seconds, at least 1")
    return seconds
