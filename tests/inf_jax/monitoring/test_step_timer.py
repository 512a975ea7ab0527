"""Step times, rates, MFU and goodput, on a clock of the test's own."""

import json
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inf_jax.core.errors import UserError
from inf_jax.monitoring import step_timer
from inf_jax.monitoring.compilation import CACHE_HIT, COMPILED, CompileCounter
from inf_jax.monitoring.metrics_log import read_metrics
from inf_jax.planning.chips import CHIPS, peak_flops

WORK = step_timer.StepWork(examples=8, pairs=24, tokens=600, flops=3e9, peak=12e9)


class Clock:
    """In place of the time module; it stands still but for `sleep`."""

    def __init__(self, at=1000.0):
        self.at = at

    def time(self):
        return self.at

    def perf_counter(self):
        return self.at

    def sleep(self, seconds):
        self.at += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(step_timer, "time", clock)
    monkeypatch.setattr(step_timer, "memory", dict)
    return clock


def start(clock, path, first, steps, *, killed=False, wait=1, compute=2, save=(), work=WORK):
    """A start that takes 10 s to its first batch and compiles for 50: a step's result is fetched
    after the next one's dispatch. Returns its StepTimer and what it showed."""
    shown = {}
    found = step_timer.StepTimer(
        path, work=work, first=first, every=4, begun=clock.time(), show=shown.__setitem__
    )

    def batches():
        clock.sleep(10)
        for step in range(first, first + steps):
            yield step
            clock.sleep(wait)

    def dispatch(step):
        with found.dispatch():
            if step == first:
                clock.sleep(50)
                found._on_event(COMPILED, 50.0, fun_name="step")

    found.__enter__()
    pending = None
    for step in found.batches(batches()):
        dispatch(step)
        if pending is not None:
            clock.sleep(compute)
            found.arrived(pending)
        pending = step
        if step + 1 in save:
            clock.sleep(compute)
            found.arrived(pending)
            pending = None
            found.end_window()
            with found.excluded():
                clock.sleep(100)
    if pending is not None:
        found.arrived(pending)
    if killed:
        jax.monitoring.unregister_event_duration_listener(found._on_event)
        found._file.close()
    else:
        found.__exit__(None, None, None)
    return found, shown


def test_windows_rates_and_percentiles(clock, tmp_path):
    found, shown = start(clock, tmp_path / "timing.jsonl", 0, 9, save=(9,))
    assert list(shown) == [0, 4, 8]  # the last one is the save's, and there is none beside it
    assert all(figures["step_p50_s"] == figures["step_p99_s"] == 3 for figures in shown.values())
    assert [figures.get("wait_p50_s") for figures in shown.values()] == [None, 1, 1]
    last = shown[4]
    assert (last["examples_per_s"], last["pairs_per_s"], last["tokens_per_s"]) == (2.66667, 8, 200)
    assert last["mfu"] == pytest.approx(3e9 / (12e9 * 3))
    # the last one is waited for at once, with no batch in between
    assert found.run()["goodput"] == pytest.approx(26 / (10 + 50 + 26 + 100 + 1), rel=1e-5)
    lines = read_metrics(tmp_path / "timing.jsonl")
    assert lines[0] == {"start": 0, "at": 1000.0}
    assert [line["step"] for line in lines[1:]] == [0, 4, 8]
    assert lines[1]["step_s"] == [3.0] and lines[1]["wait_s"] == [None]
    assert lines[2]["step_s"] == [3.0] * 4 and lines[2]["wait_s"] == [1.0] * 4
    assert lines[2]["mfu"] == shown[4]["mfu"]


def test_percentiles_of_unequal_steps(clock, tmp_path):
    shown = {}
    found = step_timer.StepTimer(
        None, work=WORK._replace(peak=None), first=1, every=100, begun=0, show=shown.__setitem__
    )
    times = np.random.default_rng(0).permutation(np.arange(1.0, 101))
    for step, _ in enumerate(found.batches(range(100)), 1):
        clock.sleep(times[step - 1])
        found.arrived(step)
    figures = found.run()
    assert shown == {100: figures}
    assert "mfu" not in figures  # unknown peak: not stated
    expected = np.percentile(times, (50, 90, 99)).tolist()
    assert [figures[f"step_p{q}_s"] for q in (50, 90, 99)] == pytest.approx(expected)
    assert figures["tokens_per_s"] == pytest.approx(600 / 50.5, rel=1e-5)


