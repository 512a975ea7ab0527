"""One run of a comparison: trained and scored in processes of its own, or found finished."""

import json
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from inf_jax.config.defaults import defaults
from inf_jax.config.resume import as_saved
from inf_jax.core.errors import UserError
from inf_jax.evaluation.scores import METRICS
from inf_jax.io.json_files import read_json

from .process import run_module

COLUMNS = {key: METRICS[key] for key in ("p_mrr", "ndcg@10", *METRICS)}  # these two come first


class Cell(NamedTuple):
    """One run of the grid.

    Attributes:
      objective, mask: of the loss.
      flags: arguments of `inf_jax.train` and `inf_jax.evaluate`, without eval.base_from.
      config: the config that these flags give.
    """

    objective: str
    mask: str
    flags: list[str]
    config: ConfigDict

    @property
    def directory(self) -> Path:
        """The cell's out_dir."""
        return Path(self.config.out_dir)


class CellFailedError(Exception):
    """A command of a cell failed; the message is the end of its output."""


def settings(config: dict) -> dict:
    """The settings on which a cell's scores depend, by dotted key (`train.steps`)."""
    flat = {}
    for name, value in config.items():
        inner = value.items() if isinstance(value, dict) else [(None, value)]
        flat |= {f"{name}.{key}" if key else name: v for key, v in inner if name != "export"}
    flat.pop("eval.base_from", None)  # where the base scores come from does not change them
    return json.loads(json.dumps(flat))  # JSON files have lists for tuples


def _saved(config: dict) -> dict:
    """As `settings`, of a config that was saved; a key that is newer than it has its default."""
    return settings(defaults().to_dict()) | settings(config)


def check_unchanged(cell: Cell) -> None:
    """Raises UserError if the cell was begun with other settings: its scores would not compare."""
    path, now = cell.directory / "config.json", settings(as_saved(cell.config))
    if not path.exists():
        return
    was = _saved(read_json(path, kind=dict, remedy=f"delete {path.parent}"))
    keys = [k for k in was | now if was.get(k) != now.get(k)]
    if keys:
        differ = "; ".join(f"{k} was {was.get(k)!r}, is now {now.get(k)!r}" for k in keys)
        raise UserError(
            f"{path}: this cell was begun with other settings ({differ}); restore them, give "
            f"another --config.out_dir, or delete {path.parent}"
        )


def finished(cell: Cell) -> dict | None:
    """The cell's eval.json if it is of the last step and of these settings, else None."""
    try:
        scores = read_json(cell.directory / "eval.json", kind=dict)
        same = _saved(scores["config"]) == settings(as_saved(cell.config))
        return scores if same and scores["step"] == cell.config.train.steps else None
    except (UserError, KeyError, AttributeError):  # absent, or not an eval.json
        return None


def call(cell: Cell, command: str, *more: str) -> None:
    """Runs `python -m inf_jax.<command>`, output to `<command>.log`; raises CellFailedError."""
    log = cell.directory / f"{command}.log"
    try:
        run_module(f"inf_jax.{command}", [*cell.flags, *more], log)
    except UserError as error:
        raise CellFailedError(str(error)) from None
