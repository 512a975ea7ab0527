"""What the benchmarks share: worker processes that take turns, and the report.

Standard library only, so that the parent needs neither cores nor memory of its own.
"""

import contextlib
import ctypes
import datetime
import gc
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
REPORT = ROOT / "launch" / "benchmarks.md"

# The same for all contenders. Large temporaries on huge pages: training steps take about a fifth
# less time on a CPU; an old glibc ignores it.
ENVIRONMENT = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "HF_HUB_OFFLINE": "1",
    "JAX_PLATFORMS": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}


class Worker:
    """A contender's process: JSON lines over its standard input and output, see `serve`.

    Args:
      arguments: of bench.py.
      threads: cores that the process may use.
      environment: variables on top of ENVIRONMENT.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        threads: int,
        environment: Mapping[str, str] | None = None,
    ):
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (lives as long as the worker)
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "launch" / "bench.py"), *arguments],
            env={
                **os.environ,
                **ENVIRONMENT,
                **(environment or {}),
                "OMP_NUM_THREADS": str(threads),
                "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self.name = arguments[-1]
        self._receive()  # it is set up

    def ask(self, question: Any) -> Any:
        """Sends JSON and waits for the answer; ends the program where the worker has died."""
        with contextlib.suppress(BrokenPipeError):  # the worker has died: _receive says why
            print(json.dumps(question), file=self._process.stdin, flush=True)
        return self._receive()

    def close(self) -> None:
        """Ends the process."""
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
            sys.stderr.write("".join(self._errors.readlines()[-20:]))
            raise SystemExit(f"error: worker {self.name} ended with exit code {code}, see above")
        return json.loads(line)


def serve(setup: Callable[[], Callable[[Any], Any]], *, threads: int) -> None:
    """The worker's side: answers each line of standard input until it is closed.

    Args:
      setup: gives the function that answers; what either prints goes to standard error.
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
    """The most memory that this process held, ever or since `reset_peak_memory`, bytes (VmHWM)."""
    return _status("VmHWM")


def reset_peak_memory() -> int:
    """Gives free memory back to the system and forgets the peak; returns what is held, bytes."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # 5: the peak only
    return _status("VmRSS")


def _status(name: str) -> int:
    """A memory figure of /proc/self/status, bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}: this benchmark needs Linux")


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table with aligned columns, first one to the left."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]

    def line(row: Sequence[str]) -> str:
        first = row[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        return f"| {' | '.join([first, *rest])} |"

    rule = "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])])
    return "\n".join([line(cells[0]), f"|{rule}|", *map(line, cells[1:])])


def machine(threads: int) -> str:
    """The machine in words: processor, cores, memory, system."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores ({threads} used), "
        f"{memory:.0f} GiB, Linux, Python {platform.python_version()}"
    )


def commit() -> str:
    """The commit that is checked out, with a mark where files differ from it."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    revision = git("rev-parse", "--short", "HEAD") or "none"
    return revision + (" with changes" if git("status", "--porcelain") else "")


def publish(title: str, text: str, *, threads: int, write: bool) -> None:
    """Prints a result; with `write` also appends it to launch/benchmarks.md."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    section = f"## {title}\n\n{today}, commit {commit()}. {machine(threads)}.\n\n{text.rstrip()}\n"
    print(section)
    if not write:
        return
    old = REPORT.read_text() if REPORT.exists() else "# Benchmarks\n\nMade by launch/bench.py.\n"
    REPORT.write_text(f"{old.rstrip()}\n\n{section}")
    print(f"appended to {REPORT.relative_to(ROOT)}")
