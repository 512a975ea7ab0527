"""Decides after each step whether all processes continue, save a checkpoint, or save and stop.

SIGTERM to any process (a preempted machine, `launch/tpu.sh stop`, Slurm) or Ctrl-C asks for the
stop, the primary process's clock for checkpoints. The primary process announces the action after
every step and the others wait for it: about a millisecond, without the devices.
"""

import contextlib
import os
import signal
import time
from types import FrameType

from inf_jax.core.interrupts import INTERRUPTED, TWICE_S
from inf_jax.distributed.jax_internals import coordination_client

CONTINUE, CHECKPOINT, STOP = "continue", "checkpoint", "stop"
STOPPED = 128 + signal.SIGTERM  # exit code of a run that was asked to stop and can be resumed

_REPEAT_S = 5.0
_KEPT = 16  # announced actions that stay readable; no process is that many steps behind
_TIMEOUT_MS = 24 * 3600 * 1000  # a hang is the watchdog's to find, a death JAX's


class PreemptionGuard(contextlib.AbstractContextManager):
    """Handles SIGTERM and SIGINT (Ctrl-C) while it is open.

    Before the first `action` there is nothing to save, and SIGTERM ends the process at once with
    exit code `STOPPED`; so does a second one `_REPEAT_S` or more after the first: launchers send
    some signals twice. SIGINT does the same with exit code `core.interrupts.INTERRUPTED`, and a
    second one ends the process at once whenever it comes. The handlers set a flag, which `action`
    reads: an exception could be lost in a callback. SIGUSR1, which asks for a trace
    (`monitoring.profiler`), is ignored.

    Args:
      save_every_s: seconds between two checkpoints; 0 turns the clock off.

    Attributes:
      interrupted: whether there was a SIGINT.
    """

    def __init__(self, *, save_every_s: float = 0.0):
        self._every, self._saved = save_every_s, time.monotonic()
        self._signalled: float | None = None  # when
        self._reported, self._started = False, False
        self.interrupted, self._interrupted_at = False, 0.0
        self._client = coordination_client()

    def __enter__(self) -> "PreemptionGuard":
        self._before = signal.signal(signal.SIGTERM, self._on_sigterm)
        self._before_usr1 = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        self._before_int = signal.getsignal(signal.SIGINT)
        if self._before_int is not signal.SIG_IGN:  # as in a background job of a script
            signal.signal(signal.SIGINT, self._on_sigint)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._before)
        signal.signal(signal.SIGUSR1, self._before_usr1)
        signal.signal(signal.SIGINT, self._before_int)

    @property
    def exit_code(self) -> int:
        """Of a run that was asked to stop and has saved its state."""
        return INTERRUPTED if self.interrupted else STOPPED

    def action(self, done: int) -> str:
        """CONTINUE, CHECKPOINT or STOP; all processes call this after each step."""
        self._started = True
        if self._client is None:
            return self._decide(self._signalled is not None)
        import jax

        if jax.process_index() == 0:
            others = self._client.key_value_dir_get("inf_jax/stop/")
            action = self._decide(self._signalled is not None or bool(others))
            self._client.key_value_set(_key(done), action)
            self._client.key_value_delete(_key(done - _KEPT))
            return action
        if self._signalled is not None and not self._reported:
            self._client.key_value_set(f"inf_jax/stop/{jax.process_index()}", "yes")
            self._reported = True
        return self._client.blocking_key_value_get(_key(done), _TIMEOUT_MS)

    def saved(self) -> None:
        """Restarts the clock, after a checkpoint."""
        self._saved = time.monotonic()

    def _decide(self, stop: bool) -> str:
        if stop:
            return STOP
        due = self._every and time.monotonic() - self._saved >= self._every
        return CHECKPOINT if due else CONTINUE

    def _on_sigterm(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        again = self._signalled is not None and now - self._signalled >= _REPEAT_S
        if self._signalled is None:  # first: a callback that runs now may swallow the exception
            self._signalled = now
        if again or not self._started:
            os.write(2, b"SIGTERM: ended without saving\n")
            raise SystemExit(STOPPED)

    def _on_sigint(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        again = self.interrupted and now - self._interrupted_at >= TWICE_S
        if not self.interrupted:
            self.interrupted, self._interrupted_at = True, now
        if self._signalled is None:
            self._signalled = now
        if again or not self._started:
            raise KeyboardInterrupt
        with contextlib.suppress(OSError):
            os.write(2, b"\ninterrupted: saving after this step; Ctrl-C again ends at once\n")


def _key(done: int) -> str:
    return f"inf_jax/action/{done}"
