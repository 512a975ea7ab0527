"""What watches over a train loop: its pace, hangs, loss spikes, and traces on demand."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import jax

from inf_jax.config.sections import RunConfig
from inf_jax.distributed.coordination import is_primary
from inf_jax.io.storage import AnyPath
from inf_jax.monitoring.loss_guard import SpikeGuard
from inf_jax.monitoring.metrics_log import MetricsLog, NoLog, read_metrics
from inf_jax.monitoring.profiler import Profiler, traced_step
from inf_jax.monitoring.step_timer import Pace, Work
from inf_jax.monitoring.watchdog import Watchdog

_T = TypeVar("_T")


class WatchOptions(NamedTuple):
    """Keys of the `train` section."""

    hang_minutes: float
    max_spike: float
    spike_steps: int
    profile_at: int
    profile_steps: int
    log_every: int


def watch_options(config: RunConfig) -> WatchOptions:
    """Reads them."""
    train = config.train
    return WatchOptions(
        hang_minutes=train.hang_minutes,
        max_spike=train.max_spike,
        spike_steps=train.spike_steps,
        profile_at=train.profile_at,
        profile_steps=train.profile_steps,
        log_every=train.log_every,
    )


def watching_start(options: WatchOptions, work_dir: Path) -> Watchdog:
    """Open around what comes before the loop and needs all processes, restoring above all."""
    process = jax.process_index()
    return Watchdog(work_dir, minutes=options.hang_minutes, process=process, first=0)


class Watch(contextlib.ExitStack):
    """Open around the loop, in every process.

    Args:
      work: of a step, for the rates.
      out_dir: of the run; the primary process's metrics.jsonl is in it.
      work_dir: the local directory where this process's files of out_dir are (`storage.WorkDir`).
      first: this start's first step.
      begun: when this start began, seconds since the epoch.
      log: gets the figures of the pace.
      checkpoints: () -> the steps at which there is one.
    """

    def __init__(
        self,
        options: WatchOptions,
        work: Work,
        *,
        out_dir: AnyPath,
        work_dir: Path,
        first: int,
        begun: float,
        log: MetricsLog | NoLog,
        checkpoints: Callable[[], Iterable[int]],
    ):
        super().__init__()
        self._checkpoints, process = checkpoints, jax.process_index()
        self.pace = Pace(
            work_dir / "timing.jsonl" if is_primary() else None,
            work=work,
            first=first,
            every=options.log_every,
            begun=begun,
            show=log.timing,
        )
        before: list[float] = []
        if options.max_spike and first:
            lines = read_metrics(out_dir / "metrics.jsonl")
            before = [line["loss"] for line in lines if line["step"] < first]
        self._spikes = SpikeGuard(
            max_spike=options.max_spike, steps=options.spike_steps, losses=before
        )
        self._watchdog = Watchdog(
            work_dir, minutes=options.hang_minutes, process=process, first=first
        )
        self._profiler = Profiler(
            work_dir / "tensorboard",
            steps=options.profile_steps,
            at=options.profile_at,
            first=first,
            process=process,
            aside=self.pace.aside,
        )

    def __enter__(self) -> "Watch":
        super().__enter__()
        for part in (self._watchdog, self.pace, self._profiler):
            self.enter_context(part)
        return self

    def batches(self, batches: Iterable[_T]) -> Iterator[_T]:
        """The same batches, their waits measured."""
        return self.pace.batches(batches)

    @contextlib.contextmanager
    def step(self, step: int, *, under_way: object) -> Iterator[None]:
        """Around the call of a step; `under_way` is what the step before gives, if anything."""
        self._profiler.before(step, under_way)
        with self.pace.dispatch(), traced_step(step):
            yield

    def finished(self, step: int, loss: float) -> None:
        """The result of a step is on the host, and logged.

        Raises:
          UserError: the loss has left its usual range.
        """
        self._watchdog.finished(step)
        self.pace.arrived(step)
        self._spikes.check(step, loss, checkpoints=self._checkpoints)

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Around a save, with no step under way."""
        self.pace.end_window()
        with self.pace.aside():
            yield
