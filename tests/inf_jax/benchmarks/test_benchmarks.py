"""Directories in BEIR's layout, templates, search, metrics and intervals; without mteb."""

import dataclasses
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from inf_jax import metrics
from inf_jax.benchmarks.beir_files import read_beir
from inf_jax.benchmarks.bm25 import run_of_bm25
from inf_jax.benchmarks.bootstrap import differences, paired_bootstrap
from inf_jax.benchmarks.contenders import TaskScores
from inf_jax.benchmarks.noise import losses
from inf_jax.benchmarks.placement import INSTRUCTION_ORDERS, instructions, query_template
from inf_jax.benchmarks.report.rows import compare_models, rows_of
from inf_jax.benchmarks.scoring import clusters_of, score_run
from inf_jax.benchmarks.searching import run_of_vectors
from inf_jax.benchmarks.task import BenchmarkTask
from inf_jax.core.errors import UserError
from inf_jax.metrics.runs import Score
from inf_jax.text.templates import instructed_query
from tests.inf_jax.metrics.golden import CUTS, EXACT, golden

SAMPLES = Path(__file__).parents[3] / "data_pipeline" / "samples"
DOCUMENTS = ["amber trees", "birch trees", "cedar trees", "elder"]


def write(directory, *, corpus=None, queries=None, qrels=None, **more):
    """A directory of 4 documents and 2 queries, with what is given in their place."""
    corpus = corpus or [{"_id": f"d{n}", "text": text} for n, text in enumerate(DOCUMENTS)]
    queries = queries or [{"_id": "q0", "text": "amber"}, {"_id": "q1", "text": "birch"}]
    qrels = "q0\td0\t1\nq1\td1\t2\nq1\td2\t0\n" if qrels is None else qrels
    files = {"corpus.jsonl": corpus, "queries.jsonl": queries, "qrels/test.tsv": qrels, **more}
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(content, str):
            content = "".join(json.dumps(row) + "\n" for row in content)
        elif name.endswith("tsv"):
            content = "query-id\tcorpus-id\tscore\n" + content
        path.write_text(content)
    return directory


def changed(**files):
    """The second set of `write`'s queries: d0 is no longer relevant to q0."""
    queries = [
        {"_id": "q0", "text": "amber", "instruction": "none"},
        {"_id": "q1", "text": "birch", "instruction": "all"},
    ]
    qrels = "q0\td0\t0\nq1\td1\t1\nq1\td2\t0\n"
    return {"queries_changed.jsonl": queries, "qrels_changed/test.tsv": qrels} | files


def test_a_plain_directory(tmp_path, caplog):
    task = read_beir(
        write(
            tmp_path,
            queries=[
                {"_id": 7, "text": "amber", "instruction": "of trees", "type": "kind"},
                {"_id": "unjudged", "text": "cedar"},
            ],
            qrels="7\td0\t1\n7\tgone\t1\n",
        )
    )
    warned = "the corpus lacks 1 of the 2 relevant documents (gone ...), which count as never found"
    assert f"{tmp_path}: {warned}" in caplog.text
    assert task.queries == {"7": ("amber", "of trees")}
    assert task.qrels == {"7": {"d0": 1, "gone": 1}}
    assert task.subsets == {"type=kind": ["7"]} and not task.groups and not task.changed
    scores = score_run(task, {"7": {"d0": 1.0, "d1": 0.5}})
    assert scores["recall@10"] == 0.5 == scores["type=kind/recall@10"]  # "gone" is never found


def test_changed_instructions(tmp_path):
    task = read_beir(write(tmp_path, **changed()))
    assert task.queries["q0-og"] == ("amber", "")
    assert task.queries["q0-changed"] == ("amber", "none")
    assert task.changed == {"q0": ["d0"]} and task.main == "p_mrr"
    run = {qid: {"d0": 1.0, "d1": 0.5} for qid in task.queries}
    run["q0-changed"] = {"d0": 0.5, "d1": 1.0, "d2": 0.7}
    scores = score_run(task, run)
    assert scores["p_mrr"].per_query == {"q0": 1 - 1 / 3}  # d0 from rank 1 to 3
    assert scores["robustness@10"].per_query.keys() == {"amber", "birch"}
    assert scores["og/recall@1"] == 0.5


