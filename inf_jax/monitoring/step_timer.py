"""Measures step time, input wait, throughput, MFU and goodput of a train loop.

    step time   from the arrival of one step's result on the host to the next: dispatch is
                asynchronous, so the duration of a call means nothing. Includes the wait for input;
                excludes compilation, checkpoints and traces (`excluded`).
    input wait  how long the loop waits for the next batch; not counted for a start's first one.
    rates       mean examples, pairs and real tokens of a step / mean step time.
    MFU         planning.flops.model_flops of a step / (devices x peak x step time); the peak is
                that of bfloat16 whatever model.dtype is. Left out if the peak is unknown.
    compile_s   seconds of compiling and of loading compiled programs, of all starts; so are the
                numbers of programs that were compiled and that the cache had.
    scoring_s   seconds of retrieval scores (train.eval_every), of all starts; scoring_share: their
                share of the wall time since the first start.
    goodput     sum of the step times of the steps that the run kept / wall time since its first
                start. A step repeated after a kill counts once; compilation, restoring, scoring,
                waits for checkpoints, lost steps and the time between two starts do not count.

The primary process appends to `timing.jsonl`: for each start {"start": first step, "at": seconds
since the epoch}, and a line per window, which ends every `log_every` steps and at checkpoints.
"""

import contextlib
import json
import os
import resource
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from inf_jax.monitoring.compilation import COMPILED, CompileCounter
from inf_jax.monitoring.metrics_log import is_number, metric_lines

_SCORING = "scoring_s"
_SUMMED = (*CompileCounter().figures(), _SCORING)  # over all starts
_T = TypeVar("_T")


class StepWork(NamedTuple):
    """Mean work of a step over the whole mesh.

    Attributes:
      examples, pairs, tokens: per step.
      flops: model FLOPs per step.
      peak: FLOPs per second of all devices; None if unknown.
    """

    examples: float
    pairs: float
    tokens: float
    flops: float
    peak: float | None


class History(NamedTuple):
    """Timings of earlier starts of a run.

    Attributes:
      begun: time of the first start, seconds since the epoch; None if there is none.
      steps, waits: float64[n], seconds per step that was kept; NaN for a wait not counted.
      summed: `CompileCounter.figures` and scoring_s, of all of them.
    """

    begun: float | None
    steps: np.ndarray
    waits: np.ndarray
    summed: dict[str, float]


def _is_timing(line: Mapping[str, Any]) -> bool:
    """Whether a line is one of a start or of a window of steps."""
    if "start" in line:
        return type(line["start"]) is int and is_number(line.get("at"))
    seconds, waits = line.get("step_s"), line.get("wait_s")
    return (
        type(line.get("step")) is int
        and isinstance(seconds, list)
        and isinstance(waits, list)
        and len(seconds) == len(waits) <= line["step"] + 1
        and all(map(is_number, seconds))
        and all(wait is None or is_number(wait) for wait in waits)
    )


def read_history(path: Path, *, first: int) -> History:
    """Reads the timings of the steps before `first`; of a repeated step, the last one."""
    begun, steps, waits = None, np.full(first, np.nan), np.full(first, np.nan)
    summed: dict[str, float] = {}
    for line in metric_lines(path, _is_timing):
        if "start" in line:
            begun = line["at"] if begun is None else begun
            continue
        summed |= {name: line[name] for name in _SUMMED if is_number(line.get(name))}
        seconds, wait = line["step_s"], line["wait_s"]
        start = line["step"] + 1 - len(seconds)
        count = min(len(seconds), max(0, first - start))
        steps[start : start + count] = seconds[:count]
        waits[start : start + count] = np.array(wait[:count], np.float64)  # null is NaN
    known = ~np.isnan(steps)
    return History(begun, steps[known], waits[known], summed)


