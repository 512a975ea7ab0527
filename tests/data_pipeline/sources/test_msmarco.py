"""Reads pairs from MS MARCO tables; damaged ones raise errors that name the row."""

import gzip
import itertools
from collections import Counter

import pytest

from data_pipeline.sources import msmarco
from data_pipeline.sources.pairs import SourcePair
from inf_jax.core.errors import UserError

FILES = {
    "collection.tsv": '0\tThe "Manhattan" project.\n1\tNothing of it\u2028here.\n2\tThird.\n',
    "queries.train.tsv": "10\twhat was it?\n11\tand then\n12\tnever judged\n",
    "qrels.train.tsv": "11\t0\t0\t1\n10\t0\t0\t1\n10\t0\t2\t1\n",
}


def write(directory, **changes):
    for name, text in FILES.items():
        text = changes.get(name.partition(".")[0], text)
        (directory / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return directory


def read(directory, **options):
    dropped = Counter()
    return list(msmarco.read(directory, dropped=dropped, **options)), dropped


def test_pairs_in_the_order_of_the_collection(tmp_path):
    pairs, dropped = read(write(tmp_path))
    assert pairs == [
        SourcePair("11:0", "and then", 'The "Manhattan" project.'),
        SourcePair("10:0", "what was it?", 'The "Manhattan" project.'),
        SourcePair("10:2", "what was it?", "Third."),
    ]
    assert not dropped


def test_gzip_windows_line_ends_and_byte_order_marks(tmp_path):
    plain = read(write(tmp_path))
    for name in FILES:
        data = b"\xef\xbb\xbf" + (tmp_path / name).read_bytes().replace(b"\n", b"\r\n")
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(data))
        (tmp_path / name).unlink()
    assert read(tmp_path) == plain


def test_judgements_in_the_spaces_of_trec_with_grades(tmp_path):
    write(tmp_path, qrels="10 Q0 0 2\n10 Q0 1 0\n11 Q0 2 3\n")
    assert [p.id for p in read(tmp_path)[0]] == ["10:0", "11:2"]
    pairs, dropped = read(tmp_path, min_score=3)
    assert [p.id for p in pairs] == ["11:2"]
    assert dropped == {"score under 3": 2}


def test_splits_as_the_files_are_named(tmp_path):
    write(tmp_path)
    (tmp_path / "queries.dev.small.tsv").write_text("5\twhat else\n")
    (tmp_path / "qrels.dev.small.tsv").write_text("5\t0\t1\t1\n")
    [pair] = read(tmp_path, split="dev.small")[0]
    assert pair == SourcePair("5:1", "what else", "Nothing of it\u2028here.")


def test_passages_only(tmp_path):
    (tmp_path / "collection.tsv").write_text(FILES["collection.tsv"])
    pairs, _ = read(tmp_path, passages_only=True)
    assert [p.id for p in pairs] == ["0", "1", "2"]
    assert {p.query for p in pairs} == {""}


def test_passages_stream(tmp_path):
    pairs = msmarco.read(write(tmp_path, collection=FILES["collection.tsv"] + "3 no tab\n"))
    assert len(list(itertools.islice(pairs, 3))) == 3
    with pytest.raises(UserError, match=r"collection\.tsv:4: 1 columns, expected 2 \(id, text\)"):
        next(pairs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"collection": "0\ta\tb\n"}, r"collection\.tsv:1: 3 columns, expected 2 \(id, text\)"),
        ({"collection": b"0\tcaf\xe9\n"}, r"collection\.tsv:1: not UTF-8"),
        ({"queries": "\n\n10 no tab\n"}, r"queries\.train\.tsv:3: 1 columns, expected 2"),
        ({"qrels": "10\t0\t1\n"}, r"qrels\.train\.tsv:1: 3 columns, expected 4 \(query-id, iter"),
        ({"qrels": "10\t0\t1\t\n"}, r"qrels\.train\.tsv:1: 3 columns, expected 4"),
        ({"qrels": "10\t0\t1\tx\n"}, r"qrels\.train\.tsv:1: score is 'x', expected an integer"),
        (
            {"qrels": "7\t0\t1\t1\n"},
            r"qrels\.train\.tsv: none of its 1 rows yields a pair; dropped: ",
        ),
        ({"collection": "0\ta\n0\tb\n"}, r"collection\.tsv:2: id '0' occurs a second time"),
    ],
)
def test_bad_content(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        read(write(tmp_path, **changes))


def test_missing_files(tmp_path):
    with pytest.raises(UserError, match=r"neither .*collection\.tsv nor .*\.gz exists; .* none"):
        read(tmp_path)
    write(tmp_path)
    with pytest.raises(UserError, match=r"neither .*qrels\.dev\.tsv .*there: .*qrels\.train\.tsv"):
        read(tmp_path, split="dev")


def test_damaged_gzip(tmp_path):
    write(tmp_path)
    data = gzip.compress(b"".join(b"%d\tpassage %d\n" % (i, i * i) for i in range(20000)))
    (tmp_path / "collection.tsv").unlink()
    (tmp_path / "collection.tsv.gz").write_bytes(data[:-3000])
    with pytest.raises(UserError, match=r"cannot read .*collection\.tsv\.gz after line \d{2,}"):
        read(tmp_path)
