"""Validates examples by rules, and counts what was dropped for which reason.

The rules are pure functions of one record. Texts to compare with (of earlier examples, of the
evaluation split) are given as sets of 64-bit hashes, so the same functions run over a stream or,
after grouping by hash, under Beam.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from rich.table import Table

from data_pipeline.sources.folding import UNSPACED, bare, fold, word_range
from inf_jax.data.records import FIELDS, Example, Pair, pairs, text_hash

QUERY_FIELDS = tuple(field for field in FIELDS if field.startswith("query"))
DOCUMENT_FIELDS = tuple(field for field in FIELDS if "document" in field)
_POISONS = (FIELDS[3:5], FIELDS[5:7])
_OPPOSITES = (
    ("query_positive", "query_negative"),
    ("instruction_positive", "instruction_negative"),
    ("document_positive", "hard_negative_document_1"),
    ("document_positive", "hard_negative_document_2"),
)
_UNSPACED = re.compile(f"[{UNSPACED}]")
DUPLICATES = ("duplicate_query", "duplicate_document", "near_duplicate")


@dataclasses.dataclass(frozen=True)
class Limits:
    """Allowed numbers of words (`word_range`) of each kind of text.

    Attributes:
      query_words, instruction_words, document_words: (least, most), inclusive.
      repeated_documents: whether one passage may be the positive of several examples. Training
        masks such passages by their hash; in an evaluation corpus they would make the task
        ambiguous.
    """

    query_words: tuple[int, int] = (1, 1024)
    instruction_words: tuple[int, int] = (2, 512)
    document_words: tuple[int, int] = (3, 4096)
    repeated_documents: bool = True

    def of(self, field: str) -> tuple[int, int]:
        """The limits of one field of an example."""
        if field.startswith("query"):
            return self.query_words
        return self.instruction_words if field.startswith("instruction") else self.document_words


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether to keep an example, and why not.

    Attributes:
      reasons: each violated rule, as `rule` or `rule:field`.
      identity: hashes of the positive instructed query and the positive passage; those of sound
        examples belong to the `seen` of later ones.
    """

    reasons: tuple[str, ...]
    identity: tuple[int, int]

    @property
    def keep(self) -> bool:
        """Whether the example violates no rule."""
        return not self.reasons

    @property
    def sound(self) -> bool:
        """Whether the example violates no rule, except for being a duplicate."""
        return all(reason in DUPLICATES for reason in self.reasons)

    def also(self, *reasons: str) -> "Verdict":
        """The verdict with more violated rules."""
        return Verdict((*self.reasons, *reasons), self.identity)


def validate(
    example: Example,
    *,
    limits: Limits = Limits(),
    seen: Collection[int] = frozenset(),
    eval_hashes: Collection[int] = frozenset(),
) -> Verdict:
    """Checks an example against all rules; the verdict names each violated one.

    empty:<field>            a text of the positive triplet, or one of the two of a poison, is empty
    too_short:, too_long:    outside `limits`
    same_text:<field>        a poisoned text equals its positive one (compared folded, see `fold`)
    repeats_query:<field>    the instruction of the field's pair contains that pair's query
    duplicate_query          an earlier sound example has the same instructed query
    duplicate_document       ... the same positive passage, if `limits` forbid it
    shared_with_eval:<field> the evaluation split has the passage or the instructed query too
                             (compared `bare`)

    Args:
      seen: `identity` of the verdicts on all earlier sound examples.
      eval_hashes: `evaluation_hashes` of every example of the evaluation split.
    """
    folded = Example(id=example.id, **{name: fold(getattr(example, name)) for name in FIELDS})
    hashes = _pair_hashes(folded, fold)
    identity = hashes["query_positive"], hashes["document_positive"]
    reasons = [*_empty(folded), *_lengths(folded, limits), *_same(folded), *_repeats(folded)]
    if identity[0] in seen:
        reasons.append("duplicate_query")
    if identity[1] in seen and not limits.repeated_documents:
        reasons.append("duplicate_document")
    if eval_hashes:
        shared = _pair_hashes(example, bare).items()
        reasons += [
            f"shared_with_eval:{field}" for field, number in shared if number in eval_hashes
        ]
    return Verdict(tuple(reasons), identity)


