"""Several processes as one run, on 127.0.0.1 with gloo: mostly the main, as users start it."""

import os
import re
import shutil
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from inf_jax.checkpoints import manager as checkpoint
from inf_jax.config.defaults import run_config
from inf_jax.core.errors import UserError
from inf_jax.core.trees import path_name
from inf_jax.distributed.cluster import Place, find_place, initialise, rendezvous
from inf_jax.distributed.entry_point import single_process_only
from inf_jax.models import hf
from inf_jax.monitoring.metrics_log import read_metrics
from inf_jax.training.setup import make_training
from tests.inf_jax.processes import finish, free_port, place, start, write_config

DEVICES = 4  # of a run, however many processes share them

# The main, but process 1 finds a damaged record in its share of step 2.
DAMAGED = """
import jax
from inf_jax import config, train
from inf_jax.distributed.entry_point import run_distributed
from inf_jax.data import loader
from inf_jax.core.errors import UserError
host_batch = loader.Loader.host_batch
def damaged(self, step):
    if step == 2 and jax.process_index() == 1:
        raise UserError("record 7 is damaged")
    return host_batch(self, step)
loader.Loader.host_batch = damaged
config.run(run_distributed(train.main), train.__doc__)
"""

# Process 1 comes to no barrier, and sees another directory than process 0.
APART = """
import os, pathlib, sys
from inf_jax.distributed.cluster import initialise
from inf_jax.distributed.coordination import barrier, check_shared, is_primary
from inf_jax.distributed.jax_internals import coordination_client
from inf_jax.io.storage import check
from inf_jax.core.errors import UserError
initialise()
client = coordination_client()
if is_primary():
    try:
        barrier("meeting", timeout_s=1)
    except UserError as error:
        print(error)
    client.key_value_set("told", "yes")
client.blocking_key_value_get("told", 60_000)
directory = pathlib.Path(sys.argv[1].removeprefix("--config=")).parent / "out"
try:
    check_shared(directory if is_primary() else directory / "elsewhere", check)
except UserError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """What process 0 compiled once."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture
def config(tiny_config):
    """A run that compiles fast."""
    tiny_config.train.update({"steps": 9, "checkpoint_every": 3, "health": False})
    tiny_config.optim.update({"lr": 1e-3, "schedule": "constant"})
    tiny_config.loss.objective = "uni(P)"
    tiny_config.mesh.fsdp = 2
    return tiny_config


def launch(file, *overrides, devices=DEVICES, **how):
    """All processes of a run, or those in `only`; their outputs and exit codes."""
    return finish(start(file, *overrides, devices=devices, **how))


def test_one_two_and_four_processes_are_one_run(config, tmp_path, compiled):
    """Four with two devices each, two with two, one with four; and two that one goes on from."""
    file = write_config(config, tmp_path / "c.py")
    training = make_training(run_config(config))

    def train(name, count, steps, *, starts=1, devices=DEVICES):
        out_dir = tmp_path / name
        overrides = f"--config.out_dir={out_dir}", f"--config.train.steps={steps}"
        outs, codes = launch(file, *overrides, count=count, devices=devices, cache=compiled)
        assert codes == [0] * count, "\n".join(outs)
        assert re.search(rf"hosts +. +{count} ", outs[0])
        assert not any(re.search(r"tokens a step|\d/\d|trained", out) for out in outs[1:])
        assert sorted(path.name for path in out_dir.iterdir()) == [
            "checkpoints",
            "command.txt",
            "config.json",
            "metrics.jsonl",
            "tensorboard",
            "timing.jsonl",
        ]
        assert len(list((out_dir / "tensorboard").iterdir())) == starts
        lines = read_metrics(out_dir / "metrics.jsonl")
        assert [line["step"] for line in lines] == list(range(steps))
        return [line["loss"] for line in lines]

    def state(name, step):
        with checkpoint.make_manager(tmp_path / name / "checkpoints", keep=9) as manager:
            found, position = checkpoint.restore(manager, training.shapes, step)
        weights = tmp_path / "exported" / name
        weights.mkdir(parents=True, exist_ok=True)
        hf.save_weights(found.params["shared"], weights, training.model.encoder.config)
        exported = load_file(weights / "model.safetensors")
        leaves = jax.tree_util.tree_leaves_with_path(found)
        return [(path_name(path), np.asarray(x)) for path, x in leaves], exported, position

    def assert_same(name, step):
        found, exported, at = state(name, step)
        expected, exported_1, at_1 = state("one", step)
        assert at == at_1 and at.step == step
        assert exported.keys() == exported_1.keys()
        pairs = [(*a, b) for a, (_, b) in zip(found, expected, strict=True)]
        for key, a, b in [*pairs, *((key, a, exported_1[key]) for key, a in exported.items())]:
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-6, err_msg=key)

    straight = train("one", 1, 9)
    assert straight[-1] < straight[0]
    for name, count, devices in (("four", 4, 8), ("two", 2, DEVICES)):
        losses = train(name, count, 6, devices=devices)
        np.testing.assert_allclose(losses, straight[:6], rtol=1e-5)
        assert_same(name, 6)
    np.testing.assert_allclose(train("two", 1, 9, starts=2), straight, rtol=1e-5)
    assert_same("two", 9)


def test_the_primary_process_tokenises_and_an_error_of_one_process_ends_all(
    config, tmp_path, compiled
):
    data = tmp_path / "data"
    shutil.copytree(config.data.dir, data, ignore=shutil.ignore_patterns("tokenised"))
    config.data.dir = str(data)
    file = write_config(config, tmp_path / "c.py")
    outs, codes = launch(file, count=2, program=("-c", DAMAGED), cache=compiled)
    assert "tokenised already" not in outs[0] and "60/60" in outs[0]
    assert "60 examples are tokenised already" in outs[1] and "60/60" not in outs[1]
    assert "error: record 7 is damaged" in outs[1]
    assert codes[1] == 1 and codes[0] != 0


