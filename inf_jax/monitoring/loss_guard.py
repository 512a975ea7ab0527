"""Whether the loss has left its usual range for good: a guard on the losses alone, so that all
processes decide alike, and a resumed run as an undisturbed one."""

import math
from collections import deque
from collections.abc import Callable, Iterable

import numpy as np

from inf_jax.core.errors import UserError

_USUAL = 200  # losses that say what is usual
_FEWEST = 50  # with fewer of them nothing is judged
_NORMAL = 1.4826  # standard deviation of a normal variable over its median absolute deviation
_FLOOR = 0.01  # of the median, or of 1: a loss that hardly varied may vary by that


class SpikeGuard:
    """Raises where each of the newest `steps` losses is above median + max_spike x sigma.

    Median and sigma (1.4826 x median absolute deviation, Rousseeuw & Croux 1993) are of the up to
    200 losses before these; sigma is at least 1 % of the median, and 0.01. One loss above is noise
    (or a step that the optimiser clips or skips), and is no reason to stop. A loss that is not
    finite is above.

    Args:
      max_spike: 0 is off.
      steps: in a row.
      losses: of the steps before, oldest first; `SpikeGuard.memory` of them suffice.
    """

    def __init__(self, *, max_spike: float, steps: int, losses: Iterable[float] = ()):
        self._times, self._count = max_spike, steps
        self._losses: deque[float] = deque(losses, maxlen=self.memory(steps))

    @staticmethod
    def memory(steps: int) -> int:
        """How many losses decide."""
        return _USUAL + steps

    def check(self, step: int, loss: float, *, checkpoints: Callable[[], Iterable[int]]) -> None:
        """Takes in the loss of one more step.

        Args:
          checkpoints: () -> the steps at which there is one.

        Raises:
          UserError: the loss has left its usual range; names a checkpoint from before that.
        """
        if not self._times:
            return
        self._losses.append(loss)
        losses = np.array(self._losses)
        newest, before = losses[-self._count :], losses[: -self._count]
        before = before[np.isfinite(before)]
        if len(before) < _FEWEST:
            return
        median = float(np.median(before))
        spread = _NORMAL * float(np.median(np.abs(before - median)))
        limit = median + self._times * max(spread, _FLOOR * max(abs(median), 1.0))
        if np.nan_to_num(newest, nan=math.inf).min() <= limit:
            return
        since = step - self._count + 1
        earlier = max((n for n in checkpoints() if n <= since), default=None)
        where = "no checkpoint is" if earlier is None else f"checkpoint {earlier} is the newest"
        raise UserError(
            f"step {step}: the loss is {loss:.4g} and has been above {limit:.4g} since step "
            f"{since}; usual before that was {median:.4g}, give or take {spread:.2g}. {where} from "
            "before it. Lower optim.lr or optim.clip_norm, or raise optim.warmup_steps, in a new "
            "out_dir; or, if this is as it should be, run again with train.max_spike=0"
        )
