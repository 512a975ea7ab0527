"""Apache Beam makes what one process makes, byte for byte, however the work is cut up."""

import dataclasses
import functools
import gzip
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

from data_pipeline.dataset.build import build
from data_pipeline.dataset.builder import REPORT_FILE, InfIr
from data_pipeline.dataset.inputs import INF_IR
from data_pipeline.quality.rules import Limits
from inf_jax.config import ReadLog, defaults
from inf_jax.core.errors import UserError
from inf_jax.data.from_config import text_config, tokenised_split
from inf_jax.data.records import decode_example
from inf_jax.data.tokenise import tokenise
from inf_jax.io.tfrecord import read_records
from inf_jax.models.hf.backbone import load_model

pytest.importorskip("apache_beam", reason="Apache Beam is an extra: pip install -e '.[beam]'")

from data_pipeline import beam_build, beam_tokenise
from data_pipeline.dataset import beam_runner, beam_steps, slices

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "data_pipeline" / "samples" / "medquad"
ALIKE = "Tell me all that is known about it today, and who found it out: number {}."
THREADS = ["--direct_running_mode=multi_threading", "--direct_num_workers=3"]
WORDS = [f"{a}{b}" for a in "bdfgklmnprstvz" for b in ("ado", "ire", "opu", "ulen", "esta")]


def direct(*options):
    return beam_runner.make_config("DirectRunner", options)


