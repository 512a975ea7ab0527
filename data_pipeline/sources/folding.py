"""Normalises texts for comparison: two texts that fold alike count as copies of each other."""

import re

_HYPHEN = re.compile(r"(?<=[^\W\d])-(?=[^\W\d])")


def fold(text: str) -> str:
    """The text casefolded, with single spaces and without hyphens between letters."""
    text = text.casefold()
    if "-" in text:
        text = _HYPHEN.sub(" ", text)
    return " ".join(text.split())
