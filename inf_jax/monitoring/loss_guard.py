"""Stops a run whose loss stays far above its usual range.

The decision depends on the losses alone, so all processes agree, and so do a resumed run and an
uninterrupted one.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable

import numpy as np

from inf_jax.core.errors import UserError

_WINDOW = 200  # losses that define the usual range
_MIN_LOSSES = 50  # no decision with fewer
_MAD_TO_SIGMA = 1.4826  # of a normal variable
_MIN_SIGMA = 0.01  # relative to the median or to 1


class LossGuard:
    """Raises where each of the newest `steps` losses is above median + max_spike x sigma.

    Median and sigma (1.4826 x median absolute deviation, Rousseeuw & Croux 1993) are of the up to
    200 losses before these; sigma is at least 1 % of the median, and 0.01. A single loss above is
    noise, or a step that the optimiser clips or skips. A non-finite loss counts as above.

    Args:
      max_spike: 0 turns it off.
      steps: consecutive losses above the limit that stop the run.
      losses: of earlier steps, oldest first; `LossGuard.memory` of them suffice.
    """

    def __init__(self, *, max_spike: float, steps: int, losses: Iterable[float] = ()):
        self._times, self._count = max_spike, steps
        self._losses: deque[float] = deque(losses, maxlen=self.memory(steps))

    @staticmethod
    def memory(steps: int) -> int:
        """Number of losses that the decision depends on."""
        return _WINDOW + steps

    def check(self, step: int, loss: float, *, checkpoints: Callable[[], Iterable[int]]) -> None:
        """Adds the loss of one more step.

        Args:
          checkpoints: () -> steps that have a checkpoint.

        Raises:
          UserError: the loss is out of its usual range; names a checkpoint from before that.
        """
        if not self._times:
            return
        self._losses.append(loss)
        losses = np.array(self._losses)
        newest, before = losses[-self._count :], losses[: -self._count]
        before = before[np.isfinite(before)]
        if len(before) < _MIN_LOSSES:
            return
        median = float(np.median(before))
        spread = _MAD_TO_SIGMA * float(np.median(np.abs(before - median)))
        limit = median + self._times * max(spread, _MIN_SIGMA * max(abs(median), 1.0))
        if np.nan_to_num(newest, nan=math.inf).min() <= limit:
            return
        since = step - self._count + 1
        earlier = max((n for n in checkpoints() if n <= since), default=None)
        newest = (
            "No checkpoint is" if earlier is None else f"Checkpoint {earlier} is the newest one"
        )
        raise UserError(
            f"step {step}: the loss is {loss:.4g} and has been above {limit:.4g} since step "
            f"{since}; before that it was {median:.4g} +- {spread:.2g}. {newest} from before "
            "the rise. Lower optim.lr or optim.clip_norm, or raise optim.warmup_steps, in a new "
            "out_dir; or, if the rise is expected, run again with train.max_spike=0"
        )