def test_goodput_over_restarts_counts_a_step_once(clock, tmp_path):
    """Killed after step 7 with a checkpoint at 4; the machine is gone for 1000 s."""
    path, begun = tmp_path / "timing.jsonl", clock.time()
    start(clock, path, 0, 8, save=(4,), killed=True, compute=6)
    with path.open("a") as file:
        file.write('{"step": 9, "at": 1')  # what a kill leaves
    clock.sleep(1000)
    history = step_timer.read_history(path, first=4)
    assert history.begun == begun
    np.testing.assert_array_equal(history.steps, [7, 7, 7, 6])
    np.testing.assert_array_equal(history.waits, [math.nan, 1, 1, 1])

    found, _ = start(clock, path, 4, 8)
    useful = 3 * 7 + 6 + 7 * 3 + 1  # of the last step, nothing was left to do but a wait
    assert found.run()["goodput"] == pytest.approx(useful / (clock.time() - begun), rel=1e-5)
    assert found.run()["step_p50_s"] == 3 and found.run()["step_p99_s"] == 7
    lines = read_metrics(path)
    assert [line["start"] for line in lines if "start" in line] == [0, 4]
    assert all(isinstance(json.loads(text), dict) for text in path.read_text().splitlines())
    # as one more start would see it: the lost steps are not in it, though their lines are there
    again = step_timer.read_history(path, first=12)
    np.testing.assert_array_equal(again.steps, [7, 7, 7, 6] + [3] * 7 + [1])
    assert again.begun == begun


def test_a_compilation_in_a_step_is_taken_out(clock):
    found = step_timer.StepTimer(None, work=WORK, first=0, every=100, begun=0, show=lambda *_: None)

    @jax.jit
    def step(x):
        clock.sleep(40)  # while it is traced, hence compiled
        return x + 1

    with found:
        for number, size in enumerate(found.batches((2, 2, 3, 3))):
            with found.dispatch():
                step(jnp.zeros(size)).block_until_ready()
            clock.sleep(3)
            found.arrived(number)
        assert list(found._steps) == [3, 3, 3, 3]
    jax.jit(lambda x: x - 1)(jnp.zeros(5))
    assert not found._compiled  # closed: it listens no more


def test_peaks_of_device_kinds():
    assert peak_flops("TPU v5 lite") == CHIPS["v5e"].flops == 197e12
    assert peak_flops("TPU v5p") == peak_flops("TPU v5") == CHIPS["v5p"].flops
    assert peak_flops("TPU7x") == CHIPS["tpu7x"].flops / 2  # two devices a chip
    assert peak_flops("NVIDIA A100-SXM4-40GB") == 312e12
    for kind in ("cpu", "TPU v9", "NVIDIA H100 PCIe"):
        assert peak_flops(kind) is None


def test_memory_is_of_the_fullest_device(monkeypatch):
    assert step_timer.memory().keys() == {"host_peak_bytes"}  # a CPU does not say
    assert step_timer.memory()["host_peak_bytes"] > 50e6
    stats = [
        {"bytes_in_use": 5, "peak_bytes_in_use": 9},
        {"bytes_in_use": 7, "peak_bytes_in_use": 8},
        None,
    ]
    devices = [SimpleNamespace(memory_stats=lambda found=found: found) for found in stats]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert step_timer.memory()["device_bytes"] == 7
    assert step_timer.memory()["device_peak_bytes"] == 9


@pytest.mark.parametrize(
    "line",
    [
        '{"step": 3}',
        '{"step": 3, "step_s": [1.0]}',
        '{"step": 3, "step_s": 1.0, "wait_s": [0.1]}',
        '{"step": 3, "step_s": [1.0], "wait_s": []}',
        '{"step": 3, "step_s": ["1"], "wait_s": [0.1]}',
        '{"step": 0, "step_s": [1, 1], "wait_s": [0, 0]}',
        '{"step": "3", "step_s": [1.0], "wait_s": [0.1]}',
        '{"start": 3}',
        '{"start": "3", "at": 5.0}',
        '{"step": 3, "step_s": [1%s], "wait_s": [0.1]}' % ("0" * 400),
    ],
)
def test_lines_without_their_fields(tmp_path, line):
    path = tmp_path / "timing.jsonl"
    path.write_text(f'{{"start": 0, "at": 5.0}}\n{line}\n')
    with pytest.raises(UserError, match=r"timing\.jsonl, line 2: its fields are missing or of an"):
        step_timer.read_history(path, first=4)


def test_compiling_counts_over_all_starts(clock, tmp_path):
    path, shown = tmp_path / "timing.jsonl", {}

    def one_start(first, seconds):
        compiles = CompileCounter()
        found = step_timer.StepTimer(
            path,
            work=WORK,
            first=first,
            every=1,
            begun=clock.time(),
            compiles=compiles,
            show=shown.__setitem__,
        )
        with found:
            for step, _ in enumerate(found.batches("ab"), first):
                compiles._on_duration(COMPILED, seconds)
                compiles._on_duration("/jax/core/compile/jaxpr_trace_duration", 99.0)
                if seconds == 0.5:
                    compiles._on_event(CACHE_HIT)
                clock.sleep(3)
                found.arrived(step)

    one_start(0, 20.0)
    assert [shown[n]["compile_s"] for n in (0, 1)] == [20.0, 40.0]
    one_start(2, 0.5)
    last = shown[3]
    assert (last["compile_s"], last["programs_compiled"], last["programs_cached"]) == (41.0, 2, 2)
    assert read_metrics(path)[-1]["compile_s"] == 41.0
    old = [line for line in read_metrics(path) if "start" in line or line.pop("compile_s")]
    path.write_text("".join(json.dumps(line) + "\n" for line in old))  # of an older version
    one_start(4, 0.5)
    assert shown[5]["compile_s"] == 1.0
