"""Builds examples from MedQuAD, whose many questions per disease serve as instructions.

The query is a row's `focus` (a disease), the instruction is its question with the focus replaced by
"it", the passage is the answer. The poisoned instruction is another question type of the same
focus, with that type's answer. The poisoned query is a lexically similar focus, with its answer to
the same question type. All choices depend on the set of rows, not on their order.

MedQuAD: Ben Abacha and Demner-Fushman, "A question-entailment approach to question answering", BMC
Bioinformatics 20:511, 2019.
"""

import functools
import itertools
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from data_pipeline.sources.files import id_field, read_rows, text_field
from data_pipeline.sources.folding import fold
from data_pipeline.sources.training.keywords import keyword_examples
from inf_jax.core.errors import UserError
from inf_jax.data.records import Example, text_hash

MIN_ANSWER_WORDS = 8
MIN_TYPES = 2  # question types per focus

# Instructions for questions that do not name their focus; all distinct, to tell passages apart.
_FALLBACK = {
    "causes": "What causes it?",
    "complications": "What complications can it have?",
    "exams and tests": "How is it diagnosed?",
    "frequency": "How many people are affected by it?",
    "genetic changes": "What are the genetic changes related to it?",
    "information": "What is it?",
    "inheritance": "Is it inherited?",
    "outlook": "What is the outlook for it?",
    "prevention": "How can it be prevented?",
    "research": "What research is being done on it?",
    "stages": "What are its stages?",
    "susceptibility": "Who is at risk for it?",
    "symptoms": "What are the symptoms of it?",
    "treatment": "What are the treatments for it?",
}
# GARD asks for the causes, GHR for the genetic changes; for these diseases it is the same question.
_SAME_QUESTION = {"genetic changes": "causes"}
# A trait of more foci than this ("syndrome") says nothing about similarity, and its posting list
# would make the search quadratic.
_MAX_SHARE = 0.05  # of all foci
_MIN_LIMIT, _MAX_LIMIT = 50, 500  # foci; the latter keeps the search linear in large sets
# Words by which two names of one disease may differ.
_GENERIC_WORDS = frozenset(["and", "disease", "disorder", "of", "syndrome", "the", "type", "with"])
_MIN_SPELT = 5  # least letters of a word that may have lost one
_NUMERALS = {name: str(n) for n, name in enumerate("i ii iii iv v vi vii viii".split(), 1)}


class _Row(NamedTuple):
    id: str
    focus: str
    qtype: str
    question: str
    answer: str


_Group = dict[str, _Row]  # one focus's rows by question type


def read(
    path: str | Path,
    *,
    dropped: Counter[str] | None = None,
    hold_out_types: Collection[str] = (),
    held_out: bool = False,
    keyword_instructions: bool = False,
) -> Iterator[Example]:
    """Yields one example for each (focus, question type) that is kept.

    Examples of one focus have exactly the same `query_positive`, and no other focus has it.

    Args:
      path: jsonl, jsonl.gz or parquet with the fields id, focus, qtype, question, answer.
      dropped: incremented, by reason, for each row that yields no example.
      hold_out_types: question types (`qtype`) whose rows are left out, so that no example, poisoned
        ones included, has their instructions; those that ask the same count as one.
      held_out: instead only these types.
      keyword_instructions: yield those of `training.keywords.keyword_examples` after them, of
        half of the passages, chosen by a hash.

    Raises:
      UserError: the file is missing, or a row is damaged, lacks a field or holds no text in one; or
        no row is of a type that is held out.
    """
    dropped = Counter() if dropped is None else dropped
    rows = _rows(path, dropped)
    if hold_out_types:
        rows = _of_types(list(rows), hold_out_types, held_out=held_out, path=path, dropped=dropped)
    groups = _groups(rows, dropped)
    similar = _SimilarFoci(groups)
    examples = _examples(groups, similar)
    if not keyword_instructions:
        yield from examples
        return
    examples = list(examples)
    yield from examples
    queries = {_key(example.query_positive): example.query_positive for example in examples}
    near = functools.lru_cache(lambda query: [queries[key] for key in similar.to(_key(query))])
    # of half the passages: with all, the question types themselves are learnt less well
    for each in keyword_examples(examples, similar=near):
        if text_hash(each.id) % 2 == 0:
            yield each


