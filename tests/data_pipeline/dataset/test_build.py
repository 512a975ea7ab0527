"""The TFDS dataset: what it holds, identical bytes, no partial and no stale dataset."""

import dataclasses
import gzip
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

from data_pipeline.build import main
from data_pipeline.dataset.build import build
from data_pipeline.dataset.builder import REPORT_FILE, InfIr
from data_pipeline.quality.rules import evaluation_hashes
from data_pipeline.sources import medquad
from inf_jax.core.errors import UserError
from inf_jax.data.records import FIELDS, decode_example
from inf_jax.io.tfrecord import read_records

ROOT = Path(__file__).parents[3]
SAMPLES = ROOT / "data_pipeline" / "samples" / "medquad"
TINY = Path(__file__).parents[1] / "data" / "inf_ir_tiny.jsonl"


@pytest.fixture(scope="module")
def small_medquad(tmp_path_factory):
    """Some 500 rows of the shipped dev split as train, 30 of them (whole foci) as dev too."""
    with gzip.open(SAMPLES / "dev.jsonl.gz", "rt", encoding="utf-8") as file:
        lines = list(file)
    folder = tmp_path_factory.mktemp("source")
    (folder / "train.jsonl").write_text("".join(lines[:500]), encoding="utf-8")
    (folder / "dev.jsonl").write_text("".join(lines[470:520]), encoding="utf-8")
    return {"path_train": folder / "train.jsonl", "path_dev": folder / "dev.jsonl"}


@pytest.fixture(scope="module")
def built(small_medquad, tmp_path_factory):
    final, written = build("medquad", tmp_path_factory.mktemp("data"), **small_medquad)
    assert written
    return final


def examples_of(final, split):
    [path] = final.glob(f"inf_ir-{split}.tfrecord-*")
    return [decode_example(data) for data in read_records(path)]


