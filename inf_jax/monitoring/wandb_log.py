"""Logs a run's metrics to Weights & Biases: the same numbers as TensorBoard's."""

import contextlib
import importlib
import secrets
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from inf_jax.core.errors import UserError, first_line
from inf_jax.io.atomic import atomic_write


def import_wandb(project: str) -> ModuleType:
    """The package wandb; raises UserError if it is not installed."""
    try:
        return importlib.import_module("wandb")
    except ImportError as error:
        raise UserError(
            f"train.wandb_project={project!r}: the package wandb is not installed ({error}); "
            "pip install -e '.[wandb]', or leave the key empty"
        ) from None


class WandbLog:
    """One Weights & Biases run for all starts of a run; its id is kept in `wandb_id.txt`.

    Key, entity and WANDB_MODE=offline come from wandb's own variables and files; none of them is
    written here. Of a step repeated after a kill, the server keeps the first.

    Args:
      directory: of the run; wandb's own files go to `wandb/` in it.
      project, name: of the run at Weights & Biases.
      config: all keys, as plain values.

    Raises:
      UserError: the package is not installed, or the run cannot be opened.
    """

    def __init__(self, directory: Path, *, project: str, name: str, config: dict[str, Any]):
        wandb = import_wandb(project)
        path = directory / "wandb_id.txt"
        if not path.exists():
            atomic_write(path, secrets.token_hex(4) + "\n")
        self._wandb = wandb
        try:
            self._run = wandb.init(
                project=project,
                id=path.read_text().strip(),
                resume="allow",
                name=name,
                dir=str(directory),
                config=config,
                settings=wandb.Settings(console="off"),  # the launcher keeps the log
            )
        except Exception as error:  # wandb and its HTTP client raise many kinds
            raise UserError(
                f"train.wandb_project={project!r}: Weights & Biases could not open the run "
                f"({first_line(error)}); `wandb login`, WANDB_MODE=offline, or leave the key empty"
            ) from None

    def write(self, step: int, values: dict[str, float | list[float]]) -> None:
        """Sends the values of a step; a list holds the shares of a histogram over [-1, 1]."""
        sent: dict[str, Any] = dict(values)
        for name, value in values.items():
            if isinstance(value, list):
                bins = np.array(value), np.linspace(-1, 1, len(value) + 1)
                sent[name] = self._wandb.Histogram(np_histogram=bins)
        with contextlib.suppress(self._wandb.Error):  # training does not depend on it
            self._run.log(sent, step=step)

    def close(self, *, failed: bool = False) -> None:
        """Ends the run at Weights & Biases; a later start resumes it."""
        with contextlib.suppress(self._wandb.Error):
            self._run.finish(exit_code=int(failed))