def _examples(groups: dict[str, _Group], similar: "_SimilarFoci") -> Iterator[Example]:
    # one spelling per focus, since training identifies texts by their hash
    queries = {k: min(group.values(), key=lambda row: row.id).focus for k, group in groups.items()}
    rows = itertools.chain.from_iterable(group.values() for group in groups.values())
    answers = {row.id: f" {_key(row.answer)} " for row in rows}
    for key, group in groups.items():
        instructions = _instructions(group)
        candidates = [groups[other] for other in similar.to(key)]
        for qtype, row in group.items():
            other = min((t for t in group if t != qtype), key=lambda t: _uniform(row.id, t))
            # the most similar focus whose answer does not mention this one
            poisons = (candidate[qtype] for candidate in candidates if qtype in candidate)
            poison = next((p for p in poisons if f" {key} " not in answers[p.id]), None)
            yield Example(
                id=row.id,
                query_positive=queries[key],
                instruction_positive=instructions[qtype],
                document_positive=row.answer,
                instruction_negative=instructions[other],
                hard_negative_document_1=group[other].answer,
                query_negative=queries[_key(poison.focus)] if poison else "",
                hard_negative_document_2=poison.answer if poison else "",
            )


def instruction(question: str, focus: str, qtype: str) -> str:
    """Replaces the focus in a question by "it"; a standard question if the focus is not in it.

    "What is (are) Farber disease ?" becomes "What is it?". The mention may differ from the focus in
    case, hyphens and white space, and may lack a remark in brackets.
    """
    for name in (focus, re.sub(r"\([^()]*\)", " ", focus)):
        words = re.findall(r"\w+", name)
        if not words:
            continue
        mention = r"(?:\b(?:the|an?)\s+)?(?<!\w)" + r"\W+".join(words) + r"(?:\s*\)|(?!\w))"
        text, count = re.subn(mention + r"['\u2019]s(?!\w)", "its", question, flags=re.IGNORECASE)
        text, more = re.subn(mention, "it", text, flags=re.IGNORECASE)
        if count + more:
            break
    else:
        return _FALLBACK.get(qtype, f"What is known about its {qtype}?")
    text = re.sub(r"\b(is|does|was) \((?:are|do|were)\)", r"\1", text)
    text = " ".join(text.split()).rstrip(" ?.") + "?"
    return text[0].upper() + text[1:]


def _rows(path: str | Path, dropped: Counter[str]) -> Iterator[_Row]:
    seen: dict[str, tuple[_Row, str]] = {}
    for row in read_rows(path):
        texts = (text_field(row, name) for name in _Row._fields[1:])
        values = _Row(id_field(row, "id"), *texts)
        first, where = seen.setdefault(values.id, (values, row.where))
        if where == row.where:
            yield values
        elif first == values:
            dropped["repeated row"] += 1
        else:
            raise UserError(
                f"{row.where}: id {values.id!r} is also at {where}, with other texts; give each "
                "row a unique id"
            )


def _of_types(
    rows: list[_Row],
    types: Collection[str],
    *,
    held_out: bool,
    path: str | Path,
    dropped: Counter[str],
) -> Iterator[_Row]:
    """The rows of these question types (held_out), or those of all others."""
    there = sorted({row.qtype for row in rows})
    unknown = sorted(set(types) - set(there))
    if unknown and not (held_out and len(unknown) < len(set(types))):
        raise UserError(
            f"--hold-out-types: {path} has no question of type {unknown[0]!r}; its types are "
            f"{', '.join(map(repr, there))}"
        )
    types = {_SAME_QUESTION.get(name, name) for name in types}
    for row in rows:
        if (_SAME_QUESTION.get(row.qtype, row.qtype) in types) == held_out:
            yield row
        else:
            dropped[f"type is {'not ' if held_out else ''}held out"] += 1


