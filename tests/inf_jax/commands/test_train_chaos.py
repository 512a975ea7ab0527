"""Runs that are killed at random and resumed with another number of processes.

The long form: INF_JAX_POD_CHAOS=300,30 (steps, kills).
"""

import itertools
import json
import os
import pickle
import random
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from inf_jax.checkpoints import manager as checkpoint
from inf_jax.config.defaults import run_config
from inf_jax.core.trees import path_name
from inf_jax.distributed.preemption import STOPPED
from inf_jax.monitoring.metrics_log import read_metrics
from inf_jax.training.setup import make_training
from tests.inf_jax.processes import LIMIT_S, finish, start, write_config

STEPS, KILLS = map(int, os.environ.get("INF_JAX_POD_CHAOS", "24,2").split(","))
DEVICES = 4

# The command train, which also writes down the texts that each process feeds to each step; slow, so
# that kills arrive in the middle of a step.
NOTED = """
import json, os, time
import jax
from inf_jax import train
from inf_jax.config.command_line import run
from inf_jax.distributed.entry_point import run_distributed
from inf_jax.data import loader
host_batch = loader.Loader.host_batch
def noted(self, step):
    batch = host_batch(self, step)
    rows = batch.valid.nonzero()[0]
    ids = [[int(x) for hashes in batch.ids for x in hashes[row]] for row in rows]
    with open(f"fed-{os.environ['START']}-{jax.process_index()}.jsonl", "a") as file:
        file.write(json.dumps([step, ids]) + "\\n")
    time.sleep(0.02)
    return batch
loader.Loader.host_batch = noted
run(run_distributed(train.main), train.__doc__)
"""


@pytest.fixture
def config(tiny_config):
    tiny_config.train.update({"steps": STEPS, "checkpoint_every": 4, "health": False})
    tiny_config.train.keep_checkpoints = 2
    tiny_config.optim.update({"lr": 1e-3, "schedule": "constant"})
    tiny_config.model.dropout = 0.1
    tiny_config.loss.objective = "uni(P,IQ)"
    tiny_config.mesh.fsdp = 2
    tiny_config.data.prefetch = 1
    return tiny_config


def checkpoints(out_dir):
    """Steps of the complete checkpoints."""
    return sorted(int(p.name) for p in (out_dir / "checkpoints").glob("*") if p.name.isdecimal())


