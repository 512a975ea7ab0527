"""Reads examples from jsonl and parquet files; bad rows raise errors that name them."""

import gzip
import json
from pathlib import Path

import pytest

from data_pipeline.sources import inf_ir
from data_pipeline.sources.files import input_files
from inf_jax.core.errors import UserError
from inf_jax.data.records import FIELDS

DATA = Path(__file__).parents[1] / "data"
GOOD = dict.fromkeys(FIELDS, "some text")


def write(path, *rows):
    path.write_text("".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in rows))
    return path


def test_jsonl_and_parquet_are_read_alike():
    lines = list(inf_ir.read(DATA / "inf_ir_tiny.jsonl"))
    rows = list(inf_ir.read(DATA / "inf_ir_tiny.parquet"))
    assert len(lines) == len(rows) == 8
    assert [e.id for e in lines[:2]] == ["inf_ir_tiny.jsonl:1", "inf_ir_tiny.jsonl:2"]
    for a, b in zip(lines, rows, strict=True):
        assert [getattr(a, f) for f in FIELDS] == [getattr(b, f) for f in FIELDS]
    assert lines[0].query_positive == "how do bees make honey"
    assert lines[0].hard_negative_document_2.startswith("Wasps chew")
    assert lines[4].query_negative == lines[4].hard_negative_document_2 == ""  # null
    assert "\n        x, j" in lines[6].document_positive  # inner white space is content


def test_gzip_directory_blank_lines_and_byte_order_mark(tmp_path):
    write(tmp_path / "b.jsonl", "\ufeff" + json.dumps(GOOD) + "\n", "\n", GOOD)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(json.dumps(GOOD).encode()))
    write(tmp_path / "notes.txt", "no data")
    assert [e.id for e in inf_ir.read(tmp_path)] == ["a.jsonl.gz:1", "b.jsonl:1", "b.jsonl:3"]


def test_earlier_name_of_the_positive_passage(tmp_path):
    row = {**GOOD, "document": " the passage \n"}
    del row["document_positive"]
    [example] = inf_ir.read(write(tmp_path / "a.jsonl", row))
    assert example.document_positive == "the passage"


def without(field):
    return {name: text for name, text in GOOD.items() if name != field}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [GOOD, without("query_negative")],
            r"a\.jsonl:2: no field 'query_negative'; the row has: query_positive, instr",
        ),
        ([{}], r"a\.jsonl:1: no field 'query_positive'; the row has: no fields"),
        (
            [{**GOOD, "query_positive": 7}],
            r"a\.jsonl:1: field 'query_positive' holds int 7, expected text",
        ),
        ([GOOD, "\n", '{"query_positive": \n'], r"a\.jsonl:3: not JSON .* column 20 "),
        ([GOOD, "[1]\n"], r"a\.jsonl:2: a list where a JSON object is expected"),
    ],
)
def test_bad_row(tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        list(inf_ir.read(write(tmp_path / "a.jsonl", *rows)))


def test_not_utf8(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"query_positive": "caf\xe9"}\n')
    with pytest.raises(UserError, match=r"a\.jsonl:1: not UTF-8"):
        list(inf_ir.read(tmp_path / "a.jsonl"))


def test_damaged_gzip_names_the_last_good_line(tmp_path):
    lines = "".join(json.dumps({**GOOD, "query_positive": str(i)}) + "\n" for i in range(2000))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode())[:-2000])
    with pytest.raises(UserError, match=r"cannot read .*a\.jsonl\.gz after line \d+"):
        list(inf_ir.read(tmp_path / "a.jsonl.gz"))


def test_damaged_parquet(tmp_path):
    data = (DATA / "inf_ir_tiny.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"cannot read .*a\.parquet as parquet after row 0"):
        list(inf_ir.read(tmp_path / "a.parquet"))


def test_no_such_file_kind_or_content(tmp_path):
    with pytest.raises(UserError, match=r"gone\.jsonl does not exist"):
        input_files(tmp_path / "gone.jsonl")
    with pytest.raises(UserError, match=r"holds no \.jsonl, \.jsonl\.gz, \.parquet file"):
        input_files(tmp_path)
    with pytest.raises(UserError, match=r"a\.csv has an unsupported file type"):
        input_files(write(tmp_path / "a.csv", "a,b"))