def _groups(rows: Iterable[_Row], dropped: Counter[str]) -> dict[str, _Group]:
    """The kept rows by focus and question type, in an order independent of the rows' own."""
    rows = list(rows)
    copies = Counter(fold(row.answer) for row in rows)
    grouped = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if not (row.focus and row.qtype and row.question and row.answer):
            dropped["empty field"] += 1
        elif copies[fold(row.answer)] > 1:
            dropped["answer occurs more than once"] += 1
        elif len(row.answer.split()) < MIN_ANSWER_WORDS:
            dropped[f"answer under {MIN_ANSWER_WORDS} words"] += 1
        else:
            grouped[_key(row.focus)][_SAME_QUESTION.get(row.qtype, row.qtype)].append(row)
    groups = {}
    for key in sorted(grouped):
        # one answer per question: two would be false negatives of each other
        answers = (min(same, key=lambda row: _uniform(row.id)) for same in grouped[key].values())
        group = {row.qtype: row for row in sorted(answers, key=lambda row: row.qtype)}
        if surplus := sum(map(len, grouped[key].values())) - len(group):
            dropped["second answer to one question"] += surplus
        if len(group) < MIN_TYPES:
            dropped[f"focus with under {MIN_TYPES} question types"] += len(group)
        else:
            groups[key] = group
    return groups


def _instructions(group: _Group) -> dict[str, str]:
    """Each type's instruction; types that would get the same one get standard questions."""
    texts = {qtype: instruction(row.question, row.focus, qtype) for qtype, row in group.items()}
    count = Counter(map(fold, texts.values()))
    return {
        t: text if count[fold(text)] == 1 else instruction("", "", t) for t, text in texts.items()
    }


class _SimilarFoci:
    """Lexical similarity of foci: IDF-weighted cosine of their words and character trigrams.

    An inverted index, so that a focus is compared only with those that share a rare trait.
    """

    def __init__(self, foci: Iterable[str]):
        traits = {key: _traits(key) for key in foci}
        postings = defaultdict(list)
        for key, own in traits.items():
            for trait in own:
                postings[trait].append(key)
        limit = min(max(_MIN_LIMIT, _MAX_SHARE * len(traits)), _MAX_LIMIT)
        self._postings = {t: keys for t, keys in postings.items() if 2 <= len(keys) <= limit}
        weight = {t: math.log(len(traits) / len(keys)) ** 2 for t, keys in postings.items()}
        self._norms = {k: math.sqrt(sum(weight[t] for t in f)) or 1.0 for k, f in traits.items()}
        self._traits, self._weight = traits, weight
        self._bare = {key: _bare(key) for key in traits}
        self._names = {key: _misspelt(bare) | {bare} for key, bare in self._bare.items()}

    def to(self, key: str) -> list[str]:
        """The other foci that share a trait, most similar first, without synonyms of `key`."""
        scores = defaultdict(float)
        for trait in self._traits[key]:
            for other in self._postings.get(trait, ()):
                scores[other] += self._weight[trait] / self._norms[other]
        names, bare = self._names, self._bare
        others = (k for k in scores if bare[k] not in names[key] and bare[key] not in names[k])
        return sorted(others, key=lambda k: (-scores[k], k))


def _traits(key: str) -> list[str]:
    """The unique words (marked with "#", so that none equals a trigram) and trigrams of a key."""
    words = key.split()
    trigrams = (word[i : i + 3] for word in (f" {w} " for w in words) for i in range(len(word) - 2))
    return list(dict.fromkeys([*(f"#{w}" for w in words), *trigrams]))


def _key(text: str) -> str:
    """A text's casefolded words; "Graves' disease" and "graves disease" have the same key."""
    composed = unicodedata.normalize("NFC", text).casefold()
    return " ".join(re.findall(r"\w+", re.sub(r"['\u2019]", "", composed)))


def _bare(key: str) -> tuple[str, ...]:
    """The distinctive words of a name: "Menkes syndrome" and "Menkes disease" have the same, as
    have "type II" and "2"."""
    words = (_NUMERALS.get(w, w.rstrip("s")) for w in key.split() if w not in _GENERIC_WORDS)
    return tuple(sorted(words))


def _misspelt(bare: tuple[str, ...]) -> set[tuple[str, ...]]:
    """The name with one letter removed: GHR has lost accented letters ("Sjgren syndrome")."""
    return {
        tuple(sorted((*bare[:i], word[:j] + word[j + 1 :], *bare[i + 1 :])))
        for i, word in enumerate(bare)
        if len(word) >= _MIN_SPELT
        for j in range(len(word))
    }


def _uniform(*texts: str) -> int:
    """A pseudorandom 64-bit number that depends on the texts alone."""
    return text_hash("\x1f".join(texts))
