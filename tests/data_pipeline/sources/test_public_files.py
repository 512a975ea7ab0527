"""Data files as the public has them: each gives the right pairs, or one refusal that names it."""

import bz2
import functools
import gzip
import json
import lzma
import unicodedata
from collections import Counter

import pyarrow
import pyarrow.parquet
import pytest

from data_pipeline.sources import fields, inf_ir
from data_pipeline.sources.files import read_rows
from data_pipeline.sources.pair_readers import read_pairs
from inf_jax.core.errors import UserError

QUERY, PASSAGE = "what is a wedge", "A wedge is a tool"
ONE = [(QUERY, PASSAGE)]
HEADER = "query-id\tcorpus-id\tscore\n"
WORD = "caf\u00e9"


def lines(*rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def zst(data):
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def parquet(*rows):
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), sink)
    return sink.getvalue().to_pybytes()


COMPRESS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zst}
QUERIES = lines({"_id": "q1", "text": QUERY})
CORPUS = lines(
    {"_id": "d1", "title": "", "text": PASSAGE}, {"_id": "d2", "title": "Wood", "text": "splits"}
)


def write(directory, files):
    for name, data in files.items():
        if data is None:
            continue
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return directory


def pairs(kind, path, **options):
    dropped = Counter()
    found = read_pairs(kind, path, dropped=dropped, **options)
    return sorted((pair.query, pair.passage) for pair in found), dropped


def beir(directory, qrels=HEADER + "q1\td1\t1\n", name="qrels/train.tsv", **changes):
    files = {"corpus.jsonl": CORPUS, "queries.jsonl": QUERIES, name: qrels} | {
        f"{stem}.jsonl": text for stem, text in changes.items()
    }
    return pairs("beir", write(directory, files))


def msmarco(directory, collection=f"0\t{PASSAGE}\n", queries=f"7\t{QUERY}\n", qrels="7\t0\t0\t1\n"):
    names = ("collection.tsv", "queries.train.tsv", "qrels.train.tsv")
    files = dict(zip(names, (collection, queries, qrels), strict=True))
    return pairs("msmarco", write(directory, files))


def rows(directory, *rows, name="x.jsonl", **fields):
    data = lines(*rows) if name.endswith(".jsonl") else parquet(*rows)
    path = write(directory, {name: data}) / name
    return pairs("fields", path, fields={"query": "query", "passage": "passage"} | fields)


JUDGED = {"query-id": "q1", "corpus-id": "d1", "score": 1}


@pytest.mark.parametrize(
    ("name", "qrels"),
    [
        ("train.tsv", HEADER + "q1\td1\t1.0\n"),
        ("train.tsv", HEADER + "q1\td1\t+2.00\n"),
        ("train.tsv", HEADER + " q1\td1 \t1 \n"),
        ("train.tsv", HEADER + "q1\td1\t1\t\n"),
        ("train.tsv", "\ufeff" + (HEADER + "q1\td1\t1\n").replace("\n", "\r\n")),
        ("train.tsv", HEADER + "q1\td1\t1\nq1\td2\t-1\n"),
        ("train.tsv", HEADER + "q1\td1\t1\nq1\td9\t1\nq9\td1\t1\n"),
        ("train.tsv", HEADER + "q1\td1\t1\n" * 2),
        ("train.tsv", HEADER + "q1\td1\t1\nq1\td1\t2\n"),  # relevant in both
        ("train.tsv", "q1\td1\t1\n"),
        ("train.tsv", "q1\t0\td1\t1\n"),
        ("train.tsv", "q1 Q0 d1 2\n"),
        ("train.tsv", "query_id\tdoc_id\trelevance\nq1\td1\t1\n"),
        ("train.tsv", "corpus-id\tscore\tquery-id\nd1\t1\tq1\n"),
        ("train.tsv", "query-id\titeration\tcorpus-id\tscore\nq1\t0\td1\t1\n"),
        ("train.txt", "q1 0 d1 1\n"),
        ("train.csv", 'query-id,corpus-id,score\n"q1",d1,1\n'),
        ("train.jsonl", lines(JUDGED)),
        ("train.jsonl", lines({"query_id": "q1", "docid": "d1", "relevance": 1.0, "x": []})),
        ("train.parquet", parquet(JUDGED)),
        ("train.parquet", parquet({**JUDGED, "score": 2.0})),
        ("train.tsv.gz", gzip.compress((HEADER + "q1\td1\t1\n").encode())),
        ("train.jsonl.zst", zst(lines(JUDGED).encode())),
    ],
)
def test_judgements(tmp_path, name, qrels):
    assert beir(tmp_path, qrels, f"qrels/{name}")[0] == ONE


