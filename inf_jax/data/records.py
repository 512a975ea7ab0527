"""Defines the text record and the tokenised record of an example, and their bytes in a TFRecord.

An example is one positive triplet and its two poisoned ones, under the field names of the released
InF-IR corpus (arXiv 2505.21439, section 3). It gives up to three pairs (instructed query, passage):
(Q+, I+, P+), (Q+, I-, P-1), (Q-, I+, P-2). Both records are `tf.train.Example` protos, readable by
TensorFlow, which is not imported here.
"""

import dataclasses
import hashlib
import unicodedata
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from inf_jax.core.errors import UserError
from inf_jax.io.tf_example import TfExample, parse_tf_example, tf_example_bytes
from inf_jax.text.query_parts import QueryParts, TokenSpan

PAIRS_PER_EXAMPLE = 3
TOKENISED_SCHEMA = 2  # bump when the meaning of a tokenised record changes: caches are rebuilt


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """One positive triplet with its poisoned instruction and poisoned query; "" where absent."""

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
    """One (instructed query, passage) pair, before instruction and query become one text."""

    instruction: str
    query: str
    passage: str


def pairs(example: Example) -> tuple[Pair | None, ...]:
    """The three pairs of an example, positive first; None where the poisoned one is absent."""
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


def part_lengths(spans: np.ndarray) -> np.ndarray:
    """int32[..., 3] from `TokenisedRecord.spans`: tokens of the instructed query before truncation,
    of its query and of its instruction."""
    return spans[..., [0, 2, 4]]


def encode_example(example: Example) -> bytes:
    """The bytes of a text record: one bytes feature per field, and `id`."""
    proto = TfExample()
    for name in ("id", *FIELDS):
        proto.features.feature[name].bytes_list.value.append(getattr(example, name).encode())
    return tf_example_bytes(proto)


def fingerprint_of(examples: Iterable[Example]) -> str:
    """SHA-256 of all texts of a split, in hexadecimal digits."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(encode_example(example))
    return digest.hexdigest()


def decode_example(data: bytes) -> Example:
    """Inverse of `encode_example`; raises UserError naming a missing field."""
    feature = parse_tf_example(data).features.feature
    try:
        values = {n: feature[n].bytes_list.value[0].decode() for n in ("id", *FIELDS)}
    except (IndexError, UnicodeDecodeError) as error:
        missing = [n for n in ("id", *FIELDS) if not feature[n].bytes_list.value]
        raise UserError(
            f"not a text record of inf_jax: missing or unreadable fields {missing or error}; "
            "build the dataset again with `python -m data_pipeline.build`"
        ) from error
    return Example(**values)


def encode_tokenised(record: TokenisedRecord) -> bytes:
    """The bytes of a tokenised record; hashes as int64 of the same bits: protos have no uint64."""
    proto = TfExample()
    feature = proto.features.feature
    feature["id"].bytes_list.value.append(record.id.encode())
    arrays = record._replace(hashes=record.hashes.view(np.int64))
    for name in _ARRAYS:
        feature[name].int64_list.value.extend(getattr(arrays, name).ravel().tolist())
    return tf_example_bytes(proto)


def decode_tokenised(data: bytes) -> TokenisedRecord:
    """Inverse of `encode_tokenised`; raises UserError where array sizes do not match."""
    feature = parse_tf_example(data).features.feature
    arrays = {name: np.array(feature[name].int64_list.value, np.int64) for name in _ARRAYS}
    sizes = {name: array.size for name, array in arrays.items()}
    expected = {
        "lengths": 2 * PAIRS_PER_EXAMPLE,
        "hashes": 3 * PAIRS_PER_EXAMPLE,
        "spans": 5 * PAIRS_PER_EXAMPLE,
        "tokens": int(arrays["lengths"].sum()),
    }
    ids = feature["id"].bytes_list.value
    if ids and sizes == sizes | expected:
        lengths, spans = arrays["lengths"], arrays["spans"].reshape(PAIRS_PER_EXAMPLE, 5)
        expected["uncut"] = int(spans[lengths[::2] < spans[:, 0], 0].sum())
    if not ids or sizes != expected:
        raise UserError(
            f"not a tokenised record: sizes {sizes}, expected {expected}; delete the tokenised "
            "directory and tokenise again"
        )
    return TokenisedRecord(
        id=ids[0].decode(),
        tokens=arrays["tokens"].astype(np.int32),
        lengths=lengths.astype(np.int32),
        hashes=arrays["hashes"].view(np.uint64).reshape(PAIRS_PER_EXAMPLE, 3),
        spans=spans.astype(np.int32),
        uncut=arrays["uncut"].astype(np.int32),
    )
