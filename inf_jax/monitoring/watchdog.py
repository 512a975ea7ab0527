"""Ends a process whose steps stop finishing, and dumps the stacks of its threads.

A collective that waits for a dead or stuck process cannot be cancelled: without this the machines
would wait, and be paid for, indefinitely.
"""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from pathlib import Path

from inf_jax.io.atomic import atomic_file

HUNG = 75  # exit code: EX_TEMPFAIL of sysexits.h, "try again"

_FIRST = 4  # factor for a start's first step, which compiles
_BEATS = 20  # checks within the time limit
_GRACE_S = 5.0  # for the other processes to notice too: the end of this one may kill them
_STDERR = 2


class Watchdog(contextlib.AbstractContextManager):
    """Monitors the steps of this process while open; each process has its own.

    If no step finishes for `minutes`, the stacks of all Python threads go to stderr and to
    `<directory>/hang-<process>.txt`, and the process ends with exit code `HUNG`. A start's first
    step gets four times as long. If a thread holds the GIL all that time, only stderr gets the
    stacks, and the exit code is 1.

    Args:
      minutes: 0 turns it off.
      process: index of this process.
      first: the first step of this start.
    """

    def __init__(self, directory: Path, *, minutes: float, process: int, first: int):
        self._path = directory / f"hang-{process}.txt"
        self._limit, self._process = 60 * minutes, process
        self._began, self._allowed = time.monotonic(), _FIRST * self._limit
        self._what = f"step {first}, the first of this start, did not finish"
        self._closed = threading.Event()

    def __enter__(self) -> "Watchdog":
        self._began = time.monotonic()
        if self._limit:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()

    def finished(self, step: int) -> None:
        """Records that a step is done."""
        self._began, self._allowed = time.monotonic(), self._limit
        self._what = f"nothing finished after step {step}"

    def _watch(self) -> None:
        beat = min(10.0, self._limit / _BEATS)
        while True:
            _end_later(self._limit + 4 * beat)
            if self._closed.wait(beat):
                faulthandler.cancel_dump_traceback_later()
                return
            waited = time.monotonic() - self._began
            if waited > self._allowed:
                self._end(waited)

    def _end(self, waited: float) -> None:
        _end_later(6 * _GRACE_S)  # whatever happens below
        now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        text = (
            f"process {self._process} hangs: {self._what} in {waited / 60:.3g} minutes "
            f"(train.hang_minutes). It ends at {now} with exit code {HUNG}; started again, the run "
            "resumes from the newest checkpoint. If it hangs again, the stacks show where (all "
            "Python threads, innermost call first):\n"
        )
        print(text, end="", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(file=_STDERR)
        # In a separate thread: the disk may be what hangs.
        writer = threading.Thread(target=self._write, args=(text,), daemon=True)
        writer.start()
        writer.join(_GRACE_S)
        time.sleep(min(_GRACE_S, self._limit))
        os._exit(HUNG)

    def _write(self, text: str) -> None:
        with contextlib.suppress(Exception), atomic_file(self._path) as file:
            file.write(text.encode())
            file.flush()
            faulthandler.dump_traceback(file=file)


def _end_later(seconds: float) -> None:
    """Dumps stacks and exits with 1 after that time, even if no Python code can run; a later call
    replaces it."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=_STDERR)
