"""Multi-process start-up: finds process id and count, waits for all, initialises jax.distributed.

A process learns its place from, in this order (a run is one process without either):

- JAX_COORDINATOR_ADDRESS=HOST:PORT (of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID;
- Slurm, a TPU pod or any other cluster that JAX detects. JAX_NUM_PROCESSES=1 turns that off.

At the start it waits INF_JAX_START_TIMEOUT seconds (300) for the others. As
`jax.distributed.initialize` does not say who is missing (jax 0.10), a rendezvous comes first, on
the port that JAX's coordination service takes over afterwards: each process reports its number to
process 0, which answers all of them at once.
"""

import contextlib
import os
import re
import socket
import time
import warnings
from typing import NamedTuple

from inf_jax.core.errors import UserError
from inf_jax.distributed import jax_internals

_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_START_TIMEOUT = "INF_JAX_START_TIMEOUT"
_SLACK_S = 10.0  # process 0 may start to wait that much later, and answers late by that much
_HELLO_S = 5.0  # a caller that is silent for longer is not one of our processes
_ANSWER = "inf_jax: "  # followed by what is wrong, or nothing


class Place(NamedTuple):
    """This process among those of the run."""

    address: str  # "host:port" of process 0
    count: int  # of processes
    process: int  # this one's number; 0 is the primary process
    devices: list[int] | None  # ids of the local devices to use; None uses all


def find_place() -> Place | None:
    """This process's place among several, or None where it runs alone.

    Raises:
      UserError: the variables are incomplete or contradict each other, or a cluster that JAX
        detects does not answer.
    """
    given = {name: os.environ[name] for name in _VARIABLES if os.environ.get(name)}
    if given.get("JAX_NUM_PROCESSES") == "1":
        return None
    devices = os.environ.get("JAX_LOCAL_DEVICE_IDS")
    devices = [int(number) for number in devices.split(",")] if devices else None
    if given:
        place = _given_place(given, devices)
    else:
        try:
            with warnings.catch_warnings(action="ignore"):
                place = Place(*jax_internals.detect_cluster(devices, int(start_timeout())))
        except Exception as error:  # of a metadata server, a scheduler: any class
            raise UserError(
                f"JAX detects a cluster but not this process's place in it ({error}); set "
                f"{', '.join(_VARIABLES)}, or JAX_NUM_PROCESSES=1 for a single process"
            ) from error
    return None if place.address is None or place.count == 1 else place


def _given_place(given: dict[str, str], devices: list[int] | None) -> Place:
    missing = [name for name in _VARIABLES if name not in given]
    if missing:
        raise UserError(f"{', '.join(given)} without {', '.join(missing)}: set all three or none")
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


def start_timeout() -> float:
    """Seconds to wait for the other processes, from INF_JAX_START_TIMEOUT. Raises UserError."""
    given = os.environ.get(_START_TIMEOUT, "300")
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0
    if not 1 <= seconds < 1e6:
        raise UserError(f"{_START_TIMEOUT}={given}: seconds, at least 1")
    return seconds


def initialise() -> bool:
    """Joins the run's other processes, before any device is used; False where there are none.

    Raises UserError: as `find_place` and `rendezvous`.
    """
    place = find_place()
    if place is None:
        return False
    import jax

    timeout_s = start_timeout()
    # SIGTERM is handled by distributed.preemption: Orbax threads would count steps too
    jax.config.update("jax_enable_preemption_service", False)
    rendezvous(place.address, place.count, place.process, timeout_s=timeout_s)
    jax.distributed.initialize(
        place.address,
        place.count,
        place.process,
        place.devices,
        cluster_detection_method="deactivate",
        initialization_timeout=int(timeout_s),
    )
    return True


def rendezvous(address: str, count: int, process: int, *, timeout_s: float) -> None:
    """Returns in all processes once all are there; then the port of `address` is free again.

    Raises:
      UserError: in every process that is there: which are missing after the timeout, or what they
        do not agree on.
    """
    host, _, port = address.rpartition(":")
    if process == 0:
        _collect(int(port), address, count, timeout_s=timeout_s)
    else:
        _report((host.strip("[]"), int(port)), count, process, timeout_s=timeout_s)


def _collect(port: int, address: str, count: int, *, timeout_s: float) -> None:
    """Process 0: waits for the others and tells all of them the result."""
    deadline = time.monotonic() + timeout_s
    here, callers, problem = {0}, [], ""
    with _listen(port, count) as server, contextlib.ExitStack() as connections:
        while len(here) < count and not problem:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                caller = connections.enter_context(server.accept()[0])
            except TimeoutError:
                missing = sorted(set(range(count)) - here)
                problem = (
                    f"{len(missing)} of {count} processes did not reach {address} within "
                    f"{timeout_s:g} s: process {', '.join(map(str, missing))} missing; look at "
                    "their logs, then start all processes again"
                )
                break
            hello = _hello(caller)
            if hello is None:
                caller.close()
                continue
            callers.append(caller)
            number, of = hello
            if of != count:
                problem = (
                    f"process {number} was started as one of {of}, process 0 as one of {count}"
                )
            elif number in here:
                problem = f"two processes were started as number {number} of {count}"
            here.add(number)
        for caller in callers:
            with contextlib.suppress(OSError):
                caller.sendall(f"{_ANSWER}{problem}\n".encode())
                caller.recv(1)  # the caller closes first: the port is free at once
    if problem:
        raise UserError(problem)


def _listen(port: int, count: int) -> socket.socket:
    try:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        return socket.create_server(("", port), family=family, backlog=count, dualstack_ipv6=both)
    except OSError as error:
        raise UserError(
            f"process 0 cannot listen on port {port} ({error}): does an older run still use it? "
            "end that, or give all processes another port"
        ) from None


def _hello(caller: socket.socket) -> tuple[int, int] | None:
    """(number, count) that a caller sends; None for one that is not a process of a run."""
    caller.settimeout(_HELLO_S)
    with contextlib.suppress(OSError), caller.makefile("rb") as lines:
        hello = re.fullmatch(rb"inf_jax (\d+) of (\d+)\n", lines.readline(100))
        return (int(hello[1]), int(hello[2])) if hello else None
    return None


def _report(address: tuple[str, int], count: int, process: int, *, timeout_s: float) -> None:
    """The other processes: reports to process 0, again and again until it answers."""
    deadline, reason = time.monotonic() + timeout_s, "no answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection(address, timeout=left) as primary:
                primary.sendall(f"inf_jax {process} of {count}\n".encode())
                primary.settimeout(timeout_s + _SLACK_S)
                with primary.makefile("r", errors="replace") as lines:
                    answer = lines.readline(1_000_000)
        except OSError as error:
            answer, reason = "", str(error)
        if answer.startswith(_ANSWER) and answer.endswith("\n"):
            problem = answer.removeprefix(_ANSWER).strip()
            if problem:
                raise UserError(problem)
            return
        time.sleep(min(0.2, max(0.0, left)))
    raise UserError(
        f"process {process} of {count}: process 0 did not answer at {address[0]}:{address[1]} "
        f"within {timeout_s:g} s ({reason}); is it started, and the port open?"
    )