def evaluation_hashes(example: Example) -> set[int]:
    """64-bit hashes of all passages and instructed queries of an example, each `bare`."""
    return set(_pair_hashes(example, bare).values())


def held_out(example: Example, fraction: float) -> bool:
    """Whether the example belongs to the evaluation split; all examples of a query do or do not."""
    return query_number(example.query_positive) < fraction * 2.0**64


def query_number(query: str) -> int:
    """64-bit hash of a query, which decides its split."""
    # folding may decompose what it has composed, and the split of a corpus may never change
    return text_hash("held out\x1f" + fold(query), compose=False)


_COUNTERS = ("dropped_by_source", "reasons", "absent", "negatives", "noted")


@dataclasses.dataclass
class Report:
    """Counts of the rows of one split.

    Attributes:
      dropped_by_source: rows that the source's reader dropped, by reason.
      dropped: examples that a rule dropped.
      reasons: violated rules; an example may violate several.
      kept: examples kept.
      absent: kept examples that lack a poison, by the poison's first field.
      negatives: of pairs: those kept, those dropped by reason, and how many kept pairs have some or
        have a teacher's scores.
      noted: what else of the source was left out, without a row less: fields, rows of negatives.
    """

    dropped_by_source: Counter[str] = dataclasses.field(default_factory=Counter)
    dropped: int = 0
    reasons: Counter[str] = dataclasses.field(default_factory=Counter)
    kept: int = 0
    absent: Counter[str] = dataclasses.field(default_factory=Counter)
    negatives: Counter[str] = dataclasses.field(default_factory=Counter)
    noted: Counter[str] = dataclasses.field(default_factory=Counter)

    @property
    def rows(self) -> int:
        """Rows read."""
        return self.dropped_by_source.total() + self.dropped + self.kept

    def add(self, example: Example, verdict: Verdict) -> None:
        """Counts an example."""
        self.reasons.update(verdict.reasons)
        if verdict.keep:
            self.kept += 1
            self.absent.update(first for first, _ in _POISONS if not getattr(example, first))
        else:
            self.dropped += 1

    def __add__(self, other: "Report") -> "Report":
        """The sum of both reports' counts."""
        return Report(**{name: own + getattr(other, name) for name, own in vars(self).items()})

    def to_json(self) -> dict[str, Any]:
        """A dict of plain numbers, in a fixed order; `from_json` reads it back."""
        counters = {name: dict(sorted(getattr(self, name).items())) for name in _COUNTERS}
        for name in ("negatives", "noted"):  # files of triplets stay as they were
            if not counters[name]:
                del counters[name]
        return {"rows": self.rows, "kept": self.kept, "dropped": self.dropped, **counters}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Report":
        """Inverse of `to_json`."""
        counters = {name: Counter(values.get(name, {})) for name in _COUNTERS}
        return cls(dropped=values["dropped"], kept=values["kept"], **counters)


def kept(
    examples: Iterable[Example],
    *,
    limits: Limits,
    report: Report,
    eval_hashes: Collection[int] = frozenset(),
    is_near: Callable[[Example], bool] | None = None,
) -> Iterator[Example]:
    """Yields the examples that violate no rule, in order.

    An example is a duplicate of any earlier sound one, even of one that is a duplicate itself. So
    verdicts do not depend on what else was kept, and groups of records can be judged separately.

    `report` counts all examples. `is_near` is called for each sound example in order: whether it is
    a near duplicate of an earlier one.
    """
    seen: set[int] = set()
    for example in examples:
        verdict = validate(example, limits=limits, seen=seen, eval_hashes=eval_hashes)
        if verdict.sound:
            seen.update(verdict.identity)
            if is_near and is_near(example):
                verdict = verdict.also("near_duplicate")
        report.add(example, verdict)
        if verdict.keep:
            yield example