@pytest.mark.parametrize(
    ("qrels", "message"),
    [
        (HEADER + "q1\td1\t0.5\n", r"train\.tsv:2: score is '0.5', expected an integer; correct"),
        (HEADER + "q1\td1\tnan\n", r"train\.tsv:2: score is 'nan', expected an integer"),
        (HEADER + "q1\td1\t1_0\n", r"train\.tsv:2: score is '1_0'"),
        (HEADER + f"q1\td1\t{'1' * 5000}\n", r"train\.tsv:2: score is '1111"),
        (HEADER + "q1\t\t1\n", r"train\.tsv:2: field 'corpus-id' is empty"),
        (HEADER + "q1\td1\t1\nq1\td1\t0\n", r"train\.tsv:3: passage 'd1' has a score under 1 for"),
        (HEADER + "q1\td1\t0\nq1\td1\t1\n", r"train\.tsv:2: passage 'd1' has a score under 1 for"),
        ("a\tb\tc\nq1\td1\t1\n", r"train\.tsv:1: the header must name the columns query-id, corpu"),
        ("", r"train\.tsv: none of its 0 rows yields a pair"),
        (HEADER.encode() + b"caf\xe9\td1\t1\n", r"train\.tsv:2: not UTF-8 .*; save the file as UT"),
    ],
)
def test_judgements_that_are_refused(tmp_path, qrels, message):
    with pytest.raises(UserError, match=message):
        beir(tmp_path, qrels)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**JUDGED, "score": True}, r"train\.jsonl:1: score is True, expected an integer"),
        ({**JUDGED, "score": None}, r"train\.jsonl:1: score is None"),
        ({"query-id": "q1", "corpus-id": "d1"}, r"train\.jsonl:1: no field 'score'; the row has"),
        ({"query": "q1", "score": 1}, r"train\.jsonl:1: no field 'corpus-id'"),
    ],
)
def test_judged_rows_that_are_refused(tmp_path, row, message):
    with pytest.raises(UserError, match=message):
        beir(tmp_path, lines(row), "qrels/train.jsonl")


@pytest.mark.parametrize(
    "corpus",
    [
        CORPUS + CORPUS,
        CORPUS.replace('"d1"', '" d1\\u00a0"'),
        "\ufeff" + CORPUS.replace("\n", "\r\n"),
        CORPUS.replace('"title": ""', '"title": NaN'),
        CORPUS.replace('"title": ""', '"title": null'),
        CORPUS.replace('"_id"', '"id"'),
        "\n" + CORPUS + "\n\n",
    ],
)
def test_corpora(tmp_path, corpus):
    assert beir(tmp_path, corpus=corpus)[0] == ONE


def test_a_title_without_text_is_the_passage(tmp_path):
    qrels = HEADER + "q1\td3\t1\nq1\td4\t1\n"
    corpus = CORPUS + lines(
        {"_id": "d3", "title": "Wedge", "text": ""}, {"_id": "d4", "title": "", "text": "split"}
    )
    assert beir(tmp_path, qrels, corpus=corpus)[0] == [(QUERY, "Wedge"), (QUERY, "split")]


def test_ids_in_either_form_of_unicode(tmp_path):
    corpus = lines({"_id": unicodedata.normalize("NFD", WORD), "text": PASSAGE})
    assert beir(tmp_path, HEADER + f"q1\t{WORD}\t1\n", corpus=corpus)[0] == ONE


def test_parquet_in_folders_as_on_the_hub(tmp_path):
    files = {
        "corpus/corpus-00000-of-00001.parquet": parquet({"_id": "d1", "title": "", "text": PASSAGE})
    }
    files["queries.parquet"] = parquet({"_id": 7, "text": QUERY})
    files["qrels/train.parquet"] = parquet({"query-id": 7, "corpus-id": "d1", "score": 1})
    assert pairs("beir", write(tmp_path, files))[0] == ONE


