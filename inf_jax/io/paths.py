"""Which directories can hold checkpoints, and which paths are URLs."""

import os
import re
import unicodedata

_PATTERN = "*?[]{}\\"  # Orbax and TensorStore search below the path with glob patterns
_SEGMENT = r"(?!\.{1,2}(?:/|$))[^/]+"


def is_url(path: str) -> bool:
    """Whether a path begins with a scheme, like gs:// or s3://."""
    return bool(re.match(r"\w+:/", path))


def url_problem(path: str) -> str:
    """What is wrong with the place of results at a URL; "" for gs://BUCKET/DIRECTORY and for local
    paths."""
    if not is_url(path):
        return ""
    if not re.fullmatch(rf"gs://[a-z0-9][\w.-]+(?:/{_SEGMENT})+/?", path):
        return "a local directory, or gs://BUCKET/DIRECTORY"
    return _characters(path, f"{_PATTERN}#")


def checkpoint_path_problem(path: str) -> str:
    """Why checkpoints below this directory could not be read again; "" where they can.

    A relative path counts from the working directory, whose name matters as well.
    """
    if is_url(path):
        return url_problem(path)
    if problem := _characters(path, _PATTERN):
        return problem
    if problem := _characters(os.path.abspath(path), _PATTERN):
        return f"the working directory, {os.getcwd()!r}, {problem}"
    return ""


def _characters(path: str, refused: str) -> str:
    control = ("Cc", "Cs", "Zl", "Zp")  # half a surrogate pair: bytes that are no UTF-8
    bad = sorted({c for c in path if c in refused or unicodedata.category(c) in control})
    if not bad:
        return ""
    shown = " ".join(c if c.isprintable() else ascii(c) for c in bad)
    return f"holds {shown}, with which checkpoints cannot be read again; choose another name"
