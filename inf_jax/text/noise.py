"""Perturbs instructions by fixed rules: typing errors, letter case, other words, and all of these.

Rules are plain substitutions without a model, so that a perturbed text can be foreseen and is the
same anywhere. `RULES` says what each kind does; they are English where they know words.
"""

import random
import re
from collections.abc import Callable

from inf_jax.core.errors import UserError

RULES = {
    "typos": (
        "one in five words of four letters or more, at least one: two letters swapped, one left "
        "out, doubled, or replaced by its neighbour on a QWERTY keyboard, never the first"
    ),
    "case": "all letters small, all capital, or the first of each word capital",
    "paraphrase": (
        "sentence by sentence, another form of the question or command (What are the symptoms? - "
        "List the symptoms.) and other words (documents - texts, relevant - pertinent, must - "
        "need to); where no rule fits, 'What I need:' before it; English alone"
    ),
    "compound": "paraphrase, then typos, then case",
}

_KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_NEIGHBOURS = {
    letter: row[max(0, n - 1) : n] + row[n + 1 : n + 2]
    for row in _KEYS
    for n, letter in enumerate(row)
}
_WORD = re.compile(r"[^\W\d_]{4,}")
_SENTENCE_END = re.compile(r"(?<=[.?!])\s+")
# Forms of a sentence -> others of the same meaning; {0}, {1} are the groups.
_FORMS: tuple[tuple[re.Pattern, tuple[str, ...]], ...] = tuple(
    (re.compile(form, re.IGNORECASE | re.DOTALL), others)
    for form, others in (
        (r"what is (it|this|that)\?", ("Explain what {0} is.", "I want to know what {0} is.")),
        (r"what is (.+)\?", ("State {0}.", "I want to know {0}.")),
        (r"what are (.+)\?", ("List {0}.", "I want to know {0}.")),
        (r"how many (.+)\?", ("State how many {0}.", "I want to know how many {0}.")),
        (
            r"given (an? .+?|the .+?), (?:find|retrieve|search for|return) (.+)",
            ("For {0}, look for {1}", "With {0} as the question, pick out {1}"),
        ),
        (
            r"(?:find|retrieve|search for|look for|locate|return|show me|give me) (.+)",
            ("Pick out {0}", "I am looking for {0}"),
        ),
        (r"(.+)\?", ("Answer this: {0}?", "My question is this: {0}?")),
    )
)
_WORDS = {
    "about": "concerning",
    "article": "text",
    "articles": "texts",
    "contain": "have",
    "contains": "has",
    "describe": "set out",
    "describes": "sets out",
    "discuss": "deal with",
    "discusses": "deals with",
    "document": "text",
    "documents": "texts",
    "exclude": "leave out",
    "information": "details",
    "mention": "name",
    "mentions": "names",
    "must": "need to",
    "only": "solely",
    "passage": "text",
    "passages": "texts",
    "relevant": "pertinent",
    "should": "ought to",
}
_KNOWN = re.compile(rf"\b(?:{'|'.join(sorted(_WORDS, key=len, reverse=True))})\b", re.IGNORECASE)


def perturbed(text: str, kind: str, key: str) -> str:
    """A text with one kind of noise; as it is where the kind's rules have nothing to change.

    Args:
      kind: of `RULES`.
      key: what its draws depend on, beside the text and the kind.

    Raises:
      UserError: no such kind.
    """
    if kind not in RULES:
        raise UserError(f"noise {kind!r} is not one of {', '.join(RULES)}")
    draw = random.Random(f"{key}\0{kind}\0{text}").random  # the same in every Python
    if kind == "compound":
        return _case(_typos(_paraphrase(text, draw), draw), draw)
    return {"typos": _typos, "case": _case, "paraphrase": _paraphrase}[kind](text, draw)


def _typos(text: str, draw: Callable[[], float]) -> str:
    words = list(_WORD.finditer(text))
    if not words:
        return text
    chosen = [word for word in words if draw() < 0.2] or [_one(words, draw)]
    for word in reversed(chosen):
        text = text[: word.start()] + _mistyped(word[0], draw) + text[word.end() :]
    return text


def _mistyped(word: str, draw: Callable[[], float]) -> str:
    at = 1 + int(draw() * (len(word) - 1))
    kind = int(draw() * 4)
    left, letter, right = word[:at], word[at], word[at + 1 :]
    if kind == 0 and right and right[0] != letter:
        return left + right[0] + letter + right[1:]
    if kind == 1:
        return left + letter + letter + right
    if kind == 2 and (keys := _NEIGHBOURS.get(letter.lower())):
        key = _one(keys, draw)
        return left + (key.upper() if letter.isupper() else key) + right
    return left + right


def _case(text: str, draw: Callable[[], float]) -> str:
    titled = re.sub(r"\S+", lambda word: word[0][:1].upper() + word[0][1:].lower(), text)
    others = [other for other in (text.lower(), text.upper(), titled) if other != text]
    return _one(others, draw) if others else text


def _paraphrase(text: str, draw: Callable[[], float]) -> str:
    letters = [letter for letter in text if letter.isalpha()]
    if 2 * sum(letter.isascii() for letter in letters) <= len(letters):
        return text
    sentences = [_KNOWN.sub(_reworded, _reformed(s, draw)) for s in _SENTENCE_END.split(text)]
    changed = " ".join(sentences)
    return changed if changed.split() != text.split() else f"What I need: {text}"


def _reformed(sentence: str, draw: Callable[[], float]) -> str:
    for form, others in _FORMS:
        if found := form.fullmatch(sentence.strip()):
            return _one(others, draw).format(*found.groups())
    return sentence


def _reworded(word: re.Match) -> str:
    other = _WORDS[word[0].lower()]
    return other[:1].upper() + other[1:] if word[0][:1].isupper() else other


def _one(choices, draw: Callable[[], float]):
    return choices[int(draw() * len(choices))]
