"""Writes a run's metrics: metrics.jsonl, TensorBoard and the progress bar."""

import contextlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from inf_jax.core.errors import UserError
from inf_jax.core.json_text import parse_json
from inf_jax.io.atomic import atomic_file
from inf_jax.io.storage import AnyPath
from inf_jax.monitoring.wandb_log import WandbLog

# Files that a resumed run appends to.
GROWING = ("metrics.jsonl", "timing.jsonl", "wandb_id.txt")


class MetricsLog(contextlib.AbstractContextManager):
    """Appends a line per step to `metrics.jsonl`, writes to TensorBoard, updates the progress bar.

    A metric is a number, or a list: the shares of a histogram in equal bins over [-1, 1].
    Lines at or after `first_step` come from a killed run, after its last checkpoint. They are
    dropped, so that a resumed run leaves the same file as an uninterrupted one.

    Args:
      directory: of the run.
      first_step: of this start.
      steps: of the whole run, for the progress bar.
      every: steps between TensorBoard entries.
      more: also receives what TensorBoard receives.

    Attributes:
      last: the metrics of this process's newest step; {} before the first.
    """

    def __init__(
        self,
        directory: Path,
        *,
        first_step: int,
        steps: int,
        every: int,
        more: WandbLog | None = None,
    ):
        # imports Google's client if installed, which warns of old Python versions
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            from tensorboardX import SummaryWriter

        path = directory / "metrics.jsonl"
        with atomic_file(path) as file:
            for line in metric_lines(path, _has_step):
                if line["step"] < first_step:
                    file.write(json.dumps(line).encode() + b"\n")
        self._file = path.open("a", buffering=1)
        self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=first_step)
        self._bar = tqdm(total=steps, initial=first_step, unit="step", desc="train", smoothing=0.1)
        self._every, self._more = every, more
        self._postfix = {"loss": "?"}
        self.last: dict[str, float | list[float]] = {}

    def write(self, step: int, metrics: dict[str, float | list[float]]) -> None:
        """Logs the metrics of one finished step (counted from 0)."""
        self.last = metrics
        try:
            self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        except OSError as error:
            raise UserError(
                f"{self._file.name}: {error}; free some space and start again: the run resumes "
                "from its newest checkpoint"
            ) from error
        self._bar.update()
        due = step % self._every == 0
        logged = {name: x for name, x in metrics.items() if due or name.startswith("dev/")}
        for name, value in logged.items():
            if isinstance(value, list):
                self._histogram(name, np.array(value), step)
            else:
                self._board.add_scalar(name, value, step)
        if logged and self._more:
            self._more.write(step, logged)
        if due:
            self._show(loss=f"{metrics['loss']:.4f}")

    def timing(self, step: int, figures: dict[str, float]) -> None:
        """Logs the figures of `StepTimer` for the window that ends with this step."""
        named = {f"timing/{name}": value for name, value in figures.items()}
        for name, value in named.items():
            self._board.add_scalar(name, value, step)
        if self._more:
            self._more.write(step, named)
        shown = {"step": f"{figures['step_p50_s']:.3g}s", "goodput": f"{figures['goodput']:.0%}"}
        if "mfu" in figures:
            shown["mfu"] = f"{figures['mfu']:.1%}"
        self._show(**shown)

    def _show(self, **values: str) -> None:
        self._postfix |= values
        self._bar.set_postfix(self._postfix, refresh=False)

    def _histogram(self, name: str, shares: np.ndarray, step: int) -> None:
        edges = np.linspace(-1, 1, len(shares) + 1)
        centres = (edges[:-1] + edges[1:]) / 2
        self._board.add_histogram_raw(
            name,
            min=-1.0,
            max=1.0,
            num=shares.sum(),
            sum=shares @ centres,
            sum_squares=shares @ centres**2,
            bucket_limits=edges[1:].tolist(),
            bucket_counts=shares.tolist(),
            global_step=step,
        )

    def flush(self) -> None:
        """Flushes the files."""
        self._file.flush()
        self._board.flush()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(failed=kind is not None)

    def close(self, *, failed: bool = False) -> None:
        """Closes the files and the bar."""
        if self._more:
            self._more.close(failed=failed)
        self._file.close()
        self._board.close()
        self._bar.close()


class NoLog(contextlib.AbstractContextManager):
    """The log of processes other than the primary one: writes nothing."""

    def _discard(self, *_: object, **__: object) -> None:
        pass

    write = timing = flush = close = __exit__ = _discard


def read_metrics(path: AnyPath) -> list[dict]:
    """All of `metric_lines`: some kilobytes a step."""
    return list(metric_lines(path))


def of_present_sources(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics of a step, without those by source (`losses.terms.by_source`) of which it has no
    pair."""
    absent = {
        tuple(name.split("pairs/", 1))
        for name, value in metrics.items()
        if value == 0 and name.startswith(("pairs/", "dev/pairs/"))
    }
    return {
        name: value
        for name, value in metrics.items()
        if not any(
            name.endswith(f"/{source}") and name.startswith("dev/") == bool(dev)
            for dev, source in absent
        )
        or "pairs/" in name
    }


def is_number(value: object) -> bool:
    """Whether a value of a log's line is a number; NaN and infinity are."""
    return isinstance(value, float) or (type(value) is int and abs(value) < 1 << 63)


def _has_place(line: Mapping[str, Any]) -> bool:
    return type(line.get("step", line.get("start"))) is int


def _has_step(line: Mapping[str, Any]) -> bool:
    return type(line.get("step")) is int


def read_losses(path: AnyPath) -> list[tuple[int, float]]:
    """(step, loss) of each line of a metrics.jsonl; UserError as `metric_lines`."""
    lines = metric_lines(path, lambda line: _has_step(line) and is_number(line.get("loss")))
    return [(line["step"], line["loss"]) for line in lines]


def metric_lines(
    path: AnyPath, is_valid: Callable[[Mapping[str, Any]], bool] = _has_place
) -> Iterator[dict]:
    """The lines of a metrics.jsonl or timing.jsonl, without a last line cut short by a kill.

    Args:
      is_valid: whether a line has the fields that the caller reads.

    Raises:
      UserError: a line is not valid; names it.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        yield from _parsed(file, path, is_valid)


def _parsed(
    file: Iterable[bytes], path: AnyPath, is_valid: Callable[[Mapping[str, Any]], bool]
) -> Iterator[dict]:
    for number, line in enumerate(file, 1):
        if not line.endswith(b"\n"):
            return
        where, remedy = f"{path}, line {number}", "delete that line, then start again"
        value = parse_json(line, where, kind=dict, remedy=remedy)
        if not is_valid(value):
            raise UserError(f"{where}: its fields are missing or of another type; {remedy}")
        yield value
