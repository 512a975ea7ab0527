"""Comparing a config with that of the run that it resumes."""

import json
import re

import pytest

from inf_jax.config import defaults
from inf_jax.config.resume import as_saved, check_same_run, continue_older
from inf_jax.core.errors import UserError


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_a_run_older_than_attention_dropout_dropped_weights_at_the_rate_of_the_rest(rate):
    config = defaults()
    config.model.dropout = rate
    saved = json.loads(json.dumps(as_saved(config)))
    check_same_run(config, saved, "run")
    del saved["model"]["attention_dropout"]
    if rate:
        with pytest.raises(UserError, match=r"model\.attention_dropout was 0\.1, is now 0\.0"):
            check_same_run(config, saved, "run")
        check_same_run(config, saved, "run", besides=("model.attention_dropout",))  # evaluate
    assert continue_older(config, saved) == ([f"model.attention_dropout={rate}"] if rate else [])
    assert config.model.attention_dropout == rate
    check_same_run(config, saved, "run")
    assert continue_older(config, json.loads(json.dumps(as_saved(config)))) == []


def test_a_run_whose_rows_held_16_texts_goes_on_with_16():
    config = defaults()
    saved = json.loads(json.dumps(as_saved(config)))
    saved["data"]["texts_per_row"] = 16
    check_same_run(config, saved, "run")  # evaluate and export
    assert continue_older(config, saved) == ["data.texts_per_row=16"]
    assert config.data.texts_per_row == 16
    assert check_same_run(config, saved, "run") == []


def test_a_given_attention_dropout_is_compared_with_what_an_older_run_did():
    config = defaults()
    config.model.dropout = 0.1
    saved = json.loads(json.dumps(as_saved(config)))
    del saved["model"]["attention_dropout"]
    config.model.attention_dropout = 0.2
    assert continue_older(config, saved) == []
    with pytest.raises(UserError, match=r"model\.attention_dropout was 0\.1, is now 0\.2"):
        check_same_run(config, saved, "run")


def test_a_run_whose_batch_counted_examples_goes_on_with_as_many_pairs():
    """By the config that began it or by one that counts pairs, from each of its checkpoints."""
    config = defaults()
    config.train.batch_size = 48
    saved = json.loads(json.dumps(config.to_dict()))
    saved["train"]["batch_size"] = 16  # examples
    for given, said in ((16, ["train.batch_size=48 pairs, of 16 examples"]), (48, [])):
        config.train.batch_size = given
        check_same_run(config, saved, "run")  # evaluate and export
        assert continue_older(config, saved) == said
        assert config.train.batch_size == 48
        check_same_run(config, saved, "run")
        assert json.loads(json.dumps(as_saved(config, saved))) == saved
    config.train.batch_size = 32
    assert continue_older(config, saved) == []
    with pytest.raises(UserError, match=r"train\.batch_size was 48, is now 32"):
        check_same_run(config, saved, "run")


def test_a_run_whose_batch_counts_pairs_does_not_change_it():
    config = defaults()
    config.train.batch_size = 48
    saved = json.loads(json.dumps(as_saved(config)))
    assert json.loads(json.dumps(as_saved(config, saved))) == saved
    for other in (16, 144):
        config.train.batch_size = other
        assert continue_older(config, saved) == []
        with pytest.raises(UserError, match=rf"train\.batch_size was 48, is now {other}"):
            check_same_run(config, saved, "run")


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("data.mixture_batches", "homogeneous", "data.mixture=a,b"),  # is refused since
        ("optim.eps", 1e-6, "optim.name=lamb"),
    ],
)
def test_a_key_without_effect_may_change(key, value, part):
    """So that a run that had it goes on without it; not where it has an effect in either config."""
    config = defaults()
    config.optim.name = "lion"
    saved = json.loads(json.dumps(as_saved(config)))
    section, name = key.split(".")
    was, saved[section][name] = saved[section][name], value
    assert check_same_run(config, saved, "run") == [f"{key} was {value!r}, is now {was!r}"]
    (_, other), with_part = part.split("=")[0].split("."), part.split("=")[1]
    saved[section][other] = with_part
    for now in (config[section][other], with_part):
        config[section][other] = now
        with pytest.raises(UserError, match=rf"{re.escape(key)} was {value!r}, is now {was!r}"):
            check_same_run(config, saved, "run")
