"""Public benchmarks from local files against mteb's own run on the same vectors; and mteb on our
models. All of mteb's tests are in this file, and it is imported in a fixture: that takes seconds.
"""

import gzip
import importlib.util
import json
import re
import shutil
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

import inf_jax.mteb
from inf_jax.benchmarks.mteb_tasks import mteb_sources, read_task
from inf_jax.benchmarks.scoring import score_run
from inf_jax.benchmarks.searching import run_of_vectors
from inf_jax.benchmarks.suites import task_sources
from inf_jax.core.errors import UserError
from inf_jax.metrics.runs import without_identical_ids
from inf_jax.training.run_model import open_model
from tests.inf_jax.commands import saved_runs

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("mteb") is None, reason="the extra mteb is not installed"
    ),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of mteb and its libraries
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
WORDS = "amber birch cedar dahlia elder fennel ginger hazel iris juniper kelp laurel".split()


def vectors(texts):
    """Small whole numbers: sums are exact in any library, and ties are frequent."""
    return np.array(
        [np.random.default_rng(zlib.crc32(t.encode())).integers(-1, 2, 4) for t in texts],
        np.float32,
    )


class Numbers:
    """A model of mteb with `vectors`, compared by inner product."""

    def __init__(self):
        from mteb.models.model_meta import ModelMeta

        self.mteb_model_meta = ModelMeta.create_empty({"name": "tests/numbers", "revision": "1"})

    def encode(self, inputs, *, task_metadata, hf_split, hf_subset, prompt_type=None, **kwargs):
        return vectors([text for batch in inputs for text in batch["text"]])

    def similarity(self, a, b):
        return np.asarray(a) @ np.asarray(b).T

    def similarity_pairwise(self, a, b):
        return (np.asarray(a) * np.asarray(b)).sum(1)


def write(directory, configs, name_of="{config}-{split}.jsonl"):
    """A repository of the hub: {(config, split): rows}, with the README that names the files."""
    directory.mkdir(parents=True)
    by_config = {}
    for (config, split), rows in configs.items():
        name = name_of.format(config=config, split=split)
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        by_config.setdefault(config, []).append(f"  - split: {split}\n    path: {name}\n")
    text = "".join(
        f"- config_name: {config}\n  data_files:\n" + "".join(files)
        for config, files in by_config.items()
    )
    (directory / "README.md").write_text(f"---\nconfigs:\n{text}---\n")


def documents(count):
    rng = np.random.default_rng(3)
    return [
        {
            "_id": f"d{n}",
            "title": "" if n % 3 else f"title {n}",
            "text": " ".join(rng.choice(WORDS, 5)),
        }
        for n in range(count)
    ]


def judgements(queries, count, per_query, relevance=(0, 1, 1, 2)):
    rng = np.random.default_rng(4)
    return [
        {"query-id": q, "corpus-id": f"d{d}", "score": int(rng.choice(relevance))}
        for q in queries
        for d in rng.choice(count, per_query, replace=False)
    ]


def plain(split, ids, *, top_ranked=False, instructions=False, relevance=(0, 1, 1, 2)):
    queries = [{"_id": q, "text": f"query {n} {WORDS[n % 12]}"} for n, q in enumerate(ids)]
    configs = {
        ("corpus", split): documents(40),
        ("queries", split): [*queries, {"_id": "unjudged", "text": "no judgement"}],
        ("default", split): judgements(ids, 40, 6, relevance),
    }
    if instructions:
        configs["instruction", split] = [
            {"query-id": q["_id"], "instruction": f"only {WORDS[n % 5]}"}
            for n, q in enumerate([*queries, {"_id": "unjudged"}])
        ]
    if top_ranked:
        configs["top_ranked", split] = [
            {"query-id": q, "corpus-ids": [f"d{(7 * n + i) % 40}" for i in range(15)]}
            for n, q in enumerate(ids)
        ]
    return configs


def followir():
    bases = ["300", "301", "302", "303"]
    ids = [f"{b}-{mode}" for b in bases for mode in ("og", "changed")]
    configs = plain("test", ids, top_ranked=True, instructions=True)
    configs["qrel_diff", "qrel_diff"] = [
        {"query-id": b, "corpus-ids": [f"d{n}" for n in range(3 * k, 3 * k + 3)]}
        for k, b in enumerate(bases)
    ]
    return configs


