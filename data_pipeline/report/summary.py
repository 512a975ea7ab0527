"""Computes the report of a corpus, report.json: outcomes of all pairs, statistics and cost."""

import contextlib
import math
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from data_pipeline.items import COMBINATIONS, RELEVANT, Fingerprint, Item
from data_pipeline.report.agreement import Agreement
from inf_jax.core.errors import UserError
from inf_jax.data.records import pairs

REPORT_FORMAT = 1
_STAGES = ("query", "generate", "filter", "judge", "judge_2", "score", "review")  # in order
# kind of text -> words per histogram bin
TEXTS = {"instruction": 2, "query": 1, "positive passage": 20, "negative passage": 20}
_TEXT_BINS = 24
_SCORES = {"start": -1.0, "width": 0.1, "bins": 20}


def summarise(
    items: Iterable[Item],
    usage: dict[str, Any],
    *,
    pairs_report: dict[str, Any],
    tap: Callable[[Item], None] | None = None,
) -> dict[str, Any]:
    """The report of a corpus as plain JSON, in one pass and constant memory.

    corpus        fingerprint of all pairs and examples, whatever their outcomes
    pairs, kept, dropped      numbers; each pair is kept or dropped
    source        `pairs_report`
    stages        in order: stage, arrived, dropped (each pair at its first reason), left
    reasons       stage -> reason -> number of pairs that have it; a pair may have several
    types         instruction type -> number of examples made, kept
    rewritten     number of examples whose positive passage is not the source's: made, kept
    relevance     judge -> a row per combination: judged, relevant, share, expected
    agreement     of two judges, see `agreement.Agreement.to_json`; null with one judge
    scores        name -> numbers (see below) of all scored examples
    lengths       kind of text -> numbers of words, of kept examples
    provenance    stage -> model, prompt, prompt_hash, items
    review        a human's accept, reject or accept_over_drop -> number of examples
    usage         from the journal: requests, tokens and USD by stage, in_flight_at_kills
    usd_per_kept  null if nothing is kept

    Numbers are count, mean, least and most, and a histogram: `counts` of bins of equal `width` from
    `start`. The first and the last bin are open.

    Args:
      items: all items with their outcomes.
      usage: `Journal.usage()`.
      pairs_report: counts of the source's pairs, as JSON.
      tap: called with each item, e.g. `AuditSample.add`.

    Raises:
      UserError: an id occurs twice, or an item that is not dropped has no example.
    """
    counts = _Counts()
    with _UniqueIds() as ids:
        for item in items:
            ids.add(item.id)
            if item.alive and item.example is None:
                raise UserError(
                    f"item {item.id} is not dropped but has no example; run the stage generate"
                )
            counts.add(item)
            if tap:
                tap(item)
    return counts.to_json(usage, pairs_report)


class _UniqueIds:
    """Raises UserError for an id that occurs twice; keeps ids on disk, in an SQLite table."""

    def __enter__(self) -> "_UniqueIds":
        self._db = sqlite3.connect("", isolation_level=None)  # an anonymous temporary file
        self._db.execute("PRAGMA journal_mode = OFF")
        self._db.execute("CREATE TABLE seen (id TEXT PRIMARY KEY) WITHOUT ROWID")
        self._db.execute("BEGIN")
        return self

    def __exit__(self, *_) -> None:
        with contextlib.suppress(sqlite3.Error):
            self._db.close()

    def add(self, id: str) -> None:
        try:
            self._db.execute("INSERT INTO seen VALUES (?)", (id,))
        except sqlite3.IntegrityError:
            raise UserError(
                f"the pair {id!r} has two outcomes: its id occurs twice; give each pair of the "
                "source a unique id"
            ) from None
        except sqlite3.OperationalError as error:
            raise UserError(
                f"cannot count the pairs: {error}; free some space in the temporary directory "
                "(TMPDIR)"
            ) from error


