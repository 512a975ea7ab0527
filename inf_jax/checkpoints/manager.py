"""Writes and reads Orbax checkpoints: train state, resume information and config in one directory.

Saves are asynchronous and atomic (a directory gets its name when it is complete). Random numbers
are pure functions of seed, step and a text's number, so no generator state is saved. In a
checkpoint the resume information is called "position".
"""

import contextlib
import hashlib
import json
import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from inf_jax.checkpoints.integrity import check_contents, check_tree, checksums
from inf_jax.checkpoints.resume import ResumeInfo
from inf_jax.core.errors import UserError
from inf_jax.io import storage
from inf_jax.io.json_files import read_json
from inf_jax.io.paths import checkpoint_path_problem

AVERAGED = "averaged"  # in the saved config of a checkpoint that `inf_jax.average` wrote

# What Orbax raises on files that are not what it wrote.
_DAMAGED = (ValueError, LookupError, OSError, TypeError, AttributeError, RecursionError)


class Saved(NamedTuple):
    """The record of a checkpoint.

    Attributes:
      step: of the checkpoint.
      info: resume information.
      config: of its run, as plain values.
      fingerprint: 16 hexadecimal digits of its parameters, data and config.
      scored: the part of its state that is scored and exported: "params", or "ema", their average.
    """

    step: int
    info: ResumeInfo
    config: dict[str, Any]
    fingerprint: str
    scored: str = "params"


class Best(NamedTuple):
    """The metric by which checkpoints are compared; mode "min" or "max"."""

    metric: str
    mode: str

    def sort_key(self, metrics: Mapping[str, float]) -> float:
        """Sort key, smaller is better; infinity where the metric is missing or not finite."""
        value = metrics.get(self.metric, math.nan)
        if not math.isfinite(value):
            return math.inf
        return value if self.mode == "min" else -value


def make_manager(
    directory: str | Path, *, keep: int, keep_best: int = 0, best: Best = Best("loss", "min")
) -> ocp.CheckpointManager:
    """A manager of `<directory>/<step>/` that keeps the newest `keep` checkpoints and the
    `keep_best` best ones, and deletes incomplete ones of a killed process.

    `directory` may be a local path or a bucket (gs://...), whatever etils.epath opens.
    """
    path = _path(directory)
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: not a directory, so it cannot hold checkpoints; move it away")
    # Orbax and its tasks also log each error that they raise, with its stack
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    kept = [policies.LatestN(keep)]
    if keep_best:
        rule = {"reverse": True, "n": keep_best, "keep_checkpoints_without_metrics": False}
        kept.append(policies.BestN(get_metric_fn=best.sort_key, **rule))
    options = ocp.CheckpointManagerOptions(
        best_fn=best.sort_key if keep_best else None,
        best_mode="min",
        preservation_policy=policies.AnyPreservationPolicy(kept),
        cleanup_tmp_directories=True,
    )
    try:
        return ocp.CheckpointManager(path, options=options)
    except _DAMAGED as error:  # it reads metrics and metadata of all checkpoints
        raise UserError(
            f"{path}: its checkpoints cannot be read ({_reason(error)}): metrics/metrics or "
            "_CHECKPOINT_METADATA of one of them is damaged; move that checkpoint away to continue "
            "from the others"
        ) from error


def save(
    manager: ocp.CheckpointManager,
    state: Mapping[str, Any],
    info: ResumeInfo,
    *,
    config: Mapping[str, Any],
    metrics: Mapping[str, float] | None = None,
) -> None:
    """Starts an asynchronous save at `info.step`; UserError where it or the one before fails.

    Args:
      state: {"params": tree, ...} of arrays.
      config: all keys of the run as plain values, with which a resumed run is compared.
      metrics: by which the best checkpoints are chosen.
    """
    with writing(manager):
        manager.save(
            info.step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(dict(state)),
                checksums=ocp.args.JsonSave(checksums(state)),
                position=ocp.args.JsonSave(info._asdict()),
                config=ocp.args.JsonSave(dict(config)),
            ),
            metrics=None if metrics is None else dict(metrics),
        )


def restore(
    manager: ocp.CheckpointManager, abstract: Mapping[str, Any], step: int | None = None
) -> tuple[dict[str, Any], ResumeInfo]:
    """The state of `step` (default: the newest) on the shardings of `abstract`, whatever mesh and
    number of processes wrote it; and its resume information.

    Args:
      abstract: {"params": tree, ...} of ShapeDtypeStructs with shardings.

    Raises:
      UserError: the checkpoint does not fit the state (another model or optimiser), or is damaged.
    """
    saved = read_saved(str(manager.directory), "newest" if step is None else str(step))
    path = manager.directory / str(saved.step)
    with _reading(path):
        check_tree(path, abstract)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(dict(abstract)))
        state = manager.restore(saved.step, args=args)["state"]
        check_contents(path, state)
    return state, saved.info