@pytest.mark.parametrize("directory", ["qrels", "default"])
def test_judgements_in_parts_as_on_the_hub(tmp_path, directory):
    other = {**JUDGED, "corpus-id": "d2"}
    files = {
        "corpus.jsonl": CORPUS,
        "queries.jsonl": QUERIES,
        f"{directory}/train-00000-of-00002.parquet": parquet(JUDGED),
        f"{directory}/train-00001-of-00002.parquet": parquet(other),
        f"{directory}/train-small-00000-of-00001.parquet": parquet({**JUDGED, "score": 0}),
        f"{directory}/test-00000-of-00001.parquet": parquet({**JUDGED, "score": 0}),
    }
    wanted = [(QUERY, PASSAGE), (QUERY, "Wood\nsplits")]
    assert pairs("beir", write(tmp_path, files))[0] == wanted
    with pytest.raises(UserError, match=r"neither .*/dev\.tsv nor"):
        pairs("beir", tmp_path, split="dev")


@pytest.mark.parametrize(
    "names",
    [
        ("train.jsonl", "test.jsonl"),
        ("nq-dev.jsonl", "nq-train.jsonl"),
        ("a.jsonl", "train_1.jsonl"),
    ],
)
def test_a_directory_of_several_splits(tmp_path, names):
    files = dict.fromkeys((*names, "x.validation.jsonl"), lines({"query": "a", "passage": "b"}))
    write(tmp_path, files)
    with pytest.raises(UserError, match=r"holds files of several splits \(.*\); name the one file"):
        pairs("fields", tmp_path, fields={"query": "query", "passage": "passage"})
    with pytest.raises(UserError, match="holds files of several splits"):
        list(inf_ir.read(tmp_path))


def test_files_in_directories_below(tmp_path):
    data = lines({"query": QUERY, "passage": PASSAGE})
    write(tmp_path, {"hub/data/train-0.jsonl": data, "hub/README.md": "", "more/a.jsonl": data})
    names = {"query": "query", "passage": "passage"}
    with pytest.raises(UserError, match=r"hub holds no .* that holds it, such as data"):
        pairs("fields", tmp_path / "hub", fields=names)
    write(tmp_path, {"b.jsonl": data})
    for read in (inf_ir.read, functools.partial(fields.read, fields=names)):
        with pytest.raises(UserError, match="holds files, and so does hub, more in it; name one"):
            list(read(tmp_path))
    with pytest.raises(UserError, match="a directory in place of a pattern"):
        pairs("fields", tmp_path / "*.jsonl", fields=names)


def test_a_directory_of_one_split(tmp_path):
    data = lines({"query": QUERY, "passage": PASSAGE})
    names = ("train-00000-of-00002.jsonl", "training.ndjson", "contest.jsonl", "train_test.jsonl")
    write(tmp_path, dict.fromkeys(names, data))
    assert len(pairs("fields", tmp_path, fields={"query": "query", "passage": "passage"})[0]) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"corpus": CORPUS + lines({"_id": "d1", "text": "b"})},
            r"corpus\.jsonl:3: id 'd1' occurs",
        ),
        ({"queries": QUERIES + lines({"_id": "q1", "text": "b"})}, r"queries\.jsonl:2: id 'q1' oc"),
        ({"corpus": ""}, r"corpus\.jsonl holds no rows"),
        ({"queries": "\n\n"}, r"queries\.jsonl holds no rows"),
        ({"corpus": lines({"_id": "d1", "text": 3})}, r"corpus\.jsonl:1: field 'text' holds int 3"),
        (
            {"corpus": '{"_id": "d1", "text": NaN}\n'},
            r"1: field 'text' holds float nan, expected t",
        ),
        ({"corpus": '{"_id": "d1", "text": "\\ud800"}\n'}, r"1: field 'text' contains a lone surr"),
        ({"corpus": '{"_id": "\\udfff", "text": "a"}\n'}, r"1: field '_id' contains a lone surro"),
        ({"corpus": '{"a": ' + "[" * 100_000 + "\n"}, r"corpus\.jsonl:1: .*nested too deeply"),
        ({"corpus": f'{{"_id": {"1" * 5000}}}\n'}, r"corpus\.jsonl:1: .*more than 4300 digits"),
        ({"corpus": "[1]\n"}, r"corpus\.jsonl:1: a list where a JSON object is expected; each"),
    ],
)
def test_texts_that_are_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        beir(tmp_path, **changes)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"qrels/train.tsv": None}, r"neither .*train\.tsv nor .*; also read: qrels/train\.txt"),
        ({"corpus.jsonl/part": "x", "corpus.jsonl": None}, r"neither .*corpus\.jsonl nor"),
        ({"corpus.jsonl": None, "corpus.jsonl.zst": b"no zstd"}, r"cannot read .*\.jsonl\.zst aft"),
    ],
)
def test_files_that_are_missing_or_damaged(tmp_path, files, message):
    whole = {"corpus.jsonl": CORPUS, "queries.jsonl": QUERIES}
    whole["qrels/train.tsv"] = HEADER + "q1\td1\t1\n"
    with pytest.raises(UserError, match=message):
        pairs("beir", write(tmp_path, whole | files))