class _Counts:
    def __init__(self):
        self.pairs = self.kept = 0
        self.fingerprint = Fingerprint()
        self.dropped_at, self.rewritten = Counter(), Counter(made=0, kept=0)
        self.reasons, self.relevance = defaultdict(Counter), defaultdict(Counter)
        self.types = defaultdict(lambda: Counter(made=0, kept=0))
        self.provenance, self.review = defaultdict(Counter), Counter()
        self.scores = defaultdict(lambda: _Numbers(**_SCORES))
        self.lengths = {
            kind: _Numbers(start=0, width=width, bins=_TEXT_BINS) for kind, width in TEXTS.items()
        }
        self.agreement = Agreement()

    def add(self, item: Item) -> None:
        self.pairs += 1
        self.kept += item.alive
        self.fingerprint.add(item)
        if item.reasons:
            self.dropped_at[item.reasons[0].partition(":")[0]] += 1
        for each in dict.fromkeys(item.reasons):  # unique, in the same order in every run
            stage, reason = each.split(":", 1)
            self.reasons[stage][reason] += 1
        for stage, made in item.provenance.items():
            if "verdict" in made:
                over = "_over_drop" if "overrides" in made else ""
                self.review[made["verdict"] + over] += 1
            else:
                self.provenance[stage][tuple(sorted(made.items()))] += 1
        for each in item.judgements:
            self.relevance[each.judge][each.query, each.passage, each.relevant] += 1
        self.agreement.add(item)
        for name, value in item.scores.items():
            self.scores[name].add(value)
        if item.example:
            self._add_example(item)

    def _add_example(self, item: Item) -> None:
        rewritten = item.example.document_positive.split() != item.passage.split()
        for name in ("made", "kept") if item.alive else ("made",):
            self.types[item.instruction_type][name] += 1
            self.rewritten[name] += rewritten
        if item.alive:
            for n, pair in enumerate(pairs(item.example)):
                if pair:
                    passage = "negative passage" if n else "positive passage"
                    self.lengths[passage].add(len(pair.passage.split()))
                    if n != 2:  # its instruction is that of pair 0, and the query of 1 that of 0
                        self.lengths["instruction"].add(len(pair.instruction.split()))
                    if n != 1:
                        self.lengths["query"].add(len(pair.query.split()))

    def to_json(self, usage: dict[str, Any], pairs_report: dict[str, Any]) -> dict[str, Any]:
        return {
            "format": REPORT_FORMAT,
            "corpus": str(self.fingerprint),
            "pairs": self.pairs,
            "kept": self.kept,
            "dropped": self.pairs - self.kept,
            "source": pairs_report,
            "stages": list(self._stages()),
            "reasons": {
                stage: dict(self.reasons[stage].most_common()) for stage in _in_order(self.reasons)
            },
            "types": {name: dict(self.types[name]) for name in sorted(self.types)},
            "rewritten": dict(self.rewritten),
            "relevance": {
                judge: list(_relevance(counts)) for judge, counts in sorted(self.relevance.items())
            },
            "agreement": self.agreement.to_json(),
            "scores": {name: numbers.to_json() for name, numbers in self.scores.items()},
            "lengths": {kind: numbers.to_json() for kind, numbers in self.lengths.items()},
            "provenance": {
                stage: [{**dict(made), "items": n} for made, n in counts.most_common()]
                for stage, counts in self.provenance.items()
            },
            "review": dict(self.review),
            "usage": usage,
            "usd_per_kept": usage["usd"] / self.kept if self.kept else None,
        }

    def _stages(self) -> Iterator[dict[str, Any]]:
        arrived = self.pairs
        for stage in _in_order(self.reasons):
            left = arrived - (dropped := self.dropped_at[stage])
            yield {"stage": stage, "arrived": arrived, "dropped": dropped, "left": left}
            arrived = left


def _in_order(stages: Iterable[str]) -> list[str]:
    order = {stage: n for n, stage in enumerate(_STAGES)}
    return sorted(stages, key=lambda stage: (order.get(stage, len(order)), stage))


def _relevance(counts: Counter) -> Iterator[dict[str, Any]]:
    for query, passage in COMBINATIONS:
        yes, no = counts[query, passage, True], counts[query, passage, False]
        if yes + no:
            yield {
                "query": query,
                "passage": passage,
                "judged": yes + no,
                "relevant": yes,
                "share": yes / (yes + no),
                "expected": RELEVANT[query] == passage,
            }


class _Numbers:
    """Count, mean, range and histogram of numbers; the first and the last bin are open."""

    def __init__(self, *, start: float, width: float, bins: int):
        self.start, self.width = start, width
        self.n, self.sum = 0, 0.0
        self.least, self.most = float("inf"), float("-inf")
        self.counts = [0] * bins

    def add(self, value: float) -> None:
        self.n += 1
        self.sum += value
        self.least, self.most = min(self.least, value), max(self.most, value)
        n = math.floor((value - self.start) / self.width)
        self.counts[max(0, min(len(self.counts) - 1, n))] += 1

    def to_json(self) -> dict[str, Any]:
        mean, least, most = self.sum / max(1, self.n), self.least, self.most
        if not self.n:
            mean = least = most = None
        numbers = {"count": self.n, "mean": mean, "least": least, "most": most}
        return numbers | {"start": self.start, "width": self.width, "counts": self.counts}
