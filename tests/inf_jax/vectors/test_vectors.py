"""`inf-jax encode` and `inf-jax search`: the vectors of a Retriever, and a full sort of them."""

import codecs
import gzip
import json
import shutil

import jax
import numpy as np
import pytest

import inf_jax
from inf_jax import encode, search
from inf_jax.benchmarks.beir_files import read_beir
from inf_jax.core.errors import UsageError, UserError
from inf_jax.data.tokenise import read_examples
from inf_jax.distributed.mesh import local_mesh, make_mesh
from inf_jax.evaluation.task import task_from_examples
from inf_jax.models import hf
from inf_jax.models.hf.config import read_config
from inf_jax.vectors import searching
from inf_jax.vectors.encoding import Share, encode_source
from inf_jax.vectors.searching import read_queries, search_store
from inf_jax.vectors.store import VectorStore, open_for_writing
from inf_jax.vectors.texts import TextSource
from tests.inf_jax.commands import saved_runs

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
    named = [f"--model={model}", MODEL] if model else []
    command.main(command._flags().parse([*named, *given]))


@pytest.fixture(scope="module")
def encoded(tmp_path_factory, tiny_model_dir, corpus):
    out = tmp_path_factory.mktemp("vectors") / "out"
    run(encode, tiny_model_dir, texts=corpus, out=out, shard_size=16)
    return out


@pytest.fixture(scope="module")
def queries(tmp_path_factory, tiny_model_dir, corpus):
    out = tmp_path_factory.mktemp("queries") / "out"
    run(encode, tiny_model_dir, texts=corpus, out=out, role="query", dtype="float32")
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


def test_a_run_is_the_full_sort(
    encoded, queries, corpus, texts, tiny_model_dir, retriever, tmp_path
):
    run(search, tiny_model_dir, vectors=encoded, queries=corpus, run=tmp_path / "a.trec", k=20)
    rows = [line.split() for line in (tmp_path / "a.trec").read_text().splitlines()]
    stored = np.concatenate([VectorStore(encoded).vectors(n) for n in range(5)]).astype(np.float32)
    instructions = ["", "", "Tell what harms it.", "", ""]
    vectors = retriever.encode_queries([f"what {w}" for w in WORDS[:5]], instructions)
    scores = vectors @ stored.T
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
    run(search, "", vectors=encoded, queries=queries, run=tmp_path / "b.trec", k=20)
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
        run(search, "", vectors=out, queries=corpus, run=tmp_path / "x")
    run(encode, tiny_model_dir, texts=corpus, out=out, shard_size=16)
    assert written == [1, 3, 4]
    assert {name: data for name, data in files(out).items() if "partial" not in name} == whole


@pytest.mark.parametrize("kind", ["jsonl.gz", "tsv", "parquet"])
def test_kinds_of_files(kind, texts, encoded, tiny_model_dir, tmp_path):
    file, rows = tmp_path / f"corpus.{kind}", [{"id": n, "contents": t} for n, t in texts.items()]
    if kind == "jsonl.gz":
        file.write_bytes(gzip.compress("\n\n".join(map(json.dumps, rows)).encode()))
    elif kind == "tsv":
        lines = "".join(f"{name}\t{text}\r\n" for name, text in texts.items())
        file.write_bytes(codecs.BOM_UTF8 + lines.encode())
    else:
        pq = pytest.importorskip("pyarrow.parquet")
        pq.write_table(pytest.importorskip("pyarrow").Table.from_pylist(rows), file)
    out = tmp_path / "out"
    shutil.copytree(encoded, out)
    run(encode, tiny_model_dir, texts=file, out=out, shard_size=16)  # refuses other texts
    assert files(out) == files(encoded)


def test_titles_and_white_space_are_those_of_benchmarks(tmp_path):
    """A passage's title precedes its text, as for `inf-jax benchmark`; a query's is left out."""
    row = {"_id": "a", "title": "Amber", "text": " grows \n"}
    jsonl(tmp_path / "corpus.jsonl", [row, row | {"_id": "b", "title": ""}])
    jsonl(tmp_path / "queries.jsonl", [row])
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels/test.tsv").write_text("a\tb\t1\n")
    task = read_beir(tmp_path, identical_ids="keep")
    assert {text.id: text.text for text in TextSource(tmp_path).texts()} == task.corpus
    assert task.corpus == {"a": "Amber  grows", "b": "grows"}
    (query,) = TextSource(tmp_path, "query").texts()
    assert query.text == " grows \n" == task.queries["a"][0]


