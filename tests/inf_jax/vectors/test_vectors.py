"""`inf-jax encode` and `inf-jax search`: the vectors of a Retriever, and a full sort of them."""

import gzip
import json
import shutil

import numpy as np
import pytest

import inf_jax
from inf_jax import encode, search
from inf_jax.core.errors import UserError
from inf_jax.vectors.store import VectorStore

WORDS = "amber birch cedar dahlia grows on wet hills near the coast frost and beetles".split()
MODEL = "--passage-template=passage: {passage}"


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    return {f"d{n}": " ".join(rng.choice(WORDS, rng.integers(1, 12))) for n in range(70)}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, texts):
    directory = tmp_path_factory.mktemp("beir")
    rows = [{"_id": name, "title": "", "text": text} for name, text in texts.items()]
    jsonl(directory / "corpus.jsonl", rows)
    queries = [{"_id": f"q{n}", "text": f"what {w}"} for n, w in enumerate(WORDS[:5])]
    queries[2]["instruction"] = "Tell what harms it."
    jsonl(directory / "queries.jsonl", queries)
    return directory


def run(command, model, **flags):
    given = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    command.main(command._flags().parse([f"--model={model}", MODEL, *given]))


@pytest.fixture(scope="module")
def encoded(tmp_path_factory, tiny_model_dir, corpus):
    out = tmp_path_factory.mktemp("vectors") / "out"
    run(encode, tiny_model_dir, texts=corpus, out=out, shard_size=16)
    return out


@pytest.fixture(scope="module")
def retriever(tiny_model_dir):
    return inf_jax.load(tiny_model_dir, passage_template="passage: {passage}")


def files(directory):
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def test_vectors_are_those_of_the_retriever(encoded, texts, retriever):
    store = VectorStore(encoded)
    assert (store.manifest.shards, store.manifest.rows(4)) == (5, 6)
    assert [name for n in range(5) for name in store.ids(n)] == list(texts)
    found = np.concatenate([store.vectors(n) for n in range(5)])
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, retriever.encode_passages(texts.values()), atol=1e-3)
    np.testing.assert_array_equal(np.load(encoded / "shard-00001.npy"), found[16:32])


def test_a_run_is_the_full_sort(encoded, corpus, texts, tiny_model_dir, retriever, tmp_path):
    run(search, tiny_model_dir, vectors=encoded, queries=corpus, run=tmp_path / "a.trec", k=20)
    rows = [line.split() for line in (tmp_path / "a.trec").read_text().splitlines()]
    stored = np.concatenate([VectorStore(encoded).vectors(n) for n in range(5)]).astype(np.float32)
    instructions = ["", "", "Tell what harms it.", "", ""]
    queries = retriever.encode_queries([f"what {w}" for w in WORDS[:5]], instructions)
    scores = queries @ stored.T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :20]
    assert [r[0] for r in rows] == [f"q{n}" for n in range(5) for _ in range(20)]
    assert [r[3] for r in rows] == [str(n) for _ in range(5) for n in range(1, 21)]
    np.testing.assert_allclose(
        np.array([float(r[4]) for r in rows]).reshape(5, 20),
        np.take_along_axis(scores, order, axis=1),
        atol=1e-6,
    )
    names = list(texts)
    near = {tuple(row): float(score) for *row, score in ((r[0], r[2], r[4]) for r in rows)}
    for n in range(5):  # the same passages, up to ties by rounding
        mine = {d for q, d in near if q == f"q{n}"}
        assert len(mine) == 20
        worst = np.sort(scores[n])[-20]
        assert all(scores[n][names.index(d)] >= worst - 1e-6 for d in mine)
    # queries that were encoded before
    vectors = tmp_path / "queries"
    run(encode, tiny_model_dir, texts=corpus, out=vectors, role="query", dtype="float32")
    run(search, "", vectors=encoded, queries=vectors, run=tmp_path / "b.trec", k=20)
    assert (tmp_path / "a.trec").read_bytes() == (tmp_path / "b.trec").read_bytes()


def test_what_is_finished_is_reused_and_the_rest_has_the_same_bytes(
    encoded, corpus, tiny_model_dir, tmp_path, monkeypatch
):
    whole, out = files(encoded), tmp_path / "out"
    shutil.copytree(encoded, out)
    (out / "shard-00001.json").unlink()  # killed before its record
    (out / "shard-00003.npy").write_bytes(whole["shard-00003.npy"][:-7])  # cut
    (out / "shard-00004.ids").unlink()
    (out / "shard-00002.npy.partial-1-ab").write_bytes(b"half")
    written = []
    write = VectorStore.write
    monkeypatch.setattr(VectorStore, "write", lambda s, n, *a: written.append(n) or write(s, n, *a))
    with pytest.raises(UserError, match=r"1 of 5 shards are not finished"):
        run(search, tiny_model_dir, vectors=out, queries=corpus, run=tmp_path / "x")
    run(encode, tiny_model_dir, texts=corpus, out=out, shard_size=16)
    assert written == [1, 3, 4]
    assert {name: data for name, data in files(out).items() if "partial" not in name} == whole


