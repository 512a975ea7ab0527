"""Finds lists of negatives and teacher scores in the rows of public formats."""

import math
import re
from collections.abc import Mapping
from typing import Any

from data_pipeline.sources.files import Row
from inf_jax.core.errors import UserError

# Parts with a teacher's scores.
TEACHER = ("scores", "passage_scores", "negative_scores", "margins")
_NUMBERED = re.compile(r"(.+_)([0-9]+)")
# The fields of formats whose rows are recognised without a map of fields: Tevatron's, DPR's,
# FlagEmbedding's, sentence-transformers', and plain pairs.
_KNOWN = {
    "query": ("query", "question", "anchor"),
    "passage": (
        *("positive_passages", "positive_ctxs", "pos", "positive", "pos_text", "passage"),
        *("document", "answer", "response"),
    ),
    "instruction": ("instruction",),
    "negatives": ("negative_passages", "hard_negative_ctxs", "neg", "negs_text", "negatives"),
    "passage_scores": ("pos_scores", "pos_score"),
    "negative_scores": ("neg_scores", "negs_score"),
}
_ONE_NEGATIVE = "negative"


def known_fields(row: Row) -> dict[str, tuple[str, ...]]:
    """The map of fields for a row of one of the known formats.

    A field "scores" has the scores of the passage and the negatives; a number "score" is that of
    the passage or, where a row has one negative as a text, its margin over it (as in MS MARCO's
    sets for MarginMSE), as is "margin".

    Raises:
      UserError: the row has no field that is a passage's in one of them.
    """
    names = dict(_KNOWN)
    for part in ("query", "passage"):
        if not any(name in row.values for name in names[part]):
            raise UserError(
                f"{row.where}: no field is known to be a {part} ({', '.join(names[part])}); the "
                f"row has: {', '.join(row.values) or 'no fields'}; name the fields, such as "
                "--fields=query=QUESTION,passage=TEXT"
            )
    negatives = _ONE_NEGATIVE if _ONE_NEGATIVE in row.values else f"{_ONE_NEGATIVE}_*"
    names["negatives"] += (negatives,)
    if "scores" in row.values:
        names["scores"] = ("scores",)
    elif any(isinstance(row.values.get(name), str) for name in names["negatives"]):
        names["margins"] = ("margin", "score")
    elif type(row.values.get("score")) in (int, float):
        names["scores"] = ("score",)
    return names


def numbered(row: Row) -> Row:
    """The row with a field "a_*" for its fields a_1, a_2, ... (or from 0), which lists their values
    in the order of the numbers."""
    found: dict[str, list[tuple[int, Any]]] = {}
    for name, value in row.values.items():
        if match := _NUMBERED.fullmatch(name):
            found.setdefault(f"{match[1]}*", []).append((int(match[2]), value))
    if not found:
        return row
    lists = {
        name: [value for _, value in sorted(each, key=lambda pair: pair[0])]
        for name, each in found.items()
    }
    return Row(row.where, {**lists, **row.values})


def teacher_scores(
    parts: Mapping[str, tuple[Row, str]], place: tuple[int, int], negatives: int
) -> tuple[float, ...]:
    """The scores of a passage and of its negatives, () where the row has none.

    Args:
      parts: of TEACHER, each with its field:
        scores: a list with that of the passage and of each negative, or a number if there is no
          negative.
        passage_scores, negative_scores: a number or a list of them each, of all passages and
          negatives of the row.
        margins: the passage's score minus each negative's, a list or a number. Losses that compare
          scores of one query are given 0 for the passage.
      place: the passage's number among those of its row, and how many these are.
      negatives: how many negatives the row has.

    Raises:
      UserError: another number of scores, or one that is not finite; names the field.
    """
    found = {part: _numbers(*field) for part, field in parts.items()}
    number, count = place
    if "scores" in found:
        return _counted(*parts["scores"], found["scores"], 1 + negatives)
    if "margins" in found:
        margins = _counted(*parts["margins"], found["margins"], negatives)
        return (0.0, *(-margin for margin in margins))
    if not found.get("passage_scores") and not found.get("negative_scores"):
        return ()
    values = []
    for part, expected in (("passage_scores", count), ("negative_scores", negatives)):
        if part not in parts and expected:
            row = next(iter(parts.values()))[0]
            raise UserError(
                f"{row.where}: has {' and '.join(parts)} but no {part}; name the field of both, or "
                "of none"
            )
        values.append(_counted(*parts[part], found[part], expected) if part in parts else ())
    return (values[0][number], *values[1])


def _numbers(row: Row, name: str) -> list[float]:
    value = row.values[name]
    values = value if isinstance(value, list) else [value]
    for each in values:
        if type(each) not in (int, float) or not math.isfinite(each):
            raise UserError(
                f"{row.where}: field {name!r} holds {each!r:.40}, expected a finite number; "
                "correct the row or remove it"
            )
    return [float(each) for each in values]


def _counted(row: Row, name: str, values: list[float], expected: int) -> tuple[float, ...]:
    if len(values) == expected:
        return tuple(values)
    raise UserError(
        f"{row.where}: field {name!r} has {len(values)} scores, expected {expected}; correct the "
        "row, or name the field of another part (scores: of the passage and each negative; "
        "passage_scores, negative_scores; margins: the passage's minus each negative's)"
    )
