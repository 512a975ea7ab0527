"""launch/tpu.sh run: preemptions, dead workers, crashes, and no pod left behind."""

import re
import signal
import stat
import subprocess

import pytest

from tests.launch.conftest import LIMIT_S


def test_run_from_nothing_to_done_and_back(cloud):
    cloud.plan(states=["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"])
    status, output = cloud.tpu("run", *cloud.RUN, "--secrets=TOKEN_OF_MINE")
    assert status == 0, output
    steps = ["create", "ssh", "scp", "ssh setup", "ssh preflight", "ssh start", "delete"]
    assert cloud.verbs() == steps
    assert cloud.left() == []
    assert "WAITING_FOR_RESOURCES" in output and "nothing of pod is left" in output

    [create] = [c for c in cloud.calls() if "create" in c]
    assert {
        "--accelerator-type=v4-16",
        "--runtime-version=tpu-ubuntu2204-base",
        "--node-id=pod",
        "--spot",
        "--zone=us-west4-a",
        "--project=mine",
        "--labels=inf_jax_pod=pod",
    } <= set(create)
    head = subprocess.run(
        ["git", "-C", cloud.root, "rev-parse", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    for worker in range(2):
        home = cloud.worker(f"0.{worker}")
        assert (home / "secret").read_text() == cloud.SECRET
        secrets = home / "inf_jax_pod" / "secrets.env"
        assert stat.S_IMODE(secrets.stat().st_mode) == 0o600
        assert stat.S_IMODE(secrets.parent.stat().st_mode) == 0o700
        found = ["git", "-C", home / "inf_jax_pod" / "src", "rev-parse", "HEAD"]
        assert subprocess.run(found, capture_output=True, text=True).stdout.strip() == head
        assert (home / "arguments").read_text().splitlines() == [
            *("-u", "-m", "inf_jax.train", "--config=configs/small.py"),
            *("--config.optim.lr=1e-4", "--config.out_dir=gs://b/pod"),
        ]
        calls = (home / "calls").read_text()
        assert "uv==0.13.9" in calls and "--python 3.11" in calls
        assert "-c launch/constraints.txt -c launch/constraints_tpu.txt -e .[tpu]" in calls


def test_an_outage_is_not_mistaken_for_a_missing_pod(cloud):
    cloud.plan(outage=99)
    status, output = cloud.tpu("run", *cloud.RUN)
    assert status == 1 and "the state of pod could not be queried" in output
    assert cloud.verbs() == []


def test_a_request_that_fails_in_the_queue(cloud):
    cloud.plan(states=["WAITING_FOR_RESOURCES", "FAILED"], reason="no capacity in time")
    status, output = cloud.tpu("run", *cloud.RUN, "--max-restarts=1")
    assert status == 3
    assert "the request for pod failed in the queue: no capacity in time" in output
    assert cloud.verbs() == ["create", "delete", "create", "delete"]
    assert cloud.left() == []


def test_interrupted_in_the_queue_leaves_nothing(cloud):
    cloud.plan(states=["WAITING_FOR_RESOURCES"])
    process = cloud.start("run", *cloud.RUN)
    cloud.wait_for(lambda: len(cloud.calls()) > 3)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=LIMIT_S)
    assert process.returncode == 143
    assert cloud.verbs() == ["create", "delete"]
    assert cloud.left() == []


@pytest.mark.parametrize("how", ["queue", "node"])
def test_preempted_run_is_recreated_and_resumes(cloud, how):
    (cloud.fake / "endless").touch()  # until preempted
    quota = [None, "ERROR: RESOURCE_EXHAUSTED: quota is released a little later"]
    cloud.plan(preempt={"1": 3}, how=how, create=quota)
    status, output = cloud.tpu("run", *cloud.RUN)
    assert status == 0, output
    once = ["ssh", "scp", "ssh setup", "ssh preflight", "ssh start"]
    assert cloud.verbs() == ["create", *once, "delete", "create", "create", *once, "delete"]
    log = cloud.log("0.0", born=2)
    first = int(re.search(r"from step (\d+)", log)[1])
    assert first > 0, log
    assert cloud.left() == []


def test_run_continues_watching_after_its_terminal_was_lost(cloud):
    (cloud.fake / "endless").touch()
    process = cloud.start("run", *cloud.RUN)
    cloud.wait_for(lambda: (cloud.fake / "bucket" / "step").exists())
    cloud.wait_for(lambda: "worker.sh status" in str(cloud.calls()[-1]))
    process.kill()
    process.wait()  # reaped: its subshells notice and end by themselves
    process.communicate(timeout=LIMIT_S)
    known = len(cloud.calls())
    process = cloud.start("run", *cloud.RUN)
    cloud.wait_for(lambda: str(cloud.calls()[known:]).count("worker.sh status") > 2)
    (cloud.fake / "endless").unlink()
    output, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, output
    assert "a run is active on pod, watching it" in output
    assert cloud.verbs().count("ssh start") == cloud.verbs().count("create") == 1
    assert cloud.left() == []


def test_interrupted_after_the_start_the_run_stays(cloud):
    (cloud.fake / "endless").touch()
    process = cloud.start("run", *cloud.RUN)
    cloud.wait_for(lambda: cloud.worker("0.1").joinpath("arguments").exists())
    cloud.wait_for(lambda: any("worker.sh status" in c for c in map(str, cloud.calls()[-3:])))
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=LIMIT_S)
    assert "delete" not in cloud.verbs()
    assert cloud.left() == ["pod", "pod"]


def test_a_stopped_run_is_not_started_again(cloud):
    (cloud.fake / "endless").touch()
    process = cloud.start("run", *cloud.RUN)
    cloud.wait_for(lambda: cloud.worker("0.1").joinpath("arguments").exists())
    cloud.wait_for(lambda: any("worker.sh status" in c for c in map(str, cloud.calls()[-3:])))
    assert cloud.tpu("stop")[0] == 0
    output, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 6
    assert "the run was asked to stop and has saved: run resumes it" in output
    assert cloud.verbs().count("ssh start") == 1 and "delete" not in cloud.verbs()
    status, output = cloud.tpu("status")
    assert status == 6 and "asked to stop" in output
    (cloud.fake / "endless").unlink()
    status, output = cloud.tpu("run", *cloud.RUN)
    assert status == 0, output
    assert cloud.verbs().count("create") == 1 and cloud.left() == []


def test_dead_worker_makes_run_recreate_the_pod(cloud):
    cloud.plan(dead={"1": ["0.1"]})
    status, output = cloud.tpu("run", *cloud.RUN)
    assert status == 0, output
    assert cloud.verbs()[:6] == ["create", "ssh", "ssh", "ssh", "delete", "create"]
    assert cloud.left() == []


def test_crashed_run_is_started_again_on_the_same_pod(cloud):
    (cloud.fake / "crash").touch()
    status, output = cloud.tpu("run", *cloud.RUN)
    assert status == 0, output
    assert (cloud.fake / "crashed").exists()
    assert "ValueError: a crash" in output
    assert cloud.verbs().count("create") == 1 and cloud.verbs().count("ssh start") == 2
    assert cloud.verbs().index("ssh stop") < len(cloud.verbs()) - 1
    assert cloud.left() == []


def test_run_that_always_crashes_gives_up(cloud):
    (cloud.fake / "always_crash").touch()
    status, output = cloud.tpu("run", *cloud.RUN, "--max-restarts=1")
    assert status == 5
    assert "--max-restarts=1 is exhausted" in output
    assert cloud.verbs().count("ssh start") == 2
    assert "[0.1] step " in (cloud.root.parent / "pod.log").read_text()
    assert cloud.left() == []