def tree(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def flags(inputs):
    return [f"--{name}={path}" for name, path in inputs.items()]


def test_layout_and_metadata(built):
    assert built.parts[-3:] == ("inf_ir", "medquad", "1.0.0")
    assert {p.name for p in built.iterdir()} == {
        "dataset_info.json",
        "features.json",
        "metadata.json",
        "LICENSE",
        REPORT_FILE,
        "inf_ir-dev.tfrecord-00000-of-00001",
        "inf_ir-train.tfrecord-00000-of-00001",
    }
    info = tfds.builder_from_directory(built).info
    report = json.loads((built / REPORT_FILE).read_text())
    assert {s: i.num_examples for s, i in info.splits.items()} == {
        s: r["kept"] for s, r in report.items()
    }
    assert "CC BY 4.0" in (built / "LICENSE").read_text()
    assert "Ben Abacha" in info.citation
    assert info.homepage == "https://github.com/abachaa/MedQuAD"
    assert info.metadata["sources"]["train"][0]["file"] == "train.jsonl"
    assert json.loads((built / "dataset_info.json").read_text())["moduleName"].endswith(".builder")


def test_records_are_the_validated_examples(built, small_medquad):
    report = json.loads((built / REPORT_FILE).read_text())
    dev = examples_of(built, "dev")
    assert {e.id for e in dev} == {e.id for e in medquad.read(small_medquad["path_dev"])}
    source = {e.id: e for e in medquad.read(small_medquad["path_train"])}
    train = examples_of(built, "train")
    assert all(source[e.id] == e for e in train)
    assert [e.id for e in train] != [i for i in source if i in {e.id for e in train}]  # shuffled
    dev_hashes = set().union(*map(evaluation_hashes, dev))
    clean = {i for i, e in source.items() if not evaluation_hashes(e) & dev_hashes}
    assert {e.id for e in train} == clean
    assert report["train"]["dropped"] == len(source) - len(clean) > 0
    assert all(reason.startswith("shared_with_eval:") for reason in report["train"]["reasons"])
    assert report["train"]["rows"] == 500


def test_dev_groups_hold_all_passages_of_a_focus(built):
    groups = defaultdict(set)
    for e in examples_of(built, "dev"):
        groups[e.query_positive].add(e.document_positive)
    assert all(len(passages) >= 2 for passages in groups.values())
    for e in examples_of(built, "dev"):
        assert e.hard_negative_document_1 in groups[e.query_positive]


def test_tfds_features_read_the_records(built):
    info = tfds.builder_from_directory(built).info
    [path] = info.splits["dev"].filepaths
    for data in read_records(path):
        values = info.features.deserialize_example_np(data)
        example = decode_example(data)
        assert {k: v.decode() for k, v in values.items()} == dataclasses.asdict(example)


def test_another_process_writes_the_same_bytes_without_jax(built, small_medquad, tmp_path):
    code = (
        "import sys; from data_pipeline.build import main; main(sys.argv[1:]); "
        "assert not {'tensorflow', 'jax'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code, "--source=medquad", f"--data_dir={tmp_path}"]
    result = subprocess.run(
        [*command, *flags(small_medquad)],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "12345"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert tree(tmp_path / "inf_ir") == tree(built.parents[1])
    assert "rows read" in result.stdout
    assert f"wrote {tmp_path}" in result.stdout


def test_second_run_reuses(built, small_medquad, capsys):
    before = {p: p.stat().st_mtime_ns for p in built.iterdir()}
    inputs = [flag.replace("_", "-", 1) for flag in flags(small_medquad)]
    main(["--source=medquad", f"--data-dir={built.parents[2]}", *inputs])
    assert {p: p.stat().st_mtime_ns for p in built.iterdir()} == before
    out = capsys.readouterr().out
    assert f"reused {built}" in out
    assert "shared_with_eval" in out  # the report of the run that wrote it


@pytest.mark.parametrize("module", ["data_pipeline.builder", "no.such.module"])
def test_dataset_of_another_builder_module_is_reused(built, small_medquad, tmp_path, module):
    """TFDS stores the builder's module, which was data_pipeline.builder before it moved."""
    final = tmp_path / Path(*built.parts[-3:])
    shutil.copytree(built, final)
    info = json.loads((final / "dataset_info.json").read_text())
    assert info["moduleName"] == "data_pipeline.dataset.builder"
    (final / "dataset_info.json").write_text(json.dumps(info | {"moduleName": module}))
    before = tree(final)
    assert build("medquad", tmp_path, **small_medquad) == (final, False)
    assert tree(final) == before
    count = len(examples_of(final, "train"))
    assert tfds.builder_from_directory(final).info.splits["train"].num_examples == count
    builder = InfIr(config="medquad", data_dir=tmp_path)
    assert builder.info.splits["train"].num_examples == count


@pytest.fixture
def tiny(tmp_path):
    """A copy of the tiny InF-IR file and a data_dir; half of the queries held out."""
    copy = tmp_path / "tiny.jsonl"
    copy.write_bytes(TINY.read_bytes())
    arguments = {"path_train": copy, "dev_fraction": 0.5}
    return copy, lambda **more: build("inf_ir", tmp_path / "data", **{**arguments, **more})


def test_held_out_queries(tiny):
    final, _ = tiny[1]()
    train, dev = (examples_of(final, split) for split in ("train", "dev"))
    assert len(train) + len(dev) == 8
    assert not {e.query_positive for e in train} & {e.query_positive for e in dev}
    report = json.loads((final / REPORT_FILE).read_text())
    assert report["train"]["rows"] + report["dev"]["rows"] == 8


@pytest.mark.parametrize("dev_file", [True, False])
def test_held_out_question_types(small_medquad, tmp_path, dev_file):
    types = ["treatment", "symptoms"]
    inputs = small_medquad
    if not dev_file:
        inputs = {"path_train": inputs["path_train"], "dev_fraction": 0.3}
    arguments = inputs | {"options": {"hold_out_types": types}}
    final, _ = build("medquad", tmp_path, **arguments)
    instructions = {}
    for split in ("train", "dev"):
        examples = examples_of(final, split)
        assert len(examples) > 5
        pairs = [(e.instruction_positive, e.instruction_negative) for e in examples]
        instructions[split] = {text for both in pairs for text in both}
    assert not instructions["train"] & instructions["dev"]
    assert "What is it?" in instructions["train"]
    assert instructions["dev"] <= {
        "What are the treatments for it?",
        "What are the symptoms of it?",
    }
    report = json.loads((final / REPORT_FILE).read_text())
    assert report["train"]["dropped_by_source"]["type is held out"] > 100
    assert report["dev"]["dropped_by_source"]["type is not held out"] > 9
    assert build("medquad", tmp_path, **arguments) == (final, False)
    with pytest.raises(UserError, match=r"built with other options: hold_out_types treatment sym"):
        build("medquad", tmp_path, **inputs)
    arguments["options"] = {"hold_out_types": ["treatments"]}
    with pytest.raises(UserError, match=r"no question of type 'treatments'; its types are 'causes"):
        build("medquad", tmp_path, **arguments, overwrite=True)


def test_an_option_that_is_left_out_is_named_not_the_limits_that_follow_from_it(
    small_medquad, tmp_path
):
    build("medquad", tmp_path, **small_medquad, options={"keyword_instructions": True})
    with pytest.raises(UserError, match="other options: keyword_instructions True; now: none;"):
        build("medquad", tmp_path, **small_medquad)


def test_only_medquad_has_question_types(tiny):
    with pytest.raises(UserError, match="--hold-out-types: source 'inf_ir' has no such option"):
        tiny[1](options={"hold_out_types": ["treatment"]})


def test_no_dev_split(tiny):
    final, _ = tiny[1](dev_fraction=0.0)
    assert list(tfds.builder_from_directory(final).info.splits) == ["train"]
    assert len(examples_of(final, "train")) == 8


def test_changed_source_is_not_reused(tiny):
    file, run = tiny
    final, _ = run()
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(
        UserError, match=r"built with other sources: train tiny\.jsonl \(sha256 \w{12}\); now: "
    ):
        run()
    assert len(examples_of(final, "train") + examples_of(final, "dev")) == 8
    assert run(overwrite=True) == (final, True)
    assert len(examples_of(final, "train") + examples_of(final, "dev")) == 7
    assert run() == (final, False)
    with pytest.raises(UserError, match=r"built with other dev_fraction: 0\.5; now: 0\.25"):
        run(dev_fraction=0.25)


def test_failed_overwrite_keeps_the_old_dataset(tiny):
    file, run = tiny
    final, _ = run()
    before = tree(final)
    file.write_text(file.read_text() + "{]\n")
    with pytest.raises(UserError, match=r"tiny\.jsonl:9: not JSON"):
        run(overwrite=True)
    assert tree(final) == before
    assert [p.name for p in final.parent.iterdir() if not p.name.startswith(".")] == ["1.0.0"]


@pytest.mark.parametrize(
    "damage", ["cut", "shard gone", "no info", "bad info", "no metadata", "no report"]
)
def test_damaged_dataset_is_not_reused(tiny, damage):
    final, _ = tiny[1]()
    shard = final / "inf_ir-train.tfrecord-00000-of-00001"
    info = final / "dataset_info.json"
    match damage:
        case "cut":
            shard.write_bytes(shard.read_bytes()[:-1])
        case "shard gone":
            shard.unlink()
        case "no info":
            info.unlink()
        case "bad info":
            info.write_text("{")
        case "no report":
            (final / REPORT_FILE).unlink()
        case "no metadata":
            (final / "metadata.json").unlink()
    with pytest.raises(UserError, match=r"1\.0\.0.*--overwrite"):
        tiny[1]()
    assert tiny[1](overwrite=True) == (final, True)
    assert tiny[1]() == (final, False)


def test_killed_run_leaves_no_dataset(small_medquad, tmp_path):
    code = (
        "import os, signal, sys\n"
        "from data_pipeline.build import main\n"
        "from inf_jax.io import tfrecord\n"
        "write, done = tfrecord.Writer.write, []\n"
        "def write_then_die(self, data):\n"
        "    write(self, data)\n"
        "    done.append(data)\n"
        "    if len(done) == 100: os.kill(os.getpid(), signal.SIGKILL)\n"
        "tfrecord.Writer.write = write_then_die\n"
        "main(sys.argv[1:])\n"
    )
    arguments = ["--source=medquad", f"--data_dir={tmp_path}", *flags(small_medquad)]
    result = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, check=False)
    assert result.returncode == -signal.SIGKILL
    folder = tmp_path / "inf_ir" / "medquad"
    assert not (folder / "1.0.0").exists()
    assert len(list(folder.glob("incomplete.*"))) == 1
    final, written = build("medquad", tmp_path, **small_medquad)
    assert written
    assert sum(r["kept"] for r in json.loads((final / REPORT_FILE).read_text()).values()) > 100
    assert not list(folder.glob("incomplete.*"))


def test_run_that_fails_in_the_middle(tiny, monkeypatch):
    def write(self, data):
        raise UserError("disk full")

    monkeypatch.setattr("inf_jax.io.tfrecord.Writer.write", write)
    with pytest.raises(UserError, match="disk full"):
        tiny[1]()
    monkeypatch.undo()
    assert tiny[1]()[1]


def test_unwritable_data_dir(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file.*; choose another --data-dir"):
        build("medquad", tmp_path / "file")


def test_builder_survives_pickling(tmp_path):
    original = InfIr(config="inf_ir", data_dir=tmp_path, path_train=str(TINY), dev_fraction=0.0)
    copy = pickle.loads(pickle.dumps(original))
    copy.download_and_prepare(download_dir=tmp_path / "downloads")
    assert copy.info.splits["train"].num_examples == 8
    assert set(copy.info.features) == {"id", *FIELDS}


def test_large_split_is_sharded(tmp_path):
    shards = tfds.core.download.DownloadConfig(num_shards=3)
    one = InfIr(config="inf_ir", data_dir=tmp_path, path_train=str(TINY), dev_fraction=0.0)
    one.download_and_prepare(download_dir=tmp_path / "downloads", download_config=shards)
    paths = [Path(p) for p in one.info.splits["train"].filepaths]
    assert [p.name[-14:] for p in paths] == [f"0000{i}-of-00003" for i in range(3)]
    records = [decode_example(data) for path in paths for data in read_records(path)]
    assert len(records) == 8