def test_a_file_in_place_of_a_directory_and_the_reverse(tmp_path):
    write(tmp_path, {"a.jsonl": CORPUS, "b/c.txt": "x"})
    for kind in ("beir", "msmarco"):
        with pytest.raises(UserError, match=r"a\.jsonl is not a directory; give the one"):
            pairs(kind, tmp_path / "a.jsonl")
    with pytest.raises(UserError, match=r"b holds no \.jsonl, \.jsonl\.gz, \.parquet file"):
        pairs("fields", tmp_path / "b", fields={"passage": "text"})


def test_collections(tmp_path):
    plain = msmarco(tmp_path)[0]
    assert plain == ONE
    assert msmarco(tmp_path, collection=f"0 \t{PASSAGE}\n" * 2)[0] == ONE
    assert msmarco(tmp_path, qrels="7\t0\t0\t1.0\n")[0] == ONE
    assert msmarco(tmp_path, qrels="query_id\titeration\tpid\trel\n7\t0\t0\t1\n")[0] == ONE
    assert msmarco(tmp_path, collection='0\t"A wedge" is\n')[0] == [(QUERY, '"A wedge" is')]
    for changes, message in (
        ({"collection": f"0\t{PASSAGE}\n1\ta\tb\n"}, r"collection\.tsv:2: 3 columns, expected 2"),
        ({"collection": f"0\t{PASSAGE}\n0\tb\n"}, r"collection\.tsv:2: id '0' occurs a second"),
        ({"qrels": "7\t0\t1\n"}, r"qrels\.train\.tsv:1: 3 columns, expected 4"),  # or a cut line?
    ):
        with pytest.raises(UserError, match=message):
            msmarco(tmp_path, **changes)


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compressed_files(tmp_path, suffix):
    compress = COMPRESS[suffix]
    data = compress(QUERIES.encode()) + compress(QUERIES.encode())  # of two parts
    path = write(tmp_path, {f"a.jsonl{suffix}": data}) / f"a.jsonl{suffix}"
    assert [dict(row.values)["text"] for row in read_rows(path)] == [QUERY] * 2
    assert len(list(read_rows(tmp_path))) == 2
    path.write_bytes(compress(QUERIES.encode() * 3)[:-9])
    with pytest.raises(UserError, match=rf"cannot read .*a\.jsonl\{suffix} after line \d"):
        list(read_rows(path))
    array = write(tmp_path, {f"a.json{suffix}": compress(b'[{"a": 1}]')}) / f"a.json{suffix}"
    assert [row.values for row in read_rows(array)] == [{"a": 1}]
    table = write(tmp_path, {f"a.parquet{suffix}": b""}) / f"a.parquet{suffix}"
    with pytest.raises(UserError, match="unsupported file type"):
        list(read_rows(table))


