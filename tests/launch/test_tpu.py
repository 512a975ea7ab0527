"""launch/tpu.sh: settings, dry run, and the queued resource from create to delete."""

import re
import signal
import subprocess
from pathlib import Path

from tests.launch.conftest import LIMIT_S

ROOT = Path(__file__).resolve().parents[2]


def test_help_and_wrong_usage(cloud):
    for arguments in (["--help"], ["run", "--help"]):
        done = subprocess.run(
            ["bash", cloud.root / "launch" / "tpu.sh", *arguments], capture_output=True, text=True
        )
        assert done.returncode == 0
        assert "--max-restarts" in done.stdout and "preflight" in done.stdout
    for flags, word in {
        ("launch",): "no command launch",
        ("run", "--config=configs/small.py"): "--bucket=gs://",
        ("run", "--bucket=gs://b"): "--config=FILE is missing",
        ("create", "--type=v9-8"): "--type=v9-8",
        ("create", "--name=Pod"): "--name=Pod",
        ("create", "--colour=red"): "no setting COLOUR",
        ("create", "--flex-start"): "--max-run",
        ("create", "--tries=0"): "--tries=0",
        ("setup", "--secrets=NOT_SET"): "NOT_SET is not set",
        ("setup", "--secrets=a value"): "names of variables",
        ("logs", "--worker=3"): "such as 0.3",
        ("create", "spot"): "spot: unknown argument",
    }.items():
        status, output = cloud.tpu(*flags)
        assert (status, word in output) == (2, True), output
    assert not cloud.calls()


def test_dry_run_prints_every_command_and_runs_none(cloud):
    flags = (*cloud.RUN, "--secrets=TOKEN_OF_MINE", "--slices=2", "--dry-run")
    status, output = cloud.tpu("run", *flags)
    assert status == 0, output
    assert not cloud.calls()
    lines = [line for line in output.splitlines() if line.startswith("gcloud ")]
    wanted = ("queued-resources create", "scp", "worker.sh setup", "preflight", "start", "delete")
    places = [next(i for i, line in enumerate(lines) if word in line) for word in wanted]
    assert places == sorted(places)
    assert sum("--command=" in li and "worker.sh start" in li for li in lines) == 2  # a slice each
    assert "--node-count=2 --node-prefix=pod" in lines[places[0]]
    assert '"$TOKEN_OF_MINE"' in output
    # pasted into a shell they are the calls
    script = "\n".join(
        li for li in output.splitlines() if re.match(r"gcloud .* (create|delete)", li)
    )
    subprocess.run(["bash", "-c", script], env=cloud.env, check=True)
    assert cloud.verbs() == ["create", "delete"]
    for command in ("create", "wait", "setup", "preflight", "train", "status", "logs", "stop"):
        status, output = cloud.tpu(command, *cloud.RUN, "--dry-run")
        assert status == 0 and "gcloud compute tpus" in output, output
    assert cloud.verbs() == ["create", "delete"]


def test_tiers_and_access(cloud):
    flex = ("--flex-start", "--max-run=2d", "--valid-until=6h", "--access=iap", "--labels=team=ir")
    _, output = cloud.tpu("create", *flex, "--dry-run")
    assert "gcloud alpha compute tpus queued-resources create" in output
    assert "--provisioning-model=flex-start --max-run-duration=2d" in output
    assert "--valid-until-duration=6h" in output and "--internal-ips" in output
    assert "--labels=inf_jax_pod=pod,team=ir" in output
    _, output = cloud.tpu("stop", *flex, "--dry-run")
    assert "gcloud alpha compute tpus tpu-vm ssh" in output and "--tunnel-through-iap" in output
    _, output = cloud.tpu("create", "--reserved", "--type=v5p-64", "--dry-run")
    assert "--reserved" in output and "--runtime-version=v2-alpha-tpuv5 " in output


