"""Defines the text record and the tokenised record of an example, and their bytes in a TFRecord.

An example is one or more pairs (instructed query, passage), see `pairs`; those of the released
InF-IR corpus (arXiv 2505.21439, section 3) have named fields. Both records are `tf.train.Example`
protos, readable by TensorFlow, which is not imported here.
"""

import dataclasses
import hashlib
import unicodedata
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from inf_jax.core.errors import UserError
from inf_jax.io.tf_example import TfExample, feature_headers, parse_tf_example, tf_example_bytes
from inf_jax.io.tf_texts import has_pairs, put_pairs, put_texts, take_pairs, take_texts
from inf_jax.text.query_parts import QueryParts, TokenSpan

PAIRS_PER_EXAMPLE = 3
TOKENISED_SCHEMA = 2  # bump when the meaning of a tokenised record changes: caches are rebuilt


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


class TokenisedRecord(NamedTuple):
    """One example after tokenisation.

    Attributes:
      id: the example's id.
      tokens: int32[sum(lengths)], concatenated token ids of IQ0, P0, IQ1, P1, IQ2, P2 (instructed
        query and passage of each pair), special tokens included.
      lengths: int32[2 * PAIRS_PER_EXAMPLE], tokens of each text; 0 for an absent pair.
      hashes: uint64[PAIRS_PER_EXAMPLE, 3], `text_hash` of instruction, query, passage of each pair.
      spans: int32[PAIRS_PER_EXAMPLE, 5], of each instructed query before truncation: number of
        tokens, then first token and count of the query and of the instruction (`QueryParts`).
      uncut: int32[...], concatenated token ids of the truncated queries before truncation.
    """

    id: str
    tokens: np.ndarray
    lengths: np.ndarray
    hashes: np.ndarray
    spans: np.ndarray
    uncut: np.ndarray

    def texts(self) -> list[np.ndarray]:
        """Token ids of IQ0, P0, IQ1, P1, IQ2, P2, int32[length] each."""
        return np.split(self.tokens, np.cumsum(self.lengths)[:-1])

    def query_parts(self, pair: int) -> QueryParts:
        """The instructed query of a pair before truncation."""
        queries, whole = self.lengths[::2], self.spans[:, 0]
        was_cut = queries < whole
        if was_cut[pair]:
            source, first = self.uncut, whole[:pair][was_cut[:pair]].sum()
        else:
            source, first = self.tokens, self.lengths[: 2 * pair].sum()
        count, *spans = self.spans[pair].tolist()
        ids = source[first : first + count]
        return QueryParts(ids, TokenSpan(*spans[:2]), TokenSpan(*spans[2:]))


_ARRAYS = TokenisedRecord._fields[1:]
# The features of a record and the arrays that each holds.
_STORED = {
    "tokens": {"tokens": "<i4", "uncut": "<i4"},
    "where": {"lengths": "<i4", "spans": "<i4", "hashes": "<u8"},
}


def part_lengths(spans: np.ndarray) -> np.ndarray:
    """int32[..., 3] from `TokenisedRecord.spans`: tokens of the instructed query before truncation,
    of its query and of its instruction."""
    return spans[..., [0, 2, 4]]


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


class TokenisedBatch(NamedTuple):
    """Several tokenised records, decoded at once; fields as of `TokenisedRecord`, [m, ...] each.

    Attributes:
      data: the m records' bytes.
      tokens, uncut: int32[...] of all records, one after another.
      lengths, hashes, spans: of each record.
    """

    data: list[bytes]
    tokens: np.ndarray
    lengths: np.ndarray
    hashes: np.ndarray
    spans: np.ndarray
    uncut: np.ndarray

    def text_starts(self) -> np.ndarray:
        """int64[m, 6], the first token of each text in `tokens`."""
        ends = np.cumsum(self.lengths.ravel(), dtype=np.int64).reshape(self.lengths.shape)
        return ends - self.lengths


def encode_tokenised(record: TokenisedRecord) -> bytes:
    """The bytes of a tokenised record: its arrays as they are in memory, little-endian.

    "where" has one size and comes last (maps are serialised in sorted order), so that
    `decode_batch` finds all arrays from the record's end.
    """
    proto = TfExample()
    feature = proto.features.feature
    feature["id"].bytes_list.value.append(record.id.encode())
    for name, arrays in _STORED.items():
        for field, dtype in arrays.items():
            values = getattr(record, field).astype(dtype).tobytes()
            feature[name].bytes_list.value.append(values)
    return tf_example_bytes(proto)


