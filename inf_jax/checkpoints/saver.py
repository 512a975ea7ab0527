"""The checkpoints of a training run: what it starts from, when it saves, what it keeps."""

import shutil
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from inf_jax.checkpoints import manager as checkpoint
from inf_jax.checkpoints.resume import Position, check_frozen, check_position
from inf_jax.config.resume import check_same_run
from inf_jax.config.schema import keys_of, value_of
from inf_jax.config.sections import RunConfig
from inf_jax.core.errors import UserError
from inf_jax.distributed.coordination import check_same, is_primary
from inf_jax.distributed.preemption import CONTINUE
from inf_jax.io import storage
from inf_jax.training.parameters import fingerprint
from inf_jax.training.setup import Training
from inf_jax.training.step import TrainState


class Saver:
    """Checkpoints in `<out_dir>/checkpoints`; all processes of a run have one.

    Args:
      config: of which out_dir, seed and the keys of `train` on checkpoints are read.
      resolved: all of it, to be saved beside the state.
      resume: True asks for a checkpoint that is there, False for none; None takes what there is.

    Raises:
      UserError: there is none, or there is one, against the wish; or the one that is there is of a
        run with another config.
    """

    def __init__(self, config: RunConfig, resolved: ConfigDict, *, resume: bool | None = None):
        train = config.train
        self._directory = f"{config.out_dir}/checkpoints"
        self._steps, self._every, self._seed = train.steps, train.checkpoint_every, config.seed
        best = checkpoint.Best(train.best_metric, train.best_mode)
        self._metric, self._best = best.metric, train.keep_best
        self._sum, self._count = 0.0, 0
        self._config = resolved
        self._manager = checkpoint.make_manager(
            self._directory, keep=train.keep_checkpoints, keep_best=self._best, best=best
        )
        self._position: Position | None = None
        newest = self._manager.latest_step()
        if resume and newest is None:
            raise UserError(
                f"{self._directory}: no checkpoint to resume from; look at out_dir, or train "
                "without --resume to start anew"
            )
        if newest is None:
            return
        if resume is False:
            raise UserError(
                f"{self._directory}: has a checkpoint of step {newest}; give a new out_dir, or "
                "train without --noresume to go on from it"
            )
        self._position, saved = checkpoint.read_run(self._manager, newest)
        source = self._manager.directory / str(newest)
        changed = check_same_run(self._config, saved, source)
        if changed and is_primary():
            print(f"{source}: going on; since then {'; '.join(changed)}")

    @property
    def dataset(self) -> str | None:
        """Fingerprint of the dataset that the checkpoint's run was trained on."""
        return self._position.dataset if self._position else None

    def start(self, training: Training) -> tuple[TrainState, int]:
        """The state to go on from, and the first step to do.

        Raises:
          UserError: the checkpoint does not fit, its data was other data, or there is no room for
            another one.
        """
        loader = training.loader
        groups = loader.chunks if loader.block_i and loader.query_encoder == "attention" else 0
        here = Position(0, self._seed, loader.batch_size, loader.dataset.fingerprint, groups)
        keys = {key: value_of(self._config, key) for key in keys_of(self._config)}
        facts = here._asdict() | keys | {"jax": jax.__version__}
        check_same({name: str(value) for name, value in facts.items()})
        self._check_room(training)
        if self._position is None:
            state = training.fresh()
            self._position = here._replace(frozen=fingerprint(state.frozen))
            return state, 0
        check_position(self._position, here, self._manager.directory)
        frozen = training.frozen()
        check_frozen(self._position, fingerprint(frozen), self._manager.directory)
        state, _ = checkpoint.restore(self._manager, training.shapes, self._position.step)
        return state._replace(frozen=frozen), self._position.step

    def check_alone(self) -> None:
        """Raises UserError where another run has saved since `start`."""
        newest = max(ocp.utils.checkpoint_steps(self._manager.directory), default=0)
        if newest != self._position.step:
            raise UserError(
                f"{self._directory}: another run has saved its step {newest} while this one began "
                f"at {self._position.step}; give each its own out_dir, or start again to go on "
                "from there"
            )

    def due(self, done: int, action: str) -> bool:
        """Whether to save after `done` steps; raises UserError where an earlier save has failed."""
        checkpoint.check(self._manager)
        return action != CONTINUE or done % self._every == 0 or done == self._steps

    def count(self, metrics: dict) -> None:
        """Takes a step's metrics into account for the score of the next checkpoint."""
        measured = not self._metric.startswith("dev/") or "dev/loss" in metrics
        if self._best and isinstance(metrics.get(self._metric), float):
            self._sum, self._count = self._sum + metrics[self._metric], self._count + 1
        elif self._best and measured:
            scalars = sorted(name for name, value in metrics.items() if isinstance(value, float))
            raise UserError(
                f"train.best_metric={self._metric!r}: no metric of this run; there are "
                f"{', '.join(scalars)}, and with train.dev_every the same of dev/"
            )

    def checkpoints(self) -> list[int]:
        """Numbers of steps after which there is a checkpoint."""
        return list(self._manager.all_steps())

    def save(self, state: TrainState, done: int) -> None:
        """Starts to save the state after `done` steps."""
        mean = {self._metric: self._sum / self._count} if self._count else None
        self._sum, self._count = 0.0, 0
        position = self._position._replace(step=done)
        config = self._config.to_dict()
        checkpoint.save(self._manager, state, position, config=config, metrics=mean)

    def wait(self) -> None:
        """Returns once all that was saved is whole."""
        checkpoint.wait(self._manager)

    def close(self) -> None:
        """Waits, and ends."""
        checkpoint.close(self._manager)

    def _check_room(self, training: Training) -> None:
        if storage.is_bucket(self._directory):
            return
        saved = checkpoint.saved_part(training.shapes)
        needed = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(saved))
        free = shutil.disk_usage(Path(self._directory)).free
        if free < needed:
            raise UserError(
                f"{self._directory}: a checkpoint takes up to {needed / 2**20:,.0f} MiB, "
                f"{free / 2**20:,.0f} MiB are free; free some space or give another out_dir"
            )
