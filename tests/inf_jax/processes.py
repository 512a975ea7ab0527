"""Training runs in processes of their own, one or several, as users start them."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from tests.xla_flags import quick_flags

ROOT = Path(__file__).parents[2]
WITHOUT_TORCH = ROOT / "tests" / "doubles" / "without_torch"
LIMIT_S = 900  # only ends what hangs
TRAIN = ("-m", "inf_jax.train")


def write_config(config, path):
    """A config file that a command line can name, equal to `config`."""
    lines = ["from inf_jax.config import defaults", "def get_config():", "    c = defaults()"]
    for section, value in config.to_dict().items():
        values = value.items() if isinstance(value, dict) else [(None, value)]
        for key, v in values:
            name = f"{section}.{key}" if key else section
            lines.append(f"    c.{name} = {v!r}")
    path.write_text("\n".join([*lines, "    return c", ""]))
    return path


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def place(count, process, port, *, timeout_s=LIMIT_S):
    """The environment of one process of several."""
    return {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(count),
        "JAX_PROCESS_ID": str(process),
        "INF_JAX_START_TIMEOUT": str(timeout_s),
    }


def start(
    file, *overrides, count=1, only=None, devices=1, program=TRAIN, timeout_s=LIMIT_S, cache=None
):
    """The processes of a run that share `devices`, or those in `only`, with pipes to read.

    `cache` is a directory for compiled programs. Several processes compile fast and badly.
    """
    port, processes = free_port(), []
    for process in range(count) if only is None else only:
        environment = os.environ | {
            "XLA_FLAGS": quick_flags(devices // count),
            "PYTHONPATH": f"{WITHOUT_TORCH}:{ROOT}:{os.environ.get('PYTHONPATH', '')}".rstrip(":"),
        }
        if cache:
            environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
            environment["JAX_COMPILATION_CACHE_DIR"] = str(cache)
            environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        if count > 1:
            environment |= place(count, process, port, timeout_s=timeout_s)
        started = subprocess.Popen(
            [sys.executable, *program, f"--config={file}", *overrides],
            env=environment,
            cwd=file.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        processes.append(started)
    return processes


def finish(processes):
    """Their outputs and exit codes, once all have ended."""
    try:
        outs = [process.communicate(timeout=LIMIT_S)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return outs, [process.returncode for process in processes]
