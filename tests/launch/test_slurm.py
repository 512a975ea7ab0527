"""launch/slurm.sh with an srun that runs its command, and an scontrol that records its call."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.launch.conftest import LIMIT_S, wait_for

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launch" / "slurm.sh"
SRUN = """#!/bin/bash
echo "srun $*" >>"$LOG"
echo "devices ${JAX_LOCAL_DEVICE_IDS:-}" >>"$LOG"
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
PYTHON = """#!/bin/bash
trap 'echo saved >>"$LOG"; exit 143' TERM
echo started >>"$LOG"
for ((i = 0; i < ${TENTHS:-0}; i++)); do sleep 0.1; done
exit "${STATUS:-0}"
"""


@pytest.fixture
def job(tmp_path):
    """Starts a copy of the script within a job, as sbatch does."""
    for name, text in {
        "bin/srun": SRUN,
        "bin/scontrol": '#!/bin/bash\necho "scontrol $*" >>"$LOG"\n',
        "project/.venv/bin/python": PYTHON,
        "project/launch/slurm.sh": SCRIPT.read_text(),
        "spool/job": SCRIPT.read_text(),
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    log = tmp_path / "log"

    def start(*flags: str, **env: str) -> subprocess.Popen:
        log.write_text("")
        keys = {
            "PATH": f"{tmp_path}/bin:/usr/bin:/bin",
            "LOG": str(log),
            "SLURM_JOB_ID": "7",
            "SLURM_SUBMIT_DIR": str(tmp_path / "project"),
        }
        return subprocess.Popen(
            [tmp_path / "spool" / "job", *flags],
            env=keys | env,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    start.log = log
    return start


@pytest.mark.parametrize(
    ("tasks", "gpus", "devices"), [("8", "8", ""), ("1", "4", "0,1,2,3"), ("1", "1", "")]
)
def test_a_process_a_gpu_or_a_node(job, tasks, gpus, devices):
    node = {"SLURM_NTASKS_PER_NODE": tasks, "SLURM_GPUS_ON_NODE": gpus}
    process = job("--config=c.py", "--config.optim.lr=1e-4", **node)
    output, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, output
    srun, ids, started = job.log.read_text().splitlines()
    assert srun.endswith("-u -m inf_jax.train --config=c.py --config.optim.lr=1e-4")
    assert "--kill-on-bad-exit=1" in srun
    assert (ids, started) == (f"devices {devices}", "started")


def test_a_failed_run_is_not_queued_again(job):
    process = job("--config=c.py", STATUS="3")
    process.communicate(timeout=LIMIT_S)
    assert process.returncode == 3
    assert "scontrol" not in job.log.read_text()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_run_that_is_asked_to_end_saves_and_is_queued_again(job, number):
    process = job("--config=c.py", TENTHS="3000")
    wait_for(lambda: "started" in job.log.read_text())
    os.kill(process.pid, number)
    output, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 143, output
    assert job.log.read_text().splitlines()[-2:] == ["saved", "scontrol requeue 7"]


def test_wrong_usage(job):
    for flags, env, word in (
        ((), {}, "--config=FILE is missing"),
        (("--steps=3",), {}, "--steps=3"),
        (("--config=c.py",), {"SLURM_SUBMIT_DIR": "/"}, "repository's root"),
        (("--config=c.py",), {"SLURM_JOB_ID": ""}, "not in a Slurm job"),
        (("--config=c.py",), {"VENV": "none"}, "none/bin/python is missing"),
        (
            ("--config=c.py",),
            {"SLURM_NTASKS_PER_NODE": "3", "SLURM_GPUS_ON_NODE": "8"},
            "3 processes and 8 GPUs",
        ),
    ):
        process = job(*flags, **env)
        output, _ = process.communicate(timeout=LIMIT_S)
        assert (process.returncode, word in output) == (2, True), output
    assert job.log.read_text() == ""
    process = job("--config=c.py", "--dry-run")
    output, _ = process.communicate(timeout=LIMIT_S)
    assert output.startswith("srun ") and job.log.read_text() == ""
    process = job("--help")
    output, _ = process.communicate(timeout=LIMIT_S)
    assert "--ntasks-per-node=1" in output and "#SBATCH" not in output


def test_a_hung_run_goes_back_into_the_queue(job):
    process = job("--config=c.py", STATUS="75")
    output, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 75 and "hung: the stacks are in out_dir" in output
    assert job.log.read_text().splitlines()[-1] == "scontrol requeue 7"
