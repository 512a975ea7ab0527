"""Defines the tokenised record of an example, its bytes in a TFRecord, and reads many at once.

Records are `tf.train.Example` protos, readable by TensorFlow, whose values are arrays as they are
in memory, little-endian.
"""

import functools
from typing import NamedTuple

import numpy as np

from inf_jax.core.errors import UserError
from inf_jax.io.tf_example import TfExample, feature_headers, parse_tf_example, tf_example_bytes
from inf_jax.text.query_parts import QueryParts, TokenSpan

TOKENISED_SCHEMA = 2  # bump when the meaning of a tokenised record changes: caches are rebuilt


class TokenisedNegatives(NamedTuple):
    """The n hard negatives of the k pairs of an example, or of m examples, and a teacher's scores.

    Attributes:
      counts: int32[k] or [m, k], negatives of each pair.
      lengths: int32[n], tokens of each, pair by pair; 0 for a text without tokens.
      tokens: int32[sum(lengths)], their token ids.
      hashes: uint64[n], `records.text_hash` of each.
      positive_scores: float32[k] or [m, k], a teacher's of each pair's passage; NaN for none.
      scores: float32[n], of each negative.
    """

    counts: np.ndarray
    lengths: np.ndarray
    tokens: np.ndarray
    hashes: np.ndarray
    positive_scores: np.ndarray
    scores: np.ndarray

    def of_one(self) -> "TokenisedNegatives":
        """Of a single example: [k] instead of [1, k]."""
        return self._replace(counts=self.counts[0], positive_scores=self.positive_scores[0])


class TokenisedRecord(NamedTuple):
    """One example of k pairs after tokenisation.

    Attributes:
      id: the example's id.
      tokens: int32[sum(lengths)], concatenated token ids of IQ0, P0, IQ1, P1, ... (instructed query
        and passage of each pair), special tokens included.
      lengths: int32[2 * k], tokens of each text; 0 for an absent pair.
      hashes: uint64[k, 3], `text_hash` of instruction, query, passage of each pair.
      spans: int32[k, 5], of each instructed query before truncation: number of tokens, then first
        token and count of the query and of the instruction (`QueryParts`).
      uncut: int32[...], concatenated token ids of the truncated queries before truncation.
      negatives: None where no pair has any.
    """

    id: str
    tokens: np.ndarray
    lengths: np.ndarray
    hashes: np.ndarray
    spans: np.ndarray
    uncut: np.ndarray
    negatives: TokenisedNegatives | None = None

    def texts(self) -> list[np.ndarray]:
        """Token ids of IQ0, P0, IQ1, P1, ..., int32[length] each."""
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


