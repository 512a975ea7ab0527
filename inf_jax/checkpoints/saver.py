"""Decides for a training run which checkpoint it resumes, when it saves and what it keeps."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from inf_jax.checkpoints import manager as checkpoint
from inf_jax.checkpoints.integrity import fingerprint
from inf_jax.checkpoints.resume import ResumeInfo, check_frozen, check_same_data
from inf_jax.config.defaults import run_config
from inf_jax.config.resume import as_saved, check_same_run, continue_older
from inf_jax.config.schema import keys_of, value_of
from inf_jax.config.sections import RunConfig
from inf_jax.core.choices import RETRIEVAL_METRICS
from inf_jax.core.errors import UserError
from inf_jax.distributed.coordination import check_same, is_primary
from inf_jax.distributed.preemption import CONTINUE
from inf_jax.io import storage


class Saver:
    """Checkpoints in `<out_dir>/checkpoints`; every process of a run has one.

    Args:
      config: of the run.
      resolved: the same as a ConfigDict, saved with the state. A key that is newer than the run
        that is resumed gets the value that the run had.
      resume: True requires a checkpoint, False forbids one; None allows both.

    Attributes:
      config: of the run, after that.
      first_step: the step that the run begins or continues with.

    Raises:
      UserError: `resume` is not met, or the run of the newest checkpoint had another config.
    """

    def __init__(self, config: RunConfig, resolved: ConfigDict, *, resume: bool | None = None):
        self.config, train = config, config.train
        self._directory = f"{config.out_dir}/checkpoints"
        self._steps, self._every = train.steps, train.checkpoint_every
        self._metric, self._keep_best = train.best_metric, train.keep_best
        # of a metric by source, in a mixture, the number of its pairs, which may be 0 in a step
        dev, source = "dev/" * self._metric.startswith("dev/"), self._metric.rpartition("/")[2]
        self._pairs = f"{dev}pairs/{source}"
        self._sum, self._count = 0.0, 0
        self._resolved = resolved
        self._manager = checkpoint.make_manager(
            self._directory,
            keep=train.keep_checkpoints,
            keep_best=train.keep_best,
            best=checkpoint.Best(train.best_metric, train.best_mode),
        )
        self._info: ResumeInfo | None = None
        self._begun: Mapping[str, Any] | None = None  # the saved config of the run
        newest = self._manager.latest_step()
        if resume and newest is None:
            raise UserError(
                f"{self._directory}: no checkpoint to resume from; check out_dir, or train without "
                "--resume to start a new run"
            )
        if newest is None:
            return
        if resume is False:
            raise UserError(
                f"{self._directory}: has a checkpoint of step {newest}; give a new out_dir, or "
                "train without --no-resume to continue from it"
            )
        saved = checkpoint.read_saved(self._directory, str(newest))
        if checkpoint.AVERAGED in saved.config:
            raise UserError(
                f"{self._directory}: holds an average, which has no state to resume from; give a "
                f"new out_dir, and model.start_from={config.out_dir} to start from it"
            )
        self._info, self._begun = saved.info, saved.config
        source = self._manager.directory / str(newest)
        older = continue_older(resolved, saved.config)
        self.config = run_config(resolved)
        if older and is_primary():
            print(f"{source}: continuing as an older version began it: {', '.join(older)}")
        changed = check_same_run(resolved, saved.config, source)
        if changed and is_primary():
            print(f"{source}: continuing; changed since then: {'; '.join(changed)}")

    @property
    def first_step(self) -> int:
        """0, or the step of the checkpoint that is resumed."""
        return self._info.step if self._info else 0

    @property
    def info(self) -> ResumeInfo | None:
        """The resume information of the run that is resumed, or that `start` has begun."""
        return self._info

    @property
    def dataset(self) -> str | None:
        """Fingerprint of the dataset of the run that is resumed."""
        return self._info.dataset if self._info else None

    @property
    def order(self) -> int | None:
        """The order of the examples of the run that is resumed."""
        return self._info.order if self._info else None

    def start(
        self,
        data: ResumeInfo,
        *,
        shapes: Mapping[str, Any],
        fresh: Callable[[], tuple[dict[str, Any], str]],
        frozen: Callable[[], dict],
    ) -> dict[str, Any]:
        """The state to begin or to continue with, {"params": tree, ..., "frozen": tree}.

        Args:
          data: of this run, at step 0.
          shapes: {"params": tree, ...} of ShapeDtypeStructs with shardings: what is saved.
          fresh: gives the state at step 0, and `ResumeInfo.start`.
          frozen: gives the frozen parameters alone, for a run that is resumed.

        Raises:
          UserError: the checkpoint does not fit or was of other data, or the disk is too full.
        """
        keys = {key: value_of(self._resolved, key) for key in keys_of(self._resolved)}
        facts = data._asdict() | keys | {"jax": jax.__version__}
        check_same({name: str(value) for name, value in facts.items()})
        self._check_room(shapes)
        if self._info is None:
            state, start = fresh()
            self._info = data._replace(frozen=fingerprint(state["frozen"]), start=start)
            return state
        check_same_data(self._info, data, self._manager.directory)
        not_saved = frozen()
        check_frozen(self._info, fingerprint(not_saved), self._manager.directory)
        state, _ = checkpoint.restore(self._manager, shapes, self._info.step)
        return state | {"frozen": not_saved}

    def check_alone(self) -> None:
        """Raises UserError where another run has saved since `start`."""
        newest = max(ocp.utils.checkpoint_steps(self._manager.directory), default=0)
        if newest != self.first_step:
            raise UserError(
                f"{self._directory}: another run has saved its step {newest} while this one began "
                f"at {self.first_step}; give each its own out_dir, or start again to continue from "
                "there"
            )

    def due(self, done: int, action: str) -> bool:
        """Whether to save after `done` steps; raises UserError where an earlier save has failed."""
        with checkpoint.writing(self._manager):
            self._manager.check_for_errors()
        return action != CONTINUE or done % self._every == 0 or done == self._steps

    def count(self, metrics: dict) -> None:
        """Adds a step's metrics to the mean by which the next checkpoint is compared; of retrieval
        scores only that of the checkpoint's own step counts."""
        if self._metric in RETRIEVAL_METRICS:
            value = metrics.get(self._metric)
            self._sum, self._count = (0.0, 0) if value is None else (value, 1)
            return
        measured = not self._metric.startswith("dev/") or "dev/loss" in metrics
        if self._keep_best and isinstance(metrics.get(self._metric), float):
            self._sum, self._count = self._sum + metrics[self._metric], self._count + 1
        elif self._keep_best and measured and metrics.get(self._pairs) != 0:
            scalars = sorted(name for name, value in metrics.items() if isinstance(value, float))
            raise UserError(
                f"train.best_metric={self._metric!r}: no metric of this run; there are "
                f"{', '.join(scalars)}, and with train.dev_every the same with dev/ in front"
            )

    def checkpoints(self) -> list[int]:
        """The steps after which there is a checkpoint."""
        return list(self._manager.all_steps())

    def save(self, state: Mapping[str, Any], done: int) -> None:
        """Starts to save the state after `done` steps: {"params": tree, ...}, without "frozen"."""
        mean = {self._metric: self._sum / self._count} if self._count else None
        self._sum, self._count = 0.0, 0
        info, config = self._info._replace(step=done), as_saved(self._resolved, self._begun)
        checkpoint.save(self._manager, state, info, config=config, metrics=mean)

    def wait(self) -> None:
        """Returns once all saves are complete; UserError where one has failed."""
        with checkpoint.writing(self._manager):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for all saves and closes the manager."""
        with checkpoint.writing(self._manager):
            self._manager.close()

    def _check_room(self, shapes: Mapping[str, Any]) -> None:
        if storage.is_bucket(self._directory):
            return
        needed = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(dict(shapes)))
        free = shutil.disk_usage(Path(self._directory)).free
        if free < needed:
            raise UserError(
                f"{self._directory}: a checkpoint takes up to {needed / 2**20:,.0f} MiB, "
                f"{free / 2**20:,.0f} MiB are free; free some space or give another out_dir"
            )
