"""`inf_jax.benchmark`: models beside each other on directories, files and figure."""

import dataclasses
import functools
import importlib.util
import json
import shutil
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

import inf_jax
from inf_jax import evaluate, train
from inf_jax.benchmark import main
from inf_jax.benchmarks.beir_files import read_beir
from inf_jax.benchmarks.scoring import score_run
from inf_jax.benchmarks.searching import run_of_vectors
from inf_jax.benchmarks.task import TaskSource
from inf_jax.core.errors import UsageError, UserError
from inf_jax.models import hf
from inf_jax.models.hf.config import read_config
from inf_jax.monitoring.metrics_log import read_metrics
from inf_jax.text.noise import RULES, perturbed
from tests.inf_jax.benchmarks.test_benchmarks import SAMPLES, changed, write
from tests.inf_jax.commands.saved_runs import changed as other_weights

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("bm25s") is None, reason="the extra benchmark is not installed"
)


@pytest.fixture(scope="module")
def other_model(tiny_model_dir, tmp_path_factory):
    """The tiny model with other weights: the same compiled code."""
    directory = tmp_path_factory.mktemp("other") / "model"
    shutil.copytree(tiny_model_dir, directory)
    shape = read_config(directory)
    params = hf.load_weights(directory, shape).params
    hf.save_weights(other_weights(params, 1), directory, shape)
    return directory


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write(tmp_path_factory.mktemp("suite") / "plants", **changed())


retriever_of = functools.cache(inf_jax.load)


def scores_of(model, task):
    retriever = retriever_of(model)
    texts, instructions = zip(*task.queries.values(), strict=True)
    found = retriever.encode_queries(texts, instructions)
    run = run_of_vectors(task, found, retriever.encode_passages(task.corpus.values()))
    return score_run(task, run)


def check_page(page):
    """Sections of the two models and of the two instructions, with texts of the directory."""
    titles = ["between the models", "another instruction changed", '<h2 id="spread">Scores']
    places = [page.index(title) for title in titles]
    assert places == sorted(places) and page.count("<figure>") == 2
    assert "amber trees" in page and "bm25" in page and "2 seeds" in page
    assert page.count("<article") >= 1


def test_models_side_by_side(tiny_model_dir, other_model, directory, tmp_path, capsys):
    """Two seeds pooled, BM25 beside them; every file agrees with the library's own functions."""
    out = tmp_path / "out"
    models = [str(tiny_model_dir), str(other_model)]
    main([f"--model={','.join(models)}", "--baseline=bm25", f"--suite={directory}",
          f"--out-dir={out}", "--draws=50", "--inspect"])  # fmt: skip
    printed = capsys.readouterr().out
    assert f"to open in a browser: {(out / 'inspect.html').as_uri()}" in printed
    check_page((out / "inspect.html").read_text())
    assert "{query} {instruction}" in printed and "BM25 of bm25s" in printed
    task = read_beir(directory)
    each = [scores_of(model, task) for model in models]
    found = json.loads((out / "scores.json").read_text())
    ours = found["tasks"]["plants"]["models"]["2 seeds"]
    for name in ("p_mrr", "ndcg@10", "robustness@10", "changed/recall@1"):
        expected = [100 * float(scores[name]) for scores in each]
        assert ours["scores"][name] == pytest.approx(np.mean(expected))
        assert [seed[name] for seed in ours["seeds"]] == pytest.approx(expected)
    bm25 = found["tasks"]["plants"]["models"]["bm25"]["scores"]
    value, low, high = found["tasks"]["plants"]["differences"]["bm25"]["ndcg@10"]
    assert value == pytest.approx(ours["scores"]["ndcg@10"] - bm25["ndcg@10"])
    assert low <= value <= high
    assert f"{value:+.1f} [{low:+.1f}" in printed
    import pyarrow.parquet as pq

    rows = pq.read_table(out / "per_query.parquet").to_pylist()
    chosen = [r for r in rows if (r["model"], r["seed"], r["metric"]) == ("2 seeds", 1, "ndcg@10")]
    assert {r["noise"] for r in rows} == {""}
    values = {q: 100 * x for q, x in each[1]["ndcg@10"].per_query.items()}
    assert {r["id"]: r["value"] for r in chosen} == pytest.approx(values)
    assert chosen[0]["subsets"] == ["og"] and chosen[0]["task"] == "plants"
    assert matplotlib.image.imread(out / "benchmark.png").shape[1] == 12 * 130