TEVATRON = {
    "query_id": "1",
    "query": QUERY,
    "positive_passages": [{"docid": "7", "title": "Wedge", "text": PASSAGE}],
    "negative_passages": [],
}
DPR = {
    "question": QUERY,
    "answers": ["a tool"],
    "positive_ctxs": [
        {"title": "Wedge", "text": PASSAGE, "score": 1000},
        {"title": "Tool", "text": "It splits"},
    ],
    "hard_negative_ctxs": [],
}
FLAG = {"query": QUERY, "pos": [PASSAGE], "neg": ["Wood splits"], "prompt": "p"}
TITLED = [(QUERY, f"Wedge\n{PASSAGE}")]


@pytest.mark.parametrize("name", ["x.jsonl", "x.parquet"])
@pytest.mark.parametrize(
    ("row", "fields", "expected"),
    [
        (TEVATRON, {"passage": "positive_passages.text"}, ONE),
        (TEVATRON, {"passage": "positive_passages"}, TITLED),
        (
            TEVATRON,
            {"passage": "positive_passages.text", "title": "positive_passages.title"},
            TITLED,
        ),
        (
            DPR,
            {"query": "question", "passage": "positive_ctxs"},
            [*TITLED, (QUERY, "Tool\nIt splits")],
        ),
        (DPR, {"query": "question", "passage": "positive_ctxs.text"}, [*ONE, (QUERY, "It splits")]),
        (FLAG, {"passage": "pos"}, ONE),
        ({"query": QUERY, "passage": {"title": "", "text": PASSAGE}}, {}, ONE),
    ],
)
def test_lists_and_objects(tmp_path, name, row, fields, expected):
    found, dropped = rows(tmp_path, row, name=name, **fields)
    assert found == sorted(expected)
    assert not dropped


def test_ids_of_lists(tmp_path):
    path = write(tmp_path, {"x.jsonl": lines(TEVATRON)}) / "x.jsonl"
    names = {"query": "query", "passage": "positive_passages"}
    for id, expected in (("query_id", "1:0"), ("positive_passages.docid", "7")):
        [pair] = read_pairs("fields", path, dropped=Counter(), fields=names | {"id": id})
        assert pair.id == expected


def test_a_title_that_no_row_has(tmp_path):
    row = {"query": QUERY, "passage": PASSAGE}
    with pytest.raises(UserError, match=r"x\.jsonl: no row has the field 'titel'; name the field"):
        rows(tmp_path, row, {**row, "title": "Wedge"}, title="titel")
    assert rows(tmp_path, row, {**row, "title": "Wedge"}, title="title")[0] == [*ONE, *TITLED]


def test_a_list_that_is_null(tmp_path):
    found, _ = rows(
        tmp_path,
        {"query": "a", "positive_ctxs": None},
        {"query": QUERY, "positive_ctxs": [{"text": PASSAGE}]},
        passage="positive_ctxs.text",
    )
    assert found == [("a", ""), *ONE]  # dropped and counted later, as every empty passage


def test_an_array_of_deep_objects(tmp_path):
    deep = f'[{{"query": "{QUERY}", "passage": {"[" * 10**5}{"]" * 10**5}}}]'
    path = write(tmp_path, {"x.json": deep}) / "x.json"
    with pytest.raises(UserError, match=r"x\.json:1: malformed JSON, nested too deeply"):
        list(read_rows(path))
    write(tmp_path, {"x.json": '[{"a": [1, {"b": [null]}], "c": {}}, {}]'})
    assert [row.values for row in read_rows(path)] == [{"a": [1, {"b": [None]}], "c": {}}, {}]


def test_rows_without_passages_are_counted(tmp_path):
    found, dropped = rows(tmp_path, {**TEVATRON, "passage": []}, FLAG | {"passage": [PASSAGE]})
    assert (found, dropped) == (ONE, {"no passage": 1})


def test_repeated_rows_with_ids(tmp_path):
    row = {"id": 1, "query": QUERY, "passage": PASSAGE}
    found, dropped = rows(tmp_path, row, row, id="id")
    assert (found, dropped) == (ONE, {"repeated row": 1})
    assert rows(tmp_path, row, {**row, "id": 2.0}, id="id")[0] == ONE * 2
    with pytest.raises(UserError, match=r"x\.jsonl:1: field 'id' holds float 1e\+17, expected"):
        rows(tmp_path, {**row, "id": 1e17}, id="id")  # others are rounded to it
    with pytest.raises(UserError, match=r"x\.jsonl:2: id '1' occurs a second time with other text"):
        rows(tmp_path, row, {**row, "passage": "Another"}, id="id")


