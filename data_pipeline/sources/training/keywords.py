"""Writes examples whose instruction names words of the passage.

As in "Tell me about its prevalence." A source with few different instructions teaches a model those
few, and what it can do with others gets worse. Here the instruction is about what the passage alone
of its query's passages mentions, so that thousands of instructions differ, and only their words
tell which passage is meant: pseudo-queries (inverse cloze task, arXiv 1906.00300), for
instructions.
"""

import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from inf_jax.data.records import Example, text_hash

INSTRUCTIONS = (
    "What is known about {} in it?",
    "What about {}?",
    "Tell me about its {}.",
    "How does it relate to {}?",
    "Explain {}.",
    "What does it say on {}?",
    "Information on {}",
    "Which {} does it have?",
    "Is there {} in it?",
    "Why {}?",
    "What are the facts on its {}?",
)
_WINDOW = 80  # words at the start of a passage that are looked at: what training reads of it
_FEWEST = 10  # passages with a word: a rarer one is no topic of the corpus
_MOST = 0.12  # of the passages: a more frequent word tells little
_BEST = 8  # words of a passage by TF-IDF, of which instructions name some
_TWO = 0.3  # of the instructions name two words
_LEAST_WORDS = 10  # of a passage without the question that it begins with
_QUESTION = re.compile(r"\s*[^.?!]{5,150}\?\s*")
_WORD = re.compile(r"[a-z][a-z-]{3,}")
_COMMON = frozenset(
    """about affected affects after also among based because been before being between both called
    condition could does disease disorder during each following from have individuals into known
    many more most often only other over people person rare some such syndrome than that their
    there these they this those through typically under used using usually very well were when
    which while will with""".split()
)


class _Passage(NamedTuple):
    id: str
    query: str
    text: str
    words: Counter[str]  # of its window, without those of the query


def keyword_examples(
    examples: Iterable[Example], *, similar: Callable[[str], Sequence[str]]
) -> Iterator[Example]:
    """Yields an example for each positive passage that has words of its own.

    Its instruction names one or two of these words. The poisoned instruction is that of another
    passage of the query; the poisoned query is one of whose passages has the words too. A passage
    that begins with a question is given without it, since that is an instruction already. The
    choices depend on the set of examples alone.

    Args:
      examples: those of a source; their ids get the suffix "/keywords".
      similar: query -> other queries, the most similar first, to be poisoned with.
    """
    passages = [_passage(e) for e in sorted(examples, key=lambda e: e.id)]
    words = _words_of_their_own(passages)
    mine = [p for p in passages if words[p.id]]
    with_word: dict[str, list[_Passage]] = defaultdict(list)
    of_query: dict[str, list[_Passage]] = defaultdict(list)
    for passage in mine:
        of_query[passage.query].append(passage)
        for word in words[passage.id]:
            with_word[word].append(passage)
    for passage in mine:
        draw = random.Random(text_hash(passage.id))
        others = [p for p in of_query[passage.query] if p.id != passage.id]
        if not others:
            continue
        named, other = _named(words[passage.id], draw), draw.choice(others)
        poison = _poison(passage, named, with_word, similar, draw)
        yield Example(
            id=f"{passage.id}/keywords",
            query_positive=passage.query,
            instruction_positive=_instruction(named, draw),
            document_positive=passage.text,
            instruction_negative=_instruction(_named(words[other.id], draw), draw),
            hard_negative_document_1=other.text,
            query_negative=poison.query if poison else "",
            hard_negative_document_2=poison.text if poison else "",
        )


def _passage(example: Example) -> _Passage:
    text, query = example.document_positive, example.query_positive.lower()
    if question := _QUESTION.match(text):
        rest = text[question.end() :]
        text = rest if len(rest.split()) >= _LEAST_WORDS else text
    found = _WORD.findall(" ".join(text.split()[:_WINDOW]).lower())
    return _Passage(
        example.id, example.query_positive, text, Counter(w for w in found if w not in query)
    )


def _words_of_their_own(passages: Sequence[_Passage]) -> dict[str, list[str]]:
    """id -> the best words that no other passage of its query has, in its window."""
    count = Counter(word for passage in passages for word in passage.words)
    within = Counter((p.query, word) for p in passages for word in p.words)
    found = {}
    for passage in passages:
        weights = {
            word: times * math.log(len(passages) / count[word])
            for word, times in passage.words.items()
            if _FEWEST <= count[word] <= _MOST * len(passages)
            and within[passage.query, word] == 1
            and word not in _COMMON
        }
        found[passage.id] = sorted(weights, key=lambda w: (-weights[w], w))[:_BEST]
    return found


def _named(words: Sequence[str], draw: random.Random) -> list[str]:
    return draw.sample(words, 2 if len(words) > 1 and draw.random() < _TWO else 1)


def _instruction(words: Sequence[str], draw: random.Random) -> str:
    return draw.choice(INSTRUCTIONS).format(" and ".join(words))


def _poison(
    passage: _Passage,
    named: Sequence[str],
    with_word: dict[str, list[_Passage]],
    similar: Callable[[str], Sequence[str]],
    draw: random.Random,
) -> _Passage | None:
    """A passage of the most similar other query that has one with the first word, and, if one has,
    with all; of any other where none is similar."""
    others = [p for p in with_word[named[0]] if p.query != passage.query]
    others = [p for p in others if all(word in p.words for word in named)] or others
    by_query = {p.query: p for p in others}
    nearest = next((query for query in similar(passage.query) if query in by_query), None)
    if nearest is not None:
        return by_query[nearest]
    return draw.choice(others) if others else None
