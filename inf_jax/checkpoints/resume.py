"""What a checkpoint says of a run's data, and whether a resumed run's is the same."""

from pathlib import Path
from typing import NamedTuple

from inf_jax.core.errors import UserError


class Position(NamedTuple):
    """Where the data stands, and what the order depends on.

    Attributes:
      step: the next step to do.
      seed, batch_size: of the order.
      dataset: fingerprint of the tokenised dataset.
      groups: chunks of a step where a chunk's rows are each other's negatives (block I with the
        query encoder "attention"), else 0.
      frozen: `trainable.fingerprint` of what is not trained and not saved; "" where all is.
    """

    step: int
    seed: int
    batch_size: int
    dataset: str
    groups: int = 0
    frozen: str = ""


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


def check_frozen(found: Position, frozen: str, directory: str | Path) -> None:
    """Raises UserError where the frozen parameters are not those that the run began with."""
    if found.frozen != frozen:
        raise UserError(
            f"{directory}: what is frozen is not saved, and what model.name or model.start_from "
            f"gives now is not what the run began with (fingerprint {found.frozen or 'none'}, now "
            f"{frozen or 'none'}); restore the old weights, or give a new out_dir"
        )
