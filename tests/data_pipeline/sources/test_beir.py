"""Reads pairs from BEIR directories; damaged ones raise errors that name the row."""

import gzip
import itertools
import json
from collections import Counter
from pathlib import Path

import pytest

from data_pipeline.sources import beir
from data_pipeline.sources.pairs import SourcePair
from inf_jax.core.errors import UserError

SAMPLE = Path(beir.__file__).parents[1] / "samples" / "pubmedqa"
HEADER = "query-id\tcorpus-id\tscore\n"


def write(directory, *, corpus=None, queries=None, qrels=None, split="train"):
    """Writes a set of two queries and three passages; arguments replace the contents of files."""
    corpus = corpus or [
        {"_id": "p1", "title": "Bees", "text": "Bees make honey."},
        {"_id": "p2", "title": "", "text": "Wasps do not."},
        {"_id": "p3", "text": "Ants neither."},
    ]
    queries = queries or [{"_id": "q1", "text": "who makes honey"}, {"_id": "q2", "text": "and ?"}]
    qrels = HEADER + "q2\tp2\t1\nq1\tp1\t2\nq1\tp2\t0\n" if qrels is None else qrels
    (directory / "qrels").mkdir(exist_ok=True)
    for name, rows in (("corpus", corpus), ("queries", queries)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (directory / f"{name}.jsonl").write_text(text)
    (directory / "qrels" / f"{split}.tsv").write_text(qrels)
    return directory


def read(directory, **options):
    dropped = Counter()
    return list(beir.read(directory, dropped=dropped, **options)), dropped


def test_pairs_in_the_order_of_the_corpus_under_their_titles(tmp_path):
    pairs, dropped = read(write(tmp_path))
    assert pairs == [
        SourcePair("q1:p1", "who makes honey", "Bees\nBees make honey."),
        SourcePair("q2:p2", "and ?", "Wasps do not."),
    ]
    assert dropped == {"score under 1": 1}


def test_instructions_of_queries(tmp_path):
    queries = [
        {"_id": "q1", "text": "bees", "instruction": "Who makes it?"},
        {"_id": "q2", "text": "bees", "instruction": None},
    ]
    pairs, _ = read(write(tmp_path, queries=queries))
    assert [(p.query, p.instruction) for p in pairs] == [("bees", "Who makes it?"), ("bees", "")]
    with pytest.raises(UserError, match="id 'q1' occurs a second time with another text"):
        read(write(tmp_path, queries=[*queries, queries[0] | {"instruction": "Another?"}]))


def test_minimum_score_and_split(tmp_path):
    write(tmp_path, qrels=HEADER + "q1\tp3\t1\nq2\tp1\t3\n", split="dev")
    assert [p.id for p in read(tmp_path, split="dev")[0]] == ["q2:p1", "q1:p3"]
    pairs, dropped = read(tmp_path, split="dev", min_score=2)
    assert [p.id for p in pairs] == ["q2:p1"]
    assert dropped == {"score under 2": 1}


def test_every_judgement_is_counted(tmp_path):
    queries = [{"_id": "q1", "text": "who"}, {"_id": "q2", "text": " "}]
    rows = [
        "q1\tp1\t1",
        "q1\tp1\t1",
        "q2\tp1\t1",
        "q3\tp2\t1",
        "q1\tp9\t1",
        "q1\tp9\t1",
        "q1\tp3\t0",
    ]
    pairs, dropped = read(write(tmp_path, queries=queries, qrels=HEADER + "\n".join(rows)))
    assert [p.id for p in pairs] == ["q1:p1"]
    assert dropped == {
        "repeated qrel": 2,
        "empty query": 1,
        "no such query": 1,
        "no such passage": 1,
        "score under 1": 1,
    }
    assert len(pairs) + dropped.total() == len(rows)


def test_gzip_windows_line_ends_byte_order_marks_and_numbers_as_ids(tmp_path):
    write(
        tmp_path,
        corpus=[{"_id": 7, "title": None, "text": "Seven."}],
        queries=[{"_id": "q", "text": "seven?"}],
        qrels=HEADER + "q\t7\t1\n\n",
    )
    plain = read(tmp_path)
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/train.tsv"):
        file = tmp_path / name
        data = b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n")
        file.with_name(file.name + ".gz").write_bytes(gzip.compress(data))
        file.unlink()
    assert read(tmp_path) == plain == ([SourcePair("q:7", "seven?", "Seven.")], {})


def test_ids_in_quotes_as_the_csv_module_writes_them(tmp_path):
    write(
        tmp_path,
        corpus=[{"_id": '"Heroes"_(song)', "text": "A song."}],
        qrels=HEADER + 'q1\t"""Heroes""_(song)"\t1\n',
    )
    assert [p.id for p in read(tmp_path)[0]] == ['q1:"Heroes"_(song)']


def test_passages_only_needs_the_corpus_alone(tmp_path):
    write(tmp_path)
    (tmp_path / "queries.jsonl").unlink()
    (tmp_path / "qrels" / "train.tsv").unlink()
    pairs, dropped = read(tmp_path, passages_only=True)
    assert pairs[0] == SourcePair("p1", "", "Bees\nBees make honey.")
    assert [p.id for p in pairs] == ["p1", "p2", "p3"]
    assert not dropped


def test_passages_stream(tmp_path):
    """A pair is yielded before the next passage is read."""
    directory = write(tmp_path)
    with open(directory / "corpus.jsonl", "a") as file:
        file.write("{broken\n")
    pairs = beir.read(directory)
    assert [p.id for p in itertools.islice(pairs, 2)] == ["q1:p1", "q2:p2"]
    with pytest.raises(UserError, match=r"corpus\.jsonl:4: not JSON"):
        next(pairs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"qrels": "query\tpassage\tscore\nq1\tp1\t1\n"},
            r"train\.tsv:1: the header must name the columns query-id, .* but is 'query passage sc",
        ),
        ({"qrels": HEADER + "q1\tp1\n"}, r"train\.tsv:2: 2 columns, expected 3 \(query-id, "),
        ({"qrels": HEADER + "q1\tp1\tyes\n"}, r"train\.tsv:2: score is 'yes', expected an int"),
        ({"qrels": HEADER + "q1\tp1\t1.5\n"}, r"train\.tsv:2: score is '1.5', expected an int"),
        ({"qrels": HEADER}, r"train\.tsv: none of its 0 rows yields a pair; give"),
        (
            {"qrels": HEADER + "q1\tx\t1\nq1\ty\t1\nz\tp1\t1\n"},
            r"train\.tsv: none of its 3 rows .* 2 for 'no such passage', 1 for 'no such query'",
        ),
        ({"corpus": [{"_id": "p1"}]}, r"corpus\.jsonl:1: no field 'text'; the row has: _id"),
        ({"corpus": [{"text": "a"}]}, r"corpus\.jsonl:1: no field '_id'; the row has: text"),
        ({"corpus": [{"_id": "", "text": "a"}]}, r"corpus\.jsonl:1: field '_id' is empty"),
        ({"corpus": [{"_id": 1.5, "text": "a"}]}, r"corpus\.jsonl:1: field '_id' holds float 1.5"),
        (
            {"corpus": [{"_id": "p1", "text": text} for text in "ab"]},
            r"corpus\.jsonl:2: id 'p1' occurs a second time with another text",
        ),
        (
            {"queries": [{"_id": "q1", "text": text} for text in "ab"]},
            r"queries\.jsonl:2: id 'q1' occurs a second time with another text",
        ),
    ],
)
def test_bad_content(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        read(write(tmp_path, **changes))


def test_missing_files(tmp_path):
    with pytest.raises(UserError, match=r"gone is not a directory; give the one that holds corpus"):
        read(tmp_path / "gone")
    write(tmp_path, split="test")
    with pytest.raises(
        UserError,
        match=r"neither .*qrels/train\.tsv nor .*\.gz exists; \.tsv files there: test\.tsv",
    ):
        read(tmp_path)
    (tmp_path / "queries.jsonl").unlink()
    with pytest.raises(UserError, match=r"neither .*queries\.jsonl .* files there: corpus\.jsonl"):
        read(tmp_path, split="test")


def test_the_sample_that_is_shipped():
    pairs, dropped = read(SAMPLE)
    assert len(pairs) == 200
    assert not dropped
    assert len({p.query for p in pairs}) == len({p.passage for p in pairs}) == 200
    for pair in pairs:
        query, passage = pair.id.split(":")
        assert query == "q" + passage
        assert pair.query.endswith("?")
        assert 30 <= len(pair.passage.split()) <= 120
    assert sum(f.stat().st_size for f in SAMPLE.rglob("*") if f.is_file()) < 400_000
