"""`inf-jax mine`: the negatives of sentence-transformers' miner, and what it does not have."""

import functools
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.sources import fields
from inf_jax import mine
from inf_jax.core.errors import UserError
from inf_jax.training import run_model
from inf_jax.vectors import mining
from inf_jax.vectors.pairs import MiningTexts, read_pair_rows
from inf_jax.vectors.searching import read_queries
from inf_jax.vectors.store import VectorStore

WORDS = "amber birch cedar dahlia grows on wet hills near the coast frost and beetles".split()


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def texts(seed, count):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(4, 14))) for _ in range(count)]


def run(**flags):
    given = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    mine.main(mine._flags().parse(given))
    return [json.loads(line) for line in Path(flags["out"]).read_text().splitlines()]


@pytest.fixture(scope="module", autouse=True)
def loaded_once():
    """To load and compile the tiny model for each command takes a second."""
    cached = functools.cache(run_model.load)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_model, "load", lambda name, **_: cached(str(name)))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """40 pairs of 30 queries, of which ten have two passages, and a corpus that repeats some."""
    folder = tmp_path_factory.mktemp("mine")
    queries, passages = texts(0, 30), texts(1, 40)
    rows = [{"query": queries[n % 30], "passage": p} for n, p in enumerate(passages)]
    jsonl(folder / "pairs.jsonl", [row | {"id": f"r{n}"} for n, row in enumerate(rows)])
    corpus = [*texts(2, 60), *passages[:5]]
    jsonl(folder / "corpus.jsonl", [{"_id": f"d{n}", "text": t} for n, t in enumerate(corpus)])
    return folder


@pytest.fixture(scope="module")
def mined(folder, tiny_model_dir):
    """Rows of the command with these flags; vectors are made once, in shards of 32."""

    def of(**flags):
        options = {"pairs": folder / "pairs.jsonl", "model": str(tiny_model_dir)}
        options |= {"corpus": folder / "corpus.jsonl", "work_dir": folder / "work"}
        options |= {"out": folder / "mined.jsonl", "scores": True, "shard_size": 32}
        return run(**(options | flags))

    return of


@pytest.fixture(scope="module")
def by_rules(mined, folder):
    """Rows by rules, from one search of all passages; those of the command where it was run."""
    expected = mined(range_max=8)
    rows = read_pair_rows(folder / "pairs.jsonl", {})
    corpus = [json.loads(x)["text"] for x in (folder / "corpus.jsonl").read_text().splitlines()]
    table = MiningTexts(rows, corpus, folder / "work", write=False)
    positives = mining.Positives(table)
    queries = read_queries(VectorStore(folder / "work" / "model" / "query"))[1]
    store = VectorStore(folder / "work" / "model" / "passage")
    scores = mining.pair_scores(queries, store, positives.query, positives.passage)
    found = mining.dense_candidates(queries, store, len(table.same), progress=False)

    def of(**values):
        rules = mining.MiningRules(**values)
        k = rules.depth(positives.most) + positives.most
        part = mining.FoundPassages(found.scores[:, :k], found.numbers[:, :k])
        lowest = positives.lowest(scores)
        chosen, _ = mining.choose_negatives(rules, part, positives, lowest, table)
        return list(mining.mined_rows(rows, table, chosen, positives.of_rows(scores)))

    assert [r["negatives"] for r in of(range_max=8)] == [r["negatives"] for r in expected]
    return of


RULES = [
    {},
    {"range_min": 3, "range_max": 9, "negatives": 4},
    {"relative_margin": 0.005, "negatives": 5, "range_max": 90},
    {"absolute_margin": 0.002, "range_max": 80, "range_min": 1},
    {"max_score": 0.965, "min_score": 0.95, "negatives": 30},
]