def nevir():
    ids = [f"{pair}-3_q{n}" for pair in range(6) for n in (1, 2)]
    configs = plain("test", ids, top_ranked=True)
    corpus = [row["_id"] for row in configs["corpus", "test"]]
    pairs = {q: corpus[2 * n : 2 * n + 2] for n, q in enumerate(dict.fromkeys(x[:-3] for x in ids))}
    configs["top_ranked", "test"] = [{"query-id": q, "corpus-ids": pairs[q[:-3]]} for q in ids]
    configs["default", "test"] = [
        {"query-id": q, "corpus-id": d, "score": int(q[-1] == str(n))}
        for q in ids
        for n, d in enumerate(pairs[q[:-3]], 1)
    ]
    return configs


def bright():
    return {
        ("documents", "biology"): [{"id": r["_id"], "content": r["text"]} for r in documents(40)],
        ("examples", "biology"): [
            {
                "id": str(n),
                "query": f"query {n}",
                "gold_ids": [f"d{n}", f"d{n + 7}"],
                "excluded_ids": [f"d{n + 1}"] if n % 2 else ["N/A"],
            }
            for n in range(6)
        ],
    }


def same_ids():
    """A query's own document is in the corpus, and is its most similar one."""
    configs = plain("test", ["d1", "d2", "q1v1", "q2v2", "q3v3"])
    texts = {row["_id"]: f"{row['title']} {row['text']}".strip() for row in documents(40)}
    for row in configs["queries", "test"]:
        row["text"] = texts.get(row["_id"], row["text"])
    return configs


TASKS = {
    "Core17InstructionRetrieval": followir,
    "InstructIR": lambda: plain(
        "test", [f"{q}_{i}" for q in range(4) for i in range(3)], instructions=True
    ),
    "NevIR": nevir,
    "BrightBiologyRetrieval": bright,
    "IFIRFiQA": same_ids,
    "NanoSciFactRetrieval": lambda: plain("train", [f"q{n}" for n in range(8)]),
    "NFCorpus": lambda: plain("test", [f"q{n}" for n in range(8)], relevance=(0, 1, 2)),
}


SUITE_OF = {
    "Core17InstructionRetrieval": "followir",
    "InstructIR": "instructir",
    "NevIR": "nevir",
    "BrightBiologyRetrieval": "bright",
    "IFIRFiQA": "ifir",
}


@pytest.fixture(scope="module")
def mteb():
    """The module."""
    import mteb

    return mteb


@pytest.fixture(scope="module")
def hub(mteb, tmp_path_factory):
    """Local copies of the tasks' repositories."""
    directory = tmp_path_factory.mktemp("hub")
    for name, configs in TASKS.items():
        write(directory / mteb.get_task(name).metadata.dataset["path"], configs())
    return directory


def their_run(task, directory, tmp_path, model):
    """(mteb's scores, its run) of a task whose files are here."""
    import mteb

    if directory is not None:
        metadata = task.metadata
        here = {**metadata.dataset, "path": str(directory / metadata.dataset["path"])}
        task.metadata = metadata.model_copy(update={"dataset": here})
    found = mteb.evaluate(
        model,
        task,
        cache=None,
        prediction_folder=tmp_path,
        show_progress_bar=False,
        encode_kwargs={"show_progress_bar": False},
    )
    (scores,) = next(iter(found.task_results[0].scores.values()))
    (file,) = tmp_path.glob("*.json")
    saved = json.loads(file.read_text())
    run = next(iter(saved["default"].values()))
    return scores, run


def our_run(task):
    texts = [f"{query} {instruction}".strip() for query, instruction in task.queries.values()]
    found = vectors(texts), vectors(list(task.corpus.values()))
    return run_of_vectors(task, *found, similarity="dot")


OTHERS = {
    "p-MRR": "p_mrr",
    "robustness_at_10": "robustness@10",
    "paired_accuracy": "paired_accuracy",
}


def check_scores(theirs, ours, prefix=""):
    """Every metric of ours that mteb has; it rounds most of them to five digits."""
    compared = set()
    for name, value in theirs.items():
        if name in ("og", "changed"):
            compared |= check_scores(value, ours, f"{name}/")
        elif name == "level_scores":
            for level, each in value.items():
                assert ours[f"{level}/ndcg@20"] == pytest.approx(each, abs=1e-9)
        elif not name.startswith("nauc") and isinstance(value, float):
            key = prefix + OTHERS.get(name, name.replace("_at_", "@"))
            if key in ours:
                exact = name in OTHERS or name.startswith("mrr")
                assert ours[key] == pytest.approx(value, abs=1e-9 if exact else 5.01e-6), key
                compared.add(key)
    return compared


