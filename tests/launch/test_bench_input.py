"""`bench.py input`: made-up records are a split, a config's host is fed, seconds are the plan's."""

import numpy as np
import pytest

from inf_jax.data.tokenised.dataset import TokenisedDataset
from launch.bench import input as bench_input
from launch.bench.input_records import write_records


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    directory = tmp_path_factory.mktemp("records")
    write_records(directory, 300)
    return directory


def test_a_host_of_a_config_is_fed(records):
    data = TokenisedDataset(records)
    assert len(data.read(np.arange(300))) == 300  # agree with the index
    name = "scaling/e5_large.py:v5e-4096"
    found = bench_input._of_config(data, config=name, seconds=0, step=0.001)
    assert found["pairs"] == 4096
    assert found["own"] == 4 * 16
    assert 0.9 < found["fill"] < 1
    assert found["wait"] >= 0
    text = bench_input.summary({name: found}, [{"inf_jax": 1e-5}], records=300)
    assert f"| {name} |" in text
    assert "| inf_jax |   100,000 |" in text
    assert "grain is not installed" in text
    beside = [{"inf_jax": 1e-5, "grain": g} for g in (2e-5, 3e-5, 4e-5)]
    text = bench_input.summary({name: found}, beside, records=300)
    assert "3.00 (2.00 to 4.00)" in text


def test_the_seconds_of_a_step_are_those_of_the_newest_plan():
    config = "scaling/e5_large.py:v5e-4096"
    rows = [
        "| config | chips | s per step, roofline | MFU |",
        "|--------|------:|---------------------:|----:|",
        f"| {config} | v5e:16x16 | 0.5 | 3% |",
        f"| {config} | v5e:16x16 | 0.25 | 3% |",
        f"| {config} | 2 x v5e:16x16 | 0.1 | 3% |",
        "| config | s |",
        f"| {config} | 7 |",
    ]
    assert bench_input.published("\n".join(rows)) == {config: 0.25}
    assert bench_input._step(config, "") > 0  # of launch/benchmarks.md


def test_a_step_without_a_plan_is_at_least_its_model_flops(records):
    found = bench_input._of_config(
        TokenisedDataset(records), config="scaling/e5_large.py:v5e-4096", seconds=0, step=0.0
    )
    # 16 pairs a chip, 6 FLOPs a token and parameter, 302 million of them: over 197 TFLOP/s
    assert found["step"] == pytest.approx(16 * 90 * 6 * 302e6 / 197e12, rel=0.1)