@pytest.mark.parametrize("kind", ["jsonl.gz", "tsv", "parquet"])
def test_kinds_of_files(kind, texts, encoded, tiny_model_dir, tmp_path):
    file, rows = tmp_path / f"corpus.{kind}", [{"id": n, "contents": t} for n, t in texts.items()]
    if kind == "jsonl.gz":
        file.write_bytes(gzip.compress("\n\n".join(map(json.dumps, rows)).encode()))
    elif kind == "tsv":
        file.write_text("".join(f"{name}\t{text}\r\n" for name, text in texts.items()))
    else:
        pq = pytest.importorskip("pyarrow.parquet")
        pq.write_table(pytest.importorskip("pyarrow").Table.from_pylist(rows), file)
    out = tmp_path / "out"
    shutil.copytree(encoded, out)
    run(encode, tiny_model_dir, texts=file, out=out, shard_size=16)  # refuses other texts
    assert files(out) == files(encoded)


def test_the_passages_of_a_dataset_have_the_ids_of_evaluate(tiny_dataset_dir):
    from inf_jax.data.tokenise import read_examples
    from inf_jax.evaluation.task import task_from_examples
    from inf_jax.vectors.texts import TextSource

    source = TextSource(tiny_dataset_dir, split="dev")
    task = task_from_examples(read_examples(tiny_dataset_dir, "dev"))
    assert {text.id: text.text for text in source.texts()} == task.corpus
    assert source.check().count == len(task.corpus)


def damaged(name, change):
    def act(directory):
        path = directory / name
        path.write_bytes(change(path.read_bytes()))

    return act


def manifest(**values):
    return damaged("vectors.json", lambda data: json.dumps(json.loads(data) | values).encode())


OTHER = "vectors of another model than the queries'"


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (damaged("shard-00002.npy", lambda d: d[:-1] + b"\0"), "shard-00002.npy: is not what was"),
        (damaged("shard-00002.npy", lambda d: d[:50]), "shard-00002.npy: is not what was"),
        (damaged("shard-00000.ids", lambda d: d[::-1]), "shard-00000.ids: is not what was"),
        (damaged("shard-00001.json", lambda d: b"{"), "shard-00001.json: not JSON"),
        (damaged("vectors.json", lambda d: d[:9]), "vectors.json: not JSON"),
        (manifest(format=2), "format 2, this version reads 1"),
        (manifest(count=0), "count=0 cannot be"),
        (manifest(role="query"), "holds query vectors where those of passage"),
        (manifest(width=31), r"shard-00000.npy: float16\[16, 32\] where \(16, 31\)"),
        (manifest(identity={"weights": "0" * 16}), rf"{OTHER} \(weights: 0000000000000000"),
        (manifest(templates={"passage": ["{passage}", 64]}), rf"{OTHER} \(passage template"),
    ],
)
def test_refused_vectors(act, message, encoded, corpus, tiny_model_dir, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(encoded, out)
    act(out)
    with pytest.raises(UserError, match=message):
        run(search, tiny_model_dir, vectors=out, queries=corpus, run=tmp_path / "run", k=70)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"id": "a", "text": "x"}, {"id": "a", "text": "y"}], "line 2: the id 'a' is also that of"),
        ([{"id": 1, "text": "x"}, {"id": "1", "text": "y"}], "line 2: the id '1' is also that of"),
        ([{"id": "a", "words": "x"}], r"line 1: no text or .* among its fields \(id, words\)"),
        ([{"text": "x"}], "line 1: no _id or id"),
        ([{"id": "a", "text": 3}], "line 1: text must be a string, not a int"),
        ([{"id": "a b", "text": "x"}], "line 1: the id 'a b' is not a string without white space"),
        ([{"id": "", "text": "x"}], "line 1: the id '' is not a string"),
        ([{"id": True, "text": "x"}], "line 1: the id True is not a string"),
        ([{"id": "a", "text": "x", "title": 1}], "line 1: title=1 is not a string"),
        ([{"id": "a", "text": "\ud800"}], "line 1: text: the character"),
        ([["a", "x"]], "line 1: a list where a JSON object is expected"),
        ([], "holds no texts"),
    ],
)
def test_refused_texts(lines, message, tiny_model_dir, tmp_path):
    file = jsonl(tmp_path / "corpus.jsonl", lines)
    with pytest.raises(UserError, match=message):
        run(encode, tiny_model_dir, texts=file, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_texts_or_settings_are_refused(encoded, corpus, tiny_model_dir, tmp_path):
    for flags, what in (
        ({"shard_size": 17}, "shard_size: 16, now 17"),
        ({"shard_size": 16, "dtype": "float32"}, "dtype: float16, now float32"),
        ({"shard_size": 16, "dim": 8}, "width: 32, now 8"),
        ({"shard_size": 16, "role": "query"}, "role: passage, now query"),
    ):
        with pytest.raises(UserError, match=what):
            run(encode, tiny_model_dir, texts=corpus, out=encoded, **flags)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no vectors.json"):
        run(encode, tiny_model_dir, texts=corpus, out=tmp_path)