def restore_params(
    directory: str | Path, abstract: dict, *, step: int, part: str = "params"
) -> dict:
    """A checkpoint's parameters alone; the optimiser state is neither read nor needed.

    Args:
      directory: of the checkpoints, as of `make_manager`; nothing is created or deleted in it.
      abstract: ShapeDtypeStructs with shardings, {tower: tree}.
      part: of the state, see `Saved.scored`.

    Raises:
      UserError: the checkpoint does not fit the model or its towers, or is damaged.
    """
    path, item = _path(directory) / str(step), {part: abstract}
    restore_args = ocp.checkpoint_utils.construct_restore_args(item)
    args = ocp.args.PyTreeRestore(item=item, restore_args=restore_args, partial_restore=True)
    with _reading(path):
        check_tree(path, item)
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            params = checkpointer.restore(path / "state", args=args)[part]
        check_contents(path, {part: params})
    return params


def read_saved(directory: str | Path, which: str = "newest") -> Saved | None:
    """The record of a checkpoint, without its arrays; None where there is no checkpoint.

    Args:
      which: "newest", "best" by the run's own train.best_metric, or a step.

    Raises:
      UserError: there is no such checkpoint, or it is damaged.
    """
    path = _path(directory)
    steps = ocp.utils.checkpoint_steps(path)
    if not steps:
        return None
    step = _choose(path, steps, which)
    with _reading(path / str(step)):
        names = ("position", "config", "checksums")
        info, config, sums = (_metadata(path / str(step), name) for name in names)
        info = _resume_info(info, step)
        scored = "ema" if any(name.startswith("ema/") for name in sums) else "params"
        return Saved(step, info, config, _fingerprint(info, config, sums), scored)


def _resume_info(values: Mapping[str, Any], step: int) -> ResumeInfo:
    """The resume information of a checkpoint; TypeError or ValueError where a field is wrong."""
    info = ResumeInfo(**values)
    for name, kind in get_type_hints(ResumeInfo).items():
        value = getattr(info, name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise TypeError(f"position: {name}={value!r} is of another type")
    if info.step != step:
        raise ValueError(f"position: step={info.step}, in the directory of step {step}")
    return info


def _fingerprint(info: ResumeInfo, config: Mapping[str, Any], sums: Mapping[str, int]) -> str:
    params = {name: x for name, x in sums.items() if name.startswith(("params/", "ema/"))}
    facts = [info.step, info.dataset, info.frozen, config, params]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _metadata(checkpoint: epath.Path, name: str) -> dict[str, Any]:
    return read_json(checkpoint / name / "metadata", kind=dict, remedy="")


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
    sort_key = {}
    for step in sorted(steps):
        metrics = path / str(step) / "metrics" / "metrics"
        if metrics.exists():
            with _reading(path / str(step)):
                train = _metadata(path / str(step), "config")["train"]
                best = Best(train["best_metric"], train["best_mode"])
                sort_key[step] = best.sort_key(read_json(metrics, kind=dict, remedy=""))
    if not sort_key:
        raise UserError(f"{path}: the run kept no best checkpoint; train with train.keep_best")
    return min(sort_key, key=sort_key.__getitem__)


def _path(directory: str | Path) -> epath.Path:
    if problem := checkpoint_path_problem(str(directory)):
        raise UserError(f"{directory}: {problem}")
    path = storage.as_path(directory)
    return path if storage.is_bucket(directory) else epath.Path(path).absolute()


@contextlib.contextmanager
def writing(manager: ocp.CheckpointManager) -> Iterator[None]:
    """Around calls of the manager: its errors, of background saves too, become UserErrors."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # OSError, ValueError, XlaRuntimeError, ...
        raise UserError(
            f"{manager.directory}: a checkpoint cannot be written ({_reason(error)}); "
            f"{_last_good(manager)}. Free some space, or fix the permissions, and start again: the "
            "run continues from there"
        ) from error


@contextlib.contextmanager
def _reading(checkpoint: epath.Path) -> Iterator[None]:
    """Turns errors about checkpoints that are damaged or do not fit into UserErrors."""
    try:
        yield
    except _DAMAGED as error:
        raise UserError(
            f"checkpoint {checkpoint} cannot be restored: {_reason(error)}; it was written by "
            "another config or version, or is damaged: give the old config, or a new out_dir, or "
            "delete that directory to continue from the checkpoint before it"
        ) from error


def _last_good(manager: ocp.CheckpointManager) -> str:
    try:
        steps = ocp.utils.checkpoint_steps(manager.directory)
    except OSError:
        steps = []
    return f"the last complete one is of step {max(steps)}" if steps else "none is complete yet"


def _reason(error: BaseException) -> str:
    """The first line of an error; of a group, of its first error."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
