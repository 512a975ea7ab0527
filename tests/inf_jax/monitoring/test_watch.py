"""The main, watched: traced by a signal, hanging, resumed, and its picture in Weights & Biases."""

import contextlib
import gzip
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from inf_jax import train
from inf_jax.checkpoints import manager as checkpoint
from inf_jax.config.defaults import run_config
from inf_jax.core.errors import UserError
from inf_jax.io.tfrecord import CorruptRecordError, read_records
from inf_jax.monitoring import metrics_log as report
from inf_jax.monitoring import wandb_log
from inf_jax.monitoring.compilation import CompileCounter
from inf_jax.monitoring.metrics_log import read_metrics
from inf_jax.monitoring.profiler import Profiler
from inf_jax.monitoring.step_timer import StepWork
from inf_jax.monitoring.watch import Watch
from inf_jax.monitoring.watchdog import HUNG
from inf_jax.training.setup import make_training
from tests.inf_jax.processes import WITHOUT_TORCH, write_config
from tests.xla_flags import quick_flags

ROOT = Path(__file__).parents[3]

# The main, but it waits after step 3 for what comes from outside, and hangs after step 10.
HANGS = """
import os, signal, sys, time
from inf_jax import train
from inf_jax.config.command_line import run
from inf_jax.monitoring import metrics_log as report
write = report.MetricsLog.write
def write_and_wait(self, step, metrics):
    write(self, step, metrics)
    if step == 3:
        print("\\nready", flush=True)
        sys.stdin.readline()
    elif step == 5:
        os.kill(os.getpid(), signal.SIGUSR1)
    elif step == 10:
        time.sleep(600)
report.MetricsLog.write = write_and_wait
run(train.main, train.__doc__)
"""

# In place of wandb: what is asked of it goes into $WANDB_CALLS.
WANDB = """
import json, os

class Error(Exception):
    pass

class Histogram:
    def __init__(self, np_histogram):
        counts, edges = np_histogram
        assert len(edges) == len(counts) + 1

class Settings(dict):
    pass

def said(**call):
    with open(os.environ["WANDB_CALLS"], "a") as file:
        file.write(json.dumps(call) + "\\n")

class Run:
    def log(self, values, step):
        said(step=step, **{k: v for k, v in values.items() if not isinstance(v, Histogram)})
        self.drawn = sorted(k for k, v in values.items() if isinstance(v, Histogram))
    def finish(self, exit_code):
        said(exit_code=exit_code)

def init(**keys):
    assert keys.pop("settings") == {"console": "off"}
    said(**keys)
    return Run()
"""


