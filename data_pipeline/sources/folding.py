"""Normalises texts to find duplicates and texts of benchmarks."""

import re
import unicodedata

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


def _folded(text: str) -> str:
    text = text.lower() if text.isascii() else unicodedata.normalize("NFC", text).casefold()
    return _HYPHEN.sub(" ", text) if "-" in text else text