@pytest.mark.parametrize("rules", RULES, ids=["none", "range", "relative", "absolute", "limits"])
def test_negatives_are_those_of_sentence_transformers(rules, by_rules, folder, theirs):
    found = by_rules(**rules)
    pairs = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    assert [(r["id"], r["query"], r["passage"]) for r in found] == [
        (r["id"], r["query"], r["passage"]) for r in pairs
    ]
    wanted = theirs(pairs, rules)
    got = {(r["query"], r["passage"]): r["negatives"] for r in found if r["negatives"]}
    assert got == {key: texts for key, (texts, _) in wanted.items()}
    for row in found:
        if row["negatives"]:
            scores = wanted[row["query"], row["passage"]][1]
            np.testing.assert_allclose(row["scores"], scores, atol=1e-5)
    assert sum(map(len, got.values())) > 30  # the rules leave something to compare


@pytest.fixture(scope="module")
def theirs(folder, tiny_model_dir):
    """(query, passage) -> (negatives, scores) of sentence-transformers; vectors are made once."""
    pytest.importorskip("torch")
    st = pytest.importorskip("sentence_transformers")
    datasets = pytest.importorskip("datasets")
    model = st.SentenceTransformer(str(tiny_model_dir), device="cpu", local_files_only=True)
    corpus = [json.loads(x)["text"] for x in (folder / "corpus.jsonl").read_text().splitlines()]

    def of(pairs, rules):
        names = {"negatives": "num_negatives"}
        found = st.util.mine_hard_negatives(
            datasets.Dataset.from_list([{k: r[k] for k in ("query", "passage")} for r in pairs]),
            model,
            corpus=corpus,
            output_format="labeled-list",
            output_scores=True,
            verbose=False,
            cache_folder=str(folder / "cache"),
            **{names.get(key, key): value for key, value in rules.items()},
        )
        return {
            (row["query"], row["passage"][0]): (row["passage"][1:], row["scores"]) for row in found
        }

    return of


def test_random_negatives_are_seeded_by_query(by_rules, mined, folder):
    """Drawn among what "top" leaves; the same in a file of another order; by score."""
    options = {row["query"]: set(row["negatives"]) for row in by_rules(range_max=8, negatives=8)}
    rules = {"range_max": 8, "negatives": 4, "sampling": "random"}
    first = by_rules(**rules)
    assert first == by_rules(**rules) != by_rules(**rules, seed=1)
    for row in first:
        assert len(set(row["negatives"])) == 4 and set(row["negatives"]) <= options[row["query"]]
        assert row["scores"][1:] == sorted(row["scores"][1:], reverse=True)
    rows = (folder / "pairs.jsonl").read_text().splitlines()[::-1]
    (folder / "turned.jsonl").write_text("\n".join(rows))
    turned = mined(**rules, pairs=folder / "turned.jsonl", work_dir=folder / "turned")
    assert [r["negatives"] for r in turned[::-1]] == [r["negatives"] for r in first]


def test_after_a_kill_the_finished_shards_are_kept(mined, folder, tmp_path, monkeypatch):
    whole = mined(range_max=8)
    expected = (folder / "mined.jsonl").read_bytes()
    write, written = VectorStore.write, []

    def dies(self, shard, *rest):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(shard)
        write(self, shard, *rest)

    monkeypatch.setattr(VectorStore, "write", dies)
    flags = {"out": tmp_path / "mined.jsonl", "work_dir": tmp_path / "work"}
    with pytest.raises(KeyboardInterrupt):
        mined(range_max=8, **flags)
    assert not flags["out"].exists()
    monkeypatch.setattr(VectorStore, "write", lambda *args: written.append(args[1]) or write(*args))
    assert mined(range_max=8, **flags) == whole
    assert flags["out"].read_bytes() == expected
    assert written == [0, 0, 1, 2, 3]  # queries, then passages, none twice


def test_the_teacher_gives_the_scores(mined, tiny_model_dir, folder):
    """Its own vectors, of the positives too: the same model gives the same negatives."""
    plain = mined(range_max=8, absolute_margin=0)
    same = mined(range_max=8, absolute_margin=0, teacher=tiny_model_dir)
    assert [r["negatives"] for r in same] == [r["negatives"] for r in plain]
    for a, b in zip(plain, same, strict=True):
        np.testing.assert_allclose(a["scores"], b["scores"], atol=1e-6)
    assert (folder / "work" / "teacher" / "passage" / "vectors.json").exists()


