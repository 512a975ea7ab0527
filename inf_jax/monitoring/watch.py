"""Monitors a train loop: step timing, hangs, loss spikes, and profiler traces on demand."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import jax

from inf_jax.config.sections import TrainConfig
from inf_jax.distributed.coordination import is_primary
from inf_jax.io.storage import AnyPath
from inf_jax.monitoring.compilation import CompileCounter
from inf_jax.monitoring.loss_guard import LossGuard
from inf_jax.monitoring.metrics_log import MetricsLog, NoLog, read_losses
from inf_jax.monitoring.profiler import Profiler
from inf_jax.monitoring.step_timer import StepTimer, StepWork
from inf_jax.monitoring.watchdog import Watchdog


def watching_start(options: TrainConfig, work_dir: Path) -> Watchdog:
    """A watchdog for the collective work before the loop, mainly restoring."""
    process = jax.process_index()
    return Watchdog(work_dir, minutes=options.hang_minutes, process=process, first=0)


class Watch(contextlib.ExitStack):
    """Open around the loop, in every process.

    Args:
      options: the `train` section.
      work: of a step, for the rates.
      out_dir: of the run; holds metrics.jsonl.
      work_dir: local directory for this process's files of out_dir (`storage.WorkDir`).
      first: this start's first step.
      compiles: open since the beginning of this start.
      log: receives the timing figures.
      checkpoints: () -> steps that have a checkpoint.

    Attributes:
      timer: wraps the batches, and has the timing figures.
    """

    def __init__(
        self,
        options: TrainConfig,
        work: StepWork,
        *,
        out_dir: AnyPath,
        work_dir: Path,
        first: int,
        compiles: CompileCounter,
        log: MetricsLog | NoLog,
        checkpoints: Callable[[], Iterable[int]],
    ):
        super().__init__()
        self._checkpoints, process = checkpoints, jax.process_index()
        self.timer = StepTimer(
            work_dir / "timing.jsonl" if is_primary() else None,
            work=work,
            first=first,
            every=options.log_every,
            begun=compiles.begun,
            compiles=compiles,
            show=log.timing,
        )
        earlier: list[float] = []
        if options.max_spike and first:
            losses = read_losses(out_dir / "metrics.jsonl")
            earlier = [loss for step, loss in losses if step < first]
        spike, steps = options.max_spike, options.spike_steps
        self._loss_guard = LossGuard(max_spike=spike, steps=steps, losses=earlier)
        minutes = options.hang_minutes
        self._watchdog = Watchdog(work_dir, minutes=minutes, process=process, first=first)
        self._profiler = Profiler(
            work_dir / "tensorboard",
            steps=options.profile_steps,
            at=options.profile_at,
            first=first,
            process=process,
            excluded=self.timer.excluded,
        )

    def __enter__(self) -> "Watch":
        super().__enter__()
        for part in (self._watchdog, self.timer, self._profiler):
            self.enter_context(part)
        return self

    @contextlib.contextmanager
    def step(self, step: int, *, in_flight: object) -> Iterator[None]:
        """Wraps the call of a step; `in_flight` are the results of the step before, if any."""
        self._profiler.before(step, in_flight)
        with self.timer.dispatch(), jax.profiler.StepTraceAnnotation("train", step_num=step):
            yield

    @contextlib.contextmanager
    def scoring(self, step: int, in_flight: object) -> Iterator[None]:
        """Wraps the retrieval scores of a step, whose results are `in_flight`."""
        jax.block_until_ready(in_flight)
        with self.timer.scoring():
            self._watchdog.finished(step)  # scoring has a time limit of its own
            yield
        self._watchdog.finished(step)

    def finished(self, step: int, loss: float) -> None:
        """Records that the result of a step is on the host and logged.

        Raises:
          UserError: the loss has been out of its usual range for too long.
        """
        self._watchdog.finished(step)
        self.timer.arrived(step)
        self._loss_guard.check(step, loss, checkpoints=self._checkpoints)

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Wraps a save; no step may be in flight."""
        self.timer.end_window()
        with self.timer.excluded():
            yield
