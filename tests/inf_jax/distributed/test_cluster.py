"""Finding a process's place in a cluster, and the rendezvous at the start."""

import os
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from inf_jax.core.errors import UserError
from inf_jax.distributed import cluster
from inf_jax.distributed.cluster import Place, find_place, initialise, rendezvous
from inf_jax.distributed.entry_point import single_process_only
from tests.inf_jax.processes import free_port, place


def meet(*callers, timeout_s=600):
    """The error of each (count, process), "" where all is well; and the address."""
    address = f"127.0.0.1:{free_port()}"

    def one(count, process):
        try:
            rendezvous(address, count, process, timeout_s=timeout_s)
        except UserError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(len(callers)) as pool:
        return list(pool.map(one, *zip(*callers, strict=True))), address


def time_runs_out_after_a_report(monkeypatch):
    """The clock stands still until process 0 has read one report, and is then at its end."""
    now, hello = [0.0], cluster._hello

    def heard(caller):
        report = hello(caller)
        now[0] = 1e6
        return report

    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=time.sleep)
    monkeypatch.setattr(cluster, "time", clock)
    monkeypatch.setattr(cluster, "_hello", heard)


def test_rendezvous(monkeypatch):
    said, address = meet((3, 2), (3, 1), (3, 0))
    assert said == ["", "", ""]
    socket.create_server(("127.0.0.1", int(address.rpartition(":")[2]))).close()  # free again

    time_runs_out_after_a_report(monkeypatch)
    said, address = meet((4, 0), (4, 2))
    assert said[0] == said[1]
    assert said[0].startswith(
        f"2 of 4 processes did not reach {address} within 600 s: process 1, 3 missing;"
    )
    monkeypatch.undo()

    said, address = meet((2, 1), timeout_s=1)
    assert re.match(rf"process 1 of 2: process 0 did not answer at {address} within 1 s", said[0])

    said, _ = meet((3, 0), (3, 1), (3, 1))
    assert said == ["two processes were started as number 1 of 3"] * 3
    said, _ = meet((2, 0), (4, 1))
    assert said == ["process 1 was started as one of 4, process 0 as one of 2"] * 2


def test_rendezvous_ignores_strangers():
    port = free_port()
    with ThreadPoolExecutor() as pool:
        primary = pool.submit(rendezvous, f"127.0.0.1:{port}", 2, 0, timeout_s=600)
        while True:
            try:
                with socket.create_connection(("127.0.0.1", port)) as stranger:
                    stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
                    assert stranger.recv(1) == b""
                break
            except ConnectionRefusedError:
                pass
            except ConnectionResetError:
                break
        rendezvous(f"127.0.0.1:{port}", 2, 1, timeout_s=600)
        primary.result()


def set_environment(monkeypatch, values):
    for name in list(os.environ):
        if name.startswith(("JAX_", "SLURM_", "OMPI_", "INF_JAX_")):
            monkeypatch.delenv(name)
    for name, value in values.items():
        monkeypatch.setenv(name, value)


SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_NTASKS": "16",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (place(4, 3, 99), Place("127.0.0.1:99", 4, 3, None)),
        (place(1, 0, 99), None),
        (SLURM, Place("gpu07:61447", 16, 9, [1])),
        (SLURM | {"JAX_LOCAL_DEVICE_IDS": "0,1"}, Place("gpu07:61447", 16, 9, [0, 1])),
        (SLURM | {"SLURM_NTASKS": "1"}, None),
        (SLURM | {"JAX_NUM_PROCESSES": "1"}, None),
    ],
)
def test_place(monkeypatch, environment, expected):
    set_environment(monkeypatch, environment)
    assert find_place() == expected


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"JAX_PROCESS_ID": "1"}, "JAX_PROCESS_ID without JAX_COORDINATOR_ADDRESS, JAX_NUM_PROC"),
        (place(2, 2, 99), "JAX_PROCESS_ID=2, JAX_NUM_PROCESSES=2: the first counts from 0"),
        (place(2, "one", 99), "JAX_PROCESS_ID=one"),
        (place(2, 1, ""), "JAX_COORDINATOR_ADDRESS=127.0.0.1:: must be HOST:PORT"),
        (SLURM | {"SLURM_PROCID": "x"}, "JAX detects a cluster but not this process's place in it"),
    ],
)
def test_impossible_places_are_refused(monkeypatch, environment, message):
    set_environment(monkeypatch, environment)
    with pytest.raises(UserError, match=re.escape(message)):
        initialise()


def test_impossible_start_timeout_is_refused(monkeypatch):
    set_environment(monkeypatch, place(2, 1, 99, timeout_s="soon"))
    with pytest.raises(UserError, match="INF_JAX_START_TIMEOUT=soon: seconds"):
        initialise()


def test_single_process_only(monkeypatch):
    ran = []
    main = single_process_only(ran.append)
    set_environment(monkeypatch, place(2, 1, 99))
    with pytest.raises(
        UserError, match=r"for a single process, 2 were started: .* JAX_NUM_PROCESSES=1"
    ):
        main("config")
    assert not ran
    set_environment(monkeypatch, {})
    main("config")
    assert ran == ["config"]
