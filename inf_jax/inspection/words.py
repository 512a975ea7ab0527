"""Marks the words in which two texts differ."""

import re
from difflib import SequenceMatcher

# A word, a letter of a script without spaces, or a sign; with the white space behind it.
_TOKEN = re.compile(r"(?:[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+|[^\w\s])\s*")
_MOST = 4_000_000  # pairs of words that are compared
Parts = list[tuple[str, bool]]  # (text, whether it differs)


def marked(before: str, after: str) -> tuple[Parts, Parts]:
    """Two texts in parts, which give the texts again, and which of them differ."""
    if before == after:
        return [(before, False)] * bool(before), [(after, False)] * bool(after)
    first, second = _tokens(before), _tokens(after)
    if len(first) * len(second) > _MOST:
        return [(before, True)], [(after, True)]
    words = [[token.strip() for token in tokens] for tokens in (first, second)]
    parts: tuple[Parts, Parts] = [], []
    for kind, a, b, c, d in SequenceMatcher(None, *words, autojunk=False).get_opcodes():
        for found, tokens in ((parts[0], first[a:b]), (parts[1], second[c:d])):
            text = "".join(tokens)
            bare = text.rstrip()
            found += [(bare, kind != "equal")] * bool(bare)
            found += [(text[len(bare) :], False)] * (len(text) > len(bare))
    return parts


def _tokens(text: str) -> list[str]:
    start = len(text) - len(text.lstrip())
    found = _TOKEN.findall(text, start)
    return [text[:start] + found[0], *found[1:]] if found else [text] * bool(text)
