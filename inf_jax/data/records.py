"""Defines the text record of an example, its bytes in a TFRecord, and the hashes of its texts.

An example is one or more pairs (instructed query, passage), see `pairs`; those of the released
InF-IR corpus (arXiv 2505.21439, section 3) have named fields. Records of either kind are
`tf.train.Example` protos, readable by TensorFlow, which is not imported here.
"""

import dataclasses
import hashlib
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from inf_jax.core.errors import UserError
from inf_jax.io.tf_example import TfExample, parse_tf_example, tf_example_bytes
from inf_jax.io.tf_texts import count_pairs, has_pairs, put_pairs, put_texts, take_pairs, take_texts
from inf_jax.io.tfrecord import CorruptRecordError, read_records


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """An example of InF-IR: one positive triplet with its poisoned instruction and poisoned query,
    under the corpus's field names; "" where absent."""

    id: str
    query_positive: str
    instruction_positive: str
    document_positive: str
    instruction_negative: str = ""
    hard_negative_document_1: str = ""
    query_negative: str = ""
    hard_negative_document_2: str = ""


FIELDS = tuple(field.name for field in dataclasses.fields(Example) if field.name != "id")


class Pair(NamedTuple):
    """One (instructed query, passage) pair, before instruction ("" for none) and query become one
    text, with passages that do not fit it; `scores` are a teacher's of the passage and then of each
    negative, or ()."""

    instruction: str
    query: str
    passage: str
    negatives: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class PairExample:
    """An example of any other source: one pair or more, None for an absent one.

    Its features in a text record are those of TFDS for a sequence of pairs: "pairs/query" etc. have
    a value a pair, lists of negatives and of scores are ragged.
    """

    id: str
    pairs: tuple[Pair | None, ...]


AnyExample = Example | PairExample


def pairs(example: AnyExample) -> tuple[Pair | None, ...]:
    """The pairs of an example, None where one is absent.

    InF-IR's are three, (Q+, I+, P+), (Q+, I-, P-1) and (Q-, I+, P-2), of which the first is there.
    """
    if isinstance(example, PairExample):
        return example.pairs
    e = example
    poisoned_instruction = Pair(
        e.instruction_negative, e.query_positive, e.hard_negative_document_1
    )
    poisoned_query = Pair(e.instruction_positive, e.query_negative, e.hard_negative_document_2)
    return (
        Pair(e.instruction_positive, e.query_positive, e.document_positive),
        poisoned_instruction if e.instruction_negative and e.hard_negative_document_1 else None,
        poisoned_query if e.query_negative and e.hard_negative_document_2 else None,
    )


def text_hash(text: str, *, compose: bool = True) -> int:
    """64-bit identity of a text (blake2b of its UTF-8), as an unsigned int.

    Characters are composed (Unicode's NFC) and white space is collapsed first: copies of a passage
    that differ by the bytes of an accented letter or by a line break are equal. `compose=False`
    leaves out the former, for texts whose hash was stored before it was done.
    """
    if compose and not text.isascii():
        text = unicodedata.normalize("NFC", text)
    collapsed = " ".join(text.split())
    return int.from_bytes(hashlib.blake2b(collapsed.encode(), digest_size=8).digest(), "little")


def pair_hashes(hashes: np.ndarray) -> np.ndarray:
    """uint64[...], the identity of each pair's query and passage together, of uint64[..., 3], the
    hashes of instruction, query and passage."""
    return hashes[..., 1] * np.uint64(0x9E3779B97F4A7C15) + hashes[..., 2]


def encode_example(example: AnyExample) -> bytes:
    """The bytes of a text record: `id`, and a feature per field or those of `PairExample`."""
    proto = TfExample()
    if isinstance(example, PairExample):
        put_pairs(proto, example.id, [pair or Pair("", "", "") for pair in example.pairs])
    else:
        put_texts(proto, {name: getattr(example, name) for name in ("id", *FIELDS)})
    return tf_example_bytes(proto)


def fingerprint_of(examples: Iterable[AnyExample]) -> str:
    """SHA-256 of all texts of a split, in hexadecimal digits."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(encode_example(example))
    return digest.hexdigest()


def decode_example(data: bytes) -> AnyExample:
    """Inverse of `encode_example`; raises UserError naming a missing field."""
    proto = parse_tf_example(data)
    try:
        if has_pairs(proto):
            id, group = take_pairs(proto)
            return PairExample(id, tuple(Pair(*each) if each[2] else None for each in group))
        return Example(*take_texts(proto, ("id", *FIELDS)))
    except ValueError as error:
        raise UserError(
            f"not a text record of inf_jax: {error}; build the dataset again with "
            "`python -m data_pipeline.build`"
        ) from error


def read_sources(sources: list[tuple[Path, int]]) -> Iterator[AnyExample]:
    """The examples of text TFRecord files, each with its number of records; CorruptRecordError at
    the first damaged, missing or surplus record."""
    for path, count in sources:
        for number, data in enumerate(read_records(path, count=count)):
            yield decode_at(path, number, data)


def decode_at(path: Path, number: int, data: bytes) -> AnyExample:
    """The example of a record; CorruptRecordError names the file and the record number."""
    try:
        return decode_example(data)
    except UserError as error:
        raise CorruptRecordError(path, number, str(error)) from error


def most_pairs(sources: list[tuple[Path, int]]) -> int:
    """The pairs of an example of the split, k: those of the example with the most. Reads all
    records, but no texts of pairs, unless they are InF-IR's, which all have as many."""
    most = 1
    for path, count in sources:
        for number, data in enumerate(read_records(path, count=count)):
            try:
                proto = parse_tf_example(data)
            except UserError as error:
                raise CorruptRecordError(path, number, str(error)) from error
            if not has_pairs(proto):
                return max(most, len(pairs(decode_at(path, number, data))))
            most = max(most, count_pairs(proto))
    return most
