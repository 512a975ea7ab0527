"""Datasets of pairs: what is kept and counted, and files that TensorFlow and TFDS read."""

import json
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

from data_pipeline.build import main
from data_pipeline.dataset.build import build
from data_pipeline.dataset.builder import REPORT_FILE
from inf_jax.core.errors import UserError
from inf_jax.data.records import Pair, PairExample, decode_example, encode_example
from inf_jax.io.tf_example import TfExample
from inf_jax.io.tfrecord import read_records

ROWS = [
    {
        "query": f"what is {n}",
        "pos": [f"{n} is a number"],
        "neg": [f"{k} is one" for k in range(n % 3)],
    }
    for n in range(40)
]
ROWS[3] |= {"pos_scores": [2.5], "neg_scores": []}
ROWS[5] |= {"pos_scores": [1.0], "neg_scores": [0.5, -0.25]}
ROWS += [ROWS[7], {"query": "", "pos": ["an empty query"]}, {"query": "short one", "pos": ["p"]}]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    options = {"path_train": folder / "train.jsonl", "dev_fraction": 0.2}
    main(
        [
            *("--source=fields", "--name=flag", f"--data-dir={folder / 'data'}"),
            *(f"--{name.replace('_', '-')}={value}" for name, value in options.items()),
        ]
    )
    return folder / "data" / "inf_ir" / "flag" / "1.0.0", options


def examples_of(final, split):
    [path] = final.glob(f"inf_ir-{split}.tfrecord-*")
    return {e.id: e for e in map(decode_example, read_records(path))}


def test_records(built):
    final, _ = built
    dev, train = (examples_of(final, split) for split in ("dev", "train"))
    expected = {
        f"train.jsonl:{n + 1}:0": Pair("", row["query"], *row["pos"], tuple(row["neg"]))
        for n, row in enumerate(ROWS[:40])
    }
    expected["train.jsonl:4:0"] = expected["train.jsonl:4:0"]._replace(scores=(2.5,))
    expected["train.jsonl:6:0"] = expected["train.jsonl:6:0"]._replace(scores=(1.0, 0.5, -0.25))
    assert dev.keys() & train.keys() == set()
    assert {id: PairExample(id, (pair,)) for id, pair in expected.items()} == dev | train
    assert 2 < len(dev) < 16
    report = json.loads((final / REPORT_FILE).read_text())
    assert report["train"]["kept"] + report["dev"]["kept"] == 40
    assert sum(split["rows"] for split in report.values()) == len(ROWS)
    reasons = {k: v for split in report.values() for k, v in split["reasons"].items()}
    assert reasons == {"duplicate_pair": 1, "too_short:passage": 1}
    assert report["train"]["dropped_by_source"] == {"empty query": 1}
    assert sum(split["negatives"]["kept"] for split in report.values()) == 39


def test_tfds_reads_the_records(built):
    info = tfds.builder_from_directory(built[0]).info
    for path in info.splits["train"].filepaths:
        for data in read_records(path):
            read, example = info.features.deserialize_example_np(data), decode_example(data)
            assert read["id"].decode() == example.id
            [pair], columns = example.pairs, read["pairs"]
            texts = tuple(columns[n][0].decode() for n in ("instruction", "query", "passage"))
            negatives = tuple(text.decode() for text in columns["negatives"][0])
            assert Pair(*texts, negatives, tuple(columns["scores"][0].tolist())) == pair
            assert encode_example(example) == data


def test_tensorflow_reads_and_tfds_writes_the_same_records(built):
    tf = pytest.importorskip("tensorflow")
    info = tfds.builder_from_directory(built[0]).info
    serialise = tfds.core.example_serializer.ExampleSerializer(info.features.get_serialized_info())
    [path] = built[0].glob("inf_ir-train.tfrecord-*")
    for data in read_records(path):
        example = decode_example(data)
        values = {"id": example.id, "pairs": [pair._asdict() for pair in example.pairs]}
        again = serialise.serialize_example(info.features.encode_example(values))
        assert encode_example(decode_example(again)) == data
        assert TfExample.FromString(again) == TfExample.FromString(data)
        read = info.features.deserialize_example(tf.constant(data))["pairs"]
        [negatives] = read["negatives"].to_list()
        assert [text.decode() for text in negatives] == [*example.pairs[0].negatives]
        assert read["scores"].to_list() == [[*example.pairs[0].scores]]
        assert read["query"].numpy()[0].decode() == example.pairs[0].query


