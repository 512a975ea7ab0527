"""What a person sees while requests are under way: a bar a stage, and what it costs."""

import time
from collections.abc import Callable

from tqdm import tqdm

_EVERY_S = 30.0  # between two lines where there is no terminal


class Progress:
    """Bars of the stages on a terminal; elsewhere a line now and then.

    Args:
      stages: name -> number of items.
      status: what stands behind the bars, e.g. the cost.
    """

    def __init__(self, stages: dict[str, int], status: Callable[[], str]):
        self._status = status
        self._bars = {
            name: tqdm(total=total, desc=name, unit=" pairs", disable=None, position=n)
            for n, (name, total) in enumerate(stages.items())
        }
        self._done = dict.fromkeys(stages, 0)
        self._said = time.monotonic()

    def advance(self, stage: str) -> None:
        """One more item has passed a stage."""
        self._done[stage] += 1
        bar = self._bars[stage]
        if not bar.disable:
            bar.set_postfix_str(self._status(), refresh=False)
        bar.update()
        self._say()

    def refresh(self) -> None:
        """Shows a status that has changed without an item's passing."""
        for bar in self._bars.values():
            if not bar.disable:
                bar.set_postfix_str(self._status())
        self._say()

    def _say(self) -> None:
        """A line where there is no terminal."""
        now = time.monotonic()
        if now - self._said > _EVERY_S and any(bar.disable for bar in self._bars.values()):
            self._said = now
            done = ", ".join(f"{n} {self._done[n]:,}/{b.total:,}" for n, b in self._bars.items())
            print(f"{done}; {self._status()}", flush=True)

    def close(self) -> None:
        """Ends the bars."""
        for bar in self._bars.values():
            bar.close()