def disturb(processes, out_dir, rng, *, first, kills):
    """Lets a run continue for a while, then kills one process or all of it, or sends SIGTERM."""
    patience, starting = time.monotonic() + LIMIT_S, rng.random() < 0.15
    if starting:
        time.sleep(rng.uniform(0, 4))
    else:
        goal = first + rng.randint(0, max(1, 2 * (STEPS - first) // (kills + 1) - 8))
        while time.monotonic() < patience and any(p.poll() is None for p in processes):
            lines = read_metrics(out_dir / "metrics.jsonl")
            if lines and lines[-1]["step"] >= goal:
                break
            time.sleep(0.02)
    chosen = processes if rng.random() < 0.3 else [rng.choice(processes)]
    number = rng.choice([signal.SIGKILL, signal.SIGTERM])
    for process in chosen:
        process.send_signal(number)
    if starting:  # the others would wait for it: launchers end them
        for process in processes:
            process.kill()
    outs, codes = finish(processes)
    return number, outs, codes


def train(file, out_dir, counts, rng, cache, *, begun):
    """A run to its end, disturbed KILLS times; a start a line of what happened.

    All cases begin alike: the first of them leaves in the directory `begun` what the others find
    after their first start.
    """
    story, number = [], 0
    while True:
        if number == 1 and not begun.exists():
            shutil.copytree(file.parent, begun, ignore=shutil.ignore_patterns(file.name))
            (begun / "story.pickle").write_bytes(pickle.dumps((story, rng.getstate())))
        elif number == 0 and KILLS and begun.exists():
            shutil.copytree(begun, file.parent, dirs_exist_ok=True)
            story, state = pickle.loads((begun / "story.pickle").read_bytes())
            rng.setstate(state)
            number = 1
        before = checkpoints(out_dir)
        first = before[-1] if before else 0
        count = counts[number % len(counts)]
        os.environ["START"] = str(number)
        processes = start(
            file,
            f"--config.out_dir={out_dir}",
            count=count,
            devices=DEVICES,
            program=("-c", NOTED),
            cache=cache,
        )
        if number < KILLS:
            sent, outs, codes = disturb(processes, out_dir, rng, first=first, kills=KILLS - number)
        else:
            sent, (outs, codes) = None, finish(processes)
        assert sent or codes == [0] * count, "\n".join(outs)
        # nothing but the signals ends a run, and nothing half-written stops the next start
        allowed = {0, STOPPED, -signal.SIGTERM, -signal.SIGKILL, -signal.SIGABRT, 1}
        assert set(codes) <= allowed, "\n".join(outs)
        assert not any("cannot be restored" in out for out in outs), "\n".join(outs)
        orderly = sent == signal.SIGTERM and set(codes) == {STOPPED}
        if orderly and "asked to stop, saved after" in outs[0]:
            assert f"saved after {checkpoints(out_dir)[-1]} of {STEPS} steps" in outs[0]
        story.append((number, count, first, checkpoints(out_dir), sent, codes))
        number += 1
        if sent is None or (number > KILLS and set(codes) == {0}):
            return story


def final(training, out_dir):
    """The parameters that a run ended with, by name."""
    with checkpoint.make_manager(out_dir / "checkpoints", keep=9) as manager:
        state, position = checkpoint.restore(manager, training.program.shapes.saved)
    assert position.step == STEPS
    leaves = jax.tree_util.tree_leaves_with_path(state["params"])
    return {path_name(path): np.asarray(x) for path, x in leaves}


def check_fed(loader, folder, story):
    """Every start fed whole steps one after another, from its checkpoint on: those of the order."""
    expected = {}

    def ids_of(step):
        if step not in expected:
            batch = loader.host_batch(step)
            rows = batch.valid.nonzero()[0]
            expected[step] = sorted([int(x) for h in batch.ids for x in h[row]] for row in rows)
        return expected[step]

    for number, count, first, *_ in story:
        fed = {}
        for process in range(count):
            path = folder / f"fed-{number}-{process}.jsonl"
            lines = path.read_text().splitlines(keepends=True) if path.exists() else []
            steps = [json.loads(line) for line in lines if line.endswith("\n")]
            assert [step for step, _ in steps] == list(range(first, first + len(steps)))
            for step, ids in steps:
                fed.setdefault(step, []).append(ids)
        for step, parts in fed.items():
            if len(parts) == count:  # else a kill came between them
                assert sorted(itertools.chain(*parts)) == ids_of(step)


@pytest.mark.parametrize("counts", [[2], [2, 1, 2]], ids=["same", "changing"])
def test_killed_at_random_the_run_is_the_same(
    config, tmp_path, tmp_path_factory, counts, monkeypatch
):
    file = write_config(config, tmp_path / "c.py")
    shared = tmp_path_factory.getbasetemp() / "chaos"
    straight, cache = shared / "straight", shared / "compiled"
    if not straight.exists():  # both cases start with two processes
        monkeypatch.setenv("START", "undisturbed")
        options = {"count": 2, "devices": DEVICES, "cache": cache, "program": ("-c", NOTED)}
        outs, codes = finish(start(file, f"--config.out_dir={straight}", **options))
        assert codes == [0, 0], "\n".join(outs)

    seed = int(os.environ.get("INF_JAX_CHAOS_SEED", "0"))
    rng = random.Random(seed)
    story = train(file, tmp_path / "killed", counts, rng, cache, begun=shared / "begun")
    print(*story, sep="\n")
    assert len(story) == KILLS + 1
    assert read_metrics(tmp_path / "killed" / "metrics.jsonl")[-1]["step"] == STEPS - 1
    training = make_training(run_config(config))
    runs = tmp_path / "killed", straight
    actual, expected = (final(training, run) for run in runs)
    lines = [read_metrics(run / "metrics.jsonl") for run in runs]
    assert [line["step"] for line in lines[0]] == list(range(STEPS))
    for name, array in expected.items():
        if len(counts) == 1:
            np.testing.assert_array_equal(actual[name], array, err_msg=name)
        else:
            np.testing.assert_allclose(actual[name], array, rtol=0, atol=1e-5, err_msg=name)
    if len(counts) == 1:
        assert lines[0] == lines[1]
    check_fed(training.loader, tmp_path, story)
    left = {path.name for path in (tmp_path / "killed" / "checkpoints").iterdir()}
    assert len(left) == 2 and str(STEPS) in left  # what kills left half-written is gone
