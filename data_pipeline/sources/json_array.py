"""The elements of a JSON array, a few at a time: a file of gigabytes is no reason to hold it."""

import json
import re
from collections.abc import Iterator
from typing import Any, TextIO

_CHUNK = 1 << 20  # characters
_MAX_ELEMENT = 1 << 26  # characters; a longer element is taken for a damaged file
_SPACE = re.compile(r"[ \t\r\n]*")


def elements(file: TextIO) -> Iterator[Any]:
    """The elements in order; what follows the array is not looked at.

    Raises:
      json.JSONDecodeError: the file holds no array, or it is cut or malformed.
    """
    decoder = json.JSONDecoder()
    text, at = file.read(_CHUNK), 0
    before = "["  # what must come before the next element
    while True:
        start = _SPACE.match(text, at).end()
        mark = text[start : start + 1]
        if mark == "]" and before == ",":
            return
        if mark and mark != before:
            raise json.JSONDecodeError(f"expected {before!r}, found {mark!r}", text, start)
        value_at = _SPACE.match(text, start + 1).end()
        if before == "[" and text.startswith("]", value_at):
            return
        try:
            value, end = decoder.raw_decode(text, value_at)
        except json.JSONDecodeError:  # malformed, or the chunk ends within the element
            more = file.read(max(_CHUNK, len(text) - at)) if len(text) - at < _MAX_ELEMENT else ""
            if not more:
                raise
            text, at = text[at:] + more, 0
            continue
        yield value
        at, before = end, ","