@pytest.mark.parametrize("name", TASKS)
def test_every_metric_is_mtebs(name, mteb, hub, tmp_path):
    (source,) = mteb_sources(name, hub)
    task = source.load()
    ours = score_run(task, our_run(task))
    theirs, run = their_run(mteb.get_task(name), hub, tmp_path, Numbers())
    if task.ignore_identical_ids:
        assert "d1" in run["d1"]  # saved before mteb takes them out
        run = without_identical_ids(run)
    assert source.suite == SUITE_OF.get(name, "mteb") == task.suite
    compared = check_scores(theirs, ours)
    assert compared == {k for k in ours if not k.startswith("level_")}
    assert ours[task.main] == pytest.approx(theirs["main_score"], abs=5.01e-6)
    # query by query, unrounded, through trec_eval
    from mteb._evaluators.retrieval_metrics import calculate_retrieval_scores

    judged = {q: dict(each) for q, each in task.qrels.items()}
    single = calculate_retrieval_scores(run, judged, task.cuts).all_scores
    for ours_name, theirs_name in (("ndcg", "ndcg_cut"), ("map", "map_cut"), ("recall", "recall"),
                                   ("precision", "P"), ("hit_rate", "success")):  # fmt: skip
        for k in task.cuts:
            values = {q: each[f"{theirs_name}_{k}"] for q, each in single.items()}
            assert ours[f"{ours_name}@{k}"].per_query == pytest.approx(values, abs=1e-9)
    assert "unjudged" not in task.queries


@pytest.mark.parametrize("name", ["mFollowIR", "mFollowIRCrossLingual"])
def test_mfollowir(name, mteb, tmp_path):
    """A language against mteb's own run; the files have a config for each."""
    task = mteb.get_task(name)
    configs = {
        (f"{config}-{language}", "test" if config == "default" else config): [
            row | ({"title": language} if config == "corpus" else {}) for row in rows
        ]
        for language in ("fas", "rus", "zho")
        for (config, _), rows in followir().items()
    }
    directory = tmp_path / task.metadata.dataset["path"]
    write(directory, configs)
    sources = mteb_sources(name, tmp_path)
    assert [source.suite for source in sources] == ["mfollowir"] * 3
    here = {**task.metadata.dataset, "path": str(directory)}
    task.metadata = task.metadata.model_copy(update={"dataset": here})
    found = mteb.evaluate(
        Numbers(), task, cache=None, show_progress_bar=False,
        encode_kwargs={"show_progress_bar": False},
    )  # fmt: skip
    theirs = {each["hf_subset"]: each for each in found.task_results[0].scores["test"]}
    task_ = sources[1].load()  # the others are read in the same way, all three again
    assert "rus " in task_.corpus["d1"]
    ours = score_run(task_, our_run(task_))
    scores = theirs[sources[1].name.removeprefix(f"{name}/")]
    assert check_scores(scores, ours) == ours.keys()


def rows_of_nevir():
    """The sample of the pipeline."""
    path = Path(__file__).parents[3] / "data_pipeline" / "samples" / "nevir" / "train.jsonl.gz"
    return [json.loads(line) for line in gzip.open(path, "rt")]


def test_nevir_itself(mteb, tmp_path):
    """50 pairs of the real NevIR, as a task that holds its data."""
    from datasets import Dataset

    task = mteb.get_task("NevIR")
    corpus, queries, relevant, ranked = [], [], {}, {}
    for row in rows_of_nevir():
        ids = [f"{row['id']}_doc{n}" for n in (1, 2)]
        corpus += [{"id": i, "title": "", "text": row[f"doc{n}"]} for n, i in enumerate(ids, 1)]
        for n in (1, 2):
            qid = f"{row['id']}_q{n}"
            queries.append({"id": qid, "text": row[f"q{n}"]})
            relevant[qid] = {i: int(i == ids[n - 1]) for i in ids}
            ranked[qid] = ids
    data = {
        "corpus": Dataset.from_list(corpus),
        "queries": Dataset.from_list(queries),
        "relevant_docs": relevant,
        "top_ranked": ranked,
    }
    task.dataset, task.data_loaded = {"default": {"test": data}}, True
    ours = read_task(task, "default", "test", directory=None, suite="nevir")
    scores = score_run(ours, our_run(ours))
    theirs, _ = their_run(task, None, tmp_path, Numbers())
    assert check_scores(theirs, scores) == scores.keys()
    assert scores["paired_accuracy"] == theirs["paired_accuracy"]