class StepTimer(contextlib.AbstractContextManager):
    """Measures a train loop; open around it.

    Args:
      path: of `timing.jsonl`; None writes none (processes other than the primary one).
      work: of a step, for the rates.
      first: this start's first step.
      every: a window ends after each step that is a multiple of this.
      begun: beginning of this start, seconds since the epoch.
      compiles: open since then; None: not reported.
      show: called with (step, figures) at the end of a window.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        work: StepWork,
        first: int,
        every: int,
        begun: float,
        show: Callable[[int, dict[str, float]], None],
        compiles: CompileCounter | None = None,
    ):
        self._work, self._every, self._show = work, every, show
        history = History(None, *np.empty((2, 0)), {})
        if path:
            history = read_history(path, first=first)
        self._compiles, self._before = compiles, history.summed
        self._scoring = 0.0
        self._begun = begun if history.begun is None else history.begun
        self._steps, self._waits = array("d", history.steps), array("d", history.waits)
        self._written, self._useful = len(self._steps), sum(self._steps)
        self._in_flight: deque[float] = deque()  # waits of the steps in flight
        self._mark, self._excluded = 0.0, 0.0
        self._compiled, self._thread = False, 0
        self._step = first - 1
        self._file = None
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)
            os.truncate(path, path.read_bytes().rfind(b"\n") + 1)  # drops a line cut by a kill
            self._append({"start": first, "at": begun})

    def __enter__(self) -> "StepTimer":
        jax.monitoring.register_event_duration_secs_listener(self._on_event)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._on_event)
        self.end_window()
        if self._file:
            self._file.close()

    def batches(self, batches: Iterable[_T]) -> Iterator[_T]:
        """Yields the batches and measures how long the loop waits for them."""
        batches = iter(batches)
        while True:
            began = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            now = time.perf_counter()
            self._in_flight.append(now - began if self._mark else np.nan)
            self._mark = self._mark or now
            yield batch

    @contextlib.contextmanager
    def dispatch(self) -> Iterator[None]:
        """Wraps the call of the step; its time does not count if it compiles."""
        self._compiled, began = False, time.perf_counter()
        self._thread = threading.get_ident()
        yield
        if self._compiled:
            self._excluded += time.perf_counter() - began

    @contextlib.contextmanager
    def excluded(self) -> Iterator[None]:
        """Wraps work that is not part of a step, such as a save; no step may be in flight."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._excluded += time.perf_counter() - began

    @contextlib.contextmanager
    def scoring(self) -> Iterator[None]:
        """Wraps the retrieval scores of a step whose own work is done; see `excluded`."""
        began = time.perf_counter()
        with self.excluded():
            yield
        self._scoring += time.perf_counter() - began

    def arrived(self, step: int) -> None:
        """Records that the result of this step is on the host."""
        now = time.perf_counter()
        self._steps.append(max(0.0, now - self._mark - self._excluded))
        self._useful += self._steps[-1]
        self._waits.append(self._in_flight.popleft())
        self._mark, self._excluded, self._step = now, 0.0, step
        if step % self._every == 0:
            self.end_window()

    def end_window(self) -> None:
        """Shows and writes the steps since the last window."""
        steps, waits = self._steps[self._written :], self._waits[self._written :]
        if not steps:
            return
        self._written = len(self._steps)
        figures = self._figures(steps, waits)
        if self._file:
            lists = {
                "step_s": [round(x, 6) for x in steps],
                "wait_s": [None if np.isnan(x) else round(x, 6) for x in waits],
            }
            self._append({"step": self._step, "at": time.time(), **figures, **lists})
        self._show(self._step, figures)

    def run(self) -> dict[str, float]:
        """Figures of all steps that the run kept, over all starts; {} before the first."""
        return self._figures(self._steps, self._waits) if self._steps else {}

    def _figures(self, steps: array, waits: array) -> dict[str, float]:
        figures: dict[str, float] = {}
        for name, values in (("step", steps), ("wait", waits)):
            counted = np.asarray(values)[~np.isnan(values)]
            if len(counted):
                for q in (50, 90, 99):
                    figures[f"{name}_p{q}_s"] = np.percentile(counted, q)
        mean = max(sum(steps) / len(steps), 1e-9)
        work = self._work
        figures["examples_per_s"] = work.examples / mean
        figures["pairs_per_s"] = work.pairs / mean
        figures["tokens_per_s"] = work.tokens / mean
        if work.peak:
            figures["mfu"] = work.flops / (work.peak * mean)
        compiled = self._compiles.figures() if self._compiles else {}
        for name, value in compiled.items():
            figures[name] = value + self._before.get(name, 0)
        passed = max(time.time() - self._begun, self._useful, 1e-9)  # a clock may be set back
        figures["goodput"] = self._useful / passed
        if scoring := self._before.get(_SCORING, 0) + self._scoring:
            figures[_SCORING], figures["scoring_share"] = scoring, scoring / passed
        return {name: float(f"{value:.6g}") for name, value in figures.items()} | memory()

    def _append(self, line: dict) -> None:
        self._file.write(json.dumps(line).encode() + b"\n")

    def _on_event(self, event: str, *_: float, **__: object) -> None:
        if event == COMPILED and threading.get_ident() == self._thread:
            self._compiled = True


def memory() -> dict[str, float]:
    """Bytes in use and their peak on the fullest local device, if reported, and the peak resident
    memory of this process."""
    stats = [stat for device in jax.local_devices() if (stat := device.memory_stats())]
    figures = {}
    for name, key in (("device_bytes", "bytes_in_use"), ("device_peak_bytes", "peak_bytes_in_use")):
        if known := [stat[key] for stat in stats if key in stat]:
            figures[name] = max(known)
    figures["host_peak_bytes"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return figures
