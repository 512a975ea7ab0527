"""The filter stage: rules that drop generated examples without asking a model.

Each rule is a function of one item that yields reasons, `rule` or `rule:field`. Except for
duplicates, rules do not depend on other items.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator

from data_pipeline.items import Item
from data_pipeline.quality.contamination import BenchmarkTexts
from data_pipeline.quality.minhash import signature, similarity, tokens
from data_pipeline.quality.near_duplicates import NearExamples
from data_pipeline.quality.phrases import phrases
from data_pipeline.quality.rules import DOCUMENT_FIELDS, QUERY_FIELDS, Limits, validate
from data_pipeline.sources.folding import fold
from inf_jax.core.errors import UserError
from inf_jax.data.records import FIELDS, Example, pairs

FILTER_RULES = ("language", "phrases", "leaks", "near_same", "duplicates", "contamination")

# py3langid on 13,000 pieces of English text (MedQuAD, PubMedQA): of pieces of 100 bytes 0.01% have
# a probability under 0.01 for English, of pieces of 40 bytes 1%, of whole texts none. German and
# French texts of 30 bytes have under 1e-4.
LANGUAGE_BYTES = 100  # shorter texts are not judged
LANGUAGE_PROBABILITY = 0.01
_LANGUAGE_CHARACTERS = 400  # longer texts are judged by their beginning: 1 ms per 1000 characters

_RARE_LETTERS = 5  # shorter words, unless numbers, do not reveal an answer
_LEAKED_SHARE = 0.5  # of the passage's rare words
_LEAKED_WORDS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilterSettings:
    """What the stage filter drops.

    Attributes:
      limits: lengths, and whether passages may repeat; see `rules.Limits`.
      languages: allowed languages (ISO 639-1); () allows that of the pair's own passage.
      near_duplicate: Jaccard similarity from which two examples are near duplicates, in both their
        instructed queries and their passages; 1 for equal ones only.
      near_same: Jaccard similarity from which two passages of one example count as the same.
      leak_words: an instruction leaks the answer if it repeats so many consecutive words of the
        passage that the query lacks.
      rules: those of FILTER_RULES to apply; `rules.validate` always is.
    """

    limits: Limits = dataclasses.field(default_factory=Limits)
    languages: tuple[str, ...] = ()
    near_duplicate: float = 0.8
    near_same: float = 0.9
    leak_words: int = 6
    rules: tuple[str, ...] = FILTER_RULES

    def __post_init__(self):
        if unknown := set(self.rules) - set(FILTER_RULES):
            raise UserError(
                f"unknown rules {sorted(unknown)}; choose from {', '.join(FILTER_RULES)}"
            )


class ItemFilter:
    """Adds the reasons of all rules to items, one at a time; keeps the first of duplicates.

    Takes about 1.3 kB per kept example (measured over 100,000).
    """

    def __init__(self, settings: FilterSettings, benchmarks: BenchmarkTexts | None = None):
        """Raises UserError for an unknown language, or a threshold out of range."""
        self._settings, self._benchmarks = settings, benchmarks
        self._seen: set[int] = set()
        self._near: NearExamples | None = None
        if "duplicates" in settings.rules and settings.near_duplicate != 1:
            self._near = NearExamples(settings.near_duplicate)
        if "language" in settings.rules and settings.languages:
            _check_languages(settings.languages)

    def __call__(self, item: Item) -> Item:
        """Returns the item with reasons added, if any; dropped items are returned unchanged.

        Raises:
          UserError: the item is not dropped and has no example.
        """
        if not item.alive:
            return item
        example = _example(item)
        verdict = validate(example, limits=self._settings.limits, seen=self._seen)
        reasons = [*verdict.reasons, *item_reasons(item, self._settings, self._benchmarks)]
        if self._near is not None and "duplicate_query" not in reasons:
            if example in self._near:
                reasons.append("near_duplicate")
            elif not reasons:
                self._near.add(example)
        if not reasons:
            self._seen.update(verdict.identity)
        return item.drop("filter", *reasons)


def item_reasons(
    item: Item, settings: FilterSettings, benchmarks: BenchmarkTexts | None = None
) -> tuple[str, ...]:
    """The reasons of this module's rules, except for duplicates.

    Raises:
      UserError: the item has no example.
    """
    example = _example(item)
    rules = {
        "language": lambda: wrong_language(item, settings.languages),
        "phrases": lambda: boilerplate(item),
        "leaks": lambda: leaks(example, settings.leak_words),
        "near_same": lambda: near_same(example, settings.near_same),
        "contamination": lambda: contamination(example, benchmarks) if benchmarks else (),
    }
    reasons = (rules[name]() for name in settings.rules if name in rules)
    return tuple(itertools.chain.from_iterable(reasons))


def wrong_language(item: Item, languages: tuple[str, ...] = ()) -> Iterator[str]:
    """`language:<field>` of each generated text that is in none of the languages.

    Texts under LANGUAGE_BYTES are not judged: too many would be misclassified. No text is judged if
    its language must be the passage's own and that one is unclear (formulas, code).
    """
    allowed = languages or _language_of(item.passage)
    if not allowed:
        return
    for field in FIELDS:
        text = getattr(item.example, field)
        if text in (item.query, item.passage) and not languages:
            continue
        probabilities = _probabilities(text)
        if probabilities and sum(probabilities[n] for n in allowed) < LANGUAGE_PROBABILITY:
            yield f"language:{field}"


def boilerplate(item: Item) -> Iterator[str]:
    """`refusal_<name>:<field>`, `boilerplate_<name>:<field>`; see `phrases.phrases`."""
    source = f"{item.passage}\n{item.query}"
    for field in FIELDS:
        text = getattr(item.example, field)
        for name in phrases(text, passage=field in DOCUMENT_FIELDS, source=source):
            yield f"{name}:{field}"


def leaks(example: Example, leak_words: int) -> Iterator[str]:
    """`leaks_answer:<field>` of an instruction that reveals the content of its passage.

    That is, it repeats `leak_words` consecutive words of the passage that the query lacks (twice as
    many characters in scripts without spaces), or half of the passage's rare words, at least three.
    """
    reasons = {}
    fields = ("instruction_positive", "instruction_negative", "instruction_positive")
    for pair, field in zip(pairs(example), fields, strict=True):
        if pair and _leaks(*map(tokens, pair[:3]), leak_words):
            reasons[f"leaks_answer:{field}"] = None
    yield from reasons


def near_same(example: Example, threshold: float) -> Iterator[str]:
    """`near_same:<field>` of a poisoned passage that nearly equals another passage of the example;
    equal passages are reported by `validate` as `same_text`."""
    reasons = {}
    texts = {field: text for field in DOCUMENT_FIELDS if (text := getattr(example, field))}
    for a, b in itertools.combinations(texts, 2):
        near = similarity(signature(texts[a]), signature(texts[b])) >= threshold
        if near and fold(texts[a]) != fold(texts[b]):
            reasons[f"near_same:{b}"] = None
    yield from reasons


def contamination(example: Example, benchmarks: BenchmarkTexts) -> Iterator[str]:
    """`evaluation_query:<field>`, `evaluation_passage:<field>` or
    `near_evaluation_passage:<field>` of each text that a benchmark has."""
    for fields, shares in (
        (QUERY_FIELDS, benchmarks.shares_query),
        (DOCUMENT_FIELDS, benchmarks.shares_passage),
    ):
        for field in fields:
            if (text := getattr(example, field)) and (reason := shares(text)):
                yield f"{reason}:{field}"


def _example(item: Item) -> Example:
    if item.example is None:
        raise UserError(f"pair {item.id!r} has no example to filter; run the stage generate first")
    return item.example


def _leaks(instruction: list[str], query: list[str], passage: list[str], leak_words: int) -> bool:
    if 2 * sum(len(token) == 1 for token in instruction) > len(instruction):
        leak_words *= 2
    known, text = f" {' '.join(query)} ", f" {' '.join(passage)} "
    for i in range(len(instruction) - leak_words + 1):
        ngram = f" {' '.join(instruction[i : i + leak_words])} "
        if ngram in text and ngram not in known:
            return True
    rare = {t for t in passage if len(t) >= _RARE_LETTERS or t.isdecimal()} - set(query)
    leaked = rare.intersection(instruction)
    return len(leaked) >= _LEAKED_WORDS and len(leaked) >= _LEAKED_SHARE * len(rare)


@functools.cache
def _identifier():
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # takes 1 s

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _check_languages(languages: tuple[str, ...]) -> None:
    known = _identifier().labels
    if unknown := [name for name in languages if name not in known]:
        raise UserError(f"unknown languages {unknown}; choose from {', '.join(sorted(known))}")


def _probabilities(text: str) -> dict[str, float]:
    """Probability by language; {} for a text that is too short."""
    text = text[:_LANGUAGE_CHARACTERS]
    return dict(_identifier().rank(text)) if len(text.encode()) >= LANGUAGE_BYTES else {}


@functools.lru_cache(maxsize=1)
def _language_of(text: str) -> tuple[str, ...]:
    probabilities = _probabilities(text)
    best = max(probabilities, key=probabilities.__getitem__, default="")
    return (best,) if probabilities and probabilities[best] >= 0.5 else ()