def test_missing_files_name_the_commands(mteb, tmp_path):
    with pytest.raises(UserError) as error:
        mteb_sources("followir", tmp_path)
    text = str(error.value)
    assert text.count("hf download mteb/") == 3 and "\n" not in text
    assert f"--local-dir={tmp_path}/mteb/Core17InstructionRetrieval" in text
    assert "--revision=67d8733dd0691f08f34ed9dda5941578cba8d91c" in text
    missing = {
        "mfollowir": 2,
        "instructir": 1,
        "ifir": 7,
        "bright": 1,
        "nanobeir": 13,
        "beir": 26,
        "nevir": 1,
    }
    for suite, repositories in missing.items():
        with pytest.raises(UserError) as error:
            mteb_sources(suite, tmp_path)
        assert str(error.value).count("hf download ") == repositories
    with pytest.raises(UserError, match="hf download MAIR-Bench/MAIR-Queries --repo-type=dataset"):
        task_sources(["mair"], tmp_path)
    with pytest.raises(UserError, match="'Core18' is neither a directory, a suite"):
        task_sources(["Core18"], tmp_path)
    with pytest.raises(UserError, match="Banking77Classification is not a text retrieval task"):
        task_sources(["Banking77Classification"], tmp_path)


def test_mair(tmp_path):
    """Against the definition in MAIR's own code, on trec_eval; files and splits are named as in its
    repositories, where some tasks have a split for each of their parts."""
    rows = [
        {"qid": n, "query": f"query {n}", "instruction": "find plants",
         "labels": [{"id": f"d{n}", "score": 1}, {"id": f"d{n + 9}", "score": 2}]}
        for n in range(5)
    ]  # fmt: skip
    docs = [{"id": row["_id"], "doc": row["text"]} for row in documents(30)]
    for repository, kind, content in (("Queries", "queries", rows), ("Docs", "docs", docs)):
        places = [("ACORDAR", kind), ("CQADupStack", f"CQADupStack_Tex_{kind}")]
        places.append(("CQADupStack", f"CQADupStack_Android_{kind}"))
        directory = tmp_path / f"MAIR-Bench/MAIR-{repository}"
        write(directory, dict.fromkeys(places, content), "{config}/{split}.jsonl")
        with open(directory / "README.md", "r+") as file:  # a task that was not downloaded
            text = file.read().removesuffix("---\n")
            file.seek(0)
            file.write(
                f"{text}- config_name: Quora\n  data_files:\n  - split: {kind}\n"
                f"    path: Quora/{kind}.jsonl\n---\n"
            )
    names = ["mair/ACORDAR", "mair/CQADupStack/CQADupStack_Tex"]
    names.append("mair/CQADupStack/CQADupStack_Android")
    sources = task_sources(["mair/ACORDAR", "mair/CQADupStack"], tmp_path)
    assert [source.name for source in sources] == names
    for source in sources:
        task = source.load()
        assert task.family == "/".join(source.name.split("/")[:2])
        run = our_run(task)
        scores = score_run(task, run)
        from mteb._evaluators.retrieval_metrics import calculate_retrieval_scores

        single = calculate_retrieval_scores(run, {q: dict(j) for q, j in task.qrels.items()}, [10])
        values = {q: each["ndcg_cut_10"] for q, each in single.all_scores.items()}
        assert scores["ndcg@10"].per_query == pytest.approx(values, abs=1e-9)
        assert task.queries["3"] == ("query 3", "find plants")
        assert task.qrels["3"] == {"d3": 1, "d12": 2}
    for suite, message in {
        "mair": r"mair/Quora: Unable to find '\S+/MAIR-Queries/Quora/queries.jsonl'; where the hub "
        r".*--include='Quora/\*' .*, or name the tasks that are there, as --suite=mair/TASK$",
        "mair/Quora": r"MAIR-Docs --include='Quora/\*' --repo-type=dataset --local-dir=\S+$",
        "mair/CQADupstack": "called 'CQADupstack'; do you mean mair/CQADupStack$",
    }.items():
        with pytest.raises(UserError, match=message):
            task_sources([suite], tmp_path)
    with pytest.raises(UserError, match=r"mair/Quora: no \S+; .*--include='Quora/\*'"):
        task_sources(["mair/Quora"], tmp_path / "none")


