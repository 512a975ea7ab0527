"""How far two judges agree: Cohen's kappa, over all combinations that both have judged.

J. Cohen, "A coefficient of agreement for nominal scales", Educational and Psychological
Measurement 20:37-46, 1960.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from data_pipeline.items import INSTRUCTED_QUERIES, PASSAGES, Item

JUDGES = ("judge", "judge_2")


def cohen_kappa(both: int, first: int, second: int, neither: int) -> float | None:
    """Agreement beyond chance: 1 is perfect, 0 is what two dice with the same habits reach.

    Args:
      both: cases that both judges call relevant.
      first, second: that one judge alone calls relevant.
      neither: that none does.

    Returns:
      (observed - chance) / (1 - chance); None where that is 0 / 0: there is no case, or both judges
      gave one and the same label to all, so that chance alone agrees too and nothing is shown.
    """
    n = both + first + second + neither
    # twice n² times each share, in integers: the test for 0 / 0 is exact
    chance = (both + first) * (both + second) + (neither + first) * (neither + second)
    if chance == n * n:
        return None
    return (n * (both + neither) - chance) / (n * n - chance)


class Agreement:
    """Counts the answers of two judges, item by item; memory does not grow."""

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
        """The table of agreement; None where no combination was judged by both.

        Its keys: `judged`, `agreement` (share of equal answers) and `kappa` over all combinations,
        and `combinations`, a list with the same of each, and with its four counts. The judges see
        the crossed combinations mostly where the diagonal holds: the kappa is of the combinations
        as they were asked for, not of a table drawn at random.
        """
        if not self._counts:
            return None
        rows = []
        for query in INSTRUCTED_QUERIES:
            for passage in PASSAGES:
                both, first, second, neither = (
                    self._counts[query, passage, a, b]
                    for a, b in ((True, True), (True, False), (False, True), (False, False))
                )
                if both + first + second + neither:
                    counts = {"both": both, "judge": first, "judge_2": second, "neither": neither}
                    rows.append({"query": query, "passage": passage, **_row(**counts), **counts})
        totals = Counter()
        for row in rows:
            totals.update({name: row[name] for name in ("both", *JUDGES, "neither")})
        return {**_row(**totals), "combinations": rows}


def _row(*, both: int, judge: int, judge_2: int, neither: int) -> dict[str, Any]:
    judged = both + judge + judge_2 + neither
    return {
        "judged": judged,
        "agreement": (both + neither) / judged,
        "kappa": cohen_kappa(both, judge, judge_2, neither),
    }
