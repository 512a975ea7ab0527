"""Worker processes of the benchmarks: asked in turn, pinned to cores, their peak memory measured.

Nothing heavy is imported, so that the parent takes no cores and no memory from the contenders.
"""

import contextlib
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from inf_jax.core.errors import UserError

from .report import ROOT

# The same for all contenders. Huge pages for large temporaries make a training step on a CPU about
# a fifth faster; an old glibc ignores the setting.
ENVIRONMENT = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "HF_HUB_OFFLINE": "1",
    "JAX_PLATFORMS": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}
_TAIL = 20  # lines of a dead worker's standard error


class Worker:
    """A contender's process, which answers JSON lines (see `serve`).

    Args:
      arguments: for bench.py; the last one names the worker in error messages.
      threads: number of cores that the process may use.
      environment: variables on top of ENVIRONMENT.

    Raises:
      SystemExit: the process ended during its setup.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        threads: int,
        environment: Mapping[str, str] | None = None,
    ):
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (lives as long as the worker)
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "launch" / "bench.py"), *arguments],
            env={
                **checkout_environment(),
                **ENVIRONMENT,
                **(environment or {}),
                "OMP_NUM_THREADS": str(threads),
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self.name = arguments[-1]
        self._receive()  # setup is done

    def ask(self, question: Any) -> Any:
        """Sends a JSON value and waits for the answer.

        Raises:
          SystemExit: the worker has died; the end of its standard error is printed.
        """
        with contextlib.suppress(BrokenPipeError):  # the worker has died: _receive says why
            print(json.dumps(question), file=self._process.stdin, flush=True)
        return self._receive()

    def close(self) -> None:
        """Lets the process end by itself."""
        self._process.stdin.close()
        self._process.wait(30)

    def kill(self) -> None:
        """Ends the process at once."""
        self._process.kill()
        self._process.wait()

    def _receive(self) -> Any:
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._errors.seek(0)
            sys.stderr.write("".join(self._errors.readlines()[-_TAIL:]))
            raise SystemExit(f"error: worker {self.name} ended with exit code {code}, see above")
        return json.loads(line)


def checkout_environment() -> dict[str, str]:
    """The environment for subprocesses: they import the packages of this checkout."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def serve(setup: Callable[[], Callable[[Any], Any]], *, threads: int) -> None:
    """The worker's side of `Worker`: answers each line of standard input until it is closed.

    Args:
      setup: returns the function that answers. What either of them prints goes to standard error.
      threads: number of cores to pin this process to.
    """
    cores = sorted(os.sched_getaffinity(0))[:threads]
    os.sched_setaffinity(0, cores)
    with os.fdopen(os.dup(1), "w") as channel:
        os.dup2(2, 1)
        answer = setup()
        print(json.dumps("ready"), file=channel, flush=True)
        for line in sys.stdin:
            print(json.dumps(answer(json.loads(line))), file=channel, flush=True)


def peak_memory() -> int:
    """Peak resident memory in bytes (VmHWM), since the start or the last `reset_peak_memory`."""
    return _status("VmHWM")


def reset_peak_memory() -> int:
    """Returns free memory to the system, resets the peak; gives the resident memory in bytes."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # 5: the peak only
    return _status("VmRSS")


def _status(name: str) -> int:
    """A memory field of /proc/self/status, bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}: this benchmark needs Linux")


def run_module(module: str, arguments: Sequence[str], log: Path) -> None:
    """Runs `python -m MODULE ARGUMENTS` from this checkout, its output to `log`.

    Raises:
      UserError: another exit code than 0; the message ends with the last lines of the log.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            env={
                "TF_CPP_MIN_LOG_LEVEL": "2",
                "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
                **checkout_environment(),
            },
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-_TAIL:])
        raise UserError(f"{module} ended with exit code {done.returncode}, see {log}:\n{tail}")