def test_infosearch(tmp_path):
    """Modes, positives and negatives as InfoSearch's `create_qrel_match` finds them."""
    queries = [
        {"_id": f"q{n}", "text": f"query {n}", "instruction_og": "",
         "instruction_changed": "for experts", "instruction_reversed": "not for experts"}
        for n in range(3)
    ]  # fmt: skip
    fits = {"q0": {"d0": (1, 1, 0), "d1": (1, 0, 1)}, "q1": {"d2": (1, 1, 0), "d3": (0, 0, 0)},
            "q2": {"d4": (1, 0, 1)}}  # fmt: skip
    configs = {("queries", "queries"): queries, ("corpus", "corpus"): documents(8)}
    for place, mode in enumerate(("og", "changed", "reversed")):
        configs[f"qrels_{mode}", "test"] = [
            {"query-id": q, "corpus-id": d, "score": float(scores[place])}
            for q, each in fits.items()
            for d, scores in each.items()
        ]
    directory = tmp_path / "jianqunZ" / "Language-v1"
    write(directory, configs)
    for mode in ("og", "changed", "reversed"):  # as in the authors' repository
        (directory / f"qrels_{mode}").mkdir()
        (directory / f"qrels_{mode}-test.jsonl").rename(directory / f"qrels_{mode}/test.jsonl")
    for name in ("queries", "corpus"):
        (directory / f"{name}-{name}.jsonl").rename(directory / f"{name}.jsonl")
    readme = directory / "README.md"
    text = re.sub(r"(\w+)-\1\.jsonl", r"\1.jsonl", readme.read_text())
    readme.write_text(re.sub(r"(qrels_\w+)-test", r"\1/test", text))
    (directory / "empty_scores.json").write_text('{"q0": {}}')
    (source,) = task_sources(["infosearch/Language-v1"], tmp_path)
    task = source.load()
    assert task.name == source.name == "infosearch/Language-v1"
    assert task.positives == {"q0": ["d0"], "q1": ["d2"]}
    assert task.negatives == {"q0": ["d1"], "q1": [], "q2": ["d4"]}
    assert task.queries["q1-ori"] == ("query 1", "")
    assert task.queries["q1-rev"] == ("query 1", "not for experts")
    assert task.qrels["q0-rev"] == {"d0": 0, "d1": 1}
    scores = score_run(task, our_run(task))
    assert {"wise", "sicr", "p_mrr", "ins/ndcg@10"} <= scores.keys()
    with pytest.raises(UserError, match="jianqunZ/Clarity-v1 --repo-type=dataset"):
        task_sources(["infosearch"], tmp_path)
    with pytest.raises(UserError, match="InfoSearch has no 'Audience'; choose among Language-v1"):
        task_sources(["infosearch/Audience"], tmp_path)


