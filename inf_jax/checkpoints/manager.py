"""Checkpoints by Orbax: train state, data position and config together, asynchronous, atomic by
directory name.

A random number of a run is a pure function of its seed, the step and a text's number: the position
is all there is to save of it.
"""

import contextlib
import json
import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from inf_jax.checkpoints.integrity import check_contents, check_tree, checksums
from inf_jax.checkpoints.resume import Position
from inf_jax.core.errors import UserError
from inf_jax.io import storage
from inf_jax.training.step import TrainState


class Saved(NamedTuple):
    """What a checkpoint says of itself: its step, its position, and all keys of its run."""

    step: int
    position: Position
    config: dict[str, Any]


class Best(NamedTuple):
    """Which checkpoints are the best.

    Attributes:
      metric: of those that they were saved with.
      mode: "min" or "max".
    """

    metric: str
    mode: str

    def badness(self, metrics: Mapping[str, float]) -> float:
        """To order by; the worst there is where the metric is missing or no finite number."""
        value = metrics.get(self.metric, math.nan)
        if not math.isfinite(value):
            return math.inf
        return value if self.mode == "min" else -value


def make_manager(
    directory: str | Path, *, keep: int, keep_best: int = 0, best: Best = Best("loss", "min")
) -> ocp.CheckpointManager:
    """A manager of `<directory>/<step>/`: of the newest `keep` checkpoints, and of the `keep_best`
    best ones.

    `directory` may be a local path or a bucket (gs://...), whatever etils.epath opens. What a
    killed process left half-written in it is deleted.
    """
    path = _path(directory)
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: is no directory, so it cannot hold checkpoints; move it away")
    # Orbax logs each error that it raises as well, with its stack, and so do its tasks
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    kept = [policies.LatestN(keep)]
    if keep_best:
        policy = policies.BestN(
            get_metric_fn=best.badness,
            reverse=True,
            n=keep_best,
            keep_checkpoints_without_metrics=False,
        )
        kept.append(policy)
    options = ocp.CheckpointManagerOptions(
        best_fn=best.badness if keep_best else None,
        best_mode="min",
        preservation_policy=policies.AnyPreservationPolicy(kept),
        cleanup_tmp_directories=True,
    )
    return ocp.CheckpointManager(path, options=options)


def save(
    manager: ocp.CheckpointManager,
    state: TrainState,
    position: Position,
    *,
    config: Mapping[str, Any],
    metrics: Mapping[str, float] | None = None,
) -> None:
    """Starts an asynchronous save at `position.step`.

    Args:
      config: all keys of the run, as plain values: what a resumed run is compared with.
      metrics: of the model, by which the best are found.

    Raises:
      UserError: this or the save before it cannot be written.
    """
    with _written(manager):
        saved = saved_part(state)
        manager.save(
            position.step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(saved),
                checksums=ocp.args.JsonSave(checksums(saved)),
                position=ocp.args.JsonSave(position._asdict()),
                config=ocp.args.JsonSave(dict(config)),
            ),
            metrics=None if metrics is None else dict(metrics),
        )


def saved_part(state: TrainState) -> dict[str, Any]:
    """What of a state is in its checkpoint: all but the frozen parameters."""
    return {name: part for name, part in state._asdict().items() if name != "frozen"}


def check(manager: ocp.CheckpointManager) -> None:
    """Raises UserError where a save in the background has failed."""
    with _written(manager):
        manager.check_for_errors()


def wait(manager: ocp.CheckpointManager) -> None:
    """Returns once what was saved is whole; raises UserError where it cannot be written."""
    with _written(manager):
        manager.wait_until_finished()


def close(manager: ocp.CheckpointManager) -> None:
    """`wait`, and ends the manager."""
    with _written(manager):
        manager.close()


def read_run(manager: ocp.CheckpointManager, step: int) -> tuple[Position, dict[str, Any]]:
    """The position and the config of a checkpoint, without its arrays.

    Raises:
      UserError: it is damaged.
    """
    items = ocp.args.Composite(position=ocp.args.JsonRestore(), config=ocp.args.JsonRestore())
    try:
        found = manager.restore(step, args=items)
        return Position(**found["position"]), found["config"]
    except (ValueError, KeyError, OSError, TypeError) as error:
        raise _unfit(manager.directory / str(step), error) from error


