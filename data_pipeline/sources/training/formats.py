"""Finds lists of negatives, labels and teacher scores in the rows of public formats."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data_pipeline.sources.files import Row
from data_pipeline.sources.folding import word_range
from data_pipeline.sources.training.scores import is_flag
from inf_jax.core.errors import UserError

# Fields that hold a list wherever they are known.
LISTS = ("positive_passages", "positive_ctxs", "pos", "negative_passages", "hard_negative_ctxs")
LISTS += ("neg", "negs", "negs_text", "negatives")
_NUMBERED = re.compile(r"(.+_|negative|neg)([0-9]+)")
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
    *("hard_negatives", "hard_negative", "hard_negative_*"),
    *("hard_negs", "hard_neg", "hard_neg_*"),
    *("negative", "negative_*", "negative*"),
    *("neg_*", "neg*"),
)
# Promptriever's rows, whose "query" has the instruction behind it: its own name of each part. Its
# training takes the negatives that fit the query but not the instruction first, then mined ones.
_PROMPTRIEVER = {"query": ("only_query",), "instruction": ("only_instruction",)}
# Fields whose negatives count together.
_TOGETHER = (
    ("negative", "negative_*"),
    ("negative", "negative*"),
    ("new_negatives", "negative_passages"),
)
_UNCLEAR = ("score", "scores", "label", "labels")  # what they mean depends on their values
_TITLED = ("passage", "document")
# Parts, and words, of the names of fields that may not go unread.
_OPINIONS = ("score", "margin", "label", "relevan", "similar", "duplicate", "logit")
_OPINION_WORDS = {"grade", "rating", "teacher", "distance", "qrel", "judgement", "judgment"}
_VERDICTS = {"correct", "accepted", "gold", "selected", "clicked", "target", "class", "valid"}
_VERDICTS |= {"match", "sim"}  # where they hold no text
# Words of the names of texts that may not go unread, and of texts that may.
_PASSAGES = {"positive", "positives", "neg", "negs", "rejected", "contradiction", "distractors"}
_PASSAGES |= {"contradictions", "distractor"}
_CONTEXTS = {"context", "contexts", "ctxs"}
_ASIDE = {"id", "ids", "title", "titles", "url", "urls", "explanation", "type", "lang", "language"}
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
    document, unless the negatives have none. A row with "only_query" and "only_instruction" is
    Promptriever's, whose negatives are its "new_negatives", then its "negative_passages".

    Args:
      row: as `numbered` gives it.

    Raises:
      UserError: the row has no field that is a passage's in one of them, two lists of negatives,
        labels, scores or margins whose meaning is not clear, or texts under another name that may
        be passages or an instruction.
    """
    names = dict(_KNOWN)
    if all(own in row.values for [own] in _PROMPTRIEVER.values()):
        names |= _PROMPTRIEVER
    for part in ("query", "passage"):
        if not any(name in row.values for name in names[part]):
            raise UserError(
                f"{row.where}: no field is known to be a {part} ({', '.join(names[part])}); the "
                f"row has: {', '.join(shown_names(row)) or 'no fields'}; name the fields, such as "
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
        if name != _NOT_HARD and _matters(name, row.values[name], names, bool(others)):
            raise _unclear(row, name)
    return row, names


def _matters(name: str, value: Any, names: Mapping[str, Any], negatives: bool) -> bool:
    """Whether a field that no part of a row's map names changes what the row says."""
    lower = name.lower()
    words = set(re.split(r"[^a-z]+", lower))
    if words & _OPINION_WORDS or any(part in lower for part in _OPINIONS):
        return True
    if "negative" in lower and not negatives:
        return True
    if words & _VERDICTS:
        return not _is_text(value)
    if words & _ASIDE:
        return False
    if "instruct" in lower or "prompt" in words:
        says = "instruction" not in names
    elif words & _CONTEXTS:
        says = not {"answer", "response"}.isdisjoint(names["passage"])
    else:
        says = bool(words & _PASSAGES) or "negative" in lower
    return says and _is_text(value)


def _is_text(value: Any) -> bool:
    """Whether a value holds a text of several words, or a list or an object does."""
    if isinstance(value, Mapping):
        value = [*value.values()]
    if isinstance(value, list):
        return any(map(_is_text, value))
    return isinstance(value, str) and word_range(value)[1] > 1


def _filled(row: Row, names: Sequence[str]) -> str:
    """The first of the fields that is not null, else the first that there is, else ""."""
    present = _present(row, names)
    return next((n for n in present if row.values[n] is not None), "".join(present[:1]))


def _present(row: Row, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in names if name in row.values)


def _negatives(row: Row) -> tuple[Row, str]:
    """The row, and the field with its negatives, of which there may be a new one; "" for none."""
    fields = _NEGATIVES
    if all(own in row.values for [own] in _PROMPTRIEVER.values()):
        fields = (_TOGETHER[-1][0], *fields)
    found = [n for n in _present(row, fields) if row.values[n] not in (None, [], "")]
    if tuple(found) in _TOGETHER:
        together = " and ".join(found)
        values = [row.values[name] for name in found]
        values = [e for each in values for e in (each if isinstance(each, list) else [each])]
        return Row(row.where, {**row.values, together: values}), together
    if len(found) > 1:
        raise UserError(
            f"{row.where}: has negatives in {' and in '.join(found)}; name the field that counts, "
            "such as --fields=query=QUESTION,passage=TEXT,negatives=NAMES"
        )
    return row, _filled(row, found or fields)


def _meaning(row: Row, name: str, passage: str, others: Any) -> str:
    """The part that an unclear field is, see `known_fields`; "" where `numbers` refuses it."""
    value, label = row.values[name], name.startswith("label")
    passages = row.values.get(passage)
    count = len(passages) if isinstance(passages, list) else 1
    negatives = len(others) if isinstance(others, list) else int(bool(others))
    if isinstance(value, list) and len(value) == 1 == count and not negatives:
        [value] = value
    if isinstance(value, list):
        flags = all(is_flag(each) for each in value)
        if flags and label:
            alone = isinstance(passages, list) and not negatives and len(value) == count
            return "labels" if alone else _refuse(row, name)
        if name == "scores":
            return name
        if count > 1:
            return _refuse(row, name)
        return "margins" if negatives and len(value) == negatives else "scores"
    if negatives:
        if not isinstance(others, str) or (label and is_flag(value)):
            return "scores" if name == "scores" else _refuse(row, name)
        return "margins"
    if label:
        return "labels" if is_flag(value) and count == 1 else _refuse(row, name)
    whole = value in ("0", "1") or (type(value) is int and value in (0, 1))
    return _refuse(row, name) if whole else "scores"


def _refuse(row: Row, name: str) -> str:
    raise _unclear(row, name)


def _unclear(row: Row, name: str) -> UserError:
    return UserError(
        f"{row.where}: what field {name!r}, {row.values[name]!r:.40}, says is not clear here; name "
        "all fields that count, such as --fields=query=QUESTION,passage=TEXT, with this one as "
        "labels (0 or 1 for each passage), scores, passage_scores, negative_scores, margins, "
        "passage, negatives or instruction, or without it"
    )


def shown_names(row: Row) -> list[str]:
    """The names of a row's own fields, without those that `numbered` gives."""
    return [name for name in row.values if not name.endswith("*")]


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
