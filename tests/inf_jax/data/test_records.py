"""Examples and tokenised records come back from their bytes; what is no record is refused."""

import dataclasses
import hashlib
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inf_jax.core.errors import UserError
from inf_jax.data import records
from inf_jax.data.records import (
    FIELDS,
    Example,
    Pair,
    PairExample,
    decode_example,
    encode_example,
    most_pairs,
    pairs,
    text_hash,
)
from inf_jax.io.tf_example import TfExample
from inf_jax.io.tfrecord import CorruptRecordError, Writer

EXAMPLE = Example("train-1", "q+", "i+", "p+", "i-", "p1", "q-", "p2")


def proto(**features: list) -> bytes:
    example = TfExample()
    for name, values in features.items():
        kind = "bytes_list" if isinstance(values[0], bytes) else "int64_list"
        getattr(example.features.feature[name], kind).value.extend(values)
    return example.SerializeToString()


@given(st.lists(st.text(max_size=30), min_size=8, max_size=8))
def test_example_round_trip(values):
    example = Example(*values)
    assert decode_example(encode_example(example)) == example
    assert encode_example(example) == encode_example(Example(*values))


def test_pairs():
    assert pairs(EXAMPLE) == (
        Pair("i+", "q+", "p+"),
        Pair("i-", "q+", "p1"),
        Pair("i+", "q-", "p2"),
    )
    for absent in ("instruction_negative", "hard_negative_document_1"):
        assert pairs(dataclasses.replace(EXAMPLE, **{absent: ""}))[1] is None
    for absent in ("query_negative", "hard_negative_document_2"):
        assert pairs(dataclasses.replace(EXAMPLE, **{absent: ""}))[2] is None


TEXT = st.text(max_size=12)
PAIR = st.builds(
    Pair,
    *(TEXT, TEXT, st.text(min_size=1, max_size=12)),
    st.lists(TEXT, max_size=3).map(tuple),
    st.lists(st.floats(width=32, allow_nan=False), max_size=3).map(tuple),
)


@given(TEXT, st.lists(st.none() | PAIR, min_size=1, max_size=4).map(tuple))
def test_pair_example_round_trip(id, group):
    example = PairExample(id, group)
    assert pairs(example) == group
    assert decode_example(encode_example(example)) == example


def test_the_most_pairs_of_an_example_without_their_texts(tmp_path, monkeypatch):
    """Of InF-IR's records by the first one; what is no record is named with its file and number."""
    plain = [PairExample(f"{n}", (Pair("", "q", "p"), None)[: n + 1]) for n in (0, 1, 0)]
    files = {
        "plain": [encode_example(each) for each in plain],
        "inf_ir": [encode_example(EXAMPLE), b"\xff" * 9],
        "bad": [encode_example(plain[0]), b"\xff" * 9],
        "old": [encode_example(plain[0]), proto(id=[b"1"])],
    }
    for name, contents in files.items():
        with Writer(tmp_path / name) as writer:
            for data in contents:
                writer.write(data)
    with monkeypatch.context() as patch:
        patch.setattr(records, "take_pairs", None)
        assert most_pairs([(tmp_path / "plain", 3)]) == 2
    assert most_pairs([(tmp_path / "plain", 3), (tmp_path / "inf_ir", 2)]) == 3
    for name in ("bad", "old"):
        with pytest.raises(
            CorruptRecordError, match=rf"{name}: record 1.*(text record|tf\.train\.Example)"
        ):
            most_pairs([(tmp_path / name, 2)])


@pytest.mark.parametrize(
    "name, found",
    [
        ("id", "missing or unreadable fields .*id"),
        ("pairs/passage", "unequal numbers"),
        ("pairs/negatives/ragged_row_lengths_0", "2 values, expected 0"),
        ("pairs/negatives/ragged_flat_values", "0 values, expected 2"),
        ("pairs/scores/ragged_row_lengths_0", "unequal numbers"),
    ],
)
def test_a_missing_feature_of_pairs_is_named(name, found):
    whole = PairExample("1", (Pair("", "q", "p", ("n1", "n2")),))
    data = TfExample.FromString(encode_example(whole))
    del data.features.feature[name]
    with pytest.raises(UserError, match=found):
        decode_example(data.SerializeToString())


def test_text_hash_is_pinned_and_ignores_white_space():
    digest = hashlib.blake2b("résumé of it".encode(), digest_size=8).digest()
    assert text_hash("résumé of it") == int.from_bytes(digest, "little")
    assert text_hash("abc") == 0x5995D533D814BBD8  # stored in files: it may never change
    assert text_hash(" résumé\n\tof  it ") == text_hash("résumé of it")
    assert text_hash("resume of it") != text_hash("résumé of it")


def test_text_hash_is_that_of_the_composed_text():
    decomposed = unicodedata.normalize("NFD", "résumé of it")
    assert decomposed != "résumé of it"
    assert text_hash(decomposed) == text_hash("résumé of it")
    assert text_hash("ΐ") == text_hash("ΐ", compose=False)
    assert text_hash(decomposed, compose=False) != text_hash("résumé of it")


@pytest.mark.parametrize("field", ["id", *FIELDS])
def test_a_missing_field_is_named(field):
    features = {n: [getattr(EXAMPLE, n).encode()] for n in ("id", *FIELDS) if n != field}
    with pytest.raises(UserError, match=field):
        decode_example(proto(**features))


def test_a_field_that_is_not_utf8():
    features = {n: [b"\xff"] for n in ("id", *FIELDS)}
    with pytest.raises(UserError, match="unreadable"):
        decode_example(proto(**features))


@pytest.mark.parametrize("data", [b"\xff" * 20, b"", b"plain text"])
def test_invalid_bytes(data):
    with pytest.raises(UserError):
        decode_example(data)


def test_tensorflow_reads_it():
    tf = pytest.importorskip("tensorflow")
    strings = {name: tf.io.FixedLenFeature([], tf.string) for name in ("id", *FIELDS)}
    example = dataclasses.replace(EXAMPLE, query_negative="Größe")
    parsed = tf.io.parse_single_example(encode_example(example), strings)
    assert {name: value.numpy().decode() for name, value in parsed.items()} == (
        dataclasses.asdict(example)
    )
