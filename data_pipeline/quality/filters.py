"""The stage filter: what can be said against a generated example without asking a model.

Each rule is a function of one item that yields reasons, `rule` or `rule:field`; all but the
duplicates' are independent of other items, so that they run under Beam as they are.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator

from data_pipeline.items import Item
from data_pipeline.quality.contamination import Evaluation
from data_pipeline.quality.minhash import NearDuplicates, compact, signature, similarity, tokens
from data_pipeline.quality.phrases import phrases
from data_pipeline.quality.rules import Limits, validate
from data_pipeline.sources.folding import fold
from inf_jax.core.errors import UserError
from inf_jax.data.records import FIELDS, Example, pairs

RULES = ("language", "phrases", "leaks", "near_same", "duplicates", "contamination")
PASSAGES = ("document_positive", "hard_negative_document_1", "hard_negative_document_2")
QUERIES = ("query_positive", "query_negative")

# py3langid on pieces of English text (13,000 of MedQuAD and PubMedQA): of 100 bytes, 0.1 per mille
# have under 0.01 of probability for English; of 40 bytes, 10 per mille; whole texts none. A German
# or French text of 30 bytes has under 1e-4.
LANGUAGE_BYTES = 100
LANGUAGE_PROBABILITY = 0.01
_LANGUAGE_CHARACTERS = 400  # judged by its beginning: 1 ms for 1000 characters

_RARE_LETTERS = 5  # a shorter word is no sign of an answer, unless it is a number
_LEAKED_SHARE = 0.5  # of the passage's rare words
_LEAKED_WORDS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilterSettings:
    """What the stage filter drops.

    Attributes:
      limits: lengths, and whether passages may repeat; see `validate.Limits`.
      languages: codes (ISO 639-1) of what texts may be in; () is that of the pair's own passage.
      near_duplicate: Jaccard similarity from which the instructed queries and the passages of two
        examples are the same; 1 for equal ones only.
      near_same: Jaccard similarity from which two passages of one example are the same.
      leak_words: so many words in a row of a passage, which the query lacks, give it away.
      rules: which of RULES are on; `validate` always is.
    """

    limits: Limits = dataclasses.field(default_factory=Limits)
    languages: tuple[str, ...] = ()
    near_duplicate: float = 0.8
    near_same: float = 0.9
    leak_words: int = 6
    rules: tuple[str, ...] = RULES

    def __post_init__(self):
        if unknown := set(self.rules) - set(RULES):
            raise UserError(f"no filter rules {sorted(unknown)}; there are {', '.join(RULES)}")


class ItemFilter:
    """The stage, an item at a time: adds reasons, in order of the items; of duplicates the first
    stays.

    Takes about 1.3 kB for each example kept (measured over 100,000).
    """

    def __init__(self, settings: FilterSettings, evaluation: Evaluation | None = None):
        """
        Args:
          settings: what to drop.
          evaluation: texts that must not occur; None for none.

        Raises:
          UserError: an unknown language, a threshold that cannot be kept.
        """
        self._settings = settings
        self._evaluation = evaluation
        self._seen: set[int] = set()
        self._near: NearDuplicates | None = None
        if "duplicates" in settings.rules and settings.near_duplicate != 1:
            # instructed queries, the passage's signature is the key
            self._near = NearDuplicates(settings.near_duplicate)
        if "language" in settings.rules and settings.languages:
            _check_languages(settings.languages)

    def __call__(self, item: Item) -> Item:
        """The item itself, with reasons if there are any; a dropped one as it is.

        Raises:
          UserError: the item is not dropped and has no example.
        """
        if not item.alive:
            return item
        example = _example(item)
        verdict = validate(example, limits=self._settings.limits, seen=self._seen)
        reasons = [*verdict.reasons, *item_reasons(item, self._settings, self._evaluation)]
        if self._near is not None and "duplicate_query" not in reasons:
            query = instructed_query(example)
            passage = compact(signature(example.document_positive))
            threshold = self._settings.near_duplicate
            if any(similarity(passage, p) >= threshold for p in self._near.matches(query)):
                reasons.append("near_duplicate")
            elif not reasons:
                self._near.add(passage, query)
        if not reasons:
            self._seen.update(verdict.identity)
        return item.drop("filter", *reasons)


def item_reasons(
    item: Item, settings: FilterSettings, evaluation: Evaluation | None = None
) -> tuple[str, ...]:
    """What the rules of this module say, those on other items apart; `validate` says the rest.

    Raises:
      UserError: the item has no example.
    """
    example = _example(item)
    rules = {
        "language": lambda: wrong_language(item, settings.languages),
        "phrases": lambda: boilerplate(item),
        "leaks": lambda: leaks(example, settings.leak_words),
        "near_same": lambda: near_same(example, settings.near_same),
        "contamination": lambda: contamination(example, evaluation) if evaluation else (),
    }
    found = (rules[name]() for name in settings.rules if name in rules)
    return tuple(itertools.chain.from_iterable(found))


def instructed_query(example: Example) -> str:
    """The text by which two examples are near duplicates, beside their positive passages."""
    return f"{example.query_positive} {example.instruction_positive}"


def wrong_language(item: Item, languages: tuple[str, ...] = ()) -> Iterator[str]:
    """`language:<field>` of each generated text that is in none of the languages.

    A text of under LANGUAGE_BYTES is not judged: too many would be taken for another language. Nor
    is any where the passage's own language is asked for and unclear (formulas, code).
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
        for name in phrases(text, passage=field in PASSAGES, source=source):
            yield f"{name}:{field}"


