"""Tokenised records come back from their bytes, alone and in batches; what is none is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inf_jax.core.errors import UserError
from inf_jax.data.tokenised.records import (
    TokenisedNegatives,
    TokenisedRecord,
    decode_batch,
    decode_tokenised,
    encode_tokenised,
)
from inf_jax.io.tf_example import TfExample


def proto(**features: list) -> bytes:
    example = TfExample()
    for name, values in features.items():
        kind = "bytes_list" if isinstance(values[0], bytes) else "int64_list"
        getattr(example.features.feature[name], kind).value.extend(values)
    return example.SerializeToString()


@given(
    st.lists(st.integers(0, 20), min_size=6, max_size=6),
    st.lists(st.integers(0, 2**64 - 1), min_size=9, max_size=9),
    st.lists(st.integers(0, 5), min_size=3, max_size=3),
    st.randoms(use_true_random=False),
)
def test_tokenised_round_trip(lengths, hashes, cut, random):
    def draw(count):
        return np.array([random.randrange(2**31) for _ in range(count)], np.int32)

    tokens = draw(sum(lengths))
    spans = np.array([random.randrange(20) for _ in range(15)], np.int32).reshape(3, 5)
    spans[:, 0] = np.array(lengths[::2]) + cut
    record = TokenisedRecord(
        "train-ü",
        tokens,
        np.array(lengths, np.int32),
        np.array(hashes, np.uint64).reshape(3, 3),
        spans,
        draw(spans[np.array(cut) > 0, 0].sum()),
    )
    decoded = decode_tokenised(encode_tokenised(record))
    assert decoded.id == record.id
    starts = np.cumsum(record.lengths) - record.lengths
    uncut_starts = np.cumsum(spans[:, 0] * (np.array(cut) > 0))
    for pair in range(3):
        parts, span = decoded.query_parts(pair), spans[pair]
        assert (*parts.query, *parts.instruction) == tuple(span[1:])
        source, start = tokens, starts[2 * pair]
        if cut[pair]:
            source, start = record.uncut, uncut_starts[pair] - span[0]
        assert parts.ids.tolist() == source[start : start + span[0]].tolist()
        assert decoded.texts()[2 * pair].tolist() == (
            tokens[starts[2 * pair] :][: lengths[2 * pair]].tolist()
        )
    for name in ("tokens", "lengths", "hashes", "spans", "uncut"):
        assert getattr(decoded, name).dtype == getattr(record, name).dtype
        np.testing.assert_array_equal(getattr(decoded, name), getattr(record, name))


@pytest.mark.parametrize(
    "change",
    [
        {"lengths": [2, 1, 0, 0, 0]},
        {"lengths": [2, 1, 0, 0, 0, 1]},
        {"tokens": [5, 6]},
        {"hashes": [1] * 8},
        {"spans": [2, 0, 1, 1, 1] + [0] * 9},
        {"spans": [3, 0, 1, 1, 2] + [0] * 10},
        {"uncut": [5, 6]},
    ],
)
def test_inconsistent_tokenised_record(change):
    features = {
        "id": [b"x"],
        "tokens": [5, 6, 7],
        "lengths": [2, 1, 0, 0, 0, 0],
        "hashes": [1] * 9,
        "spans": [2, 0, 1, 1, 1] + [0] * 10,
    }
    assert decode_tokenised(proto(**features)).tokens.tolist() == [5, 6, 7]
    with pytest.raises(UserError, match="not a tokenised record"):
        decode_tokenised(proto(**(features | change)))


def random_records(count: int, seed: int = 0) -> list[TokenisedRecord]:
    """Records with absent pairs, truncated queries and texts of up to thousands of tokens."""
    rng, records = np.random.default_rng(seed), []
    for n in range(count):
        lengths = rng.integers(1, rng.choice([5, 100, 3000]), 6).astype(np.int32)
        lengths *= np.repeat([1, *rng.integers(0, 2, 2)], 2).astype(np.int32)
        spans = np.zeros((3, 5), np.int32)
        spans[:, 0] = lengths[::2] + rng.integers(0, 2, 3) * 40 * (lengths[::2] > 0)
        cut = spans[:, 0] > lengths[::2]
        tokens, uncut = (
            rng.integers(0, 2**31 - 1, size).astype(np.int32)
            for size in (lengths.sum(), spans[cut, 0].sum())
        )
        hashes = rng.integers(0, 2**64, (3, 3), np.uint64)
        records.append(TokenisedRecord("é" * (n % 90), tokens, lengths, hashes, spans, uncut))
    return records


def as_before(record: TokenisedRecord) -> bytes:
    """The bytes of a record as older versions wrote them."""
    arrays = record._replace(hashes=record.hashes.view(np.int64))._asdict()
    del arrays["id"], arrays["negatives"]
    lists = {name: array.ravel().tolist() for name, array in arrays.items()}
    return proto(id=[record.id.encode()], **{name: x for name, x in lists.items() if x})


@pytest.mark.parametrize("old", [[], [3], range(60)])
def test_records_decoded_at_once_are_those_decoded_one_by_one(old, monkeypatch):
    records = random_records(60)
    data = [(as_before if n in old else encode_tokenised)(r) for n, r in enumerate(records)]
    if not old:  # the fast way: no proto is parsed
        monkeypatch.setattr("inf_jax.data.tokenised.records.parse_tf_example", None)
    batch = decode_batch(data, 3)
    monkeypatch.undo()
    for name in ("lengths", "hashes", "spans"):
        expected = np.stack([getattr(record, name) for record in records])
        assert getattr(batch, name).dtype == expected.dtype
        np.testing.assert_array_equal(getattr(batch, name), expected)
    for name in ("tokens", "uncut"):
        expected = np.concatenate([getattr(record, name) for record in records])
        assert getattr(batch, name).dtype == np.int32
        np.testing.assert_array_equal(getattr(batch, name), expected)
    for number, each in enumerate(data):
        for found, expected in zip(decode_tokenised(each), records[number], strict=True):
            np.testing.assert_array_equal(found, expected)
        starts, lengths = batch.text_starts()[number], batch.lengths[number]
        for text, start, length in zip(records[number].texts(), starts, lengths, strict=True):
            np.testing.assert_array_equal(batch.tokens[start : start + length], text)


def test_a_batch_of_other_layouts():
    records = random_records(3)
    assert decode_batch([], 3).lengths.shape == (0, 6)
    unordered = TfExample.FromString(encode_tokenised(records[1]))
    unordered.features.feature["zzz"].int64_list.value.append(1)  # comes after the index
    data = [encode_tokenised(record) for record in records]
    data[1] = unordered.SerializeToString(deterministic=True)
    np.testing.assert_array_equal(decode_batch(data, 3).spans[1], records[1].spans)
    for bad in (b"", b"plain text", data[0][40:]):
        with pytest.raises(UserError):
            decode_batch([*data, bad], 3)


@pytest.mark.parametrize("data", [b"\xff" * 20, b"", b"plain text"])
def test_invalid_bytes(data):
    with pytest.raises(UserError):
        decode_tokenised(data)


def test_tensorflow_reads_it():
    tf = pytest.importorskip("tensorflow")
    record = TokenisedRecord(
        "x",
        np.array([7, 8, 9], np.int32),
        np.array([1, 2, 0, 0, 0, 0], np.int32),
        np.array([[2**64 - 1, 1, 2]] * 3, np.uint64),
        np.array([[1, 0, 1, 1, 0], [2, 0, 1, 1, 1], [0] * 5], np.int32),
        np.array([7, 8], np.int32),
    )
    features = {
        "tokens": tf.io.FixedLenFeature([2], tf.string),
        "where": tf.io.FixedLenFeature([3], tf.string),
    }
    parsed = tf.io.parse_single_example(encode_tokenised(record), features)
    kinds = {"tokens": [tf.int32] * 2, "where": [tf.int32, tf.int32, tf.uint64]}
    tokens, uncut, lengths, spans, hashes = (
        tf.io.decode_raw(value, kind).numpy()
        for name in features
        for value, kind in zip(parsed[name], kinds[name], strict=True)
    )
    assert uncut.tolist() == [7, 8]
    assert tokens.tolist() == [7, 8, 9]
    assert lengths.tolist() == [1, 2, 0, 0, 0, 0]
    assert (spans.reshape(3, 5) == record.spans).all()
    assert (hashes.reshape(3, 3) == record.hashes).all()


def with_negatives(count: int, k: int) -> list[TokenisedRecord]:
    """Records of k pairs; every third has no negatives, some lists are empty, some have scores."""
    rng, records = np.random.default_rng(k), []
    for n in range(count):
        lengths = rng.integers(1, 9, 2 * k).astype(np.int32)
        spans = np.zeros((k, 5), np.int32)
        spans[:, 0] = lengths[::2]
        tokens = rng.integers(0, 99, lengths.sum()).astype(np.int32)
        hashes = rng.integers(0, 2**64, (k, 3), np.uint64)
        record = TokenisedRecord(f"negatives {n}", tokens, lengths, hashes, spans, tokens[:0])
        if n % 3:
            counts = rng.integers(0, 4, k).astype(np.int32)
            sizes = rng.integers(1, 9, counts.sum()).astype(np.int32)
            ids = rng.integers(0, 99, sizes.sum()).astype(np.int32)
            scores = rng.normal(size=k + counts.sum()).astype(np.float32)
            scores[: k * (n % 2)] = np.nan
            texts = rng.integers(0, 2**64, counts.sum(), np.uint64)
            found = TokenisedNegatives(counts, sizes, ids, texts, scores[:k], scores[k:])
            record = record._replace(negatives=found)
        records.append(record)
    return records


@pytest.mark.parametrize("k", [1, 5])
def test_negatives_come_back_alone_and_in_batches(k):
    records = with_negatives(20, k)
    data = [encode_tokenised(record) for record in records]
    batch = decode_batch(data, k, negatives=True)
    np.testing.assert_array_equal(batch.lengths, np.stack([r.lengths for r in records]))
    assert decode_batch(data, k).negatives is None
    found, numbers = batch.negatives, np.cumsum(batch.negatives.counts.sum(1))
    starts = np.cumsum(found.lengths) - found.lengths
    for n, record in enumerate(records):
        alone, expected = decode_tokenised(data[n]).negatives, record.negatives
        if expected is None:
            assert alone is None and not found.counts[n].any()
            assert np.isnan(found.positive_scores[n]).all()
            continue
        for name, array in expected._asdict().items():
            assert getattr(alone, name).dtype == array.dtype
            np.testing.assert_array_equal(getattr(alone, name), array)
        mine = slice(numbers[n] - expected.counts.sum(), numbers[n])
        np.testing.assert_array_equal(found.counts[n], expected.counts)
        np.testing.assert_array_equal(found.positive_scores[n], expected.positive_scores)
        for name in ("lengths", "hashes", "scores"):
            np.testing.assert_array_equal(getattr(found, name)[mine], getattr(expected, name))
        if expected.counts.any():
            first = starts[mine.start]
            tokens = found.tokens[first : first + len(expected.tokens)]
            np.testing.assert_array_equal(tokens, expected.tokens)
    with pytest.raises(UserError, match=f"record of {k} pairs, expected {k + 1}"):
        decode_batch(data, k + 1)


@pytest.mark.parametrize("place", range(6))
def test_negatives_that_do_not_fit_each_other(place):
    record = next(r for r in with_negatives(9, 2) if r.negatives and r.negatives.counts.sum() > 1)
    proto = TfExample.FromString(encode_tokenised(record))
    values = proto.features.feature["negatives"].bytes_list.value
    values[place] = values[place][:-8]
    for decode in (decode_tokenised, lambda data: decode_batch([data], 2, negatives=True)):
        with pytest.raises(UserError, match="negatives of a tokenised record do not fit"):
            decode(proto.SerializeToString(deterministic=True))
