"""Which texts of each supported layout count as benchmark texts."""

import dataclasses
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from data_pipeline.dataset.build import build
from data_pipeline.quality.contamination import BenchmarkTexts
from data_pipeline.sources import inf_ir
from inf_jax.core.errors import UserError
from inf_jax.data.records import FIELDS

QUERY = "how do bees make honey"
PASSAGE = (
    "Bees drink sweet juice from flowers. At home they pass it from mouth to mouth and fan it with "
    "their wings until it is thick and will not spoil. That is the honey that we eat on our bread."
)
NEAR = PASSAGE.replace("sweet juice", "sweet nectar")
OTHER = "Wasps chew old wood into a soft paste. They spread it out, and when it dries it is paper."
TINY = Path(__file__).parents[1] / "data" / "inf_ir_tiny.jsonl"


def write_jsonl(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def read(*paths):
    return BenchmarkTexts.read(paths, threshold=0.8)


def test_queries_are_compared_folded():
    evaluation = BenchmarkTexts(0.8)
    evaluation.add(query="Ragged-red fibers: why?")
    assert evaluation.shares_query(" ragged red\nFIBERS: why?") == "evaluation_query"
    assert evaluation.shares_query("ragged red fibers: how?") == ""
    assert evaluation.shares_passage("Ragged-red fibers: why?") == ""


@pytest.mark.parametrize(
    "variant",
    [
        "what's a na\u00efve wedge",
        "What\u2019s a na\u00efve wedge ?",
        "\u201cWhats a nai\u0308ve wedge?!\u201d",
        "\u00bfWHAT'S A NA\u00cfVE WEDGE\u2026",
        "what's a `na\u00efve' wedge.",
    ],
)
def test_quotes_case_end_and_form_of_unicode_make_no_other_text(variant):
    evaluation = BenchmarkTexts(1)
    evaluation.add(query="What's a na\u00efve wedge?", passage="It's a na\u00efve wedge.")
    assert evaluation.shares_query(variant) == "evaluation_query"
    passage = variant.replace("What", "It").replace("what", "it").replace("WHAT", "IT")
    assert evaluation.shares_passage(passage) == "evaluation_passage"
    assert not evaluation.shares_query("what's a naive wedge?")
    assert not evaluation.shares_query("what's a na\u00efve wedge #")


def test_passages_are_compared_folded_and_nearly():
    evaluation = BenchmarkTexts(0.8)
    evaluation.add(passage=PASSAGE)
    assert evaluation.shares_passage(PASSAGE.upper().replace(". ", ".\n")) == "evaluation_passage"
    assert evaluation.shares_passage(NEAR) == "near_evaluation_passage"
    assert evaluation.shares_passage(OTHER) == ""
    assert evaluation.shares_passage(PASSAGE[:60]) == ""
    assert evaluation.shares_query(PASSAGE) == ""


def test_threshold():
    equal_only = BenchmarkTexts(1)
    equal_only.add(passage=PASSAGE)
    assert equal_only.shares_passage(PASSAGE) == "evaluation_passage"
    assert equal_only.shares_passage(NEAR) == ""
    with pytest.raises(UserError, match="threshold"):
        BenchmarkTexts(0)


def test_empty_texts_are_none():
    evaluation = BenchmarkTexts(0.8)
    evaluation.add(query=" ", passage="\n")
    assert evaluation.shares_query("") == evaluation.shares_passage("  ") == ""


@pytest.mark.parametrize("name", ["eval.jsonl", "eval.jsonl.gz", "eval.parquet", "folder/a.jsonl"])
def test_files(tmp_path, name):
    path = tmp_path / name
    if path.suffix == ".parquet":
        pa.parquet.write_table(pa.table({"query": [QUERY], "passage": [PASSAGE]}), path)
    else:
        write_jsonl(path, {"query": QUERY, "passage": PASSAGE, "score": 3})
    evaluation = read(path.parent if "folder" in name else path)
    assert evaluation.shares_query(QUERY) == "evaluation_query"
    assert evaluation.shares_query(PASSAGE) == ""
    assert evaluation.shares_passage(NEAR) == "near_evaluation_passage"
    assert evaluation.shares_passage(QUERY) == ""


def test_text_is_both(tmp_path):
    evaluation = read(
        write_jsonl(tmp_path / "queries.jsonl", {"_id": "1", "text": QUERY}),
        write_jsonl(tmp_path / "corpus.jsonl", {"_id": "1", "title": "Honey", "text": PASSAGE}),
    )
    assert evaluation.shares_query(QUERY) == "evaluation_query"
    for text in (PASSAGE, f"Honey\n{PASSAGE}"):  # as sources of pairs join a title
        assert evaluation.shares_passage(text) == "evaluation_passage"


def test_fields_of_inf_ir(tmp_path):
    evaluation = read(TINY)
    for example in inf_ir.read(TINY):
        for field in FIELDS:
            text = getattr(example, field)
            if text and "query" in field:
                assert evaluation.shares_query(text)
            elif text and "document" in field:
                assert evaluation.shares_passage(text)
            elif text:
                assert not (evaluation.shares_query(text) or evaluation.shares_passage(text))


def beir(path, **qrels):
    write_jsonl(
        path / "queries.jsonl",
        *({"_id": f"q{n}", "text": f"{QUERY} number {n}"} for n in range(3)),
    )
    write_jsonl(
        path / "corpus.jsonl",
        *(
            {"_id": f"d{n}", "title": "", "text": text}
            for n, text in enumerate((PASSAGE, OTHER, "A third passage on beetles in old wood."))
        ),
    )
    (path / "qrels").mkdir()
    for split, rows in qrels.items():
        lines = ["query-id\tcorpus-id\tscore", *("\t".join(row) for row in rows)]
        (path / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return path


def test_beir_without_the_training_split(tmp_path):
    evaluation = read(
        beir(
            tmp_path,
            train=[("q0", "d0", "1")],
            dev=[("q1", "d1", "1"), ("q1", "d0", "0")],
            test=[("q2", "d1", "2")],
        )
    )
    shared = [evaluation.shares_query(f"{QUERY} number {n}") for n in range(3)]
    assert shared == ["", "evaluation_query", "evaluation_query"]
    assert evaluation.shares_passage(OTHER) == "evaluation_passage"
    assert evaluation.shares_passage(PASSAGE) == ""  # of train, and not relevant in dev


def test_a_title_that_only_one_of_both_has():
    evaluation = BenchmarkTexts(1)
    evaluation.add(passage=PASSAGE)
    assert evaluation.shares_passage(f"Bees\n{PASSAGE}") == "evaluation_passage"


@pytest.mark.parametrize("threshold", [0.8, 1])
def test_titles_of_beir(tmp_path, threshold):
    directory = beir(tmp_path, test=[("q1", "d1", "1")])
    row = {"_id": "d1", "title": "A long title of an article on wasps and paper", "text": OTHER}
    write_jsonl(directory / "corpus.jsonl", row)
    evaluation = BenchmarkTexts.read([directory], threshold=threshold)
    for text in (OTHER, f"{row['title']} {OTHER}"):
        assert evaluation.shares_passage(text) == "evaluation_passage"


def test_parquet_of_the_hub(tmp_path):
    directory = beir(tmp_path, test=[("q1", "d1", "1")])
    (directory / "qrels" / "test.tsv").unlink()
    (directory / "qrels").rename(directory / "default")
    for split, query in (("train", "q0"), ("test", "q1")):
        row = {"query-id": query, "corpus-id": "d1", "score": 1}
        name = f"{split}-00000-of-00001.parquet"
        pa.parquet.write_table(pa.Table.from_pylist([row]), directory / "default" / name)
    evaluation = read(directory)
    shared = [evaluation.shares_query(f"{QUERY} number {n}") for n in range(2)]
    assert shared == ["", "evaluation_query"]


@pytest.mark.parametrize(
    "row",
    [
        {"query": QUERY, "positive_passages": [{"docid": "7", "title": "Bees", "text": PASSAGE}]},
        {"question": QUERY, "positive_ctxs": [{"title": "", "text": OTHER}, {"text": PASSAGE}]},
        {"query": QUERY, "pos": [OTHER, PASSAGE], "neg": []},
        {"question": QUERY, "context": PASSAGE, "answers": {"text": ["juice"]}},
        {"anchor": QUERY, "positive": PASSAGE},
        {"query_positive_fewshot": QUERY, "document_positive": PASSAGE},
    ],
)
def test_rows_of_common_training_and_evaluation_sets(tmp_path, row):
    evaluation = read(write_jsonl(tmp_path / "x.jsonl", row))
    assert evaluation.shares_query(QUERY) == "evaluation_query"
    for text in (PASSAGE, f"Bees\n{PASSAGE}"):
        assert evaluation.shares_passage(text) == "evaluation_passage"


def test_beir_of_training_alone(tmp_path):
    with pytest.raises(UserError, match=r"qrels has no evaluation split, only train; give"):
        read(beir(tmp_path, train=[("q0", "d0", "1")]))


def test_dataset_of_tfds(tmp_path):
    examples = list(inf_ir.read(TINY))
    rows = [dataclasses.asdict(example) for example in examples]
    train = write_jsonl(tmp_path / "train.jsonl", *rows[2:])
    dev = write_jsonl(tmp_path / "dev.jsonl", *rows[:2])
    final, _ = build("inf_ir", tmp_path / "data", path_train=train, path_dev=dev)
    evaluation = read(final)
    for example in examples[:2]:
        assert evaluation.shares_query(example.query_positive)
        assert evaluation.shares_query(example.query_negative)
        assert evaluation.shares_passage(example.document_positive)
        assert evaluation.shares_passage(example.hard_negative_document_1)
        assert evaluation.shares_passage(example.hard_negative_document_2)
    assert not evaluation.shares_passage(examples[-1].document_positive)


def test_several_paths(tmp_path):
    evaluation = read(
        write_jsonl(tmp_path / "a.jsonl", {"query": QUERY}),
        write_jsonl(tmp_path / "b.jsonl", {"passage": PASSAGE}, {"passage": None}),
    )
    assert evaluation.shares_query(QUERY)
    assert evaluation.shares_passage(PASSAGE)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"query": QUERY}, {"sentence": "x"}],
            r"e\.jsonl:2: none of the fields query.*: sentence",
        ),
        ([{"query": 3}], r"e\.jsonl:1: field 'query' holds int"),
        ([], r"e\.jsonl holds no rows"),
        ([{"query": None, "passage": " "}], r"e\.jsonl holds no text"),
    ],
)
def test_bad_rows(tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        read(write_jsonl(tmp_path / "e.jsonl", *rows))


def test_missing_path(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.jsonl does not exist"):
        read(tmp_path / "nowhere.jsonl")