def test_noise(tiny_model_dir, other_model, directory, tmp_path, capsys):
    """What the metrics of each seed lose is what encoding the perturbed instructions gives."""
    plain = write(tmp_path / "plain")
    models = [str(tiny_model_dir), str(other_model)]
    main([f"--model={','.join(models)}", "--baseline=bm25", f"--suite={directory},{plain}",
          f"--out-dir={tmp_path}", "--draws=50", "--noise=typos", "--seed=3"])  # fmt: skip
    printed = capsys.readouterr().out
    assert "plants: typos changes 1 of 4 instructions" in printed  # "all" and "" have no long word
    assert "no instructions, hence no noise: plain" in printed
    task = read_beir(directory)
    before = [scores_of(model, task) for model in models]
    found = json.loads((tmp_path / "scores.json").read_text())
    assert found["settings"]["noise"] == ["typos"]
    assert found["tasks"]["plain"]["models"]["bm25"]["noise"] == {}
    each = found["tasks"]["plants"]["models"]
    assert each["bm25"]["noise"]["typos"]["changed"] == 1
    queries = {q: (text, perturbed(i, "typos", f"3 {q}")) for q, (text, i) in task.queries.items()}
    assert queries["q0-changed"][1] not in ("none", "") and queries["q1-changed"][1] == "all"
    noisy = dataclasses.replace(task, queries=queries)
    after = [scores_of(model, noisy) for model in models]
    for name in ("p_mrr", "ndcg@10", "robustness@10", "changed/recall@1"):
        lost = [100 * float(a[name] - b[name]) for a, b in zip(before, after, strict=True)]
        value, low, high = each["2 seeds"]["noise"]["typos"]["loss"][name]
        assert value == pytest.approx(np.mean(lost))
        if name == "p_mrr":  # of one question, of which no interval can be drawn
            assert low is None is high
        else:
            assert low <= value <= high
        expected = np.mean([100 * float(scores[name]) for scores in after])
        assert each["2 seeds"]["noise"]["typos"]["scores"][name] == pytest.approx(expected)
    import pyarrow.parquet as pq

    rows = pq.read_table(tmp_path / "per_query.parquet").to_pylist()
    chosen = {
        r["id"]: r["value"]
        for r in rows
        if (r["model"], r["seed"], r["noise"], r["task"], r["metric"])
        == ("2 seeds", 1, "typos", "plants", "mrr@10")
    }
    assert chosen == pytest.approx({q: 100 * x for q, x in after[1]["mrr@10"].per_query.items()})