def test_settings_from_a_file(cloud):
    env = cloud.root.parent / "pod.env"
    env.write_text("# mine\nTIER=spot\nTYPE=v6e-16\n\nCONFIG=configs/small.py\nBUCKET=gs://b\n")
    _, output = cloud.tpu("run", f"--env={env}", "--dry-run")
    assert "--spot" in output and "--accelerator-type=v4-16" in output  # the flag wins
    assert "--config=configs/small.py --config.out_dir=gs://b/pod" in output
    env.write_text("TIRE=spot\n")
    status, output = cloud.tpu("create", f"--env={env}")
    assert status == 2 and f"{env}:1: no setting TIRE" in output
    example = (ROOT / "launch" / "tpu.env.example").read_text()
    env.write_text(re.sub(r"(?m)^# (?=[A-Z_]+=)", "", example))
    status, output = cloud.tpu("create", f"--env={env}", "--dry-run")
    assert status == 0, output


def test_quota_error_on_create_has_a_remedy_and_leaves_nothing(cloud):
    quota = "ERROR: (gcloud) RESOURCE_EXHAUSTED: Quota limit 'TPUV5s' has been exceeded."
    cloud.plan(create=[quota] * 9)
    status, output = cloud.tpu("create")
    assert status == 1
    assert "Quota limit 'TPUV5s'" in output and "request quota" in output
    assert cloud.verbs() == ["create"]  # retrying would not help
    assert cloud.left() == []


def test_create_that_fails_in_the_middle_leaves_nothing(cloud):
    cloud.plan(create=["half:ERROR: (gcloud) PERMISSION_DENIED: on the node"])
    status, output = cloud.tpu("create")
    assert status == 1 and "roles/tpu.admin" in output
    assert cloud.verbs() == ["create", "delete"]
    assert cloud.left() == []


def test_create_retries_transient_errors(cloud):
    cloud.plan(create=["ERROR: UNAVAILABLE: later", "half:ERROR: INTERNAL: the answer was lost"])
    status, output = cloud.tpu("create")
    assert status == 0, output
    assert cloud.verbs() == ["create"] * 3  # the last one finds that it exists
    assert cloud.left() == ["pod", "pod"]
    status, output = cloud.tpu("create")
    assert status == 1 and "pod exists already (ACTIVE)" in output
    assert cloud.left() == ["pod", "pod"]


def test_interrupted_create_leaves_nothing(cloud):
    (cloud.fake / "hold").touch()
    process = cloud.start("create")
    cloud.wait_for(lambda: "create" in cloud.verbs())
    process.send_signal(signal.SIGTERM)
    (cloud.fake / "hold").unlink()
    process.communicate(timeout=LIMIT_S)
    assert process.returncode == 143
    assert cloud.verbs() == ["create", "delete"]
    assert cloud.left() == []


def test_delete_is_repeated_until_nothing_is_listed(cloud):
    cloud.plan(delete=1, leave=True)
    cloud.tpu("create", "--slices=2")
    status, output = cloud.tpu("delete", "--slices=2")
    assert status == 0, output
    assert "FAILED_PRECONDITION: busy" in output and "nothing of pod is left" in output
    assert cloud.verbs() == ["create", "delete", "delete", "delete", "delete"]  # then node by node
    assert cloud.left() == []
    status, output = cloud.tpu("delete")
    assert status == 0 and len(cloud.verbs()) == 5  # nothing to do


def test_delete_that_always_fails_says_what_is_left(cloud):
    cloud.plan(delete=99)
    cloud.tpu("create")
    status, output = cloud.tpu("delete")
    assert status == 1
    assert "pod still exists: queued-resource ACTIVE, pod READY; it costs money" in output


def test_a_pod_with_a_similar_name_is_not_touched(cloud):
    cloud.tpu("create", "--name=pod-1")
    cloud.tpu("create")
    status, output = cloud.tpu("delete")
    assert status == 0, output
    assert cloud.left() == ["pod-1", "pod-1"]
