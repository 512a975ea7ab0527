"""A configuration key that no command reads would silently do nothing: there is none."""

import contextlib

import pytest

from inf_jax import evaluate, export, tokenise, train
from inf_jax.config.defaults import run_config
from inf_jax.config.schema import keys
from inf_jax.config.sections import RunConfig
from inf_jax.training.retrieval import retrieval_task
from tests.config_reads import recorded_reads
from tests.inf_jax.benchmarks.test_benchmarks import write


def test_every_key_is_read(tiny_config, no_torch, monkeypatch, tmp_path):
    tiny_config.train.dev_every, tiny_config.train.dev_batches = 2, 1
    tiny_config.loss.objective = "multi(P,I)"  # reads loss.instruction_negatives
    tiny_config.model.lora_rank = 2  # reads the other keys of adapters
    read: set[str] = set()
    with contextlib.ExitStack() as stack:

        def recorded(config) -> RunConfig:
            typed = run_config(config)
            read_here = stack.enter_context(recorded_reads(typed))
            stack.callback(lambda: read.update(read_here))
            return typed

        for command in (train, evaluate, export, tokenise):
            monkeypatch.setattr(command, "run_config", recorded)
            command.main(tiny_config)
        tiny_config.eval.benchmark = str(write(tmp_path / "plants"))  # in place of eval.split
        retrieval_task(recorded(tiny_config))
    assert {each.name for each in keys(RunConfig())} - read == set()


def test_the_record_tells_reads_from_copies(tiny_config):
    config = run_config(tiny_config)
    with recorded_reads(config) as read:
        assert config.train.steps == 4
        repr(config.optim)
    assert {"train", "train.steps", "optim", "optim.lr"} <= read
    assert not any(name.startswith("model.") for name in read)
    with pytest.raises(AttributeError), recorded_reads(config):
        config.train.nothing  # noqa: B018
