"""Agreement of two judges: Cohen's kappa over all combinations that both have judged.

J. Cohen, "A coefficient of agreement for nominal scales", Educational and Psychological
Measurement 20:37-46, 1960.
"""

import itertools
from collections import Counter
from collections.abc import Iterable
from typing import Any

from data_pipeline.items import COMBINATIONS, Item

JUDGES = ("judge", "judge_2")
_COUNTS = ("both", *JUDGES, "neither")  # answers True True, True False, False True, False False


def cohen_kappa(both: int, first: int, second: int, neither: int) -> float | None:
    """Agreement beyond chance: 1 is perfect, 0 is that of independent judges.

    Args:
      both: number of cases that both judges call relevant.
      first, second: ... that only this judge calls relevant.
      neither: ... that no judge calls relevant.

    Returns:
      (observed - chance) / (1 - chance); None if that is 0 / 0, that is, if there are no cases or
      both judges gave the same label to all.
    """
    n = both + first + second + neither
    # shares times n², as integers: the test for 0 / 0 is exact
    chance = (both + first) * (both + second) + (neither + first) * (neither + second)
    if chance == n * n:
        return None
    return (n * (both + neither) - chance) / (n * n - chance)


class Agreement:
    """Counts the answers of two judges, item by item, in constant memory."""

    def __init__(self, items: Iterable[Item] = ()):
        self._counts: Counter[tuple[str, str, bool, bool]] = Counter()
        for item in items:
            self.add(item)

    def add(self, item: Item) -> None:
        """Counts the combinations of one item that both judges have judged."""
        answers: dict[str, dict[tuple[str, str], bool]] = {name: {} for name in JUDGES}
        for each in item.judgements:
            answers[each.judge][each.query, each.passage] = each.relevant
        first, second = answers.values()
        for combination in first.keys() & second.keys():
            self._counts[*combination, first[combination], second[combination]] += 1

    def to_json(self) -> dict[str, Any] | None:
        """The agreement as a dict; None if both judges have judged no combination.

        Keys: `judged`, `agreement` (share of equal answers) and `kappa` over all combinations, and
        `combinations`, a list with the same for each combination and its four counts. Judges see
        off-diagonal combinations mostly of examples whose diagonal was judged relevant, so the
        kappa is that of the requested combinations, not of random ones.
        """
        if not self._counts:
            return None
        rows, totals = [], Counter()
        for query, passage in COMBINATIONS:
            answers = itertools.product((True, False), repeat=2)
            counts = {
                name: self._counts[query, passage, *both]
                for name, both in zip(_COUNTS, answers, strict=True)
            }
            if any(counts.values()):
                totals.update(counts)
                rows.append({"query": query, "passage": passage, **_row(**counts), **counts})
        return {**_row(**totals), "combinations": rows}


def _row(*, both: int, judge: int, judge_2: int, neither: int) -> dict[str, Any]:
    judged = both + judge + judge_2 + neither
    return {
        "judged": judged,
        "agreement": (both + neither) / judged,
        "kappa": cohen_kappa(both, judge, judge_2, neither),
    }
