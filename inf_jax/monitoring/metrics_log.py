"""What a run tells people: start banner, progress bar, metrics to jsonl and TensorBoard."""

import contextlib
import json
import warnings
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from inf_jax.core.console import table
from inf_jax.core.errors import UserError
from inf_jax.data.loader import Loader
from inf_jax.io.storage import AnyPath
from inf_jax.losses.objective import count_negatives
from inf_jax.monitoring.wandb_log import WandbLog
from inf_jax.training.setup import Training

# Files of a run that a resumed one goes on writing.
GROWING = ("metrics.jsonl", "timing.jsonl", "wandb_id.txt")

# What the table at the end calls a metric, and its format; by block where the name ends in "/".
_HEALTH = {
    "health/alignment": ("alignment", ".3f"),
    "health/uniformity_query": ("uniformity, queries", ".3f"),
    "health/uniformity_passage": ("uniformity, passages", ".3f"),
    "health/rank_query": ("effective rank, queries", ".1f"),
    "health/rank_passage": ("effective rank, passages", ".1f"),
    "accuracy/": ("in-batch accuracy, block ", ".1%"),
    "false_negatives/": ("suspected false negatives a row, block ", ".2f"),
    "masked/": ("masked candidates, block ", ".2%"),
}

# What the table at the end calls a figure of the pace, its unit, and its format.
_PACE = {
    "examples_per_s": ("examples/s", 1, ",.1f"),
    "pairs_per_s": ("pairs/s", 1, ",.1f"),
    "tokens_per_s": ("tokens/s", 1, ",.0f"),
    "mfu": ("MFU", 1, ".1%"),
    "goodput": ("goodput", 1, ".1%"),
    "device_bytes": ("device memory, GiB", 2**30, ".2f"),
    "device_peak_bytes": ("device memory, peak GiB", 2**30, ".2f"),
    "host_peak_bytes": ("host memory, peak GiB", 2**30, ".2f"),
}


def banner(config: ConfigDict, training: Training, *, first_step: int) -> None:
    """The start of a run: what trains, on what, and how many negatives each query gets."""
    loader, mesh, steps = training.loader, training.mesh, config.train.steps
    plan, data = loader.plan, loader.dataset
    negatives = count_negatives(
        training.objective,
        pairs=round(plan.pairs),
        instruction_negatives=loader.instruction_candidates,
    )
    epochs = steps * loader.batch_size / data.num_examples
    grids = " + ".join(f"{loader.chunks}x{r}x{loader.row_tokens}" for r in plan.rows)
    shapes = training.shapes
    parameters, trained = (
        sum(x.size for x in jax.tree.leaves(tree)) for tree in (shapes.whole, shapes.params)
    )
    table(
        f"inf_jax: {training.objective}, steps {first_step} to {steps}",
        [
            ("model", config.model.name),
            ("parameters", f"{parameters:,}, {config.model.towers} towers, {config.model.dtype}"),
            *([("trained parameters", f"{trained:,}")] if trained < parameters else []),
            ("devices", f"{mesh.size} x {jax.devices()[0].device_kind}"),
            ("hosts", jax.process_count()),
            ("mesh", " ".join(f"{name}={size}" for name, size in mesh.shape.items())),
            ("examples", f"{data.num_examples:,} ({epochs:.2f} epochs in {steps} steps)"),
            ("a step", f"{loader.batch_size} examples, {plan.pairs:.0f} pairs"),
            ("grid (chunks x rows x tokens)", grids),
            ("chunks a device", config.train.chunks_per_device),
            ("tokens a step", f"{plan.tokens:,.0f}, fill {plan.fill:.1%}"),
            ("attention", training.model.encoder.attention_in_training(loader.row_tokens)),
            ("shape", "known for all steps" if plan.exact else "from sampled steps, with a margin"),
            *((f"negatives a query, block {b}", n) for b, n in negatives.items()),
            *_instruction_negatives(loader),
        ],
    )


def _instruction_negatives(loader: Loader) -> list[tuple[str, str]]:
    """What block I takes its negatives from, and what they cost."""
    plan = loader.plan
    if not loader.block_i:
        return []
    if loader.query_encoder == "attention":
        return [("block I", "the other instructions of a chunk, no tokens of their own")]
    share = plan.sampled_tokens / plan.tokens
    return [
        ("block I, a query", f"{plan.sampled:.2f} drawn, {plan.poisons:.2f} poisons for free"),
        ("block I, tokens a step", f"{plan.sampled_tokens:,.0f}, {share:.1%} of all"),
    ]


