"""Normalises texts to find duplicates."""

import re

_HYPHEN = re.compile(r"(?<=[^\W\d])-(?=[^\W\d])")


def fold(text: str) -> str:
    """The text casefolded, with single spaces and without hyphens between letters."""
    text = text.casefold()
    if "-" in text:
        text = _HYPHEN.sub(" ", text)
    return " ".join(text.split())