def test_help_and_readme_list_the_kinds_of_noise(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    readme = (Path(inf_jax.__file__).parent / "README.md").read_text()
    for kind, rule in RULES.items():
        assert f"  {kind}: {rule}" in text
        assert f"  - `{kind}`: " in readme


def test_a_run_is_scored_as_while_it_trains(tiny_config, tmp_path):
    """The same scores in the loop, by `evaluate` and by this command on the run's checkpoints."""
    suite = SAMPLES / "benchmark_medquad"
    tiny_config.train.update({"steps": 3, "eval_every": 3, "checkpoint_every": 2})
    tiny_config.train.update({"keep_best": 1, "best_metric": "dev/p_mrr", "best_mode": "max"})
    tiny_config.optim.update({"lr": 3e-3, "schedule": "constant"})
    tiny_config.eval.benchmark = str(suite)
    train.main(tiny_config)
    out = Path(tiny_config.out_dir)
    lines = {x["step"] + 1: x for x in read_metrics(out / "metrics.jsonl")}
    evaluate.main(tiny_config)
    found = json.loads((out / "eval.json").read_text())
    assert found["dataset"]["source"] == "benchmark_medquad" and found["passages"] == 472
    names = {"ndcg@10", "recall@1", "mrr@10", "p_mrr", "robustness@10"}
    assert found["trained"].keys() == names and found["trained"] != found["base"]

    def command(model, *flags):
        main([f"--model={model}", f"--suite={suite}", f"--out-dir={tmp_path}", "--draws=1", *flags])
        tasks = json.loads((tmp_path / "scores.json").read_text())["tasks"]
        (scores,) = tasks["benchmark_medquad"]["models"].values()
        return {name: scores["scores"][name] for name in names}

    in_loop = {step: {n: lines[step][f"dev/{n}"] for n in names} for step in (2, 3)}
    assert found["trained"] == pytest.approx(in_loop[3], abs=1e-5)
    assert command(out / "checkpoints/2") == pytest.approx(in_loop[2], abs=1e-5)
    best = max(in_loop, key=lambda step: in_loop[step]["p_mrr"])
    assert command(out, "--checkpoint=best") == pytest.approx(in_loop[best], abs=1e-5)


def test_a_template_is_the_models_own(tiny_model_dir, directory, tmp_path, monkeypatch):
    """--query-template is for --model; what is encoded is what the table shows."""
    seen = []
    encode = inf_jax.Retriever.encode_queries

    def spy(self, queries, instructions, **rest):
        seen.append((self.config.text.query_template, list(instructions)))
        return encode(self, queries, instructions, **rest)

    monkeypatch.setattr(inf_jax.Retriever, "encode_queries", spy)
    command = [f"--model={tiny_model_dir}", f"--suite={directory}", f"--out-dir={tmp_path}"]
    main([*command, r"--query-template=I: {instruction}\nQ: {query}"])
    main([*command, "--placement=mteb"])
    given = ["", "", "none", "all"]  # q0-og, q1-og, q0-changed, q1-changed
    assert seen == [
        ("I: {instruction}\nQ: {query}", given),
        ("{query} {instruction}", [""] * 4),  # as one text
    ]


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (["--model=bm25,bm25"], UsageError, "the same model is named twice"),
        (["--model=bm25", "--baseline=bm25"], UsageError, "the same model is named twice"),
        (["--model=,"], UsageError, "names nothing"),
        (["--model=bm25", "--query-template=x"], UsageError, "--query-template with --model=bm25"),
        (["--model=bm25", "--baseline=no/such/model"], UserError, "no such directory"),
        (["--model=bm25", "--noise=typo"], UsageError, "typo"),
        (["--model=bm25", "--placement=front"], UsageError, "'front' is not a choice"),
        (["--model=bm25", "--checkpoint=best"], UsageError, "no model is the out_dir of a run"),
        (
            ["--model=bm25", "--placement=mteb"],
            UsageError,
            "--placement .* no model but bm25; leave it",
        ),
        (["--model=bm25", "--suite=./none"], UserError, "--suite: ./none is not a directory"),
    ],
)
def test_refusals(arguments, kind, message, directory, tmp_path):
    suite = [] if any(a.startswith("--suite") for a in arguments) else [f"--suite={directory}"]
    with pytest.raises(kind, match=message):
        main([*arguments, *suite, f"--out-dir={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("other", ["{0}/", "{0}/../{1}"])
def test_one_model_under_two_names(other, tiny_model_dir, directory, tmp_path):
    name = str(tiny_model_dir)
    other = other.format(name, tiny_model_dir.name)
    for flags in ([f"--model={name},{other}"], [f"--model={name}", f"--baseline={other}"]):
        with pytest.raises(UsageError, match=f"twice, {name} and {other}; leave one out"):
            main([*flags, f"--suite={directory}", f"--out-dir={tmp_path / 'out'}"])


@pytest.mark.parametrize("flag", ["--split=dev", "--identical-ids=keep"])
def test_flags_of_directories_without_one(flag, tmp_path, monkeypatch):
    sources = [TaskSource("NFCorpus", "beir", lambda: None)]
    monkeypatch.setattr("inf_jax.benchmark.task_sources", lambda *_, **__: sources)
    with pytest.raises(
        UsageError, match=f"{flag.partition('=')[0]} would have no effect: of directories alone"
    ):
        main(["--model=bm25", "--suite=NFCorpus", flag, f"--out-dir={tmp_path / 'out'}"])


def test_a_directory_without_a_model(directory, tmp_path):
    with pytest.raises(UserError, match="; name a model there"):
        main([f"--model={tmp_path}", f"--suite={directory}", f"--out-dir={tmp_path / 'out'}"])
