"""Checkpoints by Orbax: train state and data position together, asynchronous, atomic by directory
name."""

from pathlib import Path
from typing import NamedTuple

import jax
import orbax.checkpoint as ocp
from etils import epath

from inf_jax.errors import UserError
from inf_jax.step import TrainState


class Position(NamedTuple):
    """Where the data stands, and what the order depends on.

    Attributes:
      step: the next step to do.
      seed, batch_size: of the order.
      dataset: fingerprint of the tokenised dataset.
      groups: chunks of a step where a chunk's rows are each other's negatives (block I with the
        query encoder "attention"), else 0.
    """

    step: int
    seed: int
    batch_size: int
    dataset: str
    groups: int = 0


def make_manager(directory: str | Path, *, keep: int) -> ocp.CheckpointManager:
    """A manager of `<directory>/<step>/`; keeps the last `keep` checkpoints.

    `directory` may be a local path or a bucket (gs://...), whatever etils.epath opens.
    """
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
    path = epath.Path(directory)
    return ocp.CheckpointManager(
        path if "://" in str(directory) else path.absolute(), options=options
    )


def save(manager: ocp.CheckpointManager, state: TrainState, position: Position) -> None:
    """Starts an asynchronous save at `position.step`; an error of the save before it is raised
    here."""
    manager.save(
        position.step,
        args=ocp.args.Composite(
            state=ocp.args.StandardSave(state._asdict()),
            position=ocp.args.JsonSave(position._asdict()),
        ),
    )


def restore(
    manager: ocp.CheckpointManager, abstract_state: TrainState, step: int | None = None
) -> tuple[TrainState, Position] | None:
    """The checkpoint of `step` (default: the newest) on the shardings of `abstract_state`.

    Args:
      abstract_state: ShapeDtypeStructs with shardings.

    Returns:
      None where there is no checkpoint.

    Raises:
      UserError: the checkpoint does not fit the state (another model or optimiser), or is damaged.
    """
    step = manager.latest_step() if step is None else step
    if step is None:
        return None
    try:
        restored = manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract_state._asdict()),
                position=ocp.args.JsonRestore(),
            ),
        )
    except (ValueError, KeyError, OSError, TypeError) as error:
        raise _unfit(manager.directory / str(step), error) from error
    return TrainState(**restored["state"]), Position(**restored["position"])


def restore_params(directory: str | Path, abstract_params: dict) -> tuple[dict, int] | None:
    """The newest checkpoint's parameters alone: no optimiser state is read, none needs to be known.

    Args:
      directory: of the checkpoints, as for `make_manager`; nothing is made or cleaned up in it.
      abstract_params: ShapeDtypeStructs with shardings, {tower: tree}.

    Returns:
      (params, step), or None where there is no checkpoint.

    Raises:
      UserError: the checkpoint does not fit the model or its towers, or is damaged.
    """
    path = epath.Path(directory)
    path = path if "://" in str(directory) else path.absolute()
    steps = ocp.utils.checkpoint_steps(path)
    if not steps:
        return None
    newest = path / str(max(steps))
    item = {"params": abstract_params}
    how = ocp.args.PyTreeRestore(
        item=item,
        restore_args=ocp.checkpoint_utils.construct_restore_args(item),
        partial_restore=True,
    )
    try:
        _check_params(newest, abstract_params)
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            params = checkpointer.restore(newest / "state", args=how)["params"]
    except (ValueError, KeyError, OSError, TypeError) as error:
        raise _unfit(newest, error) from error
    return params, max(steps)


def check_position(found: Position, expected: Position, directory: str | Path) -> None:
    """Raises UserError where the run that wrote the checkpoint read other data or in another
    order."""
    differ = [
        f"{name}: {getattr(found, name)} in the checkpoint, {getattr(expected, name)} now"
        for name in ("seed", "batch_size", "dataset", "groups")
        if getattr(found, name) != getattr(expected, name)
    ]
    if differ:
        raise UserError(
            f"{directory}: cannot resume, order or negatives would change ({'; '.join(differ)}); "
            "restore the old values or give a new out_dir"
        )


def _check_params(checkpoint: epath.Path, abstract_params: dict) -> None:
    """Raises ValueError naming what the checkpoint has otherwise than the model.

    Before Orbax reads, since that leaves an absent array as it was asked for, says nothing of one
    too many, and gives up at the first of another shape with its other reads under way.
    """

    def shapes(tree) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {jax.tree_util.keystr(p, simple=True, separator="/"): x.shape for p, x in leaves}

    handler = ocp.PyTreeCheckpointHandler()
    found = shapes(handler.metadata(checkpoint / "state").tree["params"])
    handler.close()
    expected = shapes(abstract_params)
    if "loss" not in abstract_params:  # a learned scale is no part of the model
        found = {name: shape for name, shape in found.items() if not name.startswith("loss/")}
    differ = [
        f"{name} {found.get(name, 'absent')}, the model has {expected.get(name, 'none')}"
        for name in sorted(found.keys() | expected.keys())
        if found.get(name) != expected.get(name)
    ]
    if differ:
        more = f" and {len(differ) - 3} more" if len(differ) > 3 else ""
        raise ValueError(f"{'; '.join(differ[:3])}{more}")


def _unfit(checkpoint: epath.Path, error: Exception) -> UserError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    return UserError(
        f"checkpoint {checkpoint} cannot be restored: {reason}; it was written by another config "
        "or is damaged: give the old config, or a new out_dir"
    )