class TokenisedBatch(NamedTuple):
    """Several tokenised records, decoded at once; fields as of `TokenisedRecord`, [m, ...] each.

    Attributes:
      data: the m records' bytes.
      tokens, uncut: int32[...] of all records, one after another.
      lengths, hashes, spans: of each record.
      negatives: of all records; None where they were not asked for.
      first_records: int64[m + 1], the places in `data` where the records of each one begin, where
        one is of several records with as many pairs; None: each is one.
    """

    data: list[bytes]
    tokens: np.ndarray
    lengths: np.ndarray
    hashes: np.ndarray
    spans: np.ndarray
    uncut: np.ndarray
    negatives: TokenisedNegatives | None = None
    first_records: np.ndarray | None = None

    def record_of(self, number: int, place: int) -> tuple[int, int]:
        """The place in `data` of the record of a pair, and the pair's place in it."""
        if self.first_records is None:
            return number, place
        first, last = self.first_records[number : number + 2].tolist()
        record, inside = divmod(place, self.hashes.shape[1] // (last - first))
        return first + record, inside

    def text_starts(self) -> np.ndarray:
        """int64[m, 2 * k], the first token of each text in `tokens`."""
        ends = np.cumsum(self.lengths.ravel(), dtype=np.int64).reshape(self.lengths.shape)
        return ends - self.lengths


# The features of a record and the arrays that each holds.
_STORED = {
    "tokens": {"tokens": "<i4", "uncut": "<i4"},
    "where": {"lengths": "<i4", "spans": "<i4", "hashes": "<u8"},
}
_NEGATIVES = dict(
    zip(TokenisedNegatives._fields, ("<i4", "<i4", "<i4", "<u8", "<f4", "<f4"), strict=True)
)
_NEGATIVES_KEY = b"\n\x09negatives"  # in a proto's map of features


def part_lengths(spans: np.ndarray) -> np.ndarray:
    """int32[..., 3] from `TokenisedRecord.spans`: tokens of the instructed query before truncation,
    of its query and of its instruction."""
    return spans[..., [0, 2, 4]]


def uncut_tokens(lengths: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """int64[...], tokens that `TokenisedRecord.uncut` has, of its lengths and spans [..., 2 * k]
    and [..., k, 5]."""
    whole = spans[..., 0]
    return np.where(lengths[..., ::2] < whole, whole, 0).sum(-1)


def encode_tokenised(record: TokenisedRecord) -> bytes:
    """The bytes of a tokenised record.

    "where" has one size for all records of k pairs and comes last (maps are serialised in sorted
    order), so that `decode_batch` finds "tokens" and "where" from the record's end.
    """
    proto = TfExample()
    feature = proto.features.feature
    feature["id"].bytes_list.value.append(record.id.encode())
    for name, arrays in _STORED.items():
        for field, dtype in arrays.items():
            values = getattr(record, field).astype(dtype).tobytes()
            feature[name].bytes_list.value.append(values)
    for field, dtype in _NEGATIVES.items() if record.negatives else ():
        values = getattr(record.negatives, field).astype(dtype).tobytes()
        feature["negatives"].bytes_list.value.append(values)
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
    sizes = {name: array.size for name, array in arrays.items()}
    k = max(1, sizes["lengths"] // 2)
    expected = {"lengths": 2 * k, "hashes": 3 * k, "spans": 5 * k}
    expected["tokens"] = int(arrays["lengths"].sum())
    ids = feature["id"].bytes_list.value
    if ids and sizes == sizes | expected:
        spans = arrays["spans"].reshape(k, 5)
        expected["uncut"] = int(uncut_tokens(arrays["lengths"], spans))
    if not ids or sizes != expected:
        raise UserError(
            f"not a tokenised record: sizes {sizes}, expected {expected}; delete the tokenised "
            "directory and tokenise again"
        )
    stored = list(feature["negatives"].bytes_list.value)
    return TokenisedRecord(
        id=ids[0].decode(),
        tokens=arrays["tokens"].astype(np.int32),
        lengths=arrays["lengths"].astype(np.int32),
        hashes=arrays["hashes"].reshape(k, 3),
        spans=spans.astype(np.int32),
        uncut=arrays["uncut"].astype(np.int32),
        negatives=_decode_negatives([stored], k).of_one() if stored else None,
    )


def decode_batch(
    data: list[bytes], pairs_per_example: int, *, negatives: bool = False
) -> TokenisedBatch:
    """Decodes several records of k pairs each, with their negatives or without.

    Those that are not laid out as `encode_tokenised` does (older versions, other writers) are
    decoded by `decode_tokenised`, which takes longer.

    Raises:
      UserError: as of `decode_tokenised`, or a record has another number of pairs.
    """
    k = pairs_per_example
    batch = _decode_from_ends(data, k) or _decode_each(data, k)
    if not negatives:
        return batch
    none = [bytes(4 * k), b"", b"", b"", np.full(k, np.nan, "<f4").tobytes(), b""]
    stored = [_stored_negatives(record) or none for record in data]
    return batch._replace(negatives=_decode_negatives(stored, k))


def _decode_from_ends(data: list[bytes], k: int) -> TokenisedBatch | None:
    """The batch, but for negatives, without parsing protos; None where a record is not laid out as
    `encode_tokenised` does."""
    header, size_of_index, entry = _index_layout(k)
    sizes = np.fromiter(map(len, data), np.int64, len(data))
    if not data or sizes.min() < size_of_index:
        return None
    joined = b"".join(data)
    whole, ends = np.frombuffer(joined, np.uint8), np.cumsum(sizes)
    index_at = ends - size_of_index
    index = np.lib.stride_tricks.sliding_window_view(whole, size_of_index)[index_at]
    if (index[:, : len(header)] != np.frombuffer(header, np.uint8)).any():
        return None
    index = index.view(np.dtype(entry))[:, 0]
    lengths, spans = index["lengths"].astype(np.int32), index["spans"].astype(np.int32)
    size, rest = 4 * lengths.sum(1, dtype=np.int64), 4 * uncut_tokens(lengths, spans)
    if min(size.min(), rest.min()) < 0 or (size + rest > sizes).any():
        return None
    kinds, kind = np.unique(size << 32 | rest, return_inverse=True)
    headers = [feature_headers("tokens", n >> 32, n & 0xFFFFFFFF) for n in kinds.tolist()]
    before, between = (list(each) for each in zip(*headers, strict=True))
    length_of = [np.array([*map(len, each)])[kind] for each in (before, between)]
    middle = index_at - rest - length_of[1]
    start = middle - size
    head = start - length_of[0]
    if (head < ends - sizes).any():
        return None
    for expected, at, count in zip((before, between), (head, middle), length_of, strict=True):
        table = np.frombuffer(b"".join(expected), np.uint8)
        first = np.cumsum([0, *map(len, expected[:-1])])[kind]
        if not np.array_equal(whole[_ranges(at, count)], table[_ranges(first, count)]):
            return None
    cuts = (start, middle), (index_at - rest, index_at)
    tokens, uncut = (np.frombuffer(b"".join(_slices(joined, *cut)), "<i4") for cut in cuts)
    tokens, uncut = (x.astype(np.int32, copy=False) for x in (tokens, uncut))
    return TokenisedBatch(data, tokens, lengths, index["hashes"].astype(np.uint64), spans, uncut)


def _ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """int64[sum(counts)], so many numbers from each start on, one after another."""
    return np.repeat(starts - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())


def _slices(data: bytes, starts: np.ndarray, stops: np.ndarray) -> list[bytes]:
    """data[start:stop] of each that is not empty."""
    some = starts < stops
    pairs = zip(starts[some].tolist(), stops[some].tolist(), strict=True)
    return [data[start:stop] for start, stop in pairs]


def _decode_each(data: list[bytes], k: int) -> TokenisedBatch:
    records = [decode_tokenised(each) for each in data]
    for record in records:
        if len(record.hashes) != k:
            raise UserError(f"a tokenised record of {len(record.hashes)} pairs, expected {k}")
    empty = np.empty(0, np.int32)
    return TokenisedBatch(
        data,
        np.concatenate([empty, *(record.tokens for record in records)]),
        np.array([r.lengths for r in records], np.int32).reshape(-1, 2 * k),
        np.array([r.hashes for r in records], np.uint64).reshape(-1, k, 3),
        np.array([r.spans for r in records], np.int32).reshape(-1, k, 5),
        np.concatenate([empty, *(record.uncut for record in records)]),
    )


def _stored_negatives(data: bytes) -> list[bytes]:
    """The values of a record's feature "negatives"; [] where it has none."""
    if _NEGATIVES_KEY not in data:  # most have none, and parsing takes longer
        return []
    return list(parse_tf_example(data).features.feature["negatives"].bytes_list.value)


def _decode_negatives(stored: list[list[bytes]], k: int) -> TokenisedNegatives:
    """The negatives of m records, of the values of their features "negatives"."""
    damaged = UserError("the negatives of a tokenised record do not fit each other")
    if any(len(values) != len(_NEGATIVES) for values in stored):
        raise damaged
    sizes = np.array([[*map(len, values)] for values in stored]).reshape(-1, len(_NEGATIVES))
    sizes = sizes // [np.dtype(dtype).itemsize for dtype in _NEGATIVES.values()]
    if (sizes[:, [0, 4]] != k).any():
        raise damaged
    values = [
        np.frombuffer(b"".join(each[n] for each in stored), dtype).astype(dtype[1:])
        for n, dtype in enumerate(_NEGATIVES.values())
    ]
    found = TokenisedNegatives(*values)
    found = found._replace(
        counts=found.counts.reshape(-1, k), positive_scores=found.positive_scores.reshape(-1, k)
    )
    count = found.counts.sum(1)
    if found.counts.min(initial=0) < 0 or (sizes[:, [1, 3, 5]] != count[:, None]).any():
        raise damaged
    ends = np.concatenate([[0], np.cumsum(found.lengths, dtype=np.int64)])[np.cumsum(count)]
    if found.lengths.min(initial=0) < 0 or (np.diff(ends, prepend=0) != sizes[:, 2]).any():
        raise damaged
    return found


@functools.lru_cache(maxsize=16)
def _index_layout(k: int) -> tuple[bytes, int, list]:
    """What "where" begins with, its bytes and the fields of its structured array."""
    shapes = {"lengths": (2 * k,), "spans": (k, 5), "hashes": (k, 3)}
    fields = _STORED["where"]
    sizes = [int(np.prod(shapes[name])) * np.dtype(fields[name]).itemsize for name in fields]
    headers = feature_headers("where", *sizes)
    entry = []
    for header, (name, dtype) in zip(headers, fields.items(), strict=True):
        entry += [(f"before {name}", f"S{len(header)}"), (name, dtype, shapes[name])]
    return headers[0], sum(map(len, headers)) + sum(sizes), entry
