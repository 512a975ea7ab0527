"""Reads pairs by field names, from every kind of file."""

import gzip
import itertools
import json
from collections import Counter

import pyarrow
import pyarrow.parquet
import pytest

from data_pipeline.sources import fields
from data_pipeline.sources.pairs import SourcePair
from inf_jax.core.errors import UserError

ROWS = [
    {"key": "a", "q": " who? ", "p": "Me.", "t": "Title", "meta": {"q": "nested?"}},
    {"key": 2, "q": "whose?", "p": "Mine.", "t": None, "meta": {"q": "also"}},
]
MAP = {"query": "q", "passage": "p"}


def write(path, rows):
    path.write_text("".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in rows))
    return path


def read(path, **names):
    dropped = Counter()
    return list(fields.read(path, fields=names, dropped=dropped)), dropped


def test_every_kind_of_file_is_read_alike(tmp_path):
    rows = [{**row, "key": str(row["key"])} for row in ROWS]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "c.json").write_text("\ufeff" + json.dumps(rows, indent=1))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "d.parquet")
    for name in ("a.jsonl", "b.jsonl.gz", "c.json", "d.parquet"):
        pairs, dropped = read(tmp_path / name, id="key", title="t", **MAP)
        assert pairs == [
            SourcePair("a", "who?", "Title\nMe."),
            SourcePair("2", "whose?", "Mine."),
        ]
        assert not dropped
        assert [p.id for p in read(tmp_path / name, **MAP)[0]] == [f"{name}:1", f"{name}:2"]
        assert read(tmp_path / name, query="meta.q", passage="p")[0][0].query == "nested?"
    # a directory's JSON is rather a description than data
    assert [p.id[0] for p in read(tmp_path, **MAP)[0]] == ["a", "a", "b", "b", "d", "d"]


def test_number_as_id(tmp_path):
    assert [p.id for p in read(write(tmp_path / "a.jsonl", ROWS), id="key", **MAP)[0]] == ["a", "2"]


def test_passages_only(tmp_path):
    pairs, dropped = read(write(tmp_path / "a.jsonl", ROWS), passage="p")
    assert [(p.query, p.passage) for p in pairs] == [("", "Me."), ("", "Mine.")]
    assert not dropped


def test_empty_query_is_no_request_for_one(tmp_path):
    rows = [{"q": "", "p": "a"}, {"q": None, "p": "b"}, {"q": "c", "p": ""}]
    pairs, dropped = read(write(tmp_path / "a.jsonl", rows), **MAP)
    assert pairs == [SourcePair("a.jsonl:3", "c", "")]  # what to do with it is the stage's affair
    assert dropped == {"empty query": 2}


def test_list_of_passages_gives_a_pair_each(tmp_path):
    rows = [{"q": "x", "p": ["one", " two "]}, {"q": "y", "p": []}, {"q": "z", "p": "three"}]
    assert read(write(tmp_path / "a.jsonl", rows), **MAP)[0] == [
        SourcePair("a.jsonl:1:0", "x", "one"),
        SourcePair("a.jsonl:1:1", "x", "two"),
        SourcePair("a.jsonl:3", "z", "three"),
    ]


def test_first_name_that_a_row_has_and_names_with_dots(tmp_path):
    rows = [
        {"b": "1", "a": "2", "p": "x"},
        {"a": "3", "p": "x"},
        {"c.d": "4", "c": {"d": 5}, "p": "x"},
    ]
    pairs, _ = read(write(tmp_path / "a.jsonl", rows), query=["b", "a", "c.d"], passage="p")
    assert [p.query for p in pairs] == ["1", "3", "4"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"p": "a"}, r"a\.jsonl:1: no field 'q'; the row has: p"),
        ({"q": "a"}, r"a\.jsonl:1: no field 'p'; the row has: q"),
        ({"q": ["a"], "p": "a"}, r"a\.jsonl:1: field 'q' holds list \['a'\], expected text"),
        ({"q": "a", "p": ["x", 3]}, r"a\.jsonl:1: field 'p\[1\]' holds int 3, expected text"),
        ({"q": "a", "p": {"x": 1}}, r"a\.jsonl:1: field 'p' holds dict"),
        ({"q": "a", "p": "\ud83d!"}, r"a\.jsonl:1: field 'p' contains a lone surrogate, '\\ud83d'"),
    ],
)
def test_bad_row(tmp_path, row, message):
    with pytest.raises(UserError, match=message):
        read(write(tmp_path / "a.jsonl", [row]), **MAP)


def test_missing_alternatives_id_and_nested_field(tmp_path):
    path = write(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(UserError, match=r"a\.jsonl:1: no field 'x or meta\.z'; the row has: key"):
        read(path, query=["x", "meta.z"], passage="p")
    with pytest.raises(UserError, match=r"a\.jsonl:1: no field 'x'; the row has: key"):
        read(path, id="x", **MAP)
    with pytest.raises(UserError, match=r"a\.jsonl:1: no field 'q\.x'"):
        read(path, query="q", passage="q.x")


def test_bad_map(tmp_path):
    path = write(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(UserError, match=r"no part 'document'; name the fields of id, query, pass"):
        read(path, query="q", document="p")
    with pytest.raises(UserError, match=r"no field is named for 'passage'"):
        read(path, query="q")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_rows_stream(tmp_path, name):
    path = tmp_path / name
    separator = "\n" if name == "a.jsonl" else ", "
    body = separator.join(json.dumps({"q": f"q{i}", "p": "p"}) for i in range(100))
    path.write_text(("" if name == "a.jsonl" else "[") + body + separator + "{broken\n")
    pairs = fields.read(path, fields=MAP)
    assert [p.query for p in itertools.islice(pairs, 100)] == [f"q{i}" for i in range(100)]
    with pytest.raises(UserError, match=rf"{name}:101: (malformed|not) JSON"):
        next(pairs)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"a\.json:1: malformed JSON"),
        (
            '{"q": "a"}',
            r"a\.json:1: malformed JSON, it does not begin with '\['; the file must be on",
        ),
        ('[{"q": "a", "p": "b"} {', r"a\.json:2: malformed JSON, Unexpected symbol '\{'"),
        ('[{"q": "a", "p": "b"}', r"a\.json:2: malformed JSON"),
        ('[{"q": "a", "p": "b"},]', r"a\.json:2: malformed JSON, "),
        ('[{"q": "a", "p": "b"}, [1]]', r"a\.json:2: a JSON list, expected an object"),
        (b'[{"q": "caf\xe9"}]', r"a\.json: not UTF-8 .* after row 0"),
    ],
)
def test_bad_json_array(tmp_path, text, message):
    (tmp_path / "a.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message):
        read(tmp_path / "a.json", **MAP)


def test_json_array_keeps_half_characters_and_large_numbers(tmp_path):
    """The C backends of ijson would change the former and refuse the latter."""
    (tmp_path / "a.json").write_text(
        json.dumps([{"id": 2**70, "p": "a"}, {"id": 1, "p": "\ud83d"}])
    )
    pairs = fields.read(tmp_path / "a.json", fields={"id": "id", "passage": "p"})
    assert next(pairs).id == str(2**70)
    with pytest.raises(UserError, match=r"a\.json:2: field 'p' contains a lone surrogate"):
        next(pairs)