def report_table(reports: dict[str, Report]) -> Table:
    """A terminal table of what was read, dropped by reason, and kept, with a column per split."""
    table = Table(title="examples", title_justify="left")
    table.add_column("")
    for split in reports:
        table.add_column(split, justify="right")

    def line(name: str, numbers: Iterable[int], **style) -> None:
        table.add_row(name, *(f"{n:,}" for n in numbers), **style)

    line("rows read", (r.rows for r in reports.values()), end_section=True)
    for name, counts in (
        ("dropped by the source", [r.dropped_by_source for r in reports.values()]),
        ("dropped by a rule", [r.reasons for r in reports.values()]),
    ):
        for reason in sorted(set().union(*counts)):
            line(f"{name}: {reason}", (c[reason] for c in counts))
    line("dropped in total", (r.rows - r.kept for r in reports.values()), end_section=True)
    line("kept", (r.kept for r in reports.values()), style="bold")
    for poison in sorted(set().union(*(r.absent for r in reports.values()))):
        line(f"kept without {poison}", (r.absent[poison] for r in reports.values()))
    for name in sorted(set().union(*(r.negatives for r in reports.values()))):
        line(f"negatives: {name}", (r.negatives[name] for r in reports.values()))
    for name in sorted(set().union(*(r.noted for r in reports.values()))):
        line(f"note: {name}", (r.noted[name] for r in reports.values()))
    return table


# The rules, on an example with folded texts. Folding splits words at hyphens, so the word counts
# are not exact; the limits are there to catch accidents.


def _empty(folded: Example) -> Iterator[str]:
    yield from (f"empty:{field}" for field in FIELDS[:3] if not getattr(folded, field))
    for poison in _POISONS:
        empty = [field for field in poison if not getattr(folded, field)]
        if len(empty) == 1:  # if both are empty, the poison is absent, which is allowed
            yield f"empty:{empty[0]}"


def _lengths(folded: Example, limits: Limits) -> Iterator[str]:
    for field in FIELDS:
        text = getattr(folded, field)
        if text and (reason := wrong_length(text, limits.of(field))):
            yield f"{reason}:{field}"


def _same(folded: Example) -> Iterator[str]:
    for positive, negative in _OPPOSITES:
        text = getattr(folded, negative)
        if text and text == getattr(folded, positive):
            yield f"same_text:{negative}"


def _repeats(folded: Example) -> Iterator[str]:
    fields = (FIELDS[1], FIELDS[3], FIELDS[5])  # one field of each pair, to name it
    for pair, field in zip(pairs(folded), fields, strict=True):
        if pair and contains_query(pair.query, pair.instruction):
            yield f"repeats_query:{field}"


def wrong_length(text: str, limits: tuple[int, int]) -> str:
    """ "too_short" or "too_long" for a text that is so by any count of its words, else ""."""
    fewest, most = word_range(text)
    return "too_short" if most < limits[0] else "too_long" if fewest > limits[1] else ""


def contains_query(query: str, instruction: str) -> bool:
    """Whether the instruction has all words of the query in a row; both folded."""
    query, words = (" ".join(re.findall(r"\w+", text)) for text in (query, instruction))
    if _UNSPACED.search(query):
        return query in words
    return bool(query) and f" {query} " in f" {words} "


def _pair_hashes(example: Example, form: Callable[[str], str]) -> dict[str, int]:
    """Hashes of each pair's instructed query and passage in a normal form, by field."""
    hashes = {}
    names = (("query_positive", "document_positive"), *_POISONS)
    for pair, (query, document) in zip(pairs(example), names, strict=True):
        if pair:
            hashes[query], hashes[document] = identities(pair, form)
    return hashes


def identities(pair: Pair, form: Callable[[str], str]) -> tuple[int, int]:
    """Hashes of a pair's instructed query and of its passage in a normal form."""
    instructed = f"{form(pair.query)}\x1f{form(pair.instruction)}"
    passage = f"document\x1f{form(pair.passage)}"
    return text_hash(f"query\x1f{instructed}"), text_hash(passage)
