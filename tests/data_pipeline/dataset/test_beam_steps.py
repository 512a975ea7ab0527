"""Apache Beam writes the same bytes as one process, however the work is split."""

import dataclasses
import functools
import gzip
import json
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

from data_pipeline.dataset.build import build
from data_pipeline.dataset.builder import REPORT_FILE, InfIr
from data_pipeline.dataset.inputs import INF_IR
from data_pipeline.quality.rules import Limits
from inf_jax.core.errors import UserError
from inf_jax.data.records import decode_example
from inf_jax.io.tfrecord import read_records

pytest.importorskip("apache_beam", reason="Apache Beam is an extra: pip install -e '.[beam]'")

from data_pipeline.dataset import beam_steps, slices
from tests.data_pipeline.beam_corpus import ALIKE, THREADS, corpus, direct, row, tree, write_corpus

ROOT = Path(__file__).parents[3]
SAMPLES = ROOT / "data_pipeline" / "samples" / "medquad"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


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
    assert sum(split["rows"] - 2 for split in report.values()) == len(corpus())
    assert all(split["dropped_by_source"] == {"repeated row": 2} for split in report.values())
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
    """Of a chain of neighbouring near duplicates only the first is kept."""
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


@pytest.mark.parametrize(
    "options", [{}, {"hold_out_types": ["treatment", "symptoms"], "keyword_instructions": True}]
)
def test_medquad_with_a_dev_file(tmp_path, options):
    """A source whose reader needs all rows, with texts shared with the dev split."""
    with gzip.open(SAMPLES / "dev.jsonl.gz", "rt", encoding="utf-8") as file:
        lines = list(file)
    (tmp_path / "train.jsonl").write_text("".join(lines[:200]), encoding="utf-8")
    (tmp_path / "dev.jsonl").write_text("".join(lines[170:220]), encoding="utf-8")
    paths = {"path_train": tmp_path / "train.jsonl", "path_dev": tmp_path / "dev.jsonl"}
    one, _ = build("medquad", tmp_path / "one", **paths, options=options)
    many, _ = build("medquad", tmp_path / "many", **paths, options=options, beam=direct())
    assert tree(many) == tree(one)
    report = json.loads((many / REPORT_FILE).read_text())["train"]
    assert report["dropped_by_source"]
    assert options or report["reasons"]
    assert all(reason.startswith("shared_with_eval:") for reason in report["reasons"])


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([row(1), "{]"], r"a\.jsonl:2: not JSON"),
        ([row(1), row(2) | {"query_positive": 7}], r"a\.jsonl:2: field 'query_positive' holds int"),
        ([row(n) | {"id": "x"} for n in (1, 2)], r"a\.jsonl:2: an earlier row has the id 'x' too"),
        (
            [row(1, document_positive=""), row(2, document_positive="")],
            "split 'train' of source 'factory' is empty: 2 rows read, dropped: 2 for 'empty:docu",
        ),
        ([], r"a\.jsonl holds no rows; copy it again or give another file"),
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
    """Used as any TFDS builder, with several shards."""
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
