"""Progress of the model stages: one bar per stage on a terminal, else a line now and then."""

import time
from collections.abc import Callable

from tqdm import tqdm

_EVERY_S = 30.0  # between two lines without a terminal


class Progress:
    """Bars, or lines, of the stages.

    Args:
      stages: name -> number of items.
      status: text shown after the bars, e.g. the cost.
    """

    def __init__(self, stages: dict[str, int], status: Callable[[], str]):
        self._status = status
        self._bars = {
            name: tqdm(total=total, desc=name, unit=" pairs", disable=None, position=n)
            for n, (name, total) in enumerate(stages.items())
        }
        self._done = dict.fromkeys(stages, 0)
        self._printed_at = time.monotonic()

    def advance(self, stage: str) -> None:
        """Counts an item that has passed a stage."""
        self._done[stage] += 1
        bar = self._bars[stage]
        if not bar.disable:
            bar.set_postfix_str(self._status(), refresh=False)
        bar.update()
        self._print_line()

    def refresh(self) -> None:
        """Shows a changed status."""
        for bar in self._bars.values():
            if not bar.disable:
                bar.set_postfix_str(self._status())
        self._print_line()

    def _print_line(self) -> None:
        """Prints a line if there is no terminal and the last one is old."""
        now = time.monotonic()
        if now - self._printed_at > _EVERY_S and any(bar.disable for bar in self._bars.values()):
            self._printed_at = now
            done = ", ".join(f"{n} {self._done[n]:,}/{b.total:,}" for n, b in self._bars.items())
            print(f"{done}; {self._status()}", flush=True)

    def close(self) -> None:
        """Closes the bars."""
        for bar in self._bars.values():
            bar.close()
