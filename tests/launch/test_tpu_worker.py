"""launch/tpu.sh on its workers: setup, preflight, train, status, logs, profile, stop."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_dead_worker_is_listed(cloud):
    cloud.plan(dead={"1": ["0.1"]})
    cloud.tpu("create")
    status, output = cloud.tpu("setup")
    assert status == 4
    assert "no answer from worker 0.1 in 3 tries" in output and "Connection timed out" in output
    asked = [next(w for w in c if w.startswith("--worker")) for c in cloud.calls() if "ssh" in c]
    assert asked == ["--worker=all", "--worker=1", "--worker=1"]  # only worker 1 is tried again


def test_ssh_that_is_slow_to_come_up_and_ssh_that_hangs(cloud):
    cloud.env |= {"SSH_SECONDS": "3", "TRIES": "6"}
    cloud.plan(deaf={"0.1": 1}, hang={"0.0": 1})
    cloud.tpu("create")
    status, output = cloud.tpu("setup")
    assert status == 0, output
    assert "no answer from" in output and "all workers are at" in output


def test_preflight_says_what_is_wrong(cloud):
    cloud.tpu("create")
    status, output = cloud.tpu("preflight")
    assert status == 4 and "no answer from worker 0.0 0.1" in output  # worker.sh is not there yet
    status, output = cloud.tpu("setup")
    assert status == 0, output

    def wrong(wanted: str, *flags: str) -> None:
        status, output = cloud.tpu("preflight", *flags)
        assert (status, wanted in output) == (1, True), output

    (cloud.fake / "python.1").write_text("3.11.2\n")
    wrong("python differs between workers: 3.11.2 on 0.1; 3.11.9 on 0.0")
    (cloud.fake / "python.1").unlink()
    wrong("failed on 0.0 0.1: gs://denied cannot be written: 403", "--bucket=gs://denied")
    wrong("GiB of disk are free, 999999 are required", "--disk-gib=999999")
    (cloud.fake / "no_tpu").touch()
    wrong("the TPU did not answer in 1 s", "--preflight-seconds=1")
    (cloud.fake / "no_tpu").unlink()
    cloud.plan(devices="4 4 1")
    wrong("4 devices in 1 processes, expected 8 in 2")
    cloud.plan(devices="4 8 2")
    names = "constraints.txt", "constraints_tpu.txt"
    lock = "".join((ROOT / "launch" / name).read_text() for name in names)
    other = re.sub(r"(?m)^#.*\n", "", lock).replace("libtpu==0.0.42.1", "libtpu==0.0.41")
    (cloud.fake / "freeze.1").write_text(other)
    wrong("preflight failed on 0.1: not the pinned versions: libtpu==0.0.41")
    (cloud.fake / "freeze.1").unlink()
    (cloud.worker("0.1") / "inf_jax_pod" / "src" / "setup.py").write_text("# by hand\n")
    wrong("preflight failed on 0.1: src was modified by hand")
    status, output = cloud.tpu("setup")  # replaces src
    status, output = cloud.tpu("preflight", "--bucket=gs://b")
    assert status == 0 and "2 workers, 8 devices" in output, output


def test_failed_install_says_why(cloud):
    (cloud.fake / "uv_fails").touch()
    cloud.tpu("create")
    status, output = cloud.tpu("setup")
    assert status == 1
    assert "setup failed on 0.0 0.1: uv could not create the environment" in output


def test_setup_sends_what_is_committed(cloud):
    cloud.tpu("create")
    new = cloud.root / "configs" / "new.py"
    new.write_text("# new\n")
    status, output = cloud.tpu("setup")
    assert status == 1 and "configs/new.py" in output and "--allow-dirty" in output
    assert "scp" not in cloud.verbs()
    status, output = cloud.tpu("setup", "--allow-dirty")
    assert status == 0, output
    source = cloud.worker("0.1") / "inf_jax_pod" / "src"
    assert (source / "configs" / "new.py").read_text() == "# new\n"
    git = ["git", "-C", cloud.root]
    state = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True).stdout
    assert state == "?? configs/new.py\n"  # index and branch did not change
    status, output = cloud.tpu("setup", "--allow-dirty")  # the environment is up to date
    assert (cloud.worker("0.1") / "calls").read_text().count("uv pip install") == 1
    new.unlink()
    status, output = cloud.tpu("run", "--bucket=gs://b", "--config=configs/none.py")
    assert status == 1 and "configs/none.py is not in commit" in output


def test_train_status_logs_profile_stop(cloud):
    (cloud.fake / "endless").touch()
    cloud.plan(devices="4 16 4")
    two = ("--slices=2",)
    cloud.ready(*two)
    train = ("train", *two, "--bucket=gs://b", "--config=configs/small.py")
    status, output = cloud.tpu(*train)
    assert status == 0, output
    # the ssh session is over, the run is not
    labels = [f"{s}.{w}" for s in (0, 1) for w in range(2)]
    cloud.wait_for(lambda: all("step 3" in cloud.log(label) for label in labels))
    status, output = cloud.tpu("status", *two)
    assert status == 0 and output.count("state running") == 4, output
    assert "slice pod-1 READY 2 workers" in output
    status, output = cloud.tpu(*train)
    assert status == 1 and "a run is active" in output
    status, output = cloud.tpu("preflight", *two)
    assert status == 1 and "a run is active and holds the TPU" in output
    status, output = cloud.tpu("logs", *two, "--lines=2")
    shown = re.findall(r"(?m)^\[(\d\.\d)\] step \d+$", output)
    assert status == 0 and shown == sorted(2 * labels), output
    status, output = cloud.tpu("logs", *two, "--lines=1", "--worker=1.1")
    assert re.fullmatch(r"\[1\.1\] step \d+\n", output), output
    status, output = cloud.tpu("logs", *two, "--worker=2.0")
    assert status == 2 and "no such worker" in output
    status, output = cloud.tpu("profile", *two, "--worker=1.1")
    assert status == 0, output
    cloud.wait_for((cloud.fake / "traced").exists)
    status, output = cloud.tpu("stop", *two)
    assert status == 0, output
    assert "saved" in cloud.log("1.1")
    status, output = cloud.tpu("status", *two)
    assert status == 6 and output.count("state ended status=143") == 4, output
    status, output = cloud.tpu("status")
    assert status == 3 and "2 slices, but --slices=1" in output
    status, output = cloud.tpu("delete", *two)
    assert status == 0 and cloud.left() == []


def test_profile_does_not_end_a_run_that_does_not_listen(cloud):
    (cloud.fake / "endless").touch()
    (cloud.fake / "no_trace").touch()
    cloud.ready()
    cloud.tpu("train", "--bucket=gs://b", "--config=configs/small.py")
    status, output = cloud.tpu("profile")
    assert status == 1 and "does not listen for SIGUSR1" in output
    status, output = cloud.tpu("status")
    assert output.count("state running") == 2, output


def test_stubborn_run_is_killed(cloud):
    (cloud.fake / "endless").touch()
    (cloud.fake / "stubborn").touch()
    cloud.ready()
    cloud.tpu("train", "--bucket=gs://b", "--config=configs/small.py")
    cloud.wait_for(lambda: all("step 1" in cloud.log(f"0.{w}") for w in range(2)))  # traps are set
    status, output = cloud.tpu("stop", "--stop-seconds=0")
    assert status == 0, output
    status, output = cloud.tpu("status")
    assert status == 5 and output.count("state lost") == 2, output


def test_workers_check_with_jax_itself(cloud):
    """The preflight check of a worker with 8 CPU devices, and directories for buckets."""
    cloud.plan(devices="8 8 1", workers=1)
    flags = ("--type=v5litepod-8",)
    cloud.ready(*flags)
    pod = cloud.worker("0.0") / "inf_jax_pod"
    python = pod / "venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    env = {
        "HOME": str(pod.parent),
        "PATH": f"{cloud.fake}/stubs:/usr/bin:/bin",
        "FAKE": str(cloud.fake),
        "WORKER": "0",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    }
    bucket, file = pod.parent / "bucket", pod.parent / "file"
    file.touch()

    def preflight(bucket: Path, **more: str) -> str:
        script = ["bash", pod / "worker.sh", "preflight", "0", bucket, "0", "60", "8", "1", "600"]
        done = subprocess.run(script, env=env | more, capture_output=True, text=True)
        assert done.returncode == 0 and not done.stderr, done.stderr
        return done.stdout

    output = preflight(bucket)
    assert "libtpu=0.0.42.1" in output and "local_devices=8" in output, output
    assert output.endswith("[0.0] rc=0\n")
    assert not bucket.exists()  # the write test has cleaned up
    output = preflight(file / "bucket")
    assert "cannot write " in output, output
    assert output.endswith("[0.0] rc=1\n")
    output = preflight(bucket, CLOCK="-1 hour")
    assert "the clock is 36" in output and output.endswith("[0.0] rc=1\n"), output