def test_the_passages_of_a_dataset_have_the_ids_of_evaluate(tiny_dataset_dir):
    source = TextSource(tiny_dataset_dir, split="dev")
    task = task_from_examples(read_examples(tiny_dataset_dir, "dev"))
    assert {text.id: text.text for text in source.texts()} == task.corpus
    assert source.check().count == len(task.corpus)


@pytest.mark.parametrize(
    ("command", "flags", "message"),
    [
        ("search", {"queries": "VECTORS"}, r"--model, --passage-template would have .* already"),
        ("search", {"queries": "VECTORS", "model": "", "instruction": "x", "mask": "causal"},
         "--mask, --instruction would have no effect: .* are vectors already; leave them out"),
        ("search", {"split": "train"}, "--split would have no effect: .* not a built dataset"),
        ("search", {"checkpoint": "best"}, "--checkpoint would .* not the out_dir of a run"),
        ("encode", {"instruction": "x"}, "--instruction would .* passages are encoded"),
        ("encode", {"query_template": "{query}"}, "--query-template would .* passages are"),
        ("encode", {"checkpoint": 7}, "--checkpoint would .* not the out_dir of a run; leave it"),
        ("encode", {"split": "train"}, "--split would have no effect: .* not a built dataset"),
        ("encode", {"texts": "TSV", "text_field": "body"}, "--text-field .* no named fields"),
    ],
)  # fmt: skip
def test_flags_without_effect_are_refused(
    command, flags, message, encoded, queries, corpus, tiny_model_dir, tmp_path
):
    (tmp_path / "a.tsv").write_text("d0\tamber\n")
    places = {"VECTORS": queries, "TSV": tmp_path / "a.tsv"}
    flags = {name: places.get(value, value) for name, value in flags.items()}
    model = flags.pop("model", tiny_model_dir)
    if command == "search":
        flags = {"vectors": encoded, "queries": corpus, "run": tmp_path / "run"} | flags
    else:
        flags = {"texts": corpus, "out": tmp_path / "out"} | flags
    with pytest.raises(UsageError, match=message):
        run({"search": search, "encode": encode}[command], model, **flags)
    assert [file.name for file in tmp_path.iterdir()] == ["a.tsv"]


@pytest.mark.parametrize("tag", ["", "my tag", " a", "a\n"])
def test_a_tag_is_one_field_of_a_run(tag):
    with pytest.raises(UsageError, match=r"--tag: .* must be one word: white space separates"):
        search._flags().parse(["--vectors=v", "--queries=q", "--run=r", f"--tag={tag}"])


@pytest.mark.parametrize("header", ["id\ttext", "\ufeffpid\tPassage", "query-id\ttext"])
def test_the_header_of_a_tsv_file_is_no_text(header, tmp_path):
    """The form of BEIR-like files; MS MARCO's have none."""
    file = tmp_path / "a.tsv"
    file.write_text(f"{header}\nd0\tamber\nid\ttext\n")
    assert [text[:2] for text in TextSource(file).texts()] == [("d0", "amber"), ("id", "text")]
    file.write_text("title\tid\namber\td0\n")
    with pytest.raises(UserError, match="line 1: a header of title and id; swap the two columns"):
        TextSource(file).check()
    file.write_text("d0\tTitle\ttext\n")
    with pytest.raises(UserError, match="line 1: 3 columns where two are expected, separated by"):
        TextSource(file).check()


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
        (manifest(dtype="float32"), r"shard-00000.npy: float16\[16, 32\] where float32"),
        (manifest(width=31), rf"{OTHER} \(entries: 31, of the queries 32\)"),
        (manifest(identity={"weights": "0" * 16}), rf"{OTHER} \(weights: 0000000000000000"),
        (manifest(templates={"passage": ["{passage}", 64]}), rf"{OTHER} \(passage template"),
    ],
)
def test_refused_vectors(act, message, encoded, queries, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(encoded, out)
    act(out)
    with pytest.raises(UserError, match=message):
        run(search, "", vectors=out, queries=queries, run=tmp_path / "run", k=70)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            [{"id": "a", "text": "x"}, {"id": "a", "text": "y"}],
            "line 2: the id 'a' is also that of",
        ),
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
    with pytest.raises(UserError, match=r"dtype: float16, now float32; width: 32, now 8"):
        run(
            encode, tiny_model_dir, texts=corpus, out=encoded, shard_size=16, dtype="float32", dim=8
        )
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no"):
        run(encode, tiny_model_dir, texts=corpus, out=tmp_path)