def restore(
    manager: ocp.CheckpointManager, abstract_state: TrainState, step: int | None = None
) -> tuple[TrainState, Position] | None:
    """The checkpoint of `step` (default: the newest) on the shardings of `abstract_state`, whatever
    mesh and number of processes wrote it.

    Args:
      abstract_state: ShapeDtypeStructs with shardings.

    Returns:
      None where there is no checkpoint; else a state without frozen parameters.

    Raises:
      UserError: the checkpoint does not fit the state (another model or optimiser), or is damaged.
    """
    step = manager.latest_step() if step is None else step
    if step is None:
        return None
    position, _ = read_run(manager, step)
    try:
        abstract = saved_part(abstract_state)
        check_tree(manager.directory / str(step), abstract)
        restored = manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        )
        check_contents(manager.directory / str(step), restored["state"])
    except (ValueError, KeyError, OSError, TypeError) as error:
        raise _unfit(manager.directory / str(step), error) from error
    return TrainState(**restored["state"]), position


def restore_params(
    directory: str | Path, abstract_params: dict, *, which: str = "newest"
) -> tuple[dict, int] | None:
    """A checkpoint's parameters alone: no optimiser state is read, none needs to be known.

    Args:
      directory: of the checkpoints, as for `make_manager`; nothing is made or cleaned up in it.
      abstract_params: ShapeDtypeStructs with shardings, {tower: tree}.
      which: "newest", "best" by the run's own train.best_metric, or a step.

    Returns:
      (params, step), or None where there is no checkpoint.

    Raises:
      UserError: there is no such checkpoint, or it does not fit the model or its towers, or is
        damaged.
    """
    path = _path(directory)
    steps = ocp.utils.checkpoint_steps(path)
    if not steps:
        return None
    step = _choose(path, steps, which)
    chosen = path / str(step)
    item = {"params": abstract_params}
    how = ocp.args.PyTreeRestore(
        item=item,
        restore_args=ocp.checkpoint_utils.construct_restore_args(item),
        partial_restore=True,
    )
    try:
        check_tree(chosen, item)
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            params = checkpointer.restore(chosen / "state", args=how)["params"]
        check_contents(chosen, {"params": params})
    except (ValueError, KeyError, OSError, TypeError) as error:
        raise _unfit(chosen, error) from error
    return params, step


def read_saved(directory: str | Path, which: str = "newest") -> Saved | None:
    """What a checkpoint says of itself, as `restore_params` finds it; None where there is none.

    Raises:
      UserError: there is no such checkpoint, or it is damaged.
    """
    path = _path(directory)
    steps = ocp.utils.checkpoint_steps(path)
    if not steps:
        return None
    step = _choose(path, steps, which)
    try:
        position, config = (
            json.loads((path / str(step) / name / "metadata").read_text())
            for name in ("position", "config")
        )
        return Saved(step, Position(**position), config)
    except (ValueError, OSError, TypeError) as error:
        raise _unfit(path / str(step), error) from error


def _choose(path: epath.Path, steps: list[int], which: str) -> int:
    if which == "newest":
        return max(steps)
    if which != "best":
        if not which.isdecimal() or int(which) not in steps:
            raise UserError(
                f"{path}: no checkpoint {which!r}; there are {', '.join(map(str, sorted(steps)))}, "
                "newest and, where the run kept it, best"
            )
        return int(which)
    badness = {}
    for step in sorted(steps):
        metrics = path / str(step) / "metrics" / "metrics"
        if metrics.exists():
            train = json.loads((path / str(step) / "config" / "metadata").read_text())["train"]
            best = Best(train["best_metric"], train["best_mode"])
            badness[step] = best.badness(json.loads(metrics.read_text()))
    if not badness:
        raise UserError(f"{path}: the run was not asked for its best checkpoint: train.keep_best")
    return min(badness, key=badness.__getitem__)


def _path(directory: str | Path) -> epath.Path:
    path = storage.as_path(directory)
    return path if storage.is_bucket(directory) else epath.Path(path).absolute()


@contextlib.contextmanager
def _written(manager: ocp.CheckpointManager) -> Iterator[None]:
    """Turns what Orbax and TensorStore raise of a file that cannot be written into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # OSError, ValueError, XlaRuntimeError, ...: whoever met it
        raise UserError(
            f"{manager.directory}: a checkpoint cannot be written ({_reason(error)}); "
            f"{_last_good(manager)}. Free some space, or give the permission, and start again: "
            "the run goes on from there"
        ) from error


def _last_good(manager: ocp.CheckpointManager) -> str:
    try:
        steps = ocp.utils.checkpoint_steps(manager.directory)
    except OSError:
        steps = []
    return f"the last whole one is of step {max(steps)}" if steps else "there is no whole one yet"


def _reason(error: BaseException) -> str:
    """The first line of an error; of one in a group or a chain, of that which says most."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _unfit(checkpoint: epath.Path, error: Exception) -> UserError:
    return UserError(
        f"checkpoint {checkpoint} cannot be restored: {_reason(error)}; it was written by another "
        "config or version, or is damaged: give the old config, or a new out_dir, or delete that "
        "directory to go on from the checkpoint before it"
    )
