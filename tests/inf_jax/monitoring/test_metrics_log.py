"""What a run writes of its metrics: numbers and histograms, in metrics.jsonl and TensorBoard."""

import json
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from inf_jax.core.errors import UserError
from inf_jax.io.tfrecord import read_records
from inf_jax.monitoring.metrics_log import MetricsLog, read_losses, read_metrics
from inf_jax.training.health import health


def values(seed):
    """Metrics as train.py hands them over: health's, and some of the loss."""
    rng = np.random.default_rng(seed)
    q, p = (rng.normal(size=(8, 4)).astype(np.float32) / 2 for _ in range(2))
    metrics = health(q, p, valid=jnp.ones(8, bool), mask="faithful", bins=4)
    metrics |= {"loss": jnp.float32(seed), "accuracy/P": jnp.float32(0.5)}
    return {name: value.tolist() for name, value in jax.device_get(metrics).items()}


def events(directory):
    (file,) = (directory / "tensorboard").glob("events*")
    read = (Event.FromString(record) for record in read_records(file))
    return [(event.step, value) for event in read for value in event.summary.value]


def test_numbers_and_histograms(tmp_path):
    log = MetricsLog(tmp_path, first_step=0, steps=3, every=2)
    assert log.last == {}
    for step in range(3):
        log.write(step, values(step))
    log.close()
    assert log.last == values(2)
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": n, **values(n)} for n in range(3)]

    found = events(tmp_path)
    assert {step for step, _ in found} == {0, 2}  # every second one
    drawn = {v.tag: v for step, v in found if step == 2}
    assert len(drawn) == len(values(2))
    assert drawn["loss"].simple_value == 2
    shares = values(2)["health/negative_scores"]
    histogram = drawn["health/negative_scores"].histo
    assert sum(shares) == pytest.approx(1) and len(shares) == 4
    # tensorboardX may pad with an empty bucket on the left
    pairs = zip(histogram.bucket_limit, histogram.bucket, strict=True)
    filled = {round(limit, 6): count for limit, count in pairs if count}
    expected = {limit: s for limit, s in zip((-0.5, 0, 0.5, 1), shares, strict=True) if s}
    assert filled == pytest.approx(expected)
    assert histogram.sum == pytest.approx(np.dot(shares, (-0.75, -0.25, 0.25, 0.75)))


def test_a_killed_run_drops_the_lines_after_its_checkpoint(tmp_path):
    for first, steps in ((0, 4), (2, 3)):
        log = MetricsLog(tmp_path, first_step=first, steps=4, every=1)
        for step in range(first, steps):
            log.write(step, values(step + 10 * first))
        log.close()
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["loss"] for line in lines] == [0, 1, 22]


PACE = {
    "step_p50_s": 0.25,
    "step_p90_s": 0.5,
    "step_p99_s": 1.0,
    "pairs_per_s": 1234.5,
    "mfu": 0.4321,
    "goodput": 0.9,
    "device_bytes": 3 * 2**30,
}


def test_timing_is_logged_but_not_among_the_metrics(tmp_path, capsys):
    sent = []

    class More:
        def write(self, step, metrics):
            sent.append((step, metrics))

        def close(self, *, failed):
            sent.append(failed)

    with (
        pytest.raises(ZeroDivisionError),
        MetricsLog(tmp_path, first_step=0, steps=2, every=2, more=More()) as log,
    ):
        for step in range(2):
            log.write(step, {"loss": 2.0})
        log.timing(1, PACE)
        raise ZeroDivisionError
    timing = {f"timing/{name}": value for name, value in PACE.items()}
    assert sent == [(0, {"loss": 2.0}), (1, timing), True]
    drawn = {value.tag: value.simple_value for step, value in events(tmp_path) if step == 1}
    assert drawn == pytest.approx(timing)
    assert (tmp_path / "metrics.jsonl").read_text().count("timing") == 0
    assert "loss=2.0000, step=0.25s, goodput=90%, mfu=43.2%" in capsys.readouterr().err


def test_a_damaged_log_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for content in (b'{"step": 0}\nrubbish\n', b'{"step": 0}\n[1]\n', b'{"step": 0}\n\xff\0\n'):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"metrics\.jsonl, line 2: .*delete that line"):
            read_metrics(path)
    for line in ('{"step": "1", "loss": 1}', '{"loss": 1}', '{"step": null, "loss": 1}'):
        path.write_text(f'{{"step": 0, "loss": 1}}\n{line}\n')
        with pytest.raises(UserError, match=r"line 2: its fields are missing or of another type"):
            read_metrics(path)
    for line in ('{"step": 1}', '{"step": 1, "loss": "2"}', '{"step": 1, "loss": [2]}'):
        path.write_text(f'{{"step": 0, "loss": NaN}}\n{line}\n')
        assert len(read_metrics(path)) == 2
        with pytest.raises(UserError, match=r"line 2: its fields are missing or of another type"):
            read_losses(path)
    path.write_bytes(b'{"step": 0}\n{"st')
    assert read_metrics(path) == [{"step": 0}]


def test_a_long_log_is_not_held_in_memory(tmp_path):
    with MetricsLog(tmp_path, first_step=0, steps=1, every=9):
        pass  # imports TensorBoard
    path, count = tmp_path / "metrics.jsonl", 8000
    line = json.dumps({"step": 1, "scores": [0.015625] * 60})
    path.write_text((line + "\n") * count)
    tracemalloc.start()
    try:
        with MetricsLog(tmp_path, first_step=2, steps=3, every=9):
            peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert path.read_text().count("\n") == count
    assert peak < len(line) * count // 2