def test_one_computation_for_all_shards(encoded, corpus, tiny_model_dir, tmp_path):
    """Shards of another precision or of another architecture are not mixed with those there."""
    flags = {"texts": corpus, "out": encoded, "shard_size": 16}
    with pytest.raises(UserError, match=r"compute_dtype: float32, now bfloat16\); choose another"):
        run(encode, tiny_model_dir, compute_dtype="bfloat16", **flags)
    other = tmp_path / "model"
    shutil.copytree(tiny_model_dir, other)
    fields = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(fields | {"layer_norm_eps": 0.5}))
    with pytest.raises(UserError, match=r"norm_eps: 1e-12, now 0.5\); choose another"):
        run(encode, other, **flags)
    with pytest.raises(UserError, match=rf"{OTHER} \(norm_eps: 1e-12, of the queries 0.5\)"):
        run(search, other, vectors=encoded, queries=corpus, run=tmp_path / "run")


def test_vectors_of_an_older_version(encoded, queries, corpus, tiny_model_dir, tmp_path):
    """They are searched as before; what was computed how is not known, and nothing is added."""
    fields = json.loads((encoded / "vectors.json").read_text())
    del fields["compute_dtype"], fields["identity"]["architecture"]
    out = tmp_path / "out"
    shutil.copytree(encoded, out)
    (out / "vectors.json").write_text(json.dumps(fields))
    for directory, name in ((encoded, "now"), (out, "then")):
        run(search, "", vectors=directory, queries=queries, run=tmp_path / name, k=9)
    assert (tmp_path / "now").read_bytes() == (tmp_path / "then").read_bytes()
    with pytest.raises(UserError, match=r"architecture: not recorded by .* compute_dtype: not rec"):
        run(encode, tiny_model_dir, texts=corpus, out=out, shard_size=16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda lines: [
                *lines[:20],
                lines[20].replace('"text": "', '"text": "other ', 1),
                *lines[21:],
            ],
            "at .*",
        ),
        (lambda lines: lines[:-3], "it has fewer than its 70 texts"),
        (lambda lines: [*lines, lines[-1]], "it has more than its 70 texts"),
    ],
)
def test_texts_that_change_while_they_are_encoded(
    change, message, retriever, corpus, encoded, tmp_path
):
    file = tmp_path / "corpus.jsonl"
    file.write_text(text := (corpus / "corpus.jsonl").read_text())
    source = TextSource(file)
    checked = source.check()
    file.write_text("".join(change(text.splitlines(keepends=True))))
    store = open_for_writing(tmp_path / "out", VectorStore(encoded).manifest)
    with pytest.raises(UserError, match=rf"was changed while it was encoded \({message}"):
        encode_source(retriever, source, checked, store, progress=False)
    whole = files(encoded)
    assert all(data == whole[name] for name, data in files(tmp_path / "out").items())


