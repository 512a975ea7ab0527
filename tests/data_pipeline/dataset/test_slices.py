"""Slices of source files cover the whole file, with the same row numbers."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from data_pipeline.dataset.slices import read_slice, slices
from data_pipeline.sources.files import read_rows
from inf_jax.core.errors import UserError

ROWS = [{"n": n, "text": "word " * (n % 7)} for n in range(40)]


@pytest.fixture
def folder(tmp_path):
    """The rows as jsonl (with byte order mark and blank line, no final newline), gzip, parquet."""
    lines = [json.dumps(row) for row in ROWS]
    text = "\ufeff" + "\n".join([*lines[:20], "", *lines[20:]])
    (tmp_path / "a.jsonl").write_text(text, encoding="utf-8")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    table = pyarrow.Table.from_pylist(ROWS)
    pyarrow.parquet.write_table(table, tmp_path / "c.parquet", row_group_size=15)
    (tmp_path / "d.jsonl").write_text("")
    return tmp_path


@pytest.mark.parametrize("size", [1, 100, 333, 10**6])
def test_slices_are_the_file(folder, size):
    parts = slices(folder, size=size)
    counts = Counter(Path(part.file).name for part in parts)
    assert counts["c.parquet"] == 3
    assert counts["b.jsonl.gz"] == 1
    assert counts["a.jsonl"] == 1 if size == 10**6 else counts["a.jsonl"] > 3
    found = [pair for part in parts for pair in read_slice(part)]
    assert [row for _, row in found] == list(read_rows(folder))
    assert [f":{number}" for number, _ in found] == [
        row.where[row.where.rindex(":") :] for row in read_rows(folder)
    ]


def test_errors_name_the_line(folder):
    path = folder / "a.jsonl"
    path.write_text(path.read_text() + "\n{]\n")
    with pytest.raises(UserError) as whole:
        list(read_rows(path))
    with pytest.raises(UserError) as sliced:
        [list(read_slice(part)) for part in slices(path, size=100)]
    assert str(sliced.value) == str(whole.value)
    assert f"{path}:42: not JSON" in str(sliced.value)


def test_file_that_shrinks_or_goes(folder):
    path = folder / "a.jsonl"
    *_, last = slices(path, size=100)
    path.write_bytes(path.read_bytes()[:-80])
    with pytest.raises(
        UserError, match=rf"cannot read {path} after line \d+: the file has become shorter"
    ):
        list(read_slice(last))
    path.unlink()
    with pytest.raises(UserError, match=f"cannot read {path} after line"):
        list(read_slice(last))


def test_damaged_parquet(folder):
    path = folder / "c.parquet"
    part = slices(path)[1]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=f"cannot read {path} as parquet after row 0"):
        slices(path)
    with pytest.raises(UserError, match=f"cannot read {path} as parquet after row 15"):
        list(read_slice(part))
