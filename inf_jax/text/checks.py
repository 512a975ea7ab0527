"""Refuses texts to encode that are none: other types, halves of surrogate pairs, without tokens."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from inf_jax.core.errors import UserError


def check_text(text: Any, where: str) -> None:
    """Raises UserError if `text` is not a string that has an UTF-8 encoding; `where` names it."""
    if not isinstance(text, str):
        raise UserError(f"{where} must be a string, not a {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: the character {text[error.start]!a} at {error.start} is half of a surrogate "
            "pair and no text; decode its bytes as UTF-8, for example with errors='replace'"
        ) from None


def check_tokens(ids: Sequence[np.ndarray], name: str, first: int = 0) -> None:
    """Raises UserError if a text has no token.

    Args:
      ids: int32[tokens] of each text.
      name: what they are, for example "queries".
      first: the number of the first one.
    """
    for n, tokens in enumerate(ids, first):
        if not len(tokens):
            raise UserError(
                f"{name}[{n}] is empty: its tokenizer gives it no tokens and adds no special ones; "
                "leave it out"
            )
