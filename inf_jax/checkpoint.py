"""Checkpoints by Orbax: train state and data position together, asynchronous, atomic by directory
name."""

from pathlib import Path
from typing import NamedTuple

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
    """

    step: int
    seed: int
    batch_size: int
    dataset: str


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
        raise UserError(
            f"checkpoint {manager.directory / str(step)} cannot be restored: "
            f"{_first_line(error)}; it was written by another config or is damaged: give the old "
            "config, or a new out_dir"
        ) from error
    return TrainState(**restored["state"]), Position(**restored["position"])


def check_position(found: Position, expected: Position, directory: str | Path) -> None:
    """Raises UserError where the run that wrote the checkpoint read other data or in another
    order."""
    differ = [
        f"{name}: {getattr(found, name)} in the checkpoint, {getattr(expected, name)} now"
        for name in ("seed", "batch_size", "dataset")
        if getattr(found, name) != getattr(expected, name)
    ]
    if differ:
        raise UserError(
            f"{directory}: cannot resume, the data order would change ({'; '.join(differ)}); "
            "restore the old values or give a new out_dir"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