def test_a_process_that_does_not_start_is_named(tiny_config, tmp_path):
    file = write_config(tiny_config, tmp_path / "c.py")
    (out,), codes = launch(file, count=2, only=[0], timeout_s=2)
    assert codes == [1]
    assert re.fullmatch(
        r"error: 1 of 2 processes did not reach 127\.0\.0\.1:\d+ within 2 s: "
        r"process 1 missing; .*\n",
        out,
    )
    assert not Path(tiny_config.out_dir).exists()


def test_what_goes_wrong_between_processes_is_named(tmp_path):
    outs, codes = launch(tmp_path / "c.py", count=2, program=("-c", APART))
    assert codes == [0, 0], "\n".join(outs)
    assert "process 0 waited 1 s at 'meeting': process 1 missing; look at" in outs[0]
    for out in outs:
        assert re.search(
            r"process 1 \(.+\): what process 0 writes in .*/out(/elsewhere)? is not visible there",
            out,
        )
    assert not list((tmp_path / "out").iterdir())


def meet(*callers, timeout_s=30):
    """The error of each (count, process), "" where all is well; and the address."""
    address = f"127.0.0.1:{free_port()}"

    def one(count, process):
        try:
            rendezvous(address, count, process, timeout_s=timeout_s)
        except UserError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(len(callers)) as pool:
        return list(pool.map(one, *zip(*callers, strict=True))), address


def test_rendezvous():
    said, address = meet((3, 2), (3, 1), (3, 0))
    assert said == ["", "", ""]
    socket.create_server(("127.0.0.1", int(address.rpartition(":")[2]))).close()  # free again

    said, address = meet((4, 0), (4, 2), timeout_s=1)
    assert said[0] == said[1]
    assert said[0].startswith(
        f"2 of 4 processes did not reach {address} within 1 s: process 1, 3 missing;"
    )

    said, address = meet((2, 1), timeout_s=1)
    assert re.match(rf"process 1 of 2: process 0 did not answer at {address} within 1 s", said[0])

    said, _ = meet((3, 0), (3, 1), (3, 1))
    assert said == ["two processes were started as number 1 of 3"] * 3
    said, _ = meet((2, 0), (4, 1))
    assert said == ["process 1 was started as one of 4, process 0 as one of 2"] * 2


def test_rendezvous_ignores_strangers():
    port = free_port()
    with ThreadPoolExecutor() as pool:
        primary = pool.submit(rendezvous, f"127.0.0.1:{port}", 2, 0, timeout_s=30)
        while True:
            try:
                with socket.create_connection(("127.0.0.1", port)) as stranger:
                    stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
                    assert stranger.recv(1) == b""
                break
            except ConnectionRefusedError:
                pass
            except ConnectionResetError:
                break
        rendezvous(f"127.0.0.1:{port}", 2, 1, timeout_s=30)
        primary.result()


def set_environment(monkeypatch, values):
    for name in list(os.environ):
        if name.startswith(("JAX_", "SLURM_", "OMPI_", "INF_JAX_")):
            monkeypatch.delenv(name)
    for name, value in values.items():
        monkeypatch.setenv(name, value)


SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_NTASKS": "16",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (place(4, 3, 99), Place("127.0.0.1:99", 4, 3, None)),
        (place(1, 0, 99), None),
        (SLURM, Place("gpu07:61447", 16, 9, [1])),
        (SLURM | {"JAX_LOCAL_DEVICE_IDS": "0,1"}, Place("gpu07:61447", 16, 9, [0, 1])),
        (SLURM | {"SLURM_NTASKS": "1"}, None),
        (SLURM | {"JAX_NUM_PROCESSES": "1"}, None),
    ],
)
def test_place(monkeypatch, environment, expected):
    set_environment(monkeypatch, environment)
    assert find_place() == expected


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"JAX_PROCESS_ID": "1"}, "JAX_PROCESS_ID without JAX_COORDINATOR_ADDRESS, JAX_NUM_PROC"),
        (place(2, 2, 99), "JAX_PROCESS_ID=2, JAX_NUM_PROCESSES=2: the first counts from 0"),
        (place(2, "one", 99), "JAX_PROCESS_ID=one"),
        (place(2, 1, ""), "JAX_COORDINATOR_ADDRESS=127.0.0.1:: must be HOST:PORT"),
        (SLURM | {"SLURM_PROCID": "x"}, "JAX detects a cluster but not this process's place in it"),
    ],
)
def test_impossible_places_are_refused(monkeypatch, environment, message):
    set_environment(monkeypatch, environment)
    with pytest.raises(UserError, match=re.escape(message)):
        initialise()


def test_impossible_start_timeout_is_refused(monkeypatch):
    set_environment(monkeypatch, place(2, 1, 99, timeout_s="soon"))
    with pytest.raises(UserError, match="INF_JAX_START_TIMEOUT=soon: seconds"):
        initialise()


def test_mains_for_one_process_refuse_several(monkeypatch):
    ran = []
    main = single_process_only(ran.append)
    set_environment(monkeypatch, place(2, 1, 99))
    with pytest.raises(
        UserError, match=r"for a single process, 2 were started: .* JAX_NUM_PROCESSES=1"
    ):
        main("config")
    assert not ran
    set_environment(monkeypatch, {})
    main("config")
    assert ran == ["config"]
