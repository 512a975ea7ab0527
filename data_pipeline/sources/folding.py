"""Normalises texts to find duplicates and texts of benchmarks, and counts their words."""

import re
import unicodedata

# Thai, Lao, Myanmar, Khmer; kana; Han and extensions: scripts without spaces between words.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff"
_LETTER = re.compile(rf"(?=\w)[{UNSPACED}]")
_LONGEST_WORD = 4  # letters of such a script, as most of Thai's words have
_HYPHEN = re.compile(r"(?<=[^\W\d])-(?=[^\W\d])")
_QUOTES = dict.fromkeys(
    [*map(ord, "\"'`\xb4\xab\xbb\uff02\uff07\u2039\u203a"), *range(0x2018, 0x2020)]
)
_ENDS = " .?!,;:\u2026\u3002\uff1f\uff01\uff0c\uff1b\uff1a\u3001\u061f\u00bf\u00a1"


def fold(text: str) -> str:
    """The text casefolded, its characters composed (NFC), with single spaces and without hyphens
    between letters."""
    return " ".join(_folded(text).split())


def bare(text: str) -> str:
    """The text folded, without quotation marks, apostrophes and the punctuation at its ends.

    For contamination: "What's a wedge?" and "whats a wedge" ask for the same.
    """
    text = _folded(text)
    if not text.isascii() or any(quote in text for quote in "\"'`"):
        text = text.translate(_QUOTES)
    return " ".join(text.split()).strip(_ENDS)


def word_range(text: str) -> tuple[int, int]:
    """The fewest and the most words that a text may have, both the number of its parts between
    white space, but for scripts without spaces: there a word has 1 to 4 letters."""
    words = text.split()
    if text.isascii() or not (letters := len(_LETTER.findall(text))):
        return len(words), len(words)
    spaced = sum(not _LETTER.search(word) for word in words)
    return spaced + -(-letters // _LONGEST_WORD), spaced + letters


def _folded(text: str) -> str:
    text = text.lower() if text.isascii() else unicodedata.normalize("NFC", text).casefold()
    return _HYPHEN.sub(" ", text) if "-" in text else text
