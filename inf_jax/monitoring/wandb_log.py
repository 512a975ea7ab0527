"""A run in Weights & Biases: the same numbers as TensorBoard's, for those who have the package."""

import contextlib
import importlib
import secrets
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from inf_jax.core.errors import UserError
from inf_jax.io.atomic import atomic_file


def import_wandb(project: str) -> ModuleType:
    """The package; raises UserError where it is not installed."""
    try:
        return importlib.import_module("wandb")
    except ImportError as error:
        raise UserError(
            f"train.wandb_project={project!r}: the package wandb is not to be had ({error}); "
            "pip install -e '.[wandb]', or leave the key empty"
        ) from None


class WandbLog:
    """One run of Weights & Biases for all starts of a run: its id is kept in `wandb_id.txt`.

    A key, an entity, WANDB_MODE=offline and all else come from wandb's own variables and files;
    nothing of that is written here. Of a step done again after a kill the server keeps the first.

    Args:
      directory: of the run; wandb's own files go into `wandb/` in it.
      project: of Weights & Biases.
      name: that the run has there.
      config: all keys, as plain values.

    Raises:
      UserError: the package is not installed, or the run cannot be opened.
    """

    def __init__(self, directory: Path, *, project: str, name: str, config: dict[str, Any]):
        wandb = import_wandb(project)
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / "wandb_id.txt"
        if not path.exists():
            with atomic_file(path) as file:
                file.write(secrets.token_hex(4).encode() + b"\n")
        self._wandb = wandb
        try:
            self._run = wandb.init(
                project=project,
                id=path.read_text().strip(),
                resume="allow",
                name=name,
                dir=str(directory),
                config=config,
                settings=wandb.Settings(console="off"),  # the log of a run is its launcher's
            )
        except Exception as error:  # wandb's own kinds, and those of its network
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"train.wandb_project={project!r}: Weights & Biases does not open the run "
                f"({reason}); `wandb login`, WANDB_MODE=offline, or leave the key empty"
            ) from None

    def write(self, step: int, values: dict[str, float | list[float]]) -> None:
        """Sends what belongs to a step; a list is the shares of a histogram over [-1, 1]."""
        histogram = self._wandb.Histogram
        sent = {
            name: value
            if not isinstance(value, list)
            else histogram(np_histogram=(np.array(value), np.linspace(-1, 1, len(value) + 1)))
            for name, value in values.items()
        }
        with contextlib.suppress(self._wandb.Error):  # a run goes on without its picture
            self._run.log(sent, step=step)

    def close(self, *, failed: bool = False) -> None:
        """Ends the run there; it may be resumed."""
        with contextlib.suppress(self._wandb.Error):
            self._run.finish(exit_code=int(failed))
