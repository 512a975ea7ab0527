"""Stores texts and pairs of texts as the features of a record, as TFDS lays them out.

A pair is (instruction, query, passage, negatives, scores). Its features are those of TFDS's
`Sequence` of a dict with lists: "pairs/query" has a value a pair, the lists of all pairs are one
after another in "pairs/negatives/ragged_flat_values", their lengths in ".../ragged_row_lengths_0".
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from inf_jax.io.tf_example import TfExample

Texts = tuple[str, str, str, tuple[str, ...], tuple[float, ...]]

_NAMES = ("instruction", "query", "passage")
_LISTS = {"negatives": "bytes_list", "scores": "float_list"}


def put_texts(proto: TfExample, texts: Mapping[str, str]) -> None:
    """Adds a feature of one text for each name."""
    for name, text in texts.items():
        proto.features.feature[name].bytes_list.value.append(text.encode())


def take_texts(proto: TfExample, names: Sequence[str]) -> Iterator[str]:
    """The texts under these names; ValueError where one is missing or not UTF-8."""
    feature = proto.features.feature
    if missing := [name for name in names if not feature[name].bytes_list.value]:
        raise ValueError(f"missing or unreadable fields {missing}")
    for name in names:
        yield _decoded(name, feature[name].bytes_list.value[:1])[0]


def put_pairs(proto: TfExample, id: str, pairs: Sequence[Texts]) -> None:
    """Adds the features of an example of these pairs."""
    put_texts(proto, {"id": id})
    feature = proto.features.feature
    *texts, negatives, scores = zip(*pairs, strict=True)
    for name, values in zip(_NAMES, texts, strict=True):
        feature[f"pairs/{name}"].bytes_list.value.extend([text.encode() for text in values])
    encoded = [[text.encode() for text in each] for each in negatives]
    for (name, kind), lists in zip(_LISTS.items(), (encoded, scores), strict=True):
        flat, lengths = _ragged(feature, name)
        lengths.int64_list.value.extend(map(len, lists))
        getattr(flat, kind).SetInParent()  # also an empty list has a type
        getattr(flat, kind).value.extend([value for each in lists for value in each])


def has_pairs(proto: TfExample) -> bool:
    """Whether a record has the features of `put_pairs`."""
    return "pairs/query" in proto.features.feature


def count_pairs(proto: TfExample) -> int:
    """The pairs of a record that `has_pairs`, without their texts."""
    return len(proto.features.feature["pairs/query"].bytes_list.value)


def take_pairs(proto: TfExample) -> tuple[str, list[Texts]]:
    """Inverse of `put_pairs`; ValueError where a feature is missing or their sizes differ."""
    [id] = take_texts(proto, ("id",))
    feature = proto.features.feature
    columns = [
        _decoded(name, feature[name].bytes_list.value) for name in (f"pairs/{n}" for n in _NAMES)
    ]
    for name, kind in _LISTS.items():
        flat, lengths = _ragged(feature, name)
        values, start, lists = getattr(flat, kind).value, 0, []
        values = _decoded(name, values) if kind == "bytes_list" else list(values)
        for count in lengths.int64_list.value:
            lists.append(tuple(values[start : start + count]))
            start += count
        if start != len(values):
            raise ValueError(f"pairs/{name}: {len(values)} values, expected {start}")
        columns.append(lists)
    sizes = dict(zip((*_NAMES, *_LISTS), map(len, columns), strict=True))
    if not sizes["query"] or len({*sizes.values()}) > 1:
        raise ValueError(f"unequal numbers of values in the features of its pairs: {sizes}")
    return id, list(zip(*columns, strict=True))


def _ragged(feature: Any, name: str) -> tuple[Any, Any]:
    """The two features of a list of lists."""
    place = f"pairs/{name}/ragged"
    return feature[f"{place}_flat_values"], feature[f"{place}_row_lengths_0"]


def _decoded(name: str, values: Iterable[bytes]) -> list[str]:
    try:
        return [value.decode() for value in values]
    except UnicodeDecodeError as error:
        raise ValueError(f"missing or unreadable fields {name}: {error}") from error
