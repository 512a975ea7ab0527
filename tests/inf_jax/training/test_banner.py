"""The tables at the start and the end of a run, and the work of its step."""

import json
import math

import numpy as np
import pytest

from inf_jax.config.defaults import run_config
from inf_jax.core.errors import UserError
from inf_jax.data.from_config import make_loader
from inf_jax.data.step_shapes import loader_inputs
from inf_jax.models.hf.backbone import run_tokenizer
from inf_jax.planning.report import compare
from inf_jax.training.banner import banner, health_rows, pace_rows, work_of
from inf_jax.training.setup import make_training

TIMING = {
    "step_p50_s": 0.25,
    "step_p90_s": 0.5,
    "step_p99_s": 1.0,
    "pairs_per_s": 1234.5,
    "mfu": 0.4321,
    "goodput": 0.9,
    "device_bytes": 3 * 2**30,
}


def test_pace_table():
    assert pace_rows(TIMING) == [
        ("step time, s: p50 / p90 / p99", "0.25 / 0.5 / 1"),
        ("pairs/s", "1,234.5"),
        ("MFU", "43.2%"),
        ("goodput", "90.0%"),
        ("device memory, GiB", "3.00"),
    ]


def test_health_table():
    metrics = {
        "loss": 1.0,
        "masked/P": 0.123,
        "accuracy/P": 0.5,
        "accuracy/IQ": math.nan,
        "false_negatives/P": 1.25,
        "health/rank_query": 12.34,
        "health/positive_scores": [0.5, 0.5],
    }
    assert health_rows(metrics) == [
        ("effective rank, queries", "12.3"),
        ("in-batch accuracy, block P", "50.0%"),
        ("in-batch accuracy, block IQ", "nan%"),
        ("suspected false negatives a row, block P", "1.25"),
        ("masked candidates, block P", "12.30%"),
    ]
    assert health_rows(json.loads('{"loss": 1.0}')) == []


def test_a_step_larger_than_the_data_is_refused_or_said_in_the_banner_and_the_plan(
    tiny_config, capsys
):
    """And the order of an older version, where a run that is resumed keeps it; and hard negatives
    that are not drawn."""
    tiny_config.train.batch_size = 216
    config = run_config(tiny_config)
    remedy = r"batch_size=216 is larger than the data: .* 60 examples 1 or 2 times.*repeat_in_step"
    with pytest.raises(UserError, match=remedy):
        make_loader(config, run_tokenizer(config), devices=1)
    tiny_config.data.repeat_in_step = True
    allowed = run_config(tiny_config)
    assert make_loader(allowed, run_tokenizer(allowed), devices=1).plan.pairs == 216
    training = make_training(config, order=1)  # a run begun before this was refused
    training.loader.dataset.negative_counts = np.ones((60, 3), np.int32)
    banner(config, training, first_step=0, more={"compilation cache": "none"})
    warning = (
        "WARNING: train.batch_size=216 is larger than the data: a step holds each of the 60 "
        "examples 1 or 2 times; lower it, or add data\n"
    )
    said = capsys.readouterr().out
    assert warning in said and "1, as the run began" in said
    assert "0: the data has some, loss.negatives draws them" in said
    memory = {"needed": 0, "limit": 1, "fits": True}
    batch = {"examples": 72, **loader_inputs(training.loader)._asdict()}
    plan = {"topology": "t", "slices": 1, "chips": 1, "model": "m", "hbm": memory, "batch": batch}
    compare([plan])
    assert warning in capsys.readouterr().out
    batch["warning"] = ""
    compare([plan])
    assert "WARNING" not in capsys.readouterr().out


@pytest.mark.parametrize(("batch_size", "said"), [(24, False), (177, True)])
def test_an_older_order_is_said_where_its_steps_differ(tiny_config, capsys, batch_size, said):
    """Seven steps are one window, now as before; 60 that leave out one example are two windows."""
    tiny_config.train.batch_size = batch_size
    config = run_config(tiny_config)
    banner(config, make_training(config, order=5), first_step=0, more={})
    assert ("5, as the run began: rows are less full" in capsys.readouterr().out) == said


def test_work_of_a_run(tiny_config):
    """By hand for 2 layers, d 32, f 64: real tokens only, backward twice the forward."""
    tiny_config.loss.objective = "uni(P,IQ)"
    training = make_training(run_config(tiny_config))
    work = work_of(training)
    inputs = loader_inputs(training.loader)
    assert (work.examples, work.pairs, work.tokens) == (8, inputs.pairs, inputs.tokens)
    lengths = training.loader.dataset.text_lengths.astype(float)
    assert inputs.squares == pytest.approx(8 * np.square(lengths).sum(1).mean())
    encoder = 2 * (2 * inputs.tokens * (4 * 32**2 + 2 * 32 * 64) + 4 * 32 * inputs.squares)
    scores = 2 * inputs.pairs**2 * 32  # P and IQ are one matrix, by rows and by columns
    assert work.flops == pytest.approx(3 * (encoder + scores))
    assert work.peak is None  # a CPU's is not known