def test_null_gives_way_to_another_name(tmp_path):
    """Parquet has nulls where a row lacks a field of another."""
    names = {"query": ["question", "query"]}
    mixed = [
        {"question": QUERY, "query": None, "passage": PASSAGE},
        {"question": None, "query": QUERY, "passage": "b"},
    ]
    assert rows(tmp_path, *mixed, name="x.parquet", **names)[0] == [*ONE, (QUERY, "b")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"query": 3, "passage": PASSAGE}, r"x\.jsonl:1: field 'query' holds int 3, expected text"),
        ({"query": QUERY, "passage": float("nan")}, r"x\.jsonl:1: field 'passage' holds float nan"),
        ({"query": QUERY, "passage": [{"body": "a"}]}, r"field 'passage\[0\]' holds dict"),
        ({"query": QUERY, "passage": [["a"]]}, r"x\.jsonl:1: field 'passage\[0\]' holds list"),
        ({"query": QUERY, "passage": [{"text": 3}]}, r"field 'passage\[0\]\.text' holds int 3"),
    ],
)
def test_rows_that_are_refused(tmp_path, row, message):
    with pytest.raises(UserError, match=message):
        rows(tmp_path, row)


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.jsonl.gz"])
def test_empty_files(tmp_path, name):
    data = {"x.json": b"[]", "x.jsonl.gz": gzip.compress(b"")}.get(name, b"")
    path = write(tmp_path, {name: data}) / name
    with pytest.raises(UserError, match=rf"{name} holds no rows; copy it again or give another"):
        pairs("fields", path, fields={"passage": "passage"})
    with pytest.raises(UserError, match=rf"{name} holds no rows"):
        list(inf_ir.read(path))


def test_a_directory_without_its_hidden_files(tmp_path):
    row = {"query": QUERY, "passage": PASSAGE}
    write(tmp_path, {"a.jsonl": lines(row), "._a.jsonl": b"\x00\x05\x16"})
    names = {"query": "query", "passage": "passage"}
    assert pairs("fields", tmp_path, fields=names)[0] == ONE


INF = {
    "query_positive": "q",
    "instruction_positive": "i",
    "document_positive": "d",
    "instruction_negative": "i2",
    "hard_negative_document_1": "h1",
    "query_negative": "q2",
    "hard_negative_document_2": "h2",
}


def examples(directory, *given):
    dropped = Counter()
    found = list(inf_ir.read(write(directory, {"x.jsonl": lines(*given)}), dropped=dropped))
    return found, dropped


def test_names_of_the_few_shot_release(tmp_path):
    [plain], _ = examples(tmp_path, INF)
    few = {f"{k}_fewshot" if k[0] in "qi" else k: v for k, v in INF.items()}
    early = {("document" if k == "document_positive" else k): v for k, v in few.items()}
    both = dict.fromkeys(INF) | few  # the two releases in one table
    for row in (few, early, both):
        assert examples(tmp_path, row)[0] == [plain]


def test_ids_that_meet_generated_ones(tmp_path):
    """The second row without an id is x.jsonl:2."""
    message = r"x\.jsonl:2: an earlier row has the id 'x\.jsonl:2' too, with other texts"
    with pytest.raises(UserError, match=message):
        examples(tmp_path, {**INF, "id": "x.jsonl:2"}, {**INF, "query_positive": "other"})
    with pytest.raises(UserError, match=r"x\.jsonl:2: an earlier row has the id 'x\.jsonl:1' too"):
        examples(tmp_path, INF, {**INF, "id": "x.jsonl:1", "query_positive": "other"})


def test_identical_examples_count_once(tmp_path):
    found, dropped = examples(tmp_path, *[{**INF, "id": "a"}] * 2, {**INF, "id": "b"})
    assert [example.id for example in found] == ["a", "b"]
    assert dropped == {"repeated row": 1}
    with pytest.raises(UserError, match=r"x\.jsonl:2: an earlier row has the id 'a' too"):
        examples(tmp_path, {**INF, "id": "a"}, {**INF, "id": "a", "query_positive": "other"})