def start(file, *overrides, program=("-m", "inf_jax.train"), path="", **environment):
    """The main, in a process of its own; what one compiled the next one finds."""
    return subprocess.Popen(
        [sys.executable, *program, f"--config={file}", *overrides],
        env=os.environ
        | {
            "XLA_FLAGS": quick_flags(devices=1),
            "PYTHONPATH": f"{WITHOUT_TORCH}:{ROOT}:{path}".rstrip(":"),
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "JAX_COMPILATION_CACHE_DIR": str(file.parent / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def final_state(config, out_dir):
    shapes = make_training(run_config(config)).program.shapes.saved
    with contextlib.closing(checkpoint.make_manager(out_dir / "checkpoints", keep=9)) as manager:
        return checkpoint.restore(manager, shapes)


def timing_events(out_dir):
    """{(step, name): value}, of all event files."""
    drawn = {}
    for file in (out_dir / "tensorboard").glob("events*"):
        with contextlib.suppress(CorruptRecordError):  # the end of a file whose process hung
            for event in map(Event.FromString, read_records(file)):
                for value in event.summary.value:
                    if value.tag.startswith("timing/"):
                        drawn[event.step, value.tag] = value.simple_value
    return drawn


def test_watched_run(tiny_config, tmp_path):
    tiny_config.train.update({"steps": 16, "checkpoint_every": 3, "log_every": 4})
    tiny_config.optim.lr = 1e-3
    tiny_config.model.dropout = 0.1
    tiny_config.loss.objective = "uni(P)"
    file = write_config(tiny_config, tmp_path / "c.py")
    straight = start(file, f"--config.out_dir={tmp_path / 'straight'}")

    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "wandb.py").write_text(WANDB)
    out_dir, calls = tmp_path / "watched", tmp_path / "calls"
    overrides = (f"--config.out_dir={out_dir}", "--config.train.wandb_project=plants")
    overrides += (f"--config.train.hang_minutes={10 / 60}", "--config.train.profile_steps=3")
    environment = {
        "path": tmp_path / "site",
        "WANDB_CALLS": str(calls),
        "WANDB_API_KEY": "5ecret",
    }
    process = start(file, *overrides, program=("-c", HANGS), **environment)
    said = ""
    while not said.endswith("\nready\n"):
        said += process.stdout.readline()
        assert process.poll() is None, said
    process.send_signal(signal.SIGUSR1)  # while it waits in C
    rest, _ = process.communicate("go on\n", timeout=900)
    said += rest
    assert process.returncode == HUNG, said
    assert "process 0 hangs: nothing finished after step 10" not in said  # it had not returned yet
    assert "process 0 hangs: nothing finished after step 9 in 0.1" in said
    assert re.search(r" in write_and_wait\n.* in finish\n", (out_dir / "hang-0.txt").read_text())

    # The trace: the steps after the signal, all of them and no other; the second signal is refused.
    assert "process 0: tracing 3 steps from step 5 on\n" in said
    assert "process 0: already tracing from step 5 on, SIGUSR1 ignored\n" in said
    folder = out_dir / "tensorboard" / "plugins" / "profile" / "step-00000005"
    assert f"process 0: trace of steps 5 to 7: {folder}\n" in said
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["process-0.trace.json.gz", "process-0.xplane.pb"]
    trace = json.loads(gzip.decompress((folder / names[0]).read_bytes()))
    steps = {e["args"]["step_num"] for e in trace["traceEvents"] if e.get("name") == "train"}
    assert steps == {"5", "6", "7"}

    resumed = start(file, *overrides, **environment)
    said, _ = resumed.communicate(timeout=900)
    assert resumed.returncode == 0, said
    assert "steps 9 to 16" in said
    assert re.search(r"step time, s: p50 / p90 / p99 +. +\S+ / \S+ / \S+ ", said)
    assert re.search(r"goodput +. +\d+\.\d% ", said)
    assert "MFU" not in said  # of a CPU
    assert re.search(r"loss=\d\.\d{4}, step=\S+s, goodput=\d+%", said)

    # Watching changes nothing.
    said, _ = straight.communicate(timeout=900)
    assert straight.returncode == 0, said
    expected, found = (final_state(tiny_config, d) for d in (tmp_path / "straight", out_dir))
    assert found[1] == expected[1] and found[1].step == 16
    for a, b in zip(jax.tree.leaves(expected[0]), jax.tree.leaves(found[0]), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    metrics = read_metrics(out_dir / "metrics.jsonl")
    assert metrics == read_metrics(tmp_path / "straight" / "metrics.jsonl")

    # The pace: a window after every fourth step and before every save.
    lines = read_metrics(out_dir / "timing.jsonl")
    starts = [n for n, line in enumerate(lines) if "start" in line]
    assert [lines[n]["start"] for n in starts] == [0, 9]
    assert [line["step"] for line in lines[1 : starts[1]]] == [0, 2, 4, 5, 8]
    assert [line["step"] for line in lines[starts[1] + 1 :]] == [11, 12, 14, 15]
    last = lines[-1]
    useful = sum(sum(line["step_s"]) for line in lines if "step_s" in line)
    wall = last["at"] - lines[0]["at"]
    assert last["goodput"] == pytest.approx(useful / wall, rel=1e-2)
    assert 0 < last["goodput"] < 1 and wall > 10  # it hung for so long
    assert last["tokens_per_s"] > last["pairs_per_s"] > last["examples_per_s"] > 0
    assert "mfu" not in last and last["host_peak_bytes"] > 50e6
    drawn = timing_events(out_dir)
    assert drawn[15, "timing/goodput"] == pytest.approx(last["goodput"])
    assert {step for step, _ in drawn} >= {11, 12, 14, 15}

    # Weights & Biases: one run, and the key nowhere.
    calls = [json.loads(line) for line in calls.read_text().splitlines()]
    opened = [call for call in calls if "project" in call]
    assert len(opened) == 2 and opened[0].pop("config") and opened[1].pop("config")
    number = (out_dir / "wandb_id.txt").read_text().strip()
    assert re.fullmatch("[0-9a-f]{8}", number)
    expected = {"project": "plants", "id": number, "resume": "allow", "name": "watched"}
    assert opened == [expected | {"dir": str(out_dir)}] * 2
    losses = {call["step"]: call["loss"] for call in calls if "loss" in call}
    assert losses == {n: metrics[n]["loss"] for n in (0, 4, 8, 12)}
    assert {call["step"] for call in calls if "timing/goodput" in call} >= {0, 2, 15}
    assert [call["exit_code"] for call in calls if "exit_code" in call] == [0]  # the first hung
    files = [path for path in out_dir.rglob("*") if path.is_file()]
    assert files and not any(b"5ecret" in path.read_bytes() for path in files)


def test_spikes_are_judged_by_the_losses_before_a_resume(tiny_config, tmp_path):
    tiny_config.train.spike_steps = 2
    out_dir = tmp_path / "run"
    out_dir.mkdir()
    rng = np.random.default_rng(0)
    lines = [{"step": n, "loss": 1 + 0.1 * rng.random()} for n in range(60)]
    lines += [{"step": n, "loss": 9.0} for n in range(60, 70)]  # lost steps
    (out_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    watch = Watch(
        run_config(tiny_config).train,
        StepWork(examples=8, pairs=24, tokens=300, flops=1e6, peak=None),
        out_dir=out_dir,
        work_dir=out_dir,
        first=60,
        compiles=CompileCounter(),
        log=report.NoLog(),
        checkpoints=lambda: [30, 60],
    )
    with watch:
        for step, _ in zip(range(60, 62), watch.timer.batches("ab"), strict=False):
            with watch.step(step, in_flight=None):
                pass
            if step == 60:
                watch.finished(step, 8.0)
                continue
            with pytest.raises(UserError, match=r"step 61: .* since step 60; .*Checkpoint 60 is"):
                watch.finished(step, 8.0)


def test_traces_from_the_config_and_what_goes_wrong(tmp_path, capsys):
    """In this process: the whole of a trace that the end of the run cuts short, and no trace."""
    before = signal.getsignal(signal.SIGUSR1)
    with Profiler(tmp_path, steps=5, at=3, first=0, process=2) as profiler:
        for step in range(5):
            profiler.before(step, None)
    assert signal.getsignal(signal.SIGUSR1) is before
    folder = tmp_path / "plugins" / "profile" / "step-00000003"
    assert (folder / "process-2.xplane.pb").stat().st_size > 0
    assert f"process 2: trace of steps 3 to 4: {folder}" in capsys.readouterr().err

    with (
        jax.profiler.trace(str(tmp_path / "other")),
        Profiler(tmp_path, steps=1, at=0, first=4, process=0) as profiler,
    ):
        os.kill(os.getpid(), signal.SIGUSR1)
        profiler.before(4, None)  # with its compilation
        assert "trace" not in capsys.readouterr().err
        profiler.before(5, None)
        assert "process 0: no trace of step 5: " in capsys.readouterr().err
    (tmp_path / "file").touch()
    with Profiler(tmp_path / "file", steps=1, at=1, first=0, process=0) as profiler:
        profiler.before(1, None)
        profiler.before(2, None)
    assert "the trace from step 1 on could not be written: cannot write" in capsys.readouterr().err


def test_wandb_is_not_there(tiny_config, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    tiny_config.train.wandb_project = "plants"
    with pytest.raises(UserError, match=r"wandb_project='plants': .* pip install -e '\.\[wandb\]'"):
        train.main(tiny_config)


def test_wandb_does_not_open_the_run(tmp_path, monkeypatch):
    (tmp_path / "wandb.py").write_text(WANDB + "\ndef init(**keys):\n    raise Error('no key')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(UserError, match=r"could not open the run \(no key\); `wandb login`"):
        wandb_log.WandbLog(tmp_path / "run", project="p", name="run", config={})
    monkeypatch.delitem(sys.modules, "wandb")


@pytest.mark.skipif(not importlib.util.find_spec("wandb"), reason="extra wandb")
def test_the_real_wandb_offline(tmp_path):
    program = """
import sys
from pathlib import Path
from inf_jax.monitoring.wandb_log import WandbLog
for _ in range(2):
    log = WandbLog(Path(sys.argv[1]), project="plants", name="run", config={"dims": (1, 2)})
    for step in (0, 4):
        log.write(step, {"loss": float("nan"), "shares": [0.5, 0.5]})
        log.write(step, {"timing/goodput": 0.5})
    log.close(failed=True)
"""
    key = "0123456789abcdef" * 2 + "01234567"
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path],
        env=os.environ | {"WANDB_MODE": "offline", "WANDB_API_KEY": key},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    number = (tmp_path / "wandb_id.txt").read_text().strip()
    runs = list((tmp_path / "wandb").glob(f"offline-run-*-{number}/run-{number}.wandb"))
    assert len(runs) in (1, 2)  # two, unless they began in one second
    assert all(b"timing/goodput" in path.read_bytes() for path in runs)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(key.encode() in path.read_bytes() for path in files)
