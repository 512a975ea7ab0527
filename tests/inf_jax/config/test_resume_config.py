"""Comparing a config with that of the run that it resumes."""

import json

import pytest

from inf_jax.config import defaults
from inf_jax.config.resume import check_same_run, continue_older
from inf_jax.core.errors import UserError


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_a_run_older_than_attention_dropout_dropped_weights_at_the_rate_of_the_rest(rate):
    config = defaults()
    config.model.dropout = rate
    saved = json.loads(json.dumps(config.to_dict()))
    check_same_run(config, saved, "run")
    del saved["model"]["attention_dropout"]
    if rate:
        with pytest.raises(UserError, match=r"model\.attention_dropout was 0\.1, is now 0\.0"):
            check_same_run(config, saved, "run")
        check_same_run(config, saved, "run", besides=("model.attention_dropout",))  # evaluate
    assert continue_older(config, saved) == ([f"model.attention_dropout={rate}"] if rate else [])
    assert config.model.attention_dropout == rate
    check_same_run(config, saved, "run")
    assert continue_older(config, json.loads(json.dumps(config.to_dict()))) == []


def test_a_given_attention_dropout_is_compared_with_what_an_older_run_did():
    config = defaults()
    config.model.dropout = 0.1
    saved = json.loads(json.dumps(config.to_dict()))
    del saved["model"]["attention_dropout"]
    config.model.attention_dropout = 0.2
    assert continue_older(config, saved) == []
    with pytest.raises(UserError, match=r"model\.attention_dropout was 0\.1, is now 0\.2"):
        check_same_run(config, saved, "run")