def test_the_same_source_is_reused_and_another_map_is_not(built):
    final, options = built
    arguments = {"data_dir": final.parents[2], "name": "flag", **options}
    assert build("fields", **arguments, options={"fields": None}) == (final, False)
    other = {"query": ["query"], "passage": ["pos"]}
    with pytest.raises(UserError, match="built with other options"):
        build("fields", **arguments, options={"fields": other})


def test_train_lacks_the_texts_of_dev_and_of_evaluation_files(tmp_path):
    rows = [{"query": f"question {n}", "passage": f"this is passage {n}"} for n in range(6)]
    rows[0]["passage"] = rows[5]["passage"] + "."
    texts = {
        "train": rows[:4],
        "dev": rows[4:],
        "benchmark": [{"query": "Question 2?", "passage": ""}],
    }
    for name, those in texts.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in those))
    final, _ = build(
        "fields",
        tmp_path / "data",
        path_train=tmp_path / "train.jsonl",
        path_dev=tmp_path / "dev.jsonl",
        evaluation=(str(tmp_path / "benchmark.jsonl"),),
        options={"fields": None},
    )
    assert {e.pairs[0].query for e in examples_of(final, "train").values()} == {
        "question 1",
        "question 3",
    }
    report = json.loads((final / REPORT_FILE).read_text())
    assert (report["train"]["rows"], report["dev"]["rows"]) == (4, 2)
    assert report["train"]["reasons"] == {
        "shared_with_eval:evaluation_query": 1,
        "shared_with_eval:passage": 1,
    }


def test_labelled_rows_and_fields_that_are_not_read(tmp_path, capsys):
    rows = [
        {"query": "什么是楔子", "answer": f"楔子是工具{n}。", "label": n, "type": "zh"}
        for n in (0, 1)
    ]
    rows += [{"query": "什么是轮子", "answer": "没有关系的文字", "label": 0, "topic": None}]
    rows[1]["source"] = "wiki"
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--source=fields", f"--path-train={tmp_path / 'rows.jsonl'}", "--dev-fraction=0"]
    main([*flags, f"--data-dir={tmp_path}"])
    final = tmp_path / "inf_ir" / "fields" / "1.0.0"
    pair = Pair("", "什么是楔子", "楔子是工具1。", ("楔子是工具0。",))
    assert examples_of(final, "train") == {"rows.jsonl:2": PairExample("rows.jsonl:2", (pair,))}
    report = json.loads((final / REPORT_FILE).read_text())["train"]
    assert (report["rows"], report["kept"]) == (3, 1)
    assert report["reasons"] == {"merged_pair": 1, "no_relevant_passage": 1}
    assert report["noted"] == {"field source is not read": 1, "field type is not read": 2}
    assert "note: field type is not read" in capsys.readouterr().out