def leaks(example: Example, leak_words: int) -> Iterator[str]:
    """`leaks_answer:<field>` of an instruction that tells what its passage says.

    It repeats `leak_words` words of the passage in a row (twice as many letters of a script without
    spaces) that the query does not have, or half of the passage's rare words, three or more.
    """
    found = {}
    fields = ("instruction_positive", "instruction_negative", "instruction_positive")
    for pair, field in zip(pairs(example), fields, strict=True):
        if pair and _leaks(
            tokens(pair.instruction), tokens(pair.query), tokens(pair.passage), leak_words
        ):
            found[f"leaks_answer:{field}"] = None
    yield from found


def near_same(example: Example, threshold: float) -> Iterator[str]:
    """`near_same:<field>` of a poisoned passage that is nearly, but not quite, another passage of
    the example: equal ones are `same_text`'s."""
    found = {}
    texts = {field: text for field in PASSAGES if (text := getattr(example, field))}
    for a, b in itertools.combinations(texts, 2):
        near = similarity(signature(texts[a]), signature(texts[b])) >= threshold
        if near and fold(texts[a]) != fold(texts[b]):
            found[f"near_same:{b}"] = None
    yield from found


def contamination(example: Example, evaluation: Evaluation) -> Iterator[str]:
    """`evaluation_query:<field>`, `evaluation_passage:`, `near_evaluation_passage:`."""
    for field in (*QUERIES, *PASSAGES):
        if text := getattr(example, field):
            shares = evaluation.shares_query if field in QUERIES else evaluation.shares_passage
            if reason := shares(text):
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
        run = f" {' '.join(instruction[i : i + leak_words])} "
        if run in text and run not in known:
            return True
    rare = {t for t in passage if len(t) >= _RARE_LETTERS or t.isdecimal()} - set(query)
    told = rare.intersection(instruction)
    return len(told) >= _LEAKED_WORDS and len(told) >= _LEAKED_SHARE * len(rare)


@functools.cache
def _identifier():
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # 1 s

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _check_languages(languages: tuple[str, ...]) -> None:
    known = _identifier().labels
    if unknown := [name for name in languages if name not in known]:
        raise UserError(f"languages {unknown} are not known; there are {', '.join(sorted(known))}")


def _probabilities(text: str) -> dict[str, float]:
    """Probability by language; nothing for a text that is too short to tell."""
    text = text[:_LANGUAGE_CHARACTERS]
    if len(text.encode()) < LANGUAGE_BYTES:
        return {}
    return dict(_identifier().rank(text))


@functools.lru_cache(maxsize=1)
def _language_of(text: str) -> tuple[str, ...]:
    probabilities = _probabilities(text)
    best = max(probabilities, key=probabilities.__getitem__, default="")
    return (best,) if probabilities and probabilities[best] >= 0.5 else ()