def test_false_negatives_and_instructions(mined, tmp_path, capsys):
    """Copies of a positive and of the query are dropped; the passage of the same query under
    another instruction is a negative; the rows are read by the factory's source."""
    pairs = [
        {"query": "amber", "instruction": "coast", "passage": "wet hills", "id": 7},
        {"query": "amber", "instruction": "frost", "passage": "the beetles"},
        {"query": "amber", "instruction": "frost", "passage": "THE  Beetles grows", "title": ""},
        {"query": "cedar", "passage": ["on coast", "near frost"], "id": "c"},
    ]
    corpus = ["Wet hills", "the beetles", "the BEETLES  grows", "Amber", "", "on coast"]
    rows = mined(
        pairs=jsonl(tmp_path / "p.jsonl", pairs),
        corpus=jsonl(
            tmp_path / "c.jsonl", [{"_id": str(n), "text": t} for n, t in enumerate(corpus)]
        ),
        work_dir=tmp_path / "work",
        out=tmp_path / "mined.jsonl",
        negatives=20,
    )
    beetles = {"the beetles", "the BEETLES  grows", "THE  Beetles grows"}
    others = {"on coast", "near frost"}
    assert [(r.get("id"), r.get("instruction")) for r in rows] == [
        ("7", "coast"), (None, "frost"), (None, "frost"), ("c", None), ("c:1", None)
    ]  # fmt: skip
    assert set(rows[0]["negatives"]) == beetles | others
    assert (
        set(rows[1]["negatives"])
        == {"wet hills", "Wet hills"} | others
        == set(rows[2]["negatives"])
    )
    assert set(rows[3]["negatives"]) == beetles | {"wet hills", "Wet hills", "Amber"}
    printed = capsys.readouterr().out
    assert "known positives of the query" in printed and "pairs with none" in printed
    read = list(fields.read(tmp_path / "mined.jsonl", fields=None))
    assert [r.instruction for r in read] == ["coast", "frost", "frost", "", ""]
    assert [list(r.negatives) for r in read] == [r["negatives"] for r in rows]
    assert [len(r.scores) for r in read] == [1 + len(r["negatives"]) for r in rows]


def test_bm25(mined, tmp_path):
    """Passages that share a word, by BM25; with a model, by its scores; both are united."""
    pytest.importorskip("bm25s")
    pairs = [{"query": "amber hills", "passage": "amber amber"}, {"query": "xyzzy", "passage": "x"}]
    corpus = ["amber hills", "hills hills hills beetles", "amber frost cedar beetles wet", "coast"]
    flags = {
        "pairs": jsonl(tmp_path / "p.jsonl", pairs),
        "corpus": jsonl(
            tmp_path / "c.jsonl", [{"_id": str(n), "text": t} for n, t in enumerate(corpus)]
        ),
        "work_dir": tmp_path / "work",
        "out": tmp_path / "mined.jsonl",
        "negatives": 10,
    }
    [first, none] = mined(**flags, candidates="bm25", model="")
    assert set(first["negatives"]) == {corpus[1], corpus[2]}  # corpus[0] is the query itself
    assert first["scores"][1:] == sorted(first["scores"][1:], reverse=True)
    assert none["negatives"] == [] and none["scores"] == [0.0]
    [below, _] = mined(**flags, candidates="bm25", model="", absolute_margin=0)
    low = [n for n, s in zip(first["negatives"], first["scores"][1:], strict=True)
           if s <= first["scores"][0]]  # fmt: skip
    assert below["negatives"] == low
    [dense, more] = mined(**flags)
    [both, same] = mined(**flags, candidates="dense,bm25")
    assert [r["negatives"] for r in (both, same)] == [r["negatives"] for r in (dense, more)]
    np.testing.assert_allclose(both["scores"], dense["scores"], atol=1e-6)
    assert len(dense["negatives"]) == 4 and len(more["negatives"]) == 5