def test_layouts_with_judgements(tmp_path, capsys):
    files = {
        "corpus.jsonl": [
            {"_id": f"d{n}", "title": "T", "text": f"text number {n}"} for n in range(4)
        ],
        "queries.jsonl": [{"_id": f"q{n}", "text": f"which number {n}"} for n in range(4)],
    }
    for name, rows in files.items():
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "qrels").mkdir()
    for split, numbers in (("train", (0, 1, 2)), ("test", (3,))):
        lines = [f"q{n}\td{n}\t{n % 2 + 1}\n" for n in numbers]
        (tmp_path / "qrels" / f"{split}.tsv").write_text(
            "query-id\tcorpus-id\tscore\n" + "".join(lines)
        )
    (tmp_path / "n.tsv").write_text("q0\td0\td3\nq9\td1\td3\n")
    flags = ["--source=beir", f"--path-train={tmp_path}", f"--data-dir={tmp_path / 'data'}"]
    main([*flags, "--dev-split=test", f"--negatives={tmp_path / 'n.tsv'}"])
    final = tmp_path / "data" / "inf_ir" / "beir" / "1.0.0"
    noted = {"rows of --negatives whose query is not judged": 1}
    assert json.loads((final / REPORT_FILE).read_text())["train"]["noted"] == noted
    assert examples_of(final, "train")["q0:d0"].pairs[0].negatives == ("T\ntext number 3",)
    (tmp_path / "data" / "tokenised" / "beir").mkdir(parents=True)
    (tmp_path / "data" / "tokenised" / "beir" / "manifest.json").write_text("{}")
    written = (final / REPORT_FILE).stat().st_mtime_ns
    main([*flags, "--dev-split=test", f"--negatives={tmp_path / 'n.tsv'}"])  # reused
    assert (final / REPORT_FILE).stat().st_mtime_ns == written
    assert sorted(examples_of(final, "train")) == ["q0:d0", "q1:d1", "q2:d2"]
    [example] = examples_of(final, "dev").values()
    assert example.pairs == (Pair("", "which number 3", "T\ntext number 3"),)
    (tmp_path / "n.tsv").write_text("q9\td1\td3\n")
    with pytest.raises(SystemExit):
        main([*flags, "--name=none", f"--negatives={tmp_path / 'n.tsv'}"])
    error = "gives no pair of the train split a negative: 1 rows of --negatives whose query is not"
    assert error in capsys.readouterr().err
    main([*flags, "--dev-fraction=0", "--min-score=2", "--name=best"])
    assert sorted(examples_of(final.parents[1] / "best" / "1.0.0", "train")) == ["q1:d1"]


def test_synthetic_pairs(tmp_path):
    texts = (f"Word{n} is one of many. What of {n} is known by now?" for n in range(1100))
    lines = (json.dumps({"answer": text.replace("many", "the many words")}) for text in texts)
    (tmp_path / "text.jsonl").write_text("\n".join(lines))
    flags = ["--source=synthetic", f"--path-train={tmp_path / 'text.jsonl'}", "--count=60"]
    main([*flags, f"--data-dir={tmp_path}", "--dev-fraction=0.1"])
    final = tmp_path / "inf_ir" / "synthetic" / "1.0.0"
    ids = [*examples_of(final, "dev"), *examples_of(final, "train")]
    assert sorted(ids) == sorted(f"0-{n}" for n in range(60))
    assert "recombined" in tfds.builder_from_directory(final).info.config_description


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--source=beir", "--path-train=x", "--fields=query=a"], "--fields: source 'beir' has no"),
        (["--source=fields", "--path-train=x", "--count=3"], "--count: source 'fields' has no"),
        (["--source=medquad", "--max-negatives=3"], "--max-negatives: source 'medquad' has no"),
        (["--source=fields", "--fields=query"], "'query' is not PART=NAME"),
        (["--source=fields", "--path-train=x", "--fields=passage=p"], "no field for 'query'"),
        (["--source=fields", "--fields=query=a,query=b"], "names query twice; of several fields"),
        (["--source=fields", "--path-train=gs://b/x"], "--path-train=gs://b/x: is a URL; copy the"),
        (["--source=fields"], "give your file by --path-train"),
        (["--source=synthetic"], "--count=0: give the number"),
        (["--source=synthetic", "--count=5", "--name=a/b"], "--name=a/b: must be letters"),
        (["--source=synthetic", "--count=5", "--name=medquad"], "not another source's"),
    ],
)
def test_wrong_flags(tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit):
        main([*flags, f"--data-dir={tmp_path}"])
    assert message in capsys.readouterr().err
    assert not list(Path(tmp_path).rglob("*.tfrecord*"))
