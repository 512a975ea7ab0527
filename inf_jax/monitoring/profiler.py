"""Writes profiler traces of a few steps for TensorBoard, on SIGUSR1 or at a configured step."""

import contextlib
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import jax
from tqdm import tqdm

from inf_jax.core.errors import UserError
from inf_jax.io.atomic import atomic_file

_SUFFIXES = (".xplane.pb", ".trace.json.gz")  # of JAX's files, after the host's name


class Profiler(contextlib.AbstractContextManager):
    """While open, traces the next `steps` steps of this process at each SIGUSR1.

    A trace becomes `<directory>/plugins/profile/step-<first>/process-<process>.xplane.pb` (and
    `.trace.json.gz`, for ui.perfetto.dev): traces from the same step show as one run of the plugin,
    each process as a host of it. A failed trace is reported and does not end the run.

    Args:
      directory: TensorBoard's.
      steps: of a trace.
      at: step from which to trace without a signal; 0 for none.
      first: first step of this start; not traced on a signal, since it compiles.
      process: index of this process.
      excluded: context that is open while a trace is started or written.
    """

    def __init__(
        self,
        directory: Path,
        *,
        steps: int,
        at: int,
        first: int,
        process: int,
        excluded: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
    ):
        self._directory, self._count, self._at = directory, steps, at
        self._first, self._process, self._excluded = first, process, excluded
        self._requested, self._newest = False, first
        self._from: int | None = None  # first step of the running trace

    def __enter__(self) -> "Profiler":
        self._before = signal.signal(signal.SIGUSR1, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGUSR1, self._before)
        if self._from is not None:
            self._stop(self._newest + 1)

    def before(self, step: int, in_flight: object) -> None:
        """Starts or ends a trace before this step.

        Args:
          in_flight: results of the step before, waited for at the end of a trace.
        """
        if self._from is not None and step >= self._from + self._count:
            jax.block_until_ready(in_flight)
            with self._excluded():
                self._stop(step)
        if self._from is not None and self._requested:
            self._requested = False
            self._say(f"already tracing from step {self._from} on, SIGUSR1 ignored")
        if self._from is None and (
            step == self._at > 0 or (self._requested and step > self._first)
        ):
            self._requested = False
            with self._excluded():
                self._start(step)
        self._newest = step

    def _start(self, step: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="inf_jax-trace-")
        try:
            jax.profiler.start_trace(self._folder.name)
        except RuntimeError as error:
            self._folder.cleanup()
            self._say(f"no trace of step {step}: {error}")
            return
        self._from = step
        self._say(f"tracing {self._count} steps from step {step} on")

    def _stop(self, end: int) -> None:
        first, self._from = self._from, None
        target = self._directory / "plugins" / "profile" / f"step-{first:08d}"
        with self._folder as folder:
            try:
                jax.profiler.stop_trace()
                for suffix in _SUFFIXES:
                    for path in Path(folder).glob(f"plugins/profile/*/*{suffix}"):
                        copy = target / f"process-{self._process}{suffix}"
                        with path.open("rb") as trace, atomic_file(copy) as file:
                            shutil.copyfileobj(trace, file)
            except (RuntimeError, OSError, UserError) as error:
                self._say(f"the trace from step {first} on could not be written: {error}")
                return
        self._say(f"trace of steps {first} to {end - 1}: {target}")

    def _say(self, text: str) -> None:
        tqdm.write(f"process {self._process}: {text}", file=sys.stderr)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self._requested = True
