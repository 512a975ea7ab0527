"""Reading tokenised examples: by number, from the index alone, damage named."""

import contextlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from inf_jax.core.errors import UserError
from inf_jax.data.records import encode_example, text_hash
from inf_jax.data.tokenised.dataset import TokenisedDataset
from inf_jax.data.tokenised.records import encode_tokenised
from inf_jax.data.tokenised.sidecars import Sidecar, index_path, load_sidecar, write_sidecar
from inf_jax.io.tfrecord import CorruptRecordError, Index, Writer
from inf_jax.text.templates import TextConfig
from tests.inf_jax.data.small_split import EXAMPLES, contents


def test_parts_lengths_and_hashes_are_known_without_records(run, tokenizer):
    dataset = TokenisedDataset(run())
    assert (dataset.part_lengths.dtype, dataset.part_lengths.shape) == (np.int32, (50, 3, 3))
    assert dataset.instruction_hashes.dtype == np.uint64
    assert [ids.tolist() for ids in dataset.special] == [[101], [102]]
    assert dataset.max_query_tokens == 16
    for n, record in enumerate(dataset.read(range(50))):
        example = EXAMPLES[n]
        for pair, (query, instruction) in enumerate(
            [
                (example.query_positive, example.instruction_positive),
                (example.query_positive, example.instruction_negative),
                (example.query_negative, example.instruction_positive),
            ]
        ):
            if not record.lengths[2 * pair]:
                assert not dataset.part_lengths[n, pair].any()
                assert dataset.instruction_hashes[n, pair] == 0
                continue
            assert dataset.instruction_hashes[n, pair] == text_hash(instruction)
            parts = record.query_parts(pair)
            bare = [ids[1:-1] for ids in tokenizer.passages([query, instruction], TextConfig())]
            np.testing.assert_array_equal(parts.ids_of("query"), bare[0])
            np.testing.assert_array_equal(parts.ids_of("instruction"), bare[1])
            lengths = [len(parts.ids), len(bare[0]), len(bare[1])]
            assert dataset.part_lengths[n, pair].tolist() == lengths


def test_read(run):
    dataset = TokenisedDataset(run())
    assert dataset.read([]) == []
    ids = [record.id for record in dataset.read(np.array([49, 0, 0, 8]))]
    assert ids == ["train-49", "train-0", "train-0", "train-8"]
    for bad in ([50], [3, -1]):
        with pytest.raises(IndexError, match=f"50 examples, not number {bad[-1]}"):
            dataset.read(bad)
    copy = pickle.loads(pickle.dumps(dataset))
    assert [record.id for record in copy.read([49])] == ["train-49"]


def test_a_damaged_record_is_named(run):
    directory = run()
    path = directory / "tokens-00002-of-00007.tfrecord"
    data = path.read_bytes()
    position = data.index(b"train-19")
    path.write_bytes(data[:position] + b"T" + data[position + 1 :])
    dataset = TokenisedDataset(directory)
    assert len(dataset.read([18, 20])) == 2
    with pytest.raises(CorruptRecordError) as caught:
        dataset.read([18, 19])
    assert (caught.value.path, caught.value.record) == (path, 3)


def rewrite(
    directory: Path, shard: str, records: list[bytes], examples: slice, **changes: np.ndarray
):
    """Replaces a shard by records whose checksums and index are right."""
    dataset = TokenisedDataset(directory)
    names = ("text_lengths", "part_lengths", "instruction_hashes")
    sidecar = {name: getattr(dataset, name)[examples] for name in names} | changes
    with Writer(directory / shard) as writer:
        for record in records:
            writer.write(record)
    index = writer.index
    np.savez(
        directory / f"{shard}.index.npz",
        offsets=index.offsets,
        lengths=index.lengths,
        crcs=index.crcs,
        **sidecar,
    )