def test_shares_of_several_processes(encoded, queries, corpus, retriever, tmp_path, monkeypatch):
    """Vectors have the same bytes on any number of processes and devices, scores on any number of
    processes; on another number of devices scores agree to rounding."""
    store, source = VectorStore(encoded), TextSource(corpus)
    half = tmp_path / "half"
    one = make_mesh(devices=jax.devices()[:1])
    alone = inf_jax.Retriever(
        retriever.params,
        retriever.config,
        shape=retriever.encoder.config,
        tokenizer=retriever.tokenizer,
        mesh=one,
    )
    for process, each in enumerate((retriever, alone, retriever)):
        other = open_for_writing(half, store.manifest)
        share = Share(process, 3)
        encode_source(each, source, source.check(), other, share=share, progress=False)
    assert files(half) == files(encoded)
    vectors = read_queries(VectorStore(queries))[1]
    (expected,) = search_store(vectors, store, 9, mesh=one)
    parts = []
    for process in range(3):
        with monkeypatch.context() as patch:  # what this process finds
            gathered = lambda x: parts.append(x) or x[None]  # noqa: E731
            patch.setattr(searching.multihost_utils, "process_allgather", gathered)
            list(search_store(vectors, store, 9, mesh=one, share=Share(process, 3)))
    parts = iter([np.stack(parts[0::2]), np.stack(parts[1::2])])
    monkeypatch.setattr(searching.multihost_utils, "process_allgather", lambda _: next(parts))
    (found,) = search_store(vectors, store, 9, mesh=one, share=Share(0, 3))
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_array_equal(x, y)
    whole = local_mesh()
    assert whole.size > 1
    passages = np.concatenate([store.vectors(n) for n in range(store.manifest.shards)])
    exact = vectors.astype(np.float64) @ passages.astype(np.float64).T
    best = -np.sort(-exact)[:, :9]
    for scores, numbers in (expected, *search_store(vectors, store, 9, mesh=whole)):
        np.testing.assert_allclose(scores, best, atol=1e-6)
        np.testing.assert_allclose(np.take_along_axis(exact, numbers, 1), best, atol=1e-6)


def test_the_checkpoint_of_a_run(tiny_config, tiny_model_dir, corpus, tmp_path):
    """--model=OUT_DIR encodes and searches as a directory with the same weights does."""
    params = saved_runs.backbone_of(tiny_config)
    for step in (1, 2):
        weights = saved_runs.changed(params, step)
        saved_runs.save(tiny_config, {"shared": weights}, step)
    directory = shutil.copytree(tiny_model_dir, tmp_path / "model")
    hf.save_weights(weights, directory, read_config(tiny_model_dir))
    out, file = tmp_path / "out", tmp_path / "run.trec"
    run(encode, tiny_config.out_dir, texts=corpus, out=out, dtype="float32")
    run(search, tiny_config.out_dir, vectors=out, queries=corpus, run=file, k=3)
    found = VectorStore(out).vectors(0)
    model = inf_jax.load(directory, passage_template="passage: {passage}")
    lines = (corpus / "corpus.jsonl").read_text().splitlines()
    passages = [json.loads(line)["text"] for line in lines]
    np.testing.assert_allclose(found, model.encode_passages(passages), atol=1e-5)
    query = model.encode_queries("what cedar", "Tell what harms it.")
    lines = file.read_text().splitlines()
    scores = [float(line.split()[4]) for line in lines if line.startswith("q2 ")]
    np.testing.assert_allclose(scores, -np.sort(-found @ query)[:3], atol=1e-5)
    for command in (  # the step is read
        lambda: run(encode, tiny_config.out_dir, texts=corpus, out=out, checkpoint=1),
        lambda: run(
            search, tiny_config.out_dir, vectors=out, queries=corpus, run=file, checkpoint=1
        ),
    ):
        with pytest.raises(UserError, match="weights"):
            command()


def test_in_a_bucket(encoded, queries, corpus, tiny_model_dir, run_dir, tmp_path):
    run(encode, tiny_model_dir, texts=corpus, out=run_dir, shard_size=16)
    assert {path.name: path.read_bytes() for path in run_dir.iterdir()} == files(encoded)
    for directory, name in ((run_dir, "gs://runs/a/run.trec"), (encoded, tmp_path / "run.trec")):
        run(search, "", vectors=directory, queries=queries, run=name, k=7)
    assert (run_dir.parent / "a/run.trec").read_bytes() == (tmp_path / "run.trec").read_bytes()
    with pytest.raises(UserError, match="--run=gs://runs: a local directory, or gs://"):
        run(search, "", vectors=encoded, queries=queries, run="gs://runs/run.trec")