@pytest.mark.parametrize("file", ["queries.jsonl", "queries_changed.jsonl"])
def test_a_group_in_one_file_is_that_of_both_instructions(file, tmp_path):
    files = changed()
    plain = [{"_id": "q0", "text": "amber"}, {"_id": "q1", "text": "birch"}]
    files["queries"] = plain
    grouped = "queries" if file == "queries.jsonl" else file
    files[grouped] = [row | {"group": "trees", "type": "kind"} for row in files[grouped]]
    task = read_beir(write(tmp_path, **files))
    assert task.groups == dict.fromkeys(["q0-og", "q1-og", "q0-changed", "q1-changed"], "trees")
    of_kind = ["q0-changed", "q1-changed"]  # the kind of the first instructions may be another
    if file == "queries.jsonl":
        of_kind = ["q0-og", "q1-og", *of_kind]
    assert task.subsets["type=kind"] == of_kind
    run = {qid: {"d0": 1.0, "d1": 0.5} for qid in task.queries}
    assert score_run(task, run)["robustness@10"].per_query.keys() == {"trees"}


BAD = {
    "two groups": (
        {
            "queries": [{"_id": "q0", "text": "amber", "group": "a"}],
            "qrels": "q0\td0\t1\n",
            "queries_changed.jsonl": [{"_id": "q0", "text": "amber", "group": "b"}],
            "qrels_changed/test.tsv": "q0\td0\t0\n",
        },
        "queries_changed.jsonl: query 'q0' is of group 'b', and of 'a' in the first set",
    ),
    "no file": ({"qrels_changed/test.tsv": "q0\td0\t0\n"}, "has qrels_changed/test.tsv but no"),
    "second id": ({"corpus": [{"_id": "a", "text": "x"}] * 2}, "line 2: _id 'a' occurs twice"),
    "empty query": ({"queries": [{"_id": "q0", "text": " "}]}, "line 1: query 'q0' is empty"),
    "no id": ({"queries": [{"text": "x"}]}, "queries.jsonl, line 1: _id is None"),
    "no text": ({"corpus": [{"_id": "a"}]}, "corpus.jsonl, line 1: text is None"),
    "instruction": (
        {"queries": [{"_id": "q0", "text": "x", "instruction": 3}]},
        "instruction is 3; it must be",
    ),
    "unknown query": ({"qrels": "q9\td0\t1\n"}, "test.tsv, line 2: query 'q9' does not exist"),
    "two scores": ({"qrels": "q0\td0\t1\nq0\td0\t2\n"}, "document 'd0' has two scores"),
    "trec": ({"qrels": "q0\t0\td0\t1\n"}, "4 columns where query-id, corpus-id and score"),
    "fraction": ({"qrels": "q0\td0\t0.5\n"}, "score '0.5' is not a whole number"),
    "none": ({"qrels": "\n"}, "test.tsv: no judgements; write query-id, corpus-id and score"),
    "none above 0": ({"qrels": "q0\td0\t-1\nq1\td1\t0\n"}, "no judgement is above 0, hence"),
    "no documents": ({"corpus": "\n"}, "corpus.jsonl: no documents; copy it again"),
    "other corpus": (
        {"qrels": "q0\tx0\t1\nq1\tx1\t1\n"},
        "the corpus has none of the 2 relevant documents: their ids are like 'x0', its own like "
        "'d0'; get corpus and judgements of one version",
    ),
    "surrogate": (
        {"corpus": [{"_id": "a", "text": "x \ud800"}]},
        "corpus.jsonl, line 1: text of _id 'a': the character '\\ud800' at 2 is half of a",
    ),
    "surrogate id": ({"queries": [{"_id": "\ud800", "text": "x"}]}, "line 1: _id: the character"),
    "blank id": ({"corpus": [{"_id": " ", "text": "x"}]}, "_id is ' '; it must be a string"),
    "not json": ({"corpus": "{\n"}, "corpus.jsonl, line 1: not JSON"),
    "same ids": (
        {"queries": [{"_id": "d0", "text": "x"}], "qrels": "d0\td1\t1\n"},
        "--identical-ids=ignore if",
    ),
    "other text": (
        changed(
            **{
                "queries_changed.jsonl": [{"_id": "q0", "text": "b"}],
                "qrels_changed/test.tsv": "q0\td0\t0\n",
            }
        ),
        "query 'q0' has another text",
    ),
    "one missing": (
        changed(
            **{
                "queries_changed.jsonl": [{"_id": "q0", "text": "amber"}],
                "qrels_changed/test.tsv": "q0\td0\t0\n",
            }
        ),
        "queries_changed.jsonl: query 'q1' of the first set is missing",
    ),
    "unjudged": (
        changed(**{"qrels_changed/test.tsv": "q0\td0\t0\nq1\td1\t1\n"}),
        "document 'd2' is judged under the first instruction and not under the changed one",
    ),
    "no change": (
        changed(**{"qrels_changed/test.tsv": "q0\td0\t1\nq1\td1\t1\nq1\td2\t0\n"}),
        "so that there is no p-MRR",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_directories(name, tmp_path):
    files, message = BAD[name]
    with pytest.raises(UserError) as error:
        read_beir(write(tmp_path, **files))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_own_documents_are_results_or_not(tmp_path):
    write(tmp_path, queries=[{"_id": "d0", "text": "amber"}], qrels="d0\td1\t1\n")
    run = {"d0": {"d0": 1.0, "d1": 0.5}}
    for choice, expected in (("ignore", 1), ("keep", 0)):
        assert score_run(read_beir(tmp_path, identical_ids=choice), run)["recall@1"] == expected


def test_ids_that_look_like_those_of_changed_queries(tmp_path):
    """Without changed judgements "-og" is a part of an id like any other."""
    corpus = [{"_id": "d0", "text": "amber"}, {"_id": "d1-og", "text": "birch"}]
    write(tmp_path, corpus=corpus, queries=[{"_id": "d0-og", "text": "x"}], qrels="d0-og\td0\t1\n")
    assert list(read_beir(tmp_path).queries) == ["d0-og"]
    write(tmp_path, corpus=corpus, queries=[{"_id": "d1-og", "text": "x"}], qrels="d1-og\td0\t1\n")
    with pytest.raises(UserError, match=r"1 query ids are document ids as well \('d1-og'\)"):
        read_beir(tmp_path)


def test_white_space_around_ids(tmp_path):
    """It is left out in every file."""
    files = changed()
    files["queries"] = [{"_id": "q0\n", "text": "amber"}, {"_id": "q1", "text": "birch"}]
    files["corpus"] = [{"_id": f" d{n} ", "text": text} for n, text in enumerate(DOCUMENTS)]
    files["qrels"] = " q0\td0 \t 1\nq1\t d1\t2\nq1\td2\t0\n"
    task = read_beir(write(tmp_path / "a", **files))
    plain = read_beir(write(tmp_path / "b", **changed()))
    assert (task.corpus, task.queries) == (plain.corpus, plain.queries)
    assert (task.qrels, task.changed) == (plain.qrels, plain.changed)


def test_headers_of_judgements(tmp_path):
    """One or none, also after an empty line and a byte order mark."""
    write(tmp_path)
    lines = "q0\td0\t1\nq1\td1\t2\n"
    for text in (lines, "\ufeff\nqid\tdocid\trelevance\n" + lines, f"\ufeff{lines}"):
        (tmp_path / "qrels/test.tsv").write_text(text)
        assert read_beir(tmp_path).qrels == {"q0": {"d0": 1}, "q1": {"d1": 2}}
    for score in ("1.0", "high"):  # a judgement, no header
        (tmp_path / "qrels/test.tsv").write_text(f"\nq0\td0\t{score}\n{lines}")
        with pytest.raises(UserError, match=f"line 2: score '{score}' is not a whole number"):
            read_beir(tmp_path)


def test_compressed_files_and_splits(tmp_path):
    write(tmp_path)
    for name in ("corpus.jsonl", "qrels/test.tsv"):
        path = tmp_path / name
        target = tmp_path / name.replace("test.tsv", "dev.tsv")
        Path(f"{target}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert read_beir(tmp_path, split="dev").qrels["q1"] == {"d1": 2, "d2": 0}
    with pytest.raises(UserError, match=r"no qrels/test.tsv; a benchmark's directory"):
        read_beir(tmp_path)


def test_a_capped_task(tmp_path):
    """The first queries, with all of a question, whose judged documents fit; then other ones."""
    whole = read_beir(SAMPLES / "benchmark_medquad")
    assert read_beir(SAMPLES / "benchmark_medquad", most=472) == whole
    task = read_beir(SAMPLES / "benchmark_medquad", most=30)
    judged = {document for each in task.qrels.values() for document in each}
    assert len(task.corpus) == 30 and judged <= task.corpus.keys()
    assert list(task.corpus) == [d for d in whole.corpus if d in task.corpus]
    assert len(task.queries) == 2 * len(task.changed) > 0
    assert list(task.changed) == list(whole.changed)[: len(task.changed)]
    with pytest.raises(UserError, match="1 documents do not hold those of one query"):
        read_beir(SAMPLES / "benchmark_medquad", most=1)
    write(tmp_path, queries=[{"_id": "d0", "text": "amber"}], qrels="d0\td1\t1\n")
    with pytest.raises(UserError, match=r"1 query ids are document ids as well.* --key=ignore if"):
        read_beir(tmp_path, most=1, flag="--key")


def test_the_samples_can_be_read():
    plain, instructed = (read_beir(SAMPLES / f"benchmark_{n}") for n in ("pubmedqa", "medquad"))
    assert (len(plain.queries), len(plain.corpus)) == (470, 470)
    assert (len(instructed.queries), len(instructed.corpus)) == (220, 472)
    assert len(instructed.changed) == 110
    lines = (SAMPLES / "pubmedqa/corpus.jsonl").read_text().splitlines()
    trained = {json.loads(line)["_id"] for line in lines}
    assert not trained & plain.corpus.keys()


def test_templates():
    plain, prompt = "{query} {instruction}", "query: {query} {instruction}"
    instruct = "Instruct: {instruction}\nQuery: {query}"
    assert query_template(plain, "followir", "benchmark") == plain
    assert query_template(prompt, "bright", "benchmark") == "query: {instruction} {query}"
    assert query_template(prompt, "instructir", "mteb") == prompt
    assert query_template(prompt, "bright", "model") == prompt
    assert {query_template(instruct, suite, "benchmark") for suite in INSTRUCTION_ORDERS} == {
        instruct
    }
    escaped = "{{x}} {query} {instruction}"
    text = instructed_query("q", "i", query_template(escaped, "instructir", "benchmark"))
    assert text == "{x} i [SEP] q"
    tasks = [
        BenchmarkTask("t", suite, {"d": "x"}, {"q": ("a", "")}, {"q": {"d": 1}}, prompt="find")
        for suite in ("beir", "bright")
    ]
    found = [instructions(t, query_template(prompt, t.suite, "benchmark")) for t in tasks]
    assert found == [([""], "none"), (["find"], "the task's: find")]
    assert instructions(tasks[0], instruct) == (["find"], "the task's: find")


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean", "manhattan"])
def test_search(similarity):
    """The run that sorting all similarities gives, ties by the larger id first."""
    rng = np.random.default_rng(0)
    queries, documents = rng.integers(-1, 2, (5, 3)) + 0.0, rng.integers(-1, 2, (30, 3)) + 0.0
    corpus = {f"d{n}": "" for n in range(30)}
    task = BenchmarkTask("t", "local", corpus, {f"q{n}": ("", "") for n in range(5)}, {}, top_k=8)
    found = run_of_vectors(
        task, queries.astype(np.float32), documents.astype(np.float32), similarity=similarity
    )
    for query, run in zip(queries, found.values(), strict=True):
        if similarity == "cosine":
            unit = documents / np.maximum(np.linalg.norm(documents, axis=1, keepdims=True), 1e-9)
            scores = unit @ (query / max(np.linalg.norm(query), 1e-9))
        elif similarity == "dot":
            scores = documents @ query
        else:
            order = 2 if similarity == "euclidean" else 1
            scores = -np.linalg.norm(documents - query, ord=order, axis=1)
        names = sorted(corpus, key=lambda d: (round(scores[int(d[1:])], 5), d), reverse=True)[:8]
        assert list(run) == names
        assert [*run.values()] == pytest.approx([scores[int(d[1:])] for d in names], abs=1e-6)


def test_search_refuses():
    task = BenchmarkTask("t", "local", {"d": ""}, {"q": ("", "")}, {})
    ones = np.ones((1, 2), np.float32)
    with pytest.raises(UserError, match="t: 2 query vectors for 1 texts"):
        run_of_vectors(task, np.ones((2, 2), np.float32), ones)
    with pytest.raises(UserError, match="the vector of document 'd' is NaN"):
        run_of_vectors(task, ones, ones * np.nan)
    with pytest.raises(UserError, match="candidate 'x' of query 'q' is not in the corpus"):
        BenchmarkTask("t", "local", {"d": ""}, {"q": ("", "")}, {}, candidates={"q": ["x"]})
    with pytest.raises(UserError, match="t: query 'q' is not in the run"):
        score_run(task, {"p": {"d": 1.0}})


def task_of(case, **fields):
    ids = {d for run in case["results"].values() for d in run}
    queries = dict.fromkeys(case["results"], ("", ""))
    return BenchmarkTask("t", "local", dict.fromkeys(ids, ""), queries, case["qrels"], **fields)


@pytest.mark.parametrize("case", golden("trec"))
def test_golden_ranking_metrics(case):
    scores = score_run(task_of(case), case["results"])
    names = {
        "ndcg": "ndcg_cut",
        "map": "map_cut",
        "recall": "recall",
        "precision": "P",
        "hit_rate": "success",
    }
    for ours, theirs in names.items():
        for k in CUTS:
            values = {q: x[f"{theirs}_{k}"] for q, x in case["expected"]["per_query"].items()}
            assert scores[f"{ours}@{k}"].per_query == pytest.approx(values, abs=EXACT)
    for k in CUTS:
        values = case["expected"]["mteb_mrr_per_query_in_results_order"][f"MRR@{k}"]
        assert [*scores[f"mrr@{k}"].per_query.values()] == pytest.approx(values, abs=EXACT)


@pytest.mark.parametrize("case", golden("pmrr"))
def test_golden_p_mrr(case):
    task = task_of(
        {**case, "qrels": {q: {next(iter(r)): 1} for q, r in case["results"].items()}},
        changed=case["changed_qrels"],
    )
    score = score_run(task, case["results"])["p_mrr"]
    assert score == pytest.approx(case["expected"]["p_MRR"], abs=EXACT)


@pytest.mark.parametrize("case", golden("instructir"))
def test_golden_robustness(case):
    groups = {q: q.split("_")[0] for q in case["results"]}
    task = task_of(case, groups=groups, ignore_identical_ids=True)
    score = score_run(task, case["results"])["robustness@10"]
    assert score == pytest.approx(case["expected"]["robustness_at_10"], abs=EXACT)


@pytest.mark.parametrize("case", golden("infosearch"))
def test_golden_infosearch(case):
    run = {f"{q}-{mode}": each for mode, runs in case["runs"].items() for q, each in runs.items()}
    task = task_of(
        {"results": run, "qrels": {q: {"c0": 1} for q in run}},
        positives=case["positive_qrels"],
        negatives=case["negative_qrels"],
    )
    scores = score_run(task, run)
    for ours, theirs in (
        ("wise", "WISE"),
        ("ideal_wise", "ideal_WISE"),
        ("sicr", "SICR"),
        ("p_mrr", "p-MRR"),
    ):
        assert scores[ours] == pytest.approx(case["expected"][theirs], abs=EXACT)


def test_paired_accuracy_refuses_half_a_pair():
    run = {"1_q1": {"a": 1.0}, "1_q2": {"a": 1.0}}
    judged = {"1_q1": {"a": 1}, "1_q2": {"b": 1}}
    assert metrics.paired_accuracy(run, judged).per_query == {"1": 0.0}
    with pytest.raises(UserError, match="'1_q2' is not in the run"):
        metrics.paired_accuracy({"1_q1": {"a": 1.0}}, judged)
    with pytest.raises(UserError, match="'1' is neither"):
        metrics.paired_accuracy({"1": {"a": 1.0}}, {"1": {"a": 1}})


def test_bm25(tmp_path):
    """Its best documents have the query's words; the rest follow, the larger id first."""
    pytest.importorskip("bm25s")
    task = read_beir(
        write(
            tmp_path,
            queries=[
                {"_id": "q0", "text": "amber", "instruction": "not elder"},
                {"_id": "q1", "text": "the xyzzy"},
            ],
            qrels="q0\td0\t1\nq1\td1\t1\n",
        )
    )
    run = run_of_bm25(task)
    assert list(run["q0"]) == ["d3", "d0", "d2", "d1"] and run["q0"]["d2"] == 0.0
    assert run["q1"] == dict.fromkeys(["d3", "d2", "d1", "d0"], 0.0)
    few = run_of_bm25(dataclasses.replace(task, top_k=3))
    assert few == {qid: dict(list(found.items())[:3]) for qid, found in run.items()}
    assert list(few["q0"]) == ["d3", "d0", "d2"]
    few = BenchmarkTask(
        "t",
        "local",
        task.corpus,
        task.queries,
        task.qrels,
        candidates={"q0": ["d0", "d1"], "q1": ["d2"]},
    )
    found = run_of_bm25(few)
    assert list(found["q0"]) == ["d0", "d1"] and found["q1"] == {"d2": 0.0}


def test_bm25_moves_documents_that_share_no_word(tmp_path):
    """p-MRR does not depend on how many documents have a word of one instruction or the other."""
    pytest.importorskip("bm25s")
    corpus = [{"_id": f"d{n:02}", "text": f"filler common w{n}"} for n in range(20)]
    corpus += [{"_id": "e0", "text": "heart cure"}, {"_id": "e1", "text": "zebra stripes"}]
    queries = [{"_id": "q", "text": "heart", "instruction": "cure"}]
    files = {
        "queries_changed.jsonl": [queries[0] | {"instruction": "common"}],
        "qrels_changed/test.tsv": "q\te1\t0\nq\te0\t1\n",
    }
    directory = write(
        tmp_path, corpus=corpus, queries=queries, qrels="q\te1\t1\nq\te0\t1\n", **files
    )
    task = read_beir(directory)
    run = run_of_bm25(task)
    # e1 has no word of either: after e0 alone at first, after e0 and the 20 then
    assert [list(each).index("e1") + 1 for each in run.values()] == [2, 22]
    assert score_run(task, run)["p_mrr"] == pytest.approx(1 - 2 / 22)


def test_intervals_have_their_level():
    """Of 200 data sets without a difference, about 95 % of the intervals hold 0; seeded."""
    rng = np.random.default_rng(0)
    inside = 0
    for n in range(200):
        ours, theirs = rng.normal(size=(2, 1, 40, 1))
        _, drawn = paired_bootstrap(ours, theirs, draws=400, seed=(n,))
        low, high = np.percentile(drawn, (2.5, 97.5))
        inside += low <= 0 <= high
    assert 180 <= inside <= 198


def clustered(rng, count=30):
    """(a metric that queries of a cluster share but for noise, float[1, n, 1]; their clusters)."""
    clusters = np.repeat(np.arange(count), rng.integers(1, 9, count))
    values = rng.normal(size=count)[clusters] + rng.normal(0, 0.3, len(clusters))
    return values[None, :, None], clusters


def test_intervals_of_clusters_are_those_of_scipy():
    rng = np.random.default_rng(3)
    (ours, clusters), noise = clustered(rng), rng.normal(0, 0.3)
    theirs = ours * 0.5 + noise
    mean, drawn = paired_bootstrap(ours, theirs, clusters=clusters, draws=500, seed=(0,))
    difference = (ours - theirs).ravel()
    assert mean[0] == pytest.approx(difference.mean())
    expected = scipy.stats.bootstrap(
        (np.bincount(clusters, difference), np.bincount(clusters)),
        lambda sums, sizes, axis: sums.sum(axis) / sizes.sum(axis),
        paired=True,
        n_resamples=500,
        rng=0,
    )
    np.testing.assert_allclose(drawn.ravel(), expected.bootstrap_distribution, atol=1e-12)
    one = paired_bootstrap(ours, theirs, clusters=np.zeros(ours.shape[1], int), draws=5)
    assert np.isnan(one[1]).all() and one[0] == pytest.approx(mean)


def test_intervals_of_clusters_have_their_level():
    """Of 200 data sets whose queries come in groups; drawn one by one, 60 % of them hold 0."""
    rng, inside = np.random.default_rng(4), {False: 0, True: 0}
    for n in range(200):
        values, clusters = clustered(rng, 40)
        for grouped in inside:
            given = clusters if grouped else None
            drawn = paired_bootstrap(values, 0 * values, clusters=given, draws=300, seed=(n,))[1]
            low, high = np.percentile(drawn, (2.5, 97.5))
            inside[grouped] += low <= 0 <= high
    assert inside[True] >= 180 and inside[False] < 150


def test_what_is_drawn_together(tmp_path):
    """Queries of a base id, of a group and of equal text, and what is linked by several."""
    queries = [
        {"_id": "a", "text": "amber", "group": "one"},
        {"_id": "b", "text": "birch", "group": "one"},
        {"_id": "c", "text": "birch", "group": "two"},
        {"_id": "d", "text": "cedar"},
    ]
    qrels = "".join(f"{q['_id']}\td0\t1\n" for q in queries)
    files = {"queries_changed.jsonl": queries, "qrels_changed/test.tsv": qrels.replace("1", "0")}
    task = read_beir(write(tmp_path, queries=queries, qrels=qrels, **files))
    clusters = clusters_of(task)
    of_query = clusters[""]
    assert len({of_query[f"{q}-{mode}"] for q in "abc" for mode in ("og", "changed")}) == 1
    assert of_query["d-og"] == of_query["d-changed"] != of_query["a-og"]
    assert clusters["p_mrr"]["a"] == clusters["p_mrr"]["c"] == of_query["a-og"]
    assert clusters["robustness@10"] == {
        "one": of_query["a-og"],
        "two": of_query["a-og"],
        "cedar": of_query["d-og"],
    }
    pairs = {f"{pair}_q{n}": (f"{pair}{n}", "") for pair in "xy" for n in "12"}
    nevir = BenchmarkTask("t", "nevir", {"d": ""}, pairs, {}, pairs=True)
    assert len({*clusters_of(nevir)[""].values()}) == 2
    scores = {
        "ndcg@10": Score(dict.fromkeys(of_query, 1.0)),
        "p_mrr": Score(dict.fromkeys("abcd", 1.0)),
    }
    other = {name: Score(dict.fromkeys(s.per_query, 0.0)) for name, s in scores.items()}
    other["ndcg@10"] = Score({q: float(of_query[q] == of_query["d-og"]) for q in of_query})
    found = differences([scores], [other], task="t", clusters=clusters, draws=200)
    assert {found["ndcg@10"].low, found["ndcg@10"].high} == {
        0.0,
        1.0,
    }  # both clusters, or one twice
    assert (found["p_mrr"].low, found["p_mrr"].high) == (1.0, 1.0)


def test_intervals_are_paired_and_pool_seeds():
    rng = np.random.default_rng(1)
    hard = rng.normal(size=(1, 60, 1))  # what both models share
    mean, drawn = paired_bootstrap(hard + 0.1, hard, draws=500)
    assert mean[0] == pytest.approx(0.1)
    assert np.ptp(drawn) < 1e-9  # unpaired it would be about 0.7
    seeds = np.concatenate([hard + 0.5, hard - 0.3])  # two seeds, far apart
    mean, drawn = paired_bootstrap(seeds, hard, draws=500)
    assert mean[0] == pytest.approx(0.1)
    values = np.unique(drawn.round(6))
    assert values == pytest.approx([-0.3, 0.1, 0.5])  # both of one seed, or one each
    again = paired_bootstrap(seeds, hard, draws=500)[1]
    assert np.array_equal(again, drawn)


def test_losses_by_noise_are_paired_by_query_and_seed():
    """Two seeds far apart that lose the same have no doubt about the loss."""
    rng = np.random.default_rng(1)
    clean = [{"m": Score({f"q{n}": x for n, x in enumerate(rng.random(20) + s)})} for s in (0, 9)]
    noisy = [{"m": Score({q: x - 0.25 for q, x in s["m"].per_query.items()})} for s in clean]
    found = losses(clean, noisy, task="t", draws=50, seed=0)["m"]
    assert (found.value, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))


def test_differences_are_the_same_in_any_order_of_tasks():
    rng = np.random.default_rng(2)
    one, two = (
        {m: Score({f"q{n}": rng.random() for n in range(20)}) for m in "ab"} for _ in range(2)
    )
    first = differences([one], [two], task="t", draws=100)
    assert first == differences([one], [two], task="t", draws=100)
    assert first["a"].value == pytest.approx(one["a"] - two["a"])
    assert first != differences([one], [two], task="t", draws=100, seed=1)
    with pytest.raises(UserError, match="t, a: the models were scored on different queries"):
        differences([one], [{m: Score({"q": 1.0}) for m in "ab"}], task="t")


def test_means_of_mair_are_over_queries():
    """A task of several splits is one line, which weighs them by their queries as its code does."""
    values = {"mair/A": [1.0, 0.0], "mair/B/x": [1.0], "mair/B/y": [0.0] * 3}
    values |= {"mair/C/z": [1.0], "mair/D": [1.0]}
    scores = {
        name: [
            TaskScores(
                name=name,
                suite="mair",
                family="/".join(name.split("/")[:2]),
                main="ndcg@10",
                subsets={},
                queries=len(each),
                documents=1,
                scores={"ndcg@10": Score({f"q{n}": value for n, value in enumerate(each)})},
                clusters={"": {f"q{n}": f"q{n}" for n in range(len(each))}},
                template="",
                instruction="",
            )
        ]
        for name, each in values.items()
    }
    compared = compare_models({"ours": scores, "other": scores}, draws=20, seed=0)
    rows = {row.name: row for row in rows_of(compared)}
    shown = {name.removesuffix(" nDCG@10"): row.values["ours"] for name, row in rows.items()}
    parts = {"mair/A": 0.5, "mair/D": 1.0, "mair/B": 0.25, "mair/C": 1.0}
    assert shown == pytest.approx({**parts, "mair": 4 / 8})
    difference = rows["mair/B nDCG@10"].differences["other"]
    assert (difference.value, difference.low, difference.high) == (0.0, 0.0, 0.0)