@pytest.fixture(scope="module")
def plain_export(tiny_model_dir, tmp_path_factory):
    """The tiny model as a sentence-transformers directory with a prompt for queries."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    models = sentence_transformers.sentence_transformer.modules
    transformer = models.Transformer(str(tiny_model_dir), max_seq_length=32)
    pooling = models.Pooling(transformer.get_embedding_dimension(), pooling_mode="mean")
    model = sentence_transformers.SentenceTransformer(
        modules=[transformer, pooling, models.Normalize()],
        prompts={"query": "text: ", "document": ""}, device="cpu",
    )  # fmt: skip
    directory = tmp_path_factory.mktemp("org") / "export"
    model.save(str(directory))
    return directory


def test_our_model_and_sentence_transformers_in_mteb(
    mteb, plain_export, hub, tmp_path, monkeypatch
):
    """`mteb run` of an uploaded export loads it with sentence-transformers, as is done here; on
    the command line -m may be the directory."""
    from sentence_transformers import SentenceTransformer

    name = "Core17InstructionRetrieval"
    folders = [tmp_path / each for each in ("ours", "theirs")]
    ours, run = their_run(mteb.get_task(name), hub, folders[0], inf_jax.mteb.Model(plain_export))
    torch = SentenceTransformer(str(plain_export), device="cpu")
    theirs, other = their_run(mteb.get_task(name), hub, folders[1], torch)
    for scores in (ours, theirs):
        for label in ("og", "changed"):
            scores |= {f"{label}/{key}": value for key, value in scores.pop(label).items()}
    numbers = {key: value for key, value in ours.items() if isinstance(value, float)}
    assert numbers == pytest.approx({key: theirs[key] for key in numbers}, abs=1e-4, nan_ok=True)
    for qid, each in run.items():
        assert each == pytest.approx(other[qid], abs=1e-5)

    task = mteb.get_task(name)
    here = {**task.metadata.dataset, "path": str(hub / task.metadata.dataset["path"])}
    task.metadata = task.metadata.model_copy(update={"dataset": here})
    monkeypatch.setattr(mteb, "get_tasks", lambda **kwargs: [task])
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.chdir(plain_export.parent)
    inf_jax.mteb.main(["run", "-m", "export", "-t", name, "--output-folder", str(tmp_path / "out")])
    (file,) = (tmp_path / "out").rglob(f"{name}.json")
    found = json.loads(file.read_text())["scores"]["test"][0]
    assert found["p-MRR"] == pytest.approx(ours["p-MRR"], abs=1e-6)  # six digits
    # a name that other weights may get; mteb uses results of a name and revision again
    assert file.parent.name == inf_jax.mteb.Model(plain_export).mteb_model_meta.revision


@pytest.mark.parametrize("default", [None, "STSBenchmark"])
def test_prompts_in_mteb(default, mteb, plain_export, tmp_path):
    """Those of a task, of a type of tasks, of queries; none, or the default, of other texts."""
    from datasets import Dataset
    from mteb.types import PromptType
    from sentence_transformers import SentenceTransformer
    from torch.utils.data import DataLoader

    directory = shutil.copytree(plain_export, tmp_path / "model")
    path = directory / "config_sentence_transformers.json"
    fields = json.loads(path.read_text())
    prompts = {
        "query": "text: ",
        "document": "passage: ",
        "STSBenchmark": "same? ",
        "NFCorpus-query": "diet {x} ",
        "Classification": "class: ",
        "InstructionReranking-document": "long: ",
    }
    path.write_text(json.dumps({**fields, "prompts": prompts, "default_prompt_name": default}))
    torch = mteb.SentenceTransformerEncoderWrapper(SentenceTransformer(str(directory)))
    ours, texts = inf_jax.mteb.Model(directory), ["amber birch", "cedar"]
    seen = set()
    for name in (
        *("STSBenchmark", "STS12", "NFCorpus", "SciFact"),
        *("Banking77Classification", "Core17InstructionRetrieval"),
    ):
        for kind in (None, PromptType.query, PromptType.document):
            what = {"task_metadata": mteb.get_task(name).metadata, "prompt_type": kind}
            what |= {"hf_split": "test", "hf_subset": "default"}
            loader = DataLoader(Dataset.from_dict({"text": texts}), batch_size=2)
            found = ours.encode(loader, **what)
            expected = torch.encode(loader, show_progress_bar=False, **what)
            np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=f"{name}, {kind}")
            seen.add(tuple(found[0].round(4)))
    assert len(seen) == len(prompts) + (default is None)


def test_revisions_in_mteb(mteb, tiny_config, plain_export, tmp_path):
    """Results of other weights, settings or steps in the same place are other results."""
    revisions = []
    for step in (1, 2):
        params = saved_runs.changed(saved_runs.backbone_of(tiny_config), step)
        saved_runs.save(tiny_config, {"shared": params}, step)
        models = [inf_jax.mteb.Model(tiny_config.out_dir, which=n) for n in ("newest", str(step))]
        assert models[0].mteb_model_meta.name == models[1].mteb_model_meta.name
        (revision,) = {model.mteb_model_meta.revision for model in models}
        revisions.append(revision)
        batches = [{"text": ["amber", "birch"]}]
        metadata = mteb.get_task("NFCorpus").metadata
        what = {"task_metadata": metadata, "hf_split": "test", "hf_subset": "default"}
        found = models[0].encode(batches, prompt_type="query", **what)
        expected = open_model(tiny_config.out_dir, which=str(step)).encode_queries(
            ["amber", "birch"]
        )
        np.testing.assert_array_equal(found, expected)
    for options in ({}, {"dtype": "bfloat16"}, {"query_template": "q: {query} {instruction}"}):
        revisions.append(inf_jax.mteb.Model(plain_export, **options).mteb_model_meta.revision)
    assert len(set(revisions)) == 5
    assert inf_jax.mteb.Model(plain_export, "mine").mteb_model_meta.revision == "mine"
    again = inf_jax.mteb.Model(plain_export).mteb_model_meta.revision
    assert again == revisions[2]
