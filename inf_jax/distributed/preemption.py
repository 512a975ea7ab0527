"""Whether all processes of a run go on, save or stop after a step: one word, the same for all.

SIGTERM to any process (a preempted machine, `launch/tpu.sh stop`, Slurm) asks for the end, the
lead's clock asks for a checkpoint now and then. The lead says after every step what is to be done,
the others wait for its word: a thousandth of a second, and no device takes part.
"""

import contextlib
import os
import signal
import time
from types import FrameType

import jax
from jax._src import distributed  # pinned: launch/constraints.txt

GO_ON, SAVE, STOP = "go on", "save", "stop"
STOPPED = 128 + signal.SIGTERM  # exit code of a run that was asked to end and can go on

_TWICE_S = 5.0
_KEPT = 16  # words of the lead that stay to be read; no process is that many steps behind
_PATIENCE_MS = 24 * 3600 * 1000  # what hangs is the watchdog's, what dies is JAX's to find out


class Course(contextlib.AbstractContextManager):
    """Listens for SIGTERM while it is open.

    Before the first `word` there is nothing to save, and SIGTERM ends the process at once with exit
    code `STOPPED`; so does a second one that comes `_TWICE_S` or more after the first: launchers
    send some signals doubly. SIGUSR1, which asks for a trace (`monitoring.profiler`), ends nothing.

    Args:
      save_every_s: seconds of the lead's clock between two checkpoints; 0 is no such clock.
    """

    def __init__(self, *, save_every_s: float = 0.0):
        self._every, self._saved = save_every_s, time.monotonic()
        self._asked: float | None = None  # when
        self._told, self._under_way = False, False
        self._client = distributed.global_state.client

    def __enter__(self) -> "Course":
        self._before = signal.signal(signal.SIGTERM, self._on_sigterm)
        self._before_usr1 = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._before)
        signal.signal(signal.SIGUSR1, self._before_usr1)

    def word(self, done: int) -> str:
        """GO_ON, SAVE or STOP; all processes call this after each step, with the same number."""
        self._under_way = True
        if self._client is None:
            return self._decide(self._asked is not None)
        if jax.process_index() == 0:
            asked = self._asked is not None or bool(self._client.key_value_dir_get("inf_jax/stop/"))
            word = self._decide(asked)
            self._client.key_value_set(_key(done), word)
            self._client.key_value_delete(_key(done - _KEPT))
            return word
        if self._asked is not None and not self._told:
            self._client.key_value_set(f"inf_jax/stop/{jax.process_index()}", "yes")
            self._told = True
        return self._client.blocking_key_value_get(_key(done), _PATIENCE_MS)

    def saved(self) -> None:
        """Starts the lead's clock anew, after a checkpoint."""
        self._saved = time.monotonic()

    def _decide(self, asked: bool) -> str:
        if asked:
            return STOP
        due = self._every and time.monotonic() - self._saved >= self._every
        return SAVE if due else GO_ON

    def _on_sigterm(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        again = self._asked is not None and now - self._asked >= _TWICE_S
        if self._asked is None:  # also where what runs now swallows the exception, as a callback
            self._asked = now
        if again or not self._under_way:
            os.write(2, b"SIGTERM: ended without saving\n")
            raise SystemExit(STOPPED)


def _key(done: int) -> str:
    return f"inf_jax/course/{done}"
