"""Tokenising a split: the right records, reused when finished, continued after a kill."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from inf_jax.core.errors import UserError
from inf_jax.data.records import text_hash
from inf_jax.data.tokenised.dataset import TokenisedDataset
from inf_jax.data.tokenised.records import encode_tokenised
from inf_jax.text.tokenizer import load_tokenizer
from tests.inf_jax.data.small_split import EXAMPLES, MINILM, TEXT, contents, make_dataset

ROOT = Path(__file__).parents[3]  # where the child finds inf_jax


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
            "pair_hashes",
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


def test_finished_splits_are_reused(run, capsys):
    first = run()
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in first.iterdir()}
    assert run() == first
    assert "50 examples are tokenised already, reusing" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in first.iterdir()} == before


def test_the_hash_covers_all_inputs(run, source, tmp_path):
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


def test_missing_or_truncated_shards_are_written_again(run, capsys):
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
from inf_jax.text.templates import TextConfig
from inf_jax.text.tokenizer import load_tokenizer
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


def test_a_full_disk_names_the_file(run, tmp_path):
    (tmp_path / "tokens").write_text("a file where the directory should be")
    with pytest.raises(UserError, match=r"cannot write .*tokens-00000-of-00007.tfrecord"):
        run()