def summary(
    training: Training,
    *,
    steps: int,
    seconds: float,
    metrics: dict,
    pace: dict[str, float],
) -> None:
    """The end of a run: how fast it went, and the last step's health.

    Args:
      steps, seconds: of this start, compilation included.
      metrics: of the last step.
      pace: figures of the steps of all starts (`inf_jax.monitoring.step_timer`).
    """
    table(
        "trained",
        [
            ("steps", steps),
            ("seconds", f"{seconds:.0f}"),
            ("fill", f"{training.loader.plan.fill:.1%}"),
        ],
    )
    table("pace of all steps, compilation not included", pace_rows(pace))
    rows = health_rows(metrics)
    if rows:
        table("health of the last step", rows)


def health_rows(metrics: dict) -> list[tuple[str, str]]:
    """(what, value) of the health figures among these metrics, in the order of the table."""
    rows = []
    for key, (label, form) in _HEALTH.items():
        for name, value in metrics.items():
            if name == key or (key.endswith("/") and name.startswith(key)):
                rows.append((label + name.removeprefix(key), format(value, form)))
    return rows


def pace_rows(pace: dict[str, float]) -> list[tuple[str, str]]:
    """(what, value) of the figures of a pace, in the order of the table."""
    rows = []
    for what, label in (("step", "step time"), ("wait", "input wait")):
        times = [pace[key] for q in (50, 90, 99) if (key := f"{what}_p{q}_s") in pace]
        if times:
            times = " / ".join(f"{seconds:.3g}" for seconds in times)
            rows.append((f"{label}, s: p50 / p90 / p99", times))
    for key, (label, unit, form) in _PACE.items():
        if key in pace:
            rows.append((label, format(pace[key] / unit, form)))
    return rows


class MetricsLog(contextlib.AbstractContextManager):
    """Appends a line a step to `metrics.jsonl`, draws in TensorBoard, and moves the progress bar.

    A metric is a number, or a list: the shares of a histogram in equal bins over [-1, 1].
    Lines at or after `first_step` are of a run that was killed after its last checkpoint: they are
    dropped, so that a resumed run leaves the same file as an undisturbed one.

    Args:
      more: gets what TensorBoard gets.

    Attributes:
      last: the metrics of the newest step of this process; {} before the first.
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
        # it imports Google's client, where there is one, which talks of Python's end
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            from tensorboardX import SummaryWriter

        directory.mkdir(parents=True, exist_ok=True)
        path = directory / "metrics.jsonl"
        kept = [line for line in read_metrics(path) if line["step"] < first_step]
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        partial.replace(path)
        self._file = path.open("a", buffering=1)
        self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=first_step)
        self._bar = tqdm(total=steps, initial=first_step, unit="step", desc="train", smoothing=0.1)
        self._every, self._more = every, more
        self._postfix = {"loss": "?"}
        self.last: dict[str, float | list[float]] = {}

    def write(self, step: int, metrics: dict[str, float | list[float]]) -> None:
        """Logs the metrics of one finished step (steps count from 0)."""
        self.last = metrics
        try:
            self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        except OSError as error:
            raise UserError(
                f"{self._file.name}: {error}; free some space and start again: the run goes on "
                "from its newest checkpoint"
            ) from error
        self._bar.update()
        due = step % self._every == 0
        drawn = {name: x for name, x in metrics.items() if due or name.startswith("dev/")}
        for name, value in drawn.items():
            if isinstance(value, list):
                self._histogram(name, np.array(value), step)
            else:
                self._board.add_scalar(name, value, step)
        if drawn and self._more:
            self._more.write(step, drawn)
        if due:
            self._show(loss=f"{metrics['loss']:.4f}")

    def timing(self, step: int, figures: dict[str, float]) -> None:
        """Draws the figures of `monitoring.step_timer` of the window that ends with this step."""
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
        """Brings all that was logged into the files."""
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
    """What a process that is not the lead writes: nothing."""

    def __init__(self):
        self.last: dict[str, float | list[float]] = {}

    def write(self, step: int, metrics: dict[str, float | list[float]]) -> None:
        """Nothing."""

    def timing(self, step: int, figures: dict[str, float]) -> None:
        """Nothing."""

    def flush(self) -> None:
        """Nothing."""

    def __exit__(self, *_: object) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def read_metrics(path: AnyPath) -> list[dict]:
    """The lines of a metrics.jsonl or timing.jsonl; a last line that a kill cut short is left out.

    Raises:
      UserError: names the line that is none of a run's.
    """
    if not path.exists():
        return []
    found = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            break
        try:
            value = json.loads(line)
            if "step" not in value and "start" not in value:
                raise ValueError("no step")
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{path}, line {number}: damaged ({error}); delete that line, then start again"
            ) from None
        found.append(value)
    return found
