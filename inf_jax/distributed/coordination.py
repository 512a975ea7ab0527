"""Barriers and small broadcasts between processes via JAX's coordination service.

In a run of one process nothing here waits. All processes must make the same calls in the same
order; each call has keys of its own.
"""

import collections
import contextlib
import json
import re
import secrets
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from inf_jax.core.errors import UserError
from inf_jax.distributed.cluster import start_timeout
from inf_jax.distributed.jax_internals import coordination_client

_LONG_WORK_S = 24 * 3600.0  # tokenising a large corpus; a process that dies ends the wait at once
_calls: collections.Counter[str] = collections.Counter()


def is_primary() -> bool:
    """Whether this is the primary process, which writes the run's files and prints."""
    return jax.process_index() == 0


def barrier(name: str, *, timeout_s: float) -> None:
    """Waits until all processes are here, at the place in the program called `name`.

    Raises:
      UserError: some are missing after the timeout (lists them), or one has ended.
    """
    client = coordination_client()
    if client is None:
        return
    try:
        client.wait_at_barrier(_new_key(name), int(1000 * timeout_s))
    except jax.errors.JaxRuntimeError as error:
        listed = re.search(r"timed out task names:\s*\n((?:\s*\d+\s*\n)+)", str(error))
        who = f"process {', '.join(listed[1].split())} missing" if listed else str(error)
        raise UserError(
            f"process {jax.process_index()} waited {timeout_s:g} s at {name!r}: {who}; look at the "
            "logs of the others, then start all processes again"
        ) from error


@contextlib.contextmanager
def primary_first(name: str) -> Iterator[None]:
    """Runs the body in the primary process first, then in all others; all leave it together.

    On a shared disk the others find what the primary process made; otherwise they make it too.
    """
    primary = is_primary()
    if not primary:
        barrier(name, timeout_s=_LONG_WORK_S)
    yield
    if primary:
        barrier(name, timeout_s=_LONG_WORK_S)
    barrier(f"{name}, all", timeout_s=_LONG_WORK_S)


def check_shared(directory: Path, check: Callable[[Path], None]) -> None:
    """Makes a directory (`Path` or `epath.Path`) and checks that every process can use it.

    Args:
      check: raises UserError where this process cannot write in a directory.

    Raises:
      UserError: in all processes, where some do not see what the primary process writes there, or
        cannot write there.
    """
    if coordination_client() is None:
        check(directory)
        return
    problem = ""
    try:
        check(directory)
    except UserError as error:
        problem = str(error)
    name = f".hosts-{secrets.token_hex(8)}"
    if is_primary() and not problem:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(b"visible?")
    probe = directory / _broadcast("probe", name)
    blind = not problem and not probe.exists()
    hosts = _gather("sees", {"host": socket.gethostname(), "problem": problem, "blind": blind})
    if is_primary() and not problem:
        probe.unlink()
    for process, seen in enumerate(hosts):
        if seen["problem"]:
            raise UserError(f"process {process} ({seen['host']}): {seen['problem']}")
    blind = ", ".join(f"{n} ({seen['host']})" for n, seen in enumerate(hosts) if seen["blind"])
    if blind:
        raise UserError(
            f"process {blind}: what process 0 writes in {directory} is not visible there; out_dir "
            "must be on a disk that all hosts share, or in a bucket"
        )


@contextlib.contextmanager
def on_primary(context: contextlib.AbstractContextManager) -> Iterator[None]:
    """Enters a context in the primary process only; its UserError there is raised in all."""
    problem, alone = "", coordination_client() is None
    with contextlib.ExitStack() as stack:
        if is_primary():
            try:
                stack.enter_context(context)
            except UserError as error:
                if alone:
                    raise
                problem = str(error)
        if not alone and (problem := _broadcast("on_primary", problem)):
            raise UserError(f"process 0: {problem}")
        yield


def check_same(facts: Mapping[str, str]) -> None:
    """Raises UserError, in all processes, where one's facts differ from the primary process's.

    `facts` are by name, such as versions and fingerprints. A process that goes its own way would
    hang the others at the next collective.
    """
    if coordination_client() is None:
        return
    primary, *others = _gather("facts", dict(facts))
    differ = [
        f"{name}: {theirs.get(name)} in process {process}, {value} in process 0"
        for process, theirs in enumerate(others, 1)
        for name, value in primary.items()
        if theirs.get(name) != value
    ]
    if differ:
        raise UserError(
            f"the processes' configurations differ ({'; '.join(differ[:4])}): give all hosts "
            "the same commit, packages, config and data"
        )


def of_primary(name: str, value: Any) -> Any:
    """The primary process's value (plain, for JSON), in all processes, after work that may take
    long; `name` says what it is."""
    if coordination_client() is None:
        return value
    return _broadcast(name, value, timeout_s=_LONG_WORK_S)


def _broadcast(name: str, value: Any, *, timeout_s: float | None = None) -> Any:
    """The primary process's value, in all processes; JSON."""
    client, key = coordination_client(), _new_key(name)
    if is_primary():
        client.key_value_set(key, json.dumps(value))
    wait_s = start_timeout() if timeout_s is None else timeout_s
    return json.loads(client.blocking_key_value_get(key, int(1000 * wait_s)))


def _gather(name: str, value: Any) -> list[Any]:
    """Each process's value, in order, in all processes; JSON."""
    client, key, wait_ms = coordination_client(), _new_key(name), int(1000 * start_timeout())
    client.key_value_set(f"{key}/{jax.process_index()}", json.dumps(value))
    return [
        json.loads(client.blocking_key_value_get(f"{key}/{n}", wait_ms))
        for n in range(jax.process_count())
    ]


def _new_key(name: str) -> str:
    """A key that no earlier call has used, the same in all processes."""
    _calls[name] += 1
    return f"inf_jax/{name}/{_calls[name]}"
