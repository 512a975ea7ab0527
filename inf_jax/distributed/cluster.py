"""Whether all processes of a run have come: each says its number to process 0, which answers all at
once, with nothing or with what is wrong."""

import contextlib
import re
import socket
import time

from inf_jax.core.errors import UserError

_SLACK_S = 10.0  # process 0 may have begun to wait that much later, and answers late by that much
_HELLO_S = 5.0  # a caller that says nothing is none of ours
_VERDICT = "inf_jax: "  # and what is wrong, or nothing


def roll_call(address: str, count: int, process: int, *, timeout_s: float) -> None:
    """Returns in all processes once all are there.

    Args:
      address: "host:port" of process 0; free again at the return.
      process: of `count`, this one's number.

    Raises:
      UserError: in every process that came: who did not, or what they do not agree on.
    """
    host, _, port = address.rpartition(":")
    if process == 0:
        _lead(int(port), address, count, timeout_s=timeout_s)
    else:
        _report((host.strip("[]"), int(port)), count, process, timeout_s=timeout_s)


def _lead(port: int, address: str, count: int, *, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    try:
        if socket.has_dualstack_ipv6():
            family = socket.AF_INET6
            server = socket.create_server(
                ("", port), family=family, backlog=count, dualstack_ipv6=True
            )
        else:
            server = socket.create_server(("", port), backlog=count)
    except OSError as error:
        raise UserError(
            f"process 0 cannot listen on port {port} ({error}): does an older run still use it? "
            "end that, or give all processes another port"
        ) from None
    here, callers, problem = {0}, [], ""
    with server, contextlib.ExitStack() as connections:
        while len(here) < count and not problem:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                caller = connections.enter_context(server.accept()[0])
            except TimeoutError:
                absent = sorted(set(range(count)) - here)
                problem = (
                    f"{len(absent)} of {count} processes did not come to {address} within "
                    f"{timeout_s:g} s: process {', '.join(map(str, absent))}; look at their logs, "
                    "then start all processes again"
                )
                break
            said = _hello(caller)
            if said is None:
                caller.close()
                continue
            callers.append(caller)
            number, of = said
            if of != count:
                problem = (
                    f"process {number} was started as one of {of}, process 0 as one of {count}"
                )
            elif number in here:
                problem = f"two processes were started as number {number} of {count}"
            here.add(number)
        for caller in callers:
            with contextlib.suppress(OSError):
                caller.sendall(f"{_VERDICT}{problem}\n".encode())
                caller.recv(1)  # the caller closes first: the port is free at once
    if problem:
        raise UserError(problem)


def _hello(caller: socket.socket) -> tuple[int, int] | None:
    """(number, count) as a caller gives them; None for one that is no process of ours."""
    caller.settimeout(_HELLO_S)
    with contextlib.suppress(OSError), caller.makefile("rb") as lines:
        said = re.fullmatch(rb"inf_jax (\d+) of (\d+)\n", lines.readline(100))
        return (int(said[1]), int(said[2])) if said else None
    return None


def _report(address: tuple[str, int], count: int, process: int, *, timeout_s: float) -> None:
    deadline, reason = time.monotonic() + timeout_s, "no answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection(address, timeout=left) as lead:
                lead.sendall(f"inf_jax {process} of {count}\n".encode())
                lead.settimeout(timeout_s + _SLACK_S)
                with lead.makefile("r", errors="replace") as lines:
                    said = lines.readline(1_000_000)
        except OSError as error:
            said, reason = "", str(error)
        if said.startswith(_VERDICT) and said.endswith("\n"):
            problem = said.removeprefix(_VERDICT).strip()
            if problem:
                raise UserError(problem)
            return
        time.sleep(min(0.2, max(0.0, left)))
    raise UserError(
        f"process {process} of {count}: process 0 did not answer at {address[0]}:{address[1]} "
        f"within {timeout_s:g} s ({reason}); is it started, and the port open?"
    )
