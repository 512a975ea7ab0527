"""Finds lists of negatives, labels and teacher scores in the rows of public formats."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data_pipeline.sources.files import Row
from inf_jax.core.errors import UserError

# Parts with a teacher's scores.
TEACHER = ("scores", "passage_scores", "negative_scores", "margins")
# Fields that hold a list wherever they are known.
LISTS = ("positive_passages", "positive_ctxs", "pos", "negative_passages", "hard_negative_ctxs")
LISTS += ("neg", "negs_text", "negatives")
_NUMBERED = re.compile(r"(.+_|negative|neg)([0-9]+)")
_DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?")
_LARGEST = 1e38  # of a score: differences of three are still float32
# The fields of formats whose rows are recognised without a map of fields: Tevatron's, DPR's,
# FlagEmbedding's, sentence-transformers', and plain pairs.
_KNOWN = {
    "query": ("query", "question", "anchor"),
    "passage": (
        *("positive_passages", "positive_ctxs", "pos", "positive", "pos_text", "passage"),
        *("document", "answer", "response"),
    ),
    "instruction": ("instruction",),
    "passage_scores": (
        *("pos_scores", "pos_score", "positive_scores", "positive_score"),
        *("passage_scores", "passage_score", "document_scores", "document_score"),
    ),
    "negative_scores": (
        *("neg_scores", "neg_score", "negs_score", "negs_scores"),
        *("negative_scores", "negative_score"),
    ),
    "margins": ("margins", "margin"),
}
_NEGATIVES = (
    *LISTS[3:],
    "hard_negatives",
    "hard_negative",
    "hard_negative_*",
    "negative",
    "negative_*",
    "negative*",
    "neg_*",
    "neg*",
)
_UNCLEAR = ("score", "scores", "label", "labels")  # what they mean depends on their values
_TITLED = ("passage", "document")
# Parts, and words, of the names of fields that may not go unread.
_OPINIONS = ("score", "margin", "label", "relevan", "similar", "duplicate", "logit")
_OPINION_WORDS = {"grade", "rating", "teacher", "distance", "qrel", "judgement", "judgment"}
_NOT_HARD = "negative_ctxs"  # DPR's other negatives, which it leaves out too


def known_fields(row: Row) -> tuple[Row, dict[str, tuple[str, ...]]]:
    """The map of fields for a row of one of the known formats, and the row with the fields that the
    map names.

    The negatives are those of the one list, or of "negative" and "negative_1", ... together. A
    field "score", "scores", "label" or "labels" is:
      - a number beside one passage without negatives: its score; of a label, 0 or 1, whether the
        passage is relevant;
      - a number beside one negative that is a text: the margin, as in MS MARCO's sets for
        MarginMSE;
      - a list of 0 and 1 beside as many passages: their labels;
      - a list beside one passage and n negatives: the scores of all if it has 1 + n numbers, the
        margins if it has n, as for sentence-transformers.
    "prompt" is the instruction of a row of FlagEmbedding; "title" that of the field passage or
    document, unless the negatives have none.

    Args:
      row: as `numbered` gives it.

    Raises:
      UserError: the row has no field that is a passage's in one of them, two lists of negatives, or
        labels, scores or margins whose meaning is not clear.
    """
    names = dict(_KNOWN)
    for part in ("query", "passage"):
        if not any(name in row.values for name in names[part]):
            raise UserError(
                f"{row.where}: no field is known to be a {part} ({', '.join(names[part])}); the "
                f"row has: {', '.join(row.values) or 'no fields'}; name the fields, such as "
                "--fields=query=QUESTION,passage=TEXT"
            )
    if "pos" in row.values:
        names["instruction"] += ("prompt",)
    row, negatives = _negatives(row)
    names["negatives"] = (negatives,) if negatives else ()
    passage, others = _filled(row, names["passage"]), row.values.get(negatives)
    for name in _UNCLEAR:
        if row.values.get(name) is not None and (part := _meaning(row, name, passage, others)):
            names[part] = (*names.get(part, ()), name)
    alone = not others or (
        isinstance(others, list) and all(isinstance(n, Mapping) and "title" in n for n in others)
    )
    if passage in _TITLED and isinstance(row.values[passage], str) and alone:
        names["title"] = ("title",)
    names = {part: (found,) for part, each in names.items() if (found := _filled(row, each))}
    for name in unread(row, names):
        words = set(re.split(r"[^a-z]+", name.lower()))
        opinion = words & _OPINION_WORDS or any(part in name.lower() for part in _OPINIONS)
        if opinion or (not others and "negative" in name.lower() and name != _NOT_HARD):
            raise _unclear(row, name)
    return row, names


def _filled(row: Row, names: Sequence[str]) -> str:
    """The first of the fields that is not null, else the first that there is, else ""."""
    present = _present(row, names)
    return next((n for n in present if row.values[n] is not None), "".join(present[:1]))


def _present(row: Row, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in names if name in row.values)


def _negatives(row: Row) -> tuple[Row, str]:
    """The row, and the field with its negatives, of which there may be a new one; "" for none."""
    found = [n for n in _present(row, _NEGATIVES) if row.values[n] not in (None, [], "")]
    if len(found) == 2 and found[0] == "negative" and found[1] in ("negative_*", "negative*"):
        together = " and ".join(found)
        values = [row.values[found[0]], *row.values[found[1]]]
        return Row(row.where, {**row.values, together: values}), together
    if len(found) > 1:
        raise UserError(
            f"{row.where}: has negatives in {' and in '.join(found)}; name the field that counts, "
            "such as --fields=query=QUESTION,passage=TEXT,negatives=NAMES"
        )
    return row, _filled(row, found or _NEGATIVES)


def _meaning(row: Row, name: str, passage: str, others: Any) -> str:
    """The part that an unclear field is, see `known_fields`; "" where `numbers` refuses it."""
    value, label = row.values[name], name.startswith("label")
    passages = row.values.get(passage)
    count = len(passages) if isinstance(passages, list) else 1
    negatives = len(others) if isinstance(others, list) else int(bool(others))
    if isinstance(value, list) and len(value) == 1 == count and not negatives:
        [value] = value
    if isinstance(value, list):
        flags = all(_is_flag(each) for each in value)
        if flags and label:
            alone = isinstance(passages, list) and not negatives and len(value) == count
            return "labels" if alone else _refuse(row, name)
        if name == "scores":
            return name
        if count > 1:
            return _refuse(row, name)
        return "margins" if negatives and len(value) == negatives else "scores"
    if negatives:
        if not isinstance(others, str) or (label and _is_flag(value)):
            return "scores" if name == "scores" else _refuse(row, name)
        return "margins"
    if label:
        return "labels" if _is_flag(value) and count == 1 else _refuse(row, name)
    whole = value in ("0", "1") or (type(value) is int and value in (0, 1))
    return _refuse(row, name) if whole else "scores"


def _is_flag(value: Any) -> bool:
    return isinstance(value, int | float) and value in (0, 1)


def _refuse(row: Row, name: str) -> str:
    raise _unclear(row, name)


def _unclear(row: Row, name: str) -> UserError:
    return UserError(
        f"{row.where}: what field {name!r}, {row.values[name]!r:.40}, says is not clear here; name "
        "all fields that count, such as --fields=query=QUESTION,passage=TEXT, with this one as "
        "labels (0 or 1 for each passage), scores, passage_scores, negative_scores, margins or "
        "negatives, or without it"
    )


def unread(row: Row, names: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """The row's fields that are not empty and that no part of the map names."""
    fields = [name for each in names.values() for name in each]
    used = {*fields, *(name.partition(".")[0] for name in fields)}
    used |= {one for name in fields for one in name.split(" and ")}
    for name, value in row.values.items():
        match = _NUMBERED.fullmatch(name)
        whole = match and f"{match[1]}*"
        empty = value in (None, "", []) or name.endswith("*")
        if not (empty or name in used or whole in used):
            yield name


def numbered(row: Row) -> Row:
    """The row with a field "a_*" for its fields a_1, a_2, ... (or from 0), which lists their values
    in the order of the numbers; also "negative*" for negative1, ..."""
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
        if not _is_flag(each):
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
