"""Source files of a split: missing, damaged or surplus records are named."""

import dataclasses
import json
import shutil

import pytest
import tokenizers
from transformers import PreTrainedTokenizerFast

from inf_jax.core.errors import UserError
from inf_jax.data.records import Pair, PairExample, encode_example
from inf_jax.data.tokenised.dataset import TokenisedDataset
from inf_jax.data.tokenised.shards import tokenise_batch
from inf_jax.io.tfrecord import CorruptRecordError, Writer
from inf_jax.text.templates import TextConfig
from inf_jax.text.tokenizer import TextTokenizer
from tests.inf_jax.data.small_split import EXAMPLES, make_dataset


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "dataset_info.json").unlink(), "no such file; .*data_pipeline.build"),
        (lambda d: (d / "dataset_info.json").write_text("{"), "not JSON .*data_pipeline.build"),
        (lambda d: (d / "dataset_info.json").write_text("{}"), "not a dataset_info.json"),
        (lambda d: (d / "dataset_info.json").write_text("[1]"), "not a dataset_info.json"),
        (
            lambda d: (d / "inf_ir-train.tfrecord-00001-of-00002").unlink(),
            "cannot read .*00001-of-00002.*build the dataset again",
        ),
    ],
)
def test_missing_source_files_are_named(run, source, damage, message):
    damage(source)
    with pytest.raises(UserError, match=message):
        run()


@pytest.mark.parametrize(
    "change",
    [
        {"shardLengths": ["x"]},
        {"shardLengths": ["-1"]},
        {"filepathTemplate": "{"},
        {"filepathTemplate": "{0}"},
    ],
    ids=str,
)
def test_wrong_values_in_dataset_info(run, source, change):
    path = source / "dataset_info.json"
    info = json.loads(path.read_text())
    info["splits"] = [split | change for split in info["splits"]]
    path.write_text(json.dumps(info))
    with pytest.raises(UserError, match=r"not a dataset_info\.json of TFDS \(.*; build it again"):
        run()


def test_missing_split(run):
    with pytest.raises(UserError, match=r"no split 'test'; it has dev, train"):
        run(split="test")


def test_an_empty_split_and_another_format(tmp_path, source, run):
    shutil.rmtree(source)
    make_dataset(source, {"train": [[], []]})
    with pytest.raises(UserError, match="split 'train' has no examples"):
        run()
    shutil.rmtree(source)
    make_dataset(source, {"train": [EXAMPLES]}, fileFormat="array_record")
    with pytest.raises(UserError, match="'array_record', only tfrecord"):
        run()


def test_a_file_name_template(tmp_path, source, run):
    first = TokenisedDataset(run()).text_lengths
    info = json.loads((source / "dataset_info.json").read_text())
    del info["splits"][0]["filepathTemplate"]  # TFDS leaves it out where it is the default
    (source / "dataset_info.json").write_text(json.dumps(info))
    assert (TokenisedDataset(run()).text_lengths == first).all()
    info["splits"][0]["filepathTemplate"] = "part-{SHARD_INDEX}.{FILEFORMAT}"
    (source / "dataset_info.json").write_text(json.dumps(info))
    for n in range(2):
        old = source / f"inf_ir-train.tfrecord-{n:05d}-of-00002"
        old.rename(source / f"part-{n:05d}.tfrecord")
    assert (TokenisedDataset(run()).text_lengths == first).all()


@pytest.mark.parametrize(("claimed", "record"), [(21, 20), (19, 19)])
def test_a_source_with_another_count(run, source, claimed, record):
    info = json.loads((source / "dataset_info.json").read_text())
    info["splits"][0]["shardLengths"][0] = str(claimed)
    (source / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(CorruptRecordError) as caught:
        run()
    assert caught.value.path.name == "inf_ir-train.tfrecord-00000-of-00002"
    assert caught.value.record == record


def test_a_surplus_record_at_the_very_end(run, source):
    path = source / "inf_ir-train.tfrecord-00001-of-00002"
    with Writer(path) as writer:
        for example in [*EXAMPLES[20:], EXAMPLES[0]]:
            writer.write(encode_example(example))
    with pytest.raises(CorruptRecordError, match="record 30 "):
        run()


def test_a_damaged_source_record(run, source):
    path = source / "inf_ir-train.tfrecord-00001-of-00002"
    data = path.read_bytes()
    position = data.index(b"disease 33")
    path.write_bytes(data[:position] + b"D" + data[position + 1 :])
    with pytest.raises(CorruptRecordError) as caught:
        run()
    assert (caught.value.path, caught.value.record) == (path, 13)
    with Writer(path) as writer:
        for n in range(30):
            writer.write(b"" if n == 5 else encode_example(EXAMPLES[20 + n]))
    with pytest.raises(CorruptRecordError, match=r"record 5 .*missing or unreadable fields"):
        run()


def test_a_text_without_tokens(run, source, tmp_path):
    bare = tokenizers.Tokenizer(tokenizers.models.WordLevel({"it": 0, "?": 1}, "?"))
    bare.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()  # no special tokens
    bare = TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=bare))
    shutil.rmtree(source)
    make_dataset(source, {"train": [[dataclasses.replace(EXAMPLES[7], document_positive=" ")]]})
    with pytest.raises(UserError, match="'train-7': the passage of pair 0, ' ', has no tokens"):
        run(tokenizer=bare)
    example = PairExample("7", (Pair("", "it", "it", ("it", " ")),))
    with pytest.raises(UserError, match=r"'7': the negative 1 of pair 0, .* has no tokens"):
        next(tokenise_batch([example], pairs_per_example=1, tokenizer=bare, text=TextConfig()))
