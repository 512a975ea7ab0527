"""Reads labels and a teacher's scores from the fields of a row."""

import re
from collections.abc import Mapping
from typing import Any

from data_pipeline.sources.files import Row
from inf_jax.core.errors import UserError

# Parts with a teacher's scores.
TEACHER = ("scores", "passage_scores", "negative_scores", "margins")
_DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?")
_LARGEST = 1e38  # of a score: differences of three are still float32


def is_flag(value: Any) -> bool:
    """Whether a value is a label: 0, 1 or a bool."""
    return isinstance(value, int | float) and value in (0, 1)


def labels(row: Row, name: str, count: int) -> list[bool]:
    """Whether each of a row's passages is relevant, of a field with 0 or 1 for each.

    Raises:
      UserError: another number of labels, or other values.
    """
    value = row.values[name]
    found = value if isinstance(value, list) else [value]
    if len(found) != count:
        raise UserError(
            f"{row.where}: field {name!r} has {len(found)} labels for {count} passages; correct "
            "the row or remove it"
        )
    for each in found:
        if not is_flag(each):
            raise UserError(
                f"{row.where}: field {name!r} holds {each!r:.40}, expected 0 or 1; correct the row "
                "or, if these are a teacher's scores, name the field as passage_scores"
            )
    return [bool(each) for each in found]


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
      UserError: another number of scores, one that is no float32, scores or margins that do not say
        which of several passages they belong to, or scores of two kinds; names the field.
    """
    found = {part: _numbers(*field) for part, field in parts.items()}
    number, count = place
    for part in ("scores", "margins"):
        if part not in found:
            continue
        row, name = parts[part]
        if len(found) > 1:
            fields = ", ".join(field for _, field in parts.values())
            raise UserError(
                f"{row.where}: has {' and '.join(found)}, in the fields {fields}; name one of "
                "them, or passage_scores with negative_scores"
            )
        if count > 1:
            raise UserError(
                f"{row.where}: field {name!r} has {part} for one passage, but the row has {count}; "
                "name fields with passage_scores and negative_scores, or give each passage a row"
            )
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
    """The numbers of a field, also such as are written in a text."""
    value = row.values[name]
    found = []
    for each in value if isinstance(value, list) else [value]:
        number = float(each) if isinstance(each, str) and _DECIMAL.fullmatch(each) else each
        # false for NaN
        if type(number) not in (int, float) or not abs(number) <= _LARGEST:
            raise UserError(
                f"{row.where}: field {name!r} holds {each!r:.40}, expected a finite number of at "
                f"most {_LARGEST:g}; correct the row or remove it"
            )
        found.append(float(number))
    return found


def _counted(row: Row, name: str, values: list[float], expected: int) -> tuple[float, ...]:
    if len(values) == expected:
        return tuple(values)
    raise UserError(
        f"{row.where}: field {name!r} has {len(values)} scores, expected {expected}; correct the "
        "row, or name the field of another part (scores: of the passage and each negative; "
        "passage_scores, negative_scores; margins: the passage's minus each negative's)"
    )