def tree(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def row(n, **changes):
    """Row n of a made corpus; two rows share a query."""
    draw = random.Random(n)

    def text(count):
        return " ".join(draw.choices(WORDS, k=count))

    fields = {
        "query_positive": f"topic {n // 2}",
        "instruction_positive": f"Tell of {text(2)}.",
        "document_positive": text(30),
        "instruction_negative": f"Speak of {text(2)}.",
        "hard_negative_document_1": text(20),
        "query_negative": f"another topic {n}" if n % 3 else None,
        "hard_negative_document_2": text(20) if n % 3 else None,
    }
    return fields | changes


def corpus():
    """Rows that break every kind of rule, and duplicates before and after what they repeat."""
    rows = [row(n) for n in range(60)]
    rows += [{**row(n), "document_positive": row(100 + n)["document_positive"]} for n in range(5)]
    rows.insert(0, {**row(7), "document_positive": "short"})  # unsound: its repetition stays
    rows += [row(70, instruction_positive=""), row(71, query_negative="alone" * 3)]
    rows += [{**row(72), "document_positive": row(9)["document_positive"]}]  # a passage twice
    rows += [{**row(73), "query_positive": row(72)["query_positive"]}]
    near = (row(80)["document_positive"] + " " + row(81)["document_positive"]).split()
    for n, changed in enumerate((1, 2, 3)):  # a chain, each further from the first
        near[9 * n] = f"changed{changed}"
        rows += [row(80, document_positive=" ".join(near), instruction_positive=ALIKE.format(n))]
    return rows


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The corpus as a directory of three files."""
    folder = tmp_path_factory.mktemp("corpus")
    lines = [json.dumps(r) + "\n" for r in corpus()]
    (folder / "a.jsonl").write_text("".join(lines[:40]))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress("".join(lines[40:50]).encode()))
    own = [json.dumps(r | {"id": f"own-{n}"}) + "\n" for n, r in enumerate(corpus()[50:])]
    (folder / "c.jsonl").write_text("".join(own))
    return folder


@pytest.fixture
def fine(monkeypatch):
    """Slices of a few rows."""
    small = functools.partial(slices.slices, size=2000)
    monkeypatch.setattr(beam_steps, "slices", small)


@pytest.mark.parametrize(("options", "dev_fraction"), [([], 0.0), (THREADS, 0.3)])
def test_same_bytes_as_in_process(source, fine, tmp_path, options, dev_fraction):
    arguments = {"path_train": source, "dev_fraction": dev_fraction, "near_duplicates": 0.7}
    one, _ = build("factory", tmp_path / "one", **arguments)
    many, written = build("factory", tmp_path / "many", **arguments, beam=direct(*options))
    assert written
    assert tree(many) == tree(one)
    report = json.loads((many / REPORT_FILE).read_text())
    assert sum(split["rows"] for split in report.values()) == len(corpus())
    reasons = set().union(*(split["reasons"] for split in report.values()))
    assert {"duplicate_query", "near_duplicate", "empty:instruction_positive"} <= reasons
    assert build("factory", tmp_path / "many", **arguments) == (many, False)  # one as the other


def test_repeated_documents(source, fine, tmp_path):
    config = dataclasses.replace(INF_IR, name="once", limits=Limits(repeated_documents=False))
    arguments = {"path_train": source, "dev_fraction": 0.0}
    one, _ = build(config, tmp_path / "one", **arguments)
    many, _ = build(config, tmp_path / "many", **arguments, beam=direct())
    assert tree(many) == tree(one)
    report = json.loads((many / REPORT_FILE).read_text())
    assert report["train"]["reasons"]["duplicate_document"] == 1


def test_near_duplicates_by_hand(tmp_path):
    """A chain: the second is near the first, the third near the second; the first alone stays."""
    words = row(1)["document_positive"].split() * 2
    chain = []
    for n in range(3):
        chain.append(
            row(1, document_positive=" ".join(words), instruction_positive=ALIKE.format(n))
        )
        words[7 * n + 7] = "other"
    # the same query, nearly, of another passage: no near duplicate
    other = row(1, document_positive=row(3)["document_positive"])
    other["instruction_positive"] = ALIKE.format(3)
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in [*chain, other, row(2)]))
    for name, beam in (("one", None), ("many", direct())):
        final, _ = build(
            "inf_ir",
            tmp_path / name,
            path_train=path,
            dev_fraction=0.0,
            near_duplicates=0.6,
            beam=beam,
        )
        [shard] = final.glob("inf_ir-train.tfrecord-*")
        kept = {decode_example(data).id for data in read_records(shard)}
        assert kept == {"a.jsonl:1", "a.jsonl:4", "a.jsonl:5"}


def test_medquad_with_a_dev_file(tmp_path):
    """A source whose reader must see all rows, and texts shared with the evaluation."""
    with gzip.open(SAMPLES / "dev.jsonl.gz", "rt", encoding="utf-8") as file:
        lines = list(file)
    (tmp_path / "train.jsonl").write_text("".join(lines[:200]), encoding="utf-8")
    (tmp_path / "dev.jsonl").write_text("".join(lines[170:220]), encoding="utf-8")
    paths = {"path_train": tmp_path / "train.jsonl", "path_dev": tmp_path / "dev.jsonl"}
    one, _ = build("medquad", tmp_path / "one", **paths)
    many, _ = build("medquad", tmp_path / "many", **paths, beam=direct())
    assert tree(many) == tree(one)
    report = json.loads((many / REPORT_FILE).read_text())["train"]
    assert report["dropped_by_source"]
    assert all(reason.startswith("shared_with_eval:") for reason in report["reasons"])


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([row(1), "{]"], r"a\.jsonl:2: malformed JSON"),
        ([row(1), row(2) | {"query_positive": 7}], r"a\.jsonl:2: field 'query_positive' holds int"),
        ([row(n) | {"id": "x"} for n in (1, 2)], r"a\.jsonl:2: an earlier row has the id 'x' too"),
        (
            [row(1, document_positive=""), row(2, document_positive="")],
            "split 'train' of source 'factory' is empty: 2 rows read, dropped: 2 for 'empty:docu",
        ),
        ([], "split 'train' of source 'factory' is empty: 0 rows read; give other files"),
    ],
)
def test_bad_input_leaves_nothing(tmp_path, lines, message):
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(text + "\n" for text in texts))
    arguments = {"path_train": path, "dev_fraction": 0.0}
    with pytest.raises(UserError, match=message) as one:
        build("factory", tmp_path / "one", **arguments)
    with pytest.raises(UserError, match=message) as many:
        build("factory", tmp_path / "many", **arguments, beam=direct())
    assert str(many.value) == str(one.value)
    assert [p.name for p in (tmp_path / "many/inf_ir/factory").iterdir()] == [".1.0.0.lock"]


def test_failed_overwrite_keeps_the_old_dataset(source, tmp_path, monkeypatch):
    final, _ = build("factory", tmp_path, path_train=source, dev_fraction=0.0)
    before = tree(final)

    def write(self, data):
        raise UserError("disk full")

    monkeypatch.setattr("inf_jax.io.tfrecord.Writer.write", write)
    with pytest.raises(UserError, match="disk full"):
        build(
            "factory", tmp_path, path_train=source, dev_fraction=0.0, overwrite=True, beam=direct()
        )
    assert tree(final) == before
    assert [p.name for p in final.parent.iterdir() if not p.name.startswith(".")] == ["1.0.0"]


def test_tfds_builder_accepts_beam(source, tmp_path):
    """TFDS's own way to use it, with shards of which there are several."""
    config = direct()
    config.num_shards = 3
    builder = InfIr(
        config="factory", data_dir=tmp_path, path_train=source, dev_fraction=0.0, beam=True
    )
    builder.download_and_prepare(download_dir=tmp_path / "downloads", download_config=config)
    info = tfds.builder_from_directory(builder.data_dir).info
    assert len(info.splits["train"].filepaths) == 3
    examples = [
        decode_example(data)
        for path in info.splits["train"].filepaths
        for data in read_records(path)
    ]
    alone, _ = build("factory", tmp_path / "one", path_train=source, dev_fraction=0.0)
    [shard] = alone.glob("inf_ir-train.tfrecord-*")
    assert examples == [decode_example(data) for data in read_records(shard)]  # in order, too


@pytest.fixture(scope="module")
def run(source, tmp_path_factory):
    """A run's config on a dataset of three text shards."""
    data = tmp_path_factory.mktemp("data")
    builder = InfIr(config="factory", data_dir=data, path_train=source, dev_fraction=0.0)
    builder.download_and_prepare(
        download_dir=data / "downloads",
        download_config=tfds.download.DownloadConfig(num_shards=3),
    )
    config = defaults()
    config.data.dir, config.data.source = str(data), "factory"
    return config


@pytest.fixture(scope="module")
def tokens(run, tmp_path_factory):
    """What one process makes of it."""
    config = ReadLog(run)
    return tokenise(
        Path(run.data.dir, "inf_ir", "factory", "1.0.0"),
        "train",
        tokenizer=load_model(config).tokenizer,
        text=text_config(config),
        out_dir=tmp_path_factory.mktemp("tokens"),
        progress=False,
        examples_per_shard=7,
    )


def test_tokenised_bytes(run, tokens, tmp_path):
    run = run.copy_and_resolve_references()
    data = tmp_path / "data"
    data.mkdir()
    (data / "inf_ir").symlink_to(Path(run.data.dir, "inf_ir"))
    run.data.dir = str(data)

    def call():
        return beam_tokenise.tokenise(ReadLog(run), direct(*THREADS), examples_per_shard=7)

    directory = call()
    assert directory.name == tokens.name
    assert tree(directory) == tree(tokens)
    assert len(list(directory.glob("*.tfrecord"))) > 5

    # killed: a shard without its index, no manifest; the others are not written again
    (directory / "manifest.json").unlink()
    index = sorted(directory.glob("*.index.npz"))[2]
    index.unlink()
    before = {path: path.stat().st_mtime_ns for path in directory.iterdir()}
    assert call() == directory
    assert tree(directory) == tree(tokens)
    after = {path: path.stat().st_mtime_ns for path in directory.iterdir()}
    again = {path.name for path in after if after[path] != before.get(path)}
    assert again == {"manifest.json", index.name, index.name.removesuffix(".index.npz")}


def test_tokenising_by_processes(run):
    """The command as a user gives it; training then finds all done."""
    command = [sys.executable, "-m", "data_pipeline.beam_tokenise"]
    command += ["--config=configs/medquad_minilm.py", "--config.data.source=factory"]
    command += [f"--config.data.dir={run.data.dir}", "--direct_running_mode=multi_processing"]
    result = subprocess.run(
        [*command, "--direct_num_workers=2"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    directory = Path(result.stdout.splitlines()[-1].removeprefix("tokenised records: "))
    before = {path: path.stat().st_mtime_ns for path in directory.iterdir()}
    config = ReadLog(run)
    dataset = tokenised_split(config, load_model(config).tokenizer, "train")
    assert dataset.directory == directory
    assert {path: path.stat().st_mtime_ns for path in directory.iterdir()} == before


def test_damaged_text_shard(run, tmp_path):
    run = run.copy_and_resolve_references()
    final = tmp_path / "inf_ir" / "factory" / "1.0.0"
    final.mkdir(parents=True)
    for path in Path(run.data.dir, "inf_ir", "factory", "1.0.0").iterdir():
        (final / path.name).write_bytes(path.read_bytes())
    run.data.dir = str(tmp_path)
    shard = sorted(final.glob("*-train.tfrecord-*"))[1]
    data = bytearray(shard.read_bytes())
    data[-10] ^= 1
    shard.write_bytes(data)
    with pytest.raises(UserError, match=rf"^{shard}: record \d+ .*checksum of its data is wrong"):
        beam_tokenise.tokenise(ReadLog(run), direct())
    assert not list((tmp_path / "tokenised").rglob("manifest.json"))


def test_main(source, tmp_path, capsys):
    beam_build.main(
        ["--source=factory", f"--path_train={source}", f"--data_dir={tmp_path}", "--dev_fraction=0"]
    )
    assert f"wrote {tmp_path}/inf_ir/factory/1.0.0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("main", "flags", "message"),
    [
        (
            beam_build.main,
            ["--source=factory", "--data_dir=gs://bucket/data"],
            "--data-dir=gs://bucket/data: URLs are not supported; give a directory that all",
        ),
        (
            beam_build.main,
            ["--source=factory", "--data_dir=x", "--runner=NoSuchRunner"],
            "--runner=NoSuchRunner: Unexpected pipeline runner",
        ),
        (
            beam_tokenise.main,
            ["--config=configs/medquad_minilm.py", "--config.data.dir=gs://bucket/data"],
            "config: data.dir='gs://bucket/data': records are read from a local disk",
        ),
    ],
)
def test_main_says_what_is_wrong(main, flags, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(flags)
    assert stop.value.code == 1
    assert capsys.readouterr().err.startswith(f"error: {message}")