def test_text_lengths_other_than_the_index_says(run):
    directory = run()
    dataset = TokenisedDataset(directory)
    records = [encode_tokenised(record) for record in dataset.read(range(8, 16))]
    lengths = dataset.text_lengths[8:16].copy()
    lengths[6, 2:4] = lengths[6, 3], lengths[6, 2]
    shard, examples = "tokens-00001-of-00007.tfrecord", slice(8, 16)
    rewrite(directory, shard, records, examples, text_lengths=lengths)
    dataset = TokenisedDataset(directory)
    assert len(dataset.read([13, 15])) == 2
    with pytest.raises(CorruptRecordError, match="text lengths") as caught:
        dataset.read([0, 13, 14])
    assert (caught.value.path.name, caught.value.record) == ("tokens-00001-of-00007.tfrecord", 6)
    for name, place in (("part_lengths", (3, 1, 2)), ("instruction_hashes", (3, 1))):
        array = getattr(dataset, name)[examples].copy()
        array[place] += 1
        rewrite(directory, shard, records, examples, **{name: array})
        with pytest.raises(CorruptRecordError, match=name.replace("_", " ")) as caught:
            TokenisedDataset(directory).read([10, 11])
        assert caught.value.record == 3
        rewrite(directory, shard, records, examples, **{name: getattr(dataset, name)[examples]})
    records[2] = encode_example(EXAMPLES[10])
    rewrite(directory, shard, records, examples)
    with pytest.raises(CorruptRecordError, match=r"record 2 .*not a tokenised record"):
        TokenisedDataset(directory).read([10])


def test_counts_that_disagree(run):
    directory = run()
    whole = contents(directory)
    dataset = TokenisedDataset(directory)
    records = [encode_tokenised(record) for record in dataset.read(range(8, 15))]
    rewrite(directory, "tokens-00001-of-00007.tfrecord", records, slice(8, 15))
    with pytest.raises(UserError, match=r"has 7 records, manifest.json says 8"):
        TokenisedDataset(directory)
    run()
    assert contents(directory) == whole


def test_a_truncated_shard_is_detected_on_opening(run):
    path = run() / "tokens-00006-of-00007.tfrecord"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptRecordError) as caught:
        TokenisedDataset(path.parent)
    assert (caught.value.path, caught.value.record) == (path, 1)


def test_every_damage_of_an_index_is_detected(run):
    directory = run()
    path = directory / "tokens-00006-of-00007.tfrecord.index.npz"
    whole = path.read_bytes()
    records = [encode_tokenised(r) for r in TokenisedDataset(directory).read(range(48, 50))]
    caught = 0
    for position in range(0, len(whole), 3):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        try:
            dataset = TokenisedDataset(directory)
        except UserError as error:
            caught += 1
            assert str(path.parent) in str(error)
            continue  # else the flip was in a part of the zip file that nobody reads
        assert [encode_tokenised(r) for r in dataset.read(range(48, 50))] == records
    assert caught > 200


def test_damage_in_the_headers_of_a_large_index_is_named(tmp_path):
    """numpy parses an array's header before zipfile has read all of a large file and its sum."""
    shard, n = tmp_path / "tokens", 1999
    rows = [np.ones((n, *shape), np.int32) for shape in ((2,), (1, 3), (1,))]
    write_sidecar(shard, Sidecar(Index(*np.ones((3, n), np.int64)), *rows))
    path = index_path(shard)
    whole = path.read_bytes()
    header = whole.index(b"\x93NUMPY", whole.index(b"part_lengths"))
    for place in range(header, header + 128):
        for bit in (4, 16, 64):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
            with contextlib.suppress(UserError):  # no other error; some flips mean nothing
                load_sidecar(shard)
    path.write_bytes(whole.replace(b"(1999, 1, 3)", b"(1999, 1, #)"))
    with pytest.raises(UserError, match=r"tokens.index.npz is damaged .*; delete it"):
        load_sidecar(shard)


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("{", "not JSON .*tokenise the split again"),
        ("{}", "not a manifest .*delete it"),
        ("[]", "not a manifest .*delete it"),
        (
            '{"recipe": {"schema": 0}}',
            "has schema 0, this version reads .*; delete it and tokenise",
        ),
    ],
)
def test_a_bad_manifest(run, manifest, message):
    directory = run()
    (directory / "manifest.json").write_text(manifest)
    with pytest.raises(UserError, match=message):
        TokenisedDataset(directory)


def test_a_manifest_with_wrong_values(run):
    directory = run()
    path = directory / "manifest.json"
    whole = json.loads(path.read_text())
    for name, values in {
        "special_tokens": [[["a"], []], [[1]], [], [[10**30], []]],
        "shards": [[], [{"file": 5, "examples": 8}], [{"file": None, "examples": 8}], 5],
    }.items():
        for value in values:
            path.write_text(json.dumps(whole | {name: value}))
            with pytest.raises(UserError, match=r"is not a manifest \(.*; delete it"):
                TokenisedDataset(directory)


def test_no_manifest(tmp_path):
    with pytest.raises(UserError, match=r"manifest.json: no such file; tokenise the split again"):
        TokenisedDataset(tmp_path / "missing")