def decode_tokenised(data: bytes) -> TokenisedRecord:
    """Inverse of `encode_tokenised`, also of older versions, which stored lists of int64; raises
    UserError where array sizes do not match."""
    feature = parse_tf_example(data).features.feature
    arrays = {}
    for name, fields in _STORED.items():
        stored = list(feature[name].bytes_list.value)
        for n, (field, dtype) in enumerate(fields.items()):
            if n < len(stored) and len(stored[n]) % np.dtype(dtype).itemsize == 0:
                arrays[field] = np.frombuffer(stored[n], dtype).astype(dtype[1:])
            else:
                values = np.array(feature[field].int64_list.value, np.int64)
                arrays[field] = values.view(np.uint64) if field == "hashes" else values
    sizes = {name: arrays[name].size for name in _ARRAYS}
    expected = {
        "tokens": int(arrays["lengths"].sum()),
        "lengths": 2 * PAIRS_PER_EXAMPLE,
        "hashes": 3 * PAIRS_PER_EXAMPLE,
        "spans": 5 * PAIRS_PER_EXAMPLE,
    }
    ids = feature["id"].bytes_list.value
    if ids and sizes == sizes | expected:
        spans = arrays["spans"].reshape(PAIRS_PER_EXAMPLE, 5)
        expected["uncut"] = int(uncut_tokens(arrays["lengths"], spans))
    if not ids or sizes != expected:
        raise UserError(
            f"not a tokenised record: sizes {sizes}, expected {expected}; delete the tokenised "
            "directory and tokenise again"
        )
    return TokenisedRecord(
        id=ids[0].decode(),
        tokens=arrays["tokens"].astype(np.int32),
        lengths=arrays["lengths"].astype(np.int32),
        hashes=arrays["hashes"].reshape(PAIRS_PER_EXAMPLE, 3),
        spans=spans.astype(np.int32),
        uncut=arrays["uncut"].astype(np.int32),
    )


def decode_batch(data: list[bytes]) -> TokenisedBatch:
    """Decodes several records; UserError as of `decode_tokenised`, which decodes those that are not
    laid out as `encode_tokenised` does (older versions, other writers)."""
    ends = [record[-_INDEX_BYTES:] for record in data]
    if not data or not all(end.startswith(_INDEX_HEADER) for end in ends):
        return _decode_each(data)
    index = np.frombuffer(b"".join(ends), np.dtype(_INDEX_ENTRY))
    lengths, spans = index["lengths"].astype(np.int32), index["spans"].astype(np.int32)
    sizes = np.stack([4 * lengths.sum(1), 4 * uncut_tokens(lengths, spans)], axis=1)
    tokens, uncut = [], []
    for record, (size, rest) in zip(data, sizes.tolist(), strict=True):
        before, between = feature_headers("tokens", size, rest)
        end = len(record) - _INDEX_BYTES
        middle = end - rest - len(between)
        start, head = middle - size, middle - size - len(before)
        found = record.startswith(before, head) and record.startswith(between, middle)
        if not found or head < 0 or min(size, rest) < 0:
            return _decode_each(data)
        tokens.append(record[start:middle])
        uncut.append(record[end - rest : end])
    tokens, uncut = (np.frombuffer(b"".join(x), "<i4").astype(np.int32) for x in (tokens, uncut))
    return TokenisedBatch(data, tokens, lengths, index["hashes"].astype(np.uint64), spans, uncut)


def uncut_tokens(lengths: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """int64[...], tokens that `TokenisedRecord.uncut` has, of its lengths and spans [..., 6] and
    [..., 3, 5]."""
    whole = spans[..., 0]
    return np.where(lengths[..., ::2] < whole, whole, 0).sum(-1)


def _decode_each(data: list[bytes]) -> TokenisedBatch:
    records = [decode_tokenised(each) for each in data]
    empty = np.empty(0, np.int32)
    return TokenisedBatch(
        data,
        np.concatenate([empty, *(record.tokens for record in records)]),
        np.array([r.lengths for r in records], np.int32).reshape(-1, 2 * PAIRS_PER_EXAMPLE),
        np.array([r.hashes for r in records], np.uint64).reshape(-1, PAIRS_PER_EXAMPLE, 3),
        np.array([r.spans for r in records], np.int32).reshape(-1, PAIRS_PER_EXAMPLE, 5),
        np.concatenate([empty, *(record.uncut for record in records)]),
    )


def _index_layout() -> tuple[bytes, int, list]:
    """What "where" begins with, its bytes and the fields of its structured array."""
    shapes = {"lengths": (6,), "spans": (3, 5), "hashes": (3, 3)}
    fields = _STORED["where"]
    sizes = [int(np.prod(shapes[name])) * np.dtype(fields[name]).itemsize for name in fields]
    headers = feature_headers("where", *sizes)
    entry = []
    for header, (name, dtype) in zip(headers, fields.items(), strict=True):
        entry += [(f"before {name}", f"S{len(header)}"), (name, dtype, shapes[name])]
    return headers[0], sum(map(len, headers)) + sum(sizes), entry


_INDEX_HEADER, _INDEX_BYTES, _INDEX_ENTRY = _index_layout()
