"""Traces of a few steps for TensorBoard's profile plugin, asked for by SIGUSR1 or in the config."""

import contextlib
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import jax
from tqdm import tqdm

from inf_jax.core.errors import UserError
from inf_jax.io.atomic import atomic_file

_KINDS = (".xplane.pb", ".trace.json.gz")  # what JAX writes, after the host's name


class Profiler(contextlib.AbstractContextManager):
    """Listens for SIGUSR1 while it is open, and traces the next `steps` steps of this process.

    A trace becomes `<directory>/plugins/profile/step-<first>/process-<process>.xplane.pb` (and
    `.trace.json.gz`, for ui.perfetto.dev): processes that traced from the same step are one run of
    the plugin, each a host of it. No trace ends the run: what goes wrong with one is said.

    Args:
      directory: TensorBoard's.
      steps: of a trace.
      at: traces from this step on, without a signal; 0 is none.
      first: the first step of this start; with its compilation it is not traced for a signal.
      process: this one's number.
      aside: opened while a trace is begun or written.
    """

    def __init__(
        self,
        directory: Path,
        *,
        steps: int,
        at: int,
        first: int,
        process: int,
        aside: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
    ):
        self._directory, self._count, self._at = directory, steps, at
        self._aside = aside
        self._first, self._process = first, process
        self._asked = False
        self._from: int | None = None  # of the trace that runs
        self._newest = first

    def __enter__(self) -> "Profiler":
        self._before = signal.signal(signal.SIGUSR1, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGUSR1, self._before)
        if self._from is not None:
            self._stop(self._newest + 1)

    def before(self, step: int, under_way: object) -> None:
        """Starts or ends a trace before this step.

        Args:
          under_way: arrays that the step before gives, waited for at the end of a trace.
        """
        if self._from is not None and step >= self._from + self._count:
            jax.block_until_ready(under_way)
            with self._aside():
                self._stop(step)
        if self._from is not None and self._asked:
            self._asked = False
            self._say(f"a trace from step {self._from} on is under way, SIGUSR1 is ignored")
        if self._from is None and (step == self._at > 0 or (self._asked and step > self._first)):
            self._asked = False
            with self._aside():
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
        name = f"step-{first:08d}"
        target = self._directory / "plugins" / "profile" / name
        with self._folder as folder:
            try:
                jax.profiler.stop_trace()
                for path in Path(folder).glob("plugins/profile/*/*"):
                    for kind in _KINDS:
                        if path.name.endswith(kind):
                            _copy(path, target / f"process-{self._process}{kind}")
            except (RuntimeError, OSError, UserError) as error:
                self._say(f"the trace from step {first} on is lost: {error}")
                return
        self._say(f"trace of steps {first} to {end - 1}: {target}")

    def _say(self, text: str) -> None:
        tqdm.write(f"process {self._process}: {text}", file=sys.stderr)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self._asked = True


@contextlib.contextmanager
def traced_step(step: int) -> Iterator[None]:
    """Marks the body as the host's part of a step, so that the plugin tells steps apart."""
    with jax.profiler.StepTraceAnnotation("train", step_num=step):
        yield


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as read, atomic_file(target) as written:
        shutil.copyfileobj(read, written)
