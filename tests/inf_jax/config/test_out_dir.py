"""Which out_dir and data.dir a config may have, and `~` in paths."""

import os

import pytest

import inf_jax
from data_pipeline.config import FactoryConfig
from inf_jax.config.checks import check_config
from inf_jax.config.command_line import parse_flags
from inf_jax.config.defaults import defaults, run_config
from inf_jax.config.schema import config_dict, from_config_dict, keys, value_of
from inf_jax.config.sections import RunConfig
from inf_jax.core.cli_flags import FlagParser
from inf_jax.core.errors import UserError


@pytest.mark.parametrize("place", ["gs:/runs/run", "gs://runs", "gs:///run", "s3://runs/run"])
def test_config_refuses_what_is_no_place(tiny_config, place):
    tiny_config.out_dir = place
    with pytest.raises(UserError, match=r"out_dir=.*a local directory, or gs://BUCKET/"):
        check_config(tiny_config)


def test_config_takes_a_bucket(tiny_config):
    tiny_config.out_dir = "gs://my-runs.example/a/b"
    check_config(tiny_config)
    tiny_config.train.compilation_cache = "s3://runs/programs"
    with pytest.raises(UserError, match=r"compilation_cache=.*a local directory, or gs://BUCKET/"):
        check_config(tiny_config)
    tiny_config.train.compilation_cache = "gs://runs/programs"
    tiny_config.data.dir = "gs://runs/data"
    check_config(tiny_config)
    tiny_config.data.dir = "s3://runs/data"
    with pytest.raises(UserError, match=r"data\.dir=.*a local directory, or gs://BUCKET/"):
        check_config(tiny_config)


def test_keys_that_are_paths():
    paths = {each.name for sections in SECTIONS.values() for each in keys(sections) if each.path}
    assert paths == {
        *("out_dir", "data.dir", "model.name", "model.start_from", "eval.base_from", "export.dir"),
        *("train.compilation_cache", "eval.benchmark", "loss.teacher"),
        *("source.path", "evaluation.paths", "score.model", "review.path", "corpus.data_dir"),
        *(f"{stage}.prompt" for stage in ("query", "generate", "judge", "judge_2")),
    }


SECTIONS = {"medquad_minilm": RunConfig(), "data_sample": FactoryConfig()}


@pytest.mark.parametrize("example", SECTIONS)
def test_home_in_paths(example, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    names = [each.name for each in keys(SECTIONS[example]) if each.path]
    value = {name: "('~/a','b')" if name.endswith("paths") else "~/a" for name in names}
    argv = ["", f"--config={example}", *(f"--config.{n}={v}" for n, v in value.items())]
    config, _ = parse_flags(argv, "", sections=SECTIONS[example], example=example)
    for name in names:
        expected = ("/home/ada/a", "b") if name.endswith("paths") else "/home/ada/a"
        assert value_of(config, name) == expected
    config = config_dict(SECTIONS[example])  # as Python code sets it
    config.out_dir = "~/runs/a~b"
    assert from_config_dict(SECTIONS[example], config).out_dir == "/home/ada/runs/a~b"


def test_home_elsewhere(monkeypatch, tiny_model_dir):
    monkeypatch.setenv("HOME", str(tiny_model_dir.parent))
    assert inf_jax.load(f"~/{tiny_model_dir.name}").encode("amber").shape == (32,)
    config = defaults()
    config.data.query_template = "~ {query} {instruction}"  # no path
    assert run_config(config).data.query_template.startswith("~ ")
    parser = FlagParser("")
    parser.add("--data-dir", "", metavar="DIR")
    parser.add("--many", "", metavar="FILE", many=True)
    parser.add("--name", "", metavar="NAME")
    args = parser.parse(["--data-dir=~/a", "--many", "~/a", "b", "--name=~/a"])
    assert args.data_dir == os.path.join(tiny_model_dir.parent, "a")
    assert args.many == [args.data_dir, "b"] and args.name == "~/a"