@pytest.mark.parametrize(
    ("flags", "lines", "message"),
    [
        ({}, ['{"query": "a"}'], "line 1: no passage or positive or pos or document"),
        ({}, ['{"query": " ", "passage": "b"}'], "line 1: the query is empty"),
        ({}, ['{"query": "a", "passage": []}'], "line 1: the passage is an empty list"),
        ({}, ['{"query": "a", "passage": 3}'], "line 1: passage must be a string, not a int"),
        ({}, [], "holds no pairs"),
        ({"fields": "query=q"}, ['{"query": "a", "passage": "b"}'], "line 1: no q among"),
        ({"range_max": 3, "range_min": 1}, [], "leave fewer than 3 negatives"),
        ({"max_score": 0.1, "min_score": 0.2}, [], "min_score=0.2 is above max_score=0.1"),
        ({"model": ""}, [], "--model missing"),
        ({"work_dir": "gs://bucket/x"}, [], "must be on a disk"),
        ({"pairs": "."}, [], "pairs are read from a file, or from a built dataset"),
        ({"checkpoint": "best"}, [], "--checkpoint would have no effect: .* not the out_dir of"),
        (
            {"model": "", "candidates": "bm25", "mask": "causal", "fsdp": 2},
            [],
            "--mask, --fsdp would have no effect: there is no --model; leave them out",
        ),
        ({"seed": 3}, [], "--seed would have no effect: --sampling=top draws nothing; leave it"),
        (
            {"teacher": ".", "candidates": "bm25"},
            [],
            "--model would have no effect: candidates are BM25's, and their scores the --teacher's",
        ),
        ({"text_field": "body"}, [], "--text-field would .* no --corpus; --fields is of the pairs"),
        ({"split": "dev"}, [], "--split would have no effect: there is no built dataset"),
        ({"pairs": ".", "split": "dev", "fields": "query=q"}, [], "--fields would have no effect"),
    ],
)
def test_refused(flags, lines, message, tiny_model_dir, tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("\n".join(lines))
    given = {"pairs": pairs, "model": tiny_model_dir, "out": tmp_path / "o.jsonl"} | flags
    with pytest.raises(UserError, match=message):
        run(**given)
    assert not (tmp_path / "o.jsonl").exists()


def test_without_bm25s_nothing_is_encoded(tiny_model_dir, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bm25s", None)
    pairs = jsonl(tmp_path / "pairs.jsonl", [{"query": "amber", "passage": "wet hills"}])
    out = tmp_path / "o.jsonl"
    with pytest.raises(UserError, match="bm25 needs the extra benchmark"):
        run(pairs=pairs, model=tiny_model_dir, out=out, candidates="dense,bm25")
    assert not (tmp_path / "o.jsonl.work").exists()


def test_the_header_of_a_tsv_file_is_no_pair(tmp_path):
    file = tmp_path / "pairs.tsv"
    file.write_text("Query\tpositive\namber\twet hills\n")
    assert [row[2:] for row in read_pair_rows(file, {})] == [("amber", "wet hills")]
    file.write_text("passage\tquery\nwet hills\tamber\n")
    with pytest.raises(UserError, match="a header of passage and query; swap the two columns"):
        read_pair_rows(file, {})


def test_cross_encoders_and_other_texts_are_refused(mined, folder, tiny_model_dir, tmp_path):
    cross = shutil.copytree(tiny_model_dir, tmp_path / "cross")
    config = json.loads((cross / "config.json").read_text())
    config["architectures"] = ["BertForSequenceClassification"]
    (cross / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"--teacher=.*is a cross-encoder"):
        mined(teacher=cross)
    mined()
    other = shutil.copytree(folder / "work", tmp_path / "work")
    few = jsonl(tmp_path / "few.jsonl", [{"query": "amber", "passage": "wet hills"}])
    with pytest.raises(UserError, match="holds vectors of other texts or settings"):
        mined(pairs=few, out=tmp_path / "o.jsonl", work_dir=other)
