"""launch/tpu.sh against a gcloud that fails on demand; what it runs on workers really runs, each in a
directory of its own, with stubs of uv, python and curl."""

import contextlib
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SENT = ["setup.py", "launch/constraints.txt", "launch/constraints_tpu.txt", ".gitignore"]
SECRET = "s3cr3t-'with $igns\" in it"

# The state of the cloud is one file; plan.json says what goes wrong.
#   create: errors of the first creates        delete: how many deletes fail
#   states: what the queued resource passes through, a state a describe
#   dead: {incarnation: [worker, ...]}         deaf: {worker: how often ssh fails}, hang: likewise, no answer
#   preempt: {incarnation: number of the status question}, how: queue | node
#   leave: nodes stay when the queued resource is deleted
GCLOUD = r"""
import fcntl, json, os, shutil, signal, subprocess, sys, time
from pathlib import Path

home = Path(os.environ["FAKE"])
plan = json.loads((home / "plan.json").read_text())
args = sys.argv[1:]
lock = open(home / "lock", "a")
fcntl.flock(lock, fcntl.LOCK_EX)
with open(home / "calls.jsonl", "a") as file:
    file.write(json.dumps(args) + "\n")
path = home / "state.json"
state = json.loads(path.read_text()) if path.exists() else {
    "born": 0, "creates": 0, "deletes": 0, "pods": {}, "nodes": {}, "asked": {}, "failed": {}}
flags = {a.split("=", 1)[0]: a.split("=", 1)[1] if "=" in a else True for a in args if a.startswith("--")}
words = [a for a in args if not a.startswith("--")]
words = words[words.index("tpus") + 1:]
kind, verb, *rest = words


def done(status=0, out="", error=""):
    path.write_text(json.dumps(state))
    if out: print(out)
    if error: print(error, file=sys.stderr)
    sys.exit(status)


def kill_all(born):
    for pid in (home / "workers").glob(f"{born}/*/inf_jax_pod/run.group"):
        try: os.killpg(int(pid.read_text()), signal.SIGKILL)
        except (ProcessLookupError, ValueError): pass


if (kind, verb) == ("queued-resources", "create"):
    state["creates"] += 1
    errors = plan.get("create", [])
    error = errors[state["creates"] - 1] if state["creates"] <= len(errors) else None
    [name] = rest
    if name in state["pods"]: done(1, error="ERROR: (gcloud) ALREADY_EXISTS: " + name)
    if not error or error.startswith("half:"):
        state["born"] += 1
        if "--node-count" in flags: nodes = [f"{flags['--node-prefix']}-{i}" for i in range(int(flags["--node-count"]))]
        else: nodes = [flags["--node-id"]]
        state["pods"][name] = {"states": plan.get("states", ["ACTIVE"]), "born": state["born"], "nodes": nodes}
        label = flags["--labels"].split(",")[0].split("=")[1]
        for i, node in enumerate(nodes):
            state["nodes"][node] = {"state": "READY", "label": label, "slice": i, "born": state["born"]}
    if error: done(1, error=error)
    if plan.get("slow"): path.write_text(json.dumps(state)); time.sleep(plan["slow"])
    done()

if (kind, verb) == ("queued-resources", "describe"):
    pod = state["pods"].get(rest[0])
    if plan.get("outage", 0) > state["failed"].get("outage", 0):
        state["failed"]["outage"] = state["failed"].get("outage", 0) + 1
        done(1, error="ERROR: (gcloud) UNAVAILABLE: try again")
    if not pod: done(1, error="ERROR: (gcloud) NOT_FOUND: Resource was not found")
    if "failedData" in flags["--format"]: done(out=plan.get("reason", ""))
    now = pod["states"][0]
    if len(pod["states"]) > 1: pod["states"] = pod["states"][1:]
    done(out=now)

if (kind, verb) == ("queued-resources", "list"):
    done(out="\n".join(f"{name}\t{pod['states'][0]}" for name, pod in state["pods"].items()))

if (kind, verb) == ("queued-resources", "delete"):
    state["deletes"] += 1
    if state["deletes"] <= plan.get("delete", 0): done(1, error="ERROR: (gcloud) FAILED_PRECONDITION: busy")
    pod = state["pods"].pop(rest[0])
    kill_all(pod["born"])
    if not plan.get("leave"):
        for node in pod["nodes"]: state["nodes"].pop(node, None)
    done()

if (kind, verb) == ("tpu-vm", "delete"):
    del state["nodes"][rest[0]]
    done()

if (kind, verb) == ("tpu-vm", "list"):
    count = plan.get("workers", 4)
    done(out="\n".join(f"{n}\t{v['state']}\t{count}\t{v['label']}" for n, v in state["nodes"].items()))

assert kind == "tpu-vm" and verb in ("ssh", "scp"), words
name = rest[0] if verb == "ssh" else rest[-1].split(":")[0]
node = state["nodes"][name]
if node["state"] == "PREEMPTED": done(1, error="ERROR: (gcloud) TPU is in state PREEMPTED")
born = str(node["born"])
which = range(plan.get("workers", 4)) if flags["--worker"] == "all" else map(int, flags["--worker"].split(","))
command = flags.get("--command", "")
if "tpu_worker.sh status" in command:
    n = state["asked"][born] = state["asked"].get(born, 0) + 1
    if n == plan.get("preempt", {}).get(born):
        kill_all(born)
        pod = next(p for p in state["pods"].values() if p["born"] == node["born"])
        if plan.get("how") == "node": node["state"] = "PREEMPTED"
        else:
            pod["states"] = ["SUSPENDED"]
            for n in pod["nodes"]: state["nodes"].pop(n, None)
        done(255, error="ssh: Connection closed by remote host")
running, status = [], 0
for worker in which:
    label = f"{node['slice']}.{worker}"
    sandbox = home / "workers" / born / label
    sandbox.mkdir(parents=True, exist_ok=True)
    for key in ("deaf", "hang"):
        if verb == "ssh" and state["failed"].get(key + label, 0) < plan.get(key, {}).get(label, 0):
            state["failed"][key + label] = state["failed"].get(key + label, 0) + 1
            break
    else: key = "dead" if label in plan.get("dead", {}).get(born, []) else ""
    if key == "hang":
        path.write_text(json.dumps(state))
        lock.close()
        time.sleep(60)
    if key:
        print(f"ssh: connect to worker {worker} port 22: Connection timed out", file=sys.stderr)
        status = 255
    elif verb == "ssh":
        env = {"HOME": str(sandbox), "PATH": f"{home}/stubs:/usr/bin:/bin", "WORKER": str(worker), "FAKE": str(home)}
        running.append(subprocess.Popen(["bash", "-c", command], cwd=sandbox, env=env))
    else:
        for file in rest[:-1]: shutil.copy(file, sandbox / rest[-1].split(":")[1])
path.write_text(json.dumps(state))
fcntl.flock(lock, fcntl.LOCK_UN)
for process in running: status = process.wait() or status
sys.exit(status)
"""

CURL = r"""#!/bin/bash
case "$*" in
  *agent-worker-number) printf %s "$WORKER" ;;
  *) echo "Date: $(date -u -R -d "${CLOCK:-now}")" ;;
esac
"""
PYTHON3 = r"""#!/bin/bash
echo "python3 $*" >>"$HOME/calls"
while (($#)); do if [[ $1 == --target ]]; then target=$2; fi; shift; done
mkdir -p "$target/bin"
cp "$FAKE/stubs/.uv" "$target/bin/uv"
"""
UV = r"""#!/bin/bash
echo "uv $*" >>"$HOME/calls"
[[ ! -e $FAKE/uv_fails ]] || { echo "no matching distribution"; exit 1; }
case "$1 $2" in
  venv*) mkdir -p venv/bin; cp "$FAKE/stubs/.python" venv/bin/python ;;
  "pip install") grep -hv '^#' launch/constraints*.txt >"$HOME/freeze"; echo "-e file:///x" >>"$HOME/freeze" ;;
  "pip freeze") if [[ -e $FAKE/freeze.$WORKER ]]; then cat "$FAKE/freeze.$WORKER"; else cat "$HOME/freeze"; fi ;;
esac
"""
# The run: counts steps, where the bucket has them; ends at the tenth.
PYTHON = r"""#!/bin/bash
case "$1" in
  -c) [[ -z $2 ]] || cat "$FAKE/python.$WORKER" 2>/dev/null || echo 3.11.9 ;;
  -)
    cat >/dev/null
    if [[ $BUCKET == *denied* ]]; then echo "$BUCKET cannot be written: 403" >&2; exit 1; fi
    if [[ -e $FAKE/no_tpu ]]; then sleep 30; fi
    cat "$FAKE/devices"
    ;;
  -u)
    printf '%s\n' "$@" >"$HOME/arguments"
    printf %s "$TOKEN_OF_MINE" >"$HOME/secret"
    touch "$FAKE/bucket/step"
    trap 'echo "saved"; exit 0' TERM
    trap 'touch "$FAKE/traced"' USR1
    [[ ! -e $FAKE/no_trace ]] || trap - USR1
    [[ ! -e $FAKE/stubborn ]] || trap '' TERM
    step=$(cat "$FAKE/bucket/step")
    echo "from step ${step:-0}"
    while ((step < 10)) || [[ -e $FAKE/endless ]]; do
      step=$((step + 1))
      echo "step $step"
      if [[ $WORKER == 0 ]]; then echo "$step" >"$FAKE/bucket/step"; fi
      if [[ $WORKER == 2 ]] && ((step == 5)) && mv "$FAKE/crash" "$FAKE/crashed" 2>/dev/null; then
        echo "ValueError: a crash"
        exit 1
      fi
      if [[ -e $FAKE/always_crash ]]; then exit 1; fi
      sleep 0.05
    done
    ;;
esac
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """A checkout with what the launcher needs of this one, committed."""
    root = tmp_path_factory.mktemp("template") / "project"
    for name in [*SENT, *(str(p.relative_to(ROOT)) for p in (ROOT / "launch").glob("tpu*"))]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    (root / "configs").mkdir()
    (root / "configs" / "small.py").write_text("# a run\n")
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost", "-C", root]
    subprocess.run(["git", "init", "-q", root], check=True)
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-qm", "all"], check=True)
    return root


class Cloud:
    """A project, the fake gcloud and its workers."""

    FLAGS = ("--name=pod", "--zone=us-west4-a", "--project=mine", "--type=v5litepod-16")
    RUN = ("--spot", "--bucket=gs://b", "--config=configs/small.py", "--config.optim.lr=1e-4")

    def __init__(self, home: Path, template: Path):
        self.root, self.fake = home / "project", home / "fake"
        shutil.copytree(template, self.root)
        stubs = self.fake / "stubs"
        stubs.mkdir(parents=True)
        (self.fake / "bucket").mkdir()
        (home / "bin").mkdir()
        scripts = {".uv": UV, ".python": PYTHON, "python3": PYTHON3, "curl": CURL}
        for name, text in scripts.items():
            (stubs / name).write_text(text)
            (stubs / name).chmod(0o755)
        gcloud = home / "bin" / "gcloud"
        gcloud.write_text(f"#!{sys.executable} -SE\n{GCLOUD}")
        gcloud.chmod(0o755)
        self.env = {
            "PATH": f"{home}/bin:/usr/bin:/bin",
            "HOME": str(home),
            "FAKE": str(self.fake),
            "TOKEN_OF_MINE": SECRET,
            "POLL_SECONDS": "0.1",
            "RETRY_SECONDS": "0.02",
            "TRIES": "3",
            "SSH_SECONDS": "30",
        }
        self.plan(devices="4 16 4")

    def plan(self, *, devices: str = "", **plan) -> None:
        if devices:
            (self.fake / "devices").write_text(devices + "\n")
        (self.fake / "plan.json").write_text(json.dumps(plan))

    def start(self, command: str, *flags: str) -> subprocess.Popen:
        return subprocess.Popen(
            ["bash", self.root / "launch" / "tpu.sh", command, *self.FLAGS, *flags],
            cwd=self.root.parent,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def tpu(self, command: str, *flags: str) -> tuple[int, str]:
        """Exit status and output. No secret is in it, nor in any call."""
        process = self.start(command, *flags)
        output, _ = process.communicate(timeout=60)
        assert SECRET[:6] not in output + json.dumps(self.calls())
        return process.returncode, output

    def ready(self, *flags: str) -> None:
        """A pod that is set up."""
        for command in ("create", "wait", "setup"):
            status, output = self.tpu(command, *flags)
            assert status == 0, output

    def calls(self) -> list[list[str]]:
        path = self.fake / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def verbs(self) -> list[str]:
        """What was called, without asking for states: create, ssh setup, scp, delete, ..."""
        verbs = []
        for call in self.calls():
            words = [w for w in call if not w.startswith("--")]
            verb = words[words.index("tpus") + 2]
            command = next((w for w in call if w.startswith("--command=")), "")
            known = re.search(r"tpu_worker.sh (\w+)", command)
            verb += f" {known[1]}" if known else ""
            if verb not in ("describe", "list", "ssh status"):
                verbs.append(verb)
        return verbs

    def left(self) -> list[str]:
        state = json.loads((self.fake / "state.json").read_text())
        return [*state["pods"], *state["nodes"]]

    def worker(self, label: str, *, born: int = 1) -> Path:
        return self.fake / "workers" / str(born) / label

    def wait_for(self, condition) -> None:
        for _ in range(400):
            if condition():
                return
            time.sleep(0.05)
        raise AssertionError("it did not happen in 20 s")

    def end(self) -> None:
        """No run outlives its test."""
        for group in self.fake.glob("workers/*/*/inf_jax_pod/run.group"):
            with contextlib.suppress(ProcessLookupError, ValueError):
                os.killpg(int(group.read_text()), signal.SIGKILL)


@pytest.fixture
def cloud(tmp_path, template):
    cloud = Cloud(tmp_path, template)
    yield cloud
    cloud.end()


def test_help_and_wrong_usage(cloud):
    for arguments in (["--help"], ["run", "--help"]):
        done = subprocess.run(
            ["bash", cloud.root / "launch" / "tpu.sh", *arguments], capture_output=True, text=True
        )
        assert done.returncode == 0
        assert "--max-restarts" in done.stdout and "preflight" in done.stdout
    for flags, word in {
        ("launch",): "there is no command launch",
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
        ("create", "spot"): "spot is not understood",
    }.items():
        status, output = cloud.tpu(*flags)
        assert (status, word in output) == (2, True), output
    assert not cloud.calls()


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
        "--accelerator-type=v5litepod-16",
        "--runtime-version=v2-alpha-tpuv5-lite",
        "--node-id=pod",
        "--spot",
        "--zone=us-west4-a",
        "--project=mine",
        "--labels=inf_jax_pod=pod",
    } <= set(create)
    head = subprocess.run(
        ["git", "-C", cloud.root, "rev-parse", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    for worker in range(4):
        home = cloud.worker(f"0.{worker}")
        assert (home / "secret").read_text() == SECRET
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
        assert "-c launch/constraints.txt -c launch/constraints_tpu.txt -e .[tpu] gcsfs" in calls


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
    script = "\n".join(li for li in output.splitlines() if re.match(r"gcloud .* (create|delete)", li))
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
    assert "--spot" in output and "--accelerator-type=v5litepod-16" in output  # the flag wins
    assert "--config=configs/small.py --config.out_dir=gs://b/pod" in output
    env.write_text("TIRE=spot\n")
    status, output = cloud.tpu("create", f"--env={env}")
    assert status == 2 and f"{env}:1: there is no setting TIRE" in output
    example = (ROOT / "launch" / "tpu.env.example").read_text()
    env.write_text(re.sub(r"(?m)^# (?=[A-Z_]+=)", "", example))
    status, output = cloud.tpu("create", f"--env={env}", "--dry-run")
    assert status == 0, output


def test_quota_error_on_create_has_a_remedy_and_leaves_nothing(cloud):
    quota = "ERROR: (gcloud) RESOURCE_EXHAUSTED: Quota limit 'TPUV5s' has been exceeded."
    cloud.plan(create=[quota] * 9)
    status, output = cloud.tpu("create")
    assert status == 1
    assert "Quota limit 'TPUV5s'" in output and "ask for quota" in output
    assert cloud.verbs() == ["create"]  # asking again does not help
    assert cloud.left() == []


def test_create_that_fails_in_the_middle_leaves_nothing(cloud):
    cloud.plan(create=["half:ERROR: (gcloud) PERMISSION_DENIED: on the node"])
    status, output = cloud.tpu("create")
    assert status == 1 and "roles/tpu.admin" in output
    assert cloud.verbs() == ["create", "delete"]
    assert cloud.left() == []


def test_create_tries_again_what_passes(cloud):
    cloud.plan(create=["ERROR: UNAVAILABLE: later", "half:ERROR: INTERNAL: the answer was lost"])
    status, output = cloud.tpu("create")
    assert status == 0, output
    assert cloud.verbs() == ["create"] * 3  # the last one finds it there
    assert cloud.left() == ["pod", "pod"]
    status, output = cloud.tpu("create")
    assert status == 1 and "pod is there already (ACTIVE)" in output
    assert cloud.left() == ["pod", "pod"]


def test_interrupted_create_leaves_nothing(cloud):
    cloud.plan(slow=1)
    process = cloud.start("create")
    cloud.wait_for(lambda: "create" in cloud.verbs())
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 143
    assert cloud.verbs() == ["create", "delete"]
    assert cloud.left() == []


def test_an_outage_is_not_taken_for_a_missing_pod(cloud):
    cloud.plan(outage=99)
    status, output = cloud.tpu("run", *cloud.RUN)
    assert status == 1 and "the state of pod is not known" in output
    assert cloud.verbs() == []


def test_queue_that_gives_up(cloud):
    cloud.plan(states=["WAITING_FOR_RESOURCES", "FAILED"], reason="no capacity in time")
    status, output = cloud.tpu("run", *cloud.RUN, "--max-restarts=1")
    assert status == 3
    assert "the queue gave pod up: no capacity in time" in output
    assert cloud.verbs() == ["create", "delete", "create", "delete"]
    assert cloud.left() == []


def test_interrupted_in_the_queue_leaves_nothing(cloud):
    cloud.plan(states=["WAITING_FOR_RESOURCES"])
    process = cloud.start("run", *cloud.RUN)
    cloud.wait_for(lambda: len(cloud.calls()) > 3)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 143
    assert cloud.verbs() == ["create", "delete"]
    assert cloud.left() == []


@pytest.mark.parametrize("how", ["queue", "node"])
def test_preempted_run_is_recreated_and_resumes(cloud, how):
    cloud.plan(preempt={"1": 3}, how=how)
    quota = [None, "ERROR: RESOURCE_EXHAUSTED: quota is given back a little later"]
    cloud.plan(preempt={"1": 3}, how=how, create=quota)
    status, output = cloud.tpu("run", *cloud.RUN)
    assert status == 0, output
    once = ["ssh", "scp", "ssh setup", "ssh preflight", "ssh start"]
    assert cloud.verbs() == ["create", *once, "delete", "create", "create", *once, "delete"]
    log = (cloud.worker("0.0", born=2) / "inf_jax_pod" / "run.log").read_text()
    first = int(re.search(r"from step (\d+)", log)[1])
    assert 0 < first <= 10, log
    assert cloud.left() == []


def test_run_goes_on_watching_after_its_terminal_was_lost(cloud):
    (cloud.fake / "endless").touch()
    process = cloud.start("run", *cloud.RUN)
    cloud.wait_for(lambda: (cloud.fake / "bucket" / "step").exists())
    process.kill()
    process.communicate(timeout=30)
    assert cloud.left() == ["pod", "pod"]  # training goes on
    before = int((cloud.fake / "bucket" / "step").read_text() or 0)
    cloud.wait_for(lambda: int((cloud.fake / "bucket" / "step").read_text() or 0) > before)
    (cloud.fake / "endless").unlink()
    status, output = cloud.tpu("run", *cloud.RUN)
    assert status == 0, output
    assert cloud.verbs().count("ssh start") == 1 or "all" in output
    assert cloud.left() == []


def test_interrupted_after_the_start_the_run_stays(cloud):
    (cloud.fake / "endless").touch()
    process = cloud.start("run", *cloud.RUN)
    cloud.wait_for(lambda: cloud.worker("0.3").joinpath("arguments").exists())
    cloud.wait_for(lambda: any("worker.sh status" in c for c in map(str, cloud.calls()[-3:])))
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert "delete" not in cloud.verbs()
    assert cloud.left() == ["pod", "pod"]


def test_dead_worker_is_named(cloud):
    cloud.plan(dead={"1": ["0.3"]})
    cloud.tpu("create")
    status, output = cloud.tpu("setup")
    assert status == 4
    assert "no answer from worker 0.3 in 3 tries" in output and "Connection timed out" in output
    asked = [next(w for w in c if w.startswith("--worker")) for c in cloud.calls() if "ssh" in c]
    assert asked == ["--worker=all", "--worker=3", "--worker=3"]  # the others are not asked again


def test_dead_worker_makes_run_recreate_the_pod(cloud):
    cloud.plan(dead={"1": ["0.3"]})
    status, output = cloud.tpu("run", *cloud.RUN)
    assert status == 0, output
    assert cloud.verbs()[:6] == ["create", "ssh", "ssh", "ssh", "delete", "create"]
    assert cloud.left() == []


def test_ssh_that_is_slow_to_come_up_and_ssh_that_hangs(cloud):
    cloud.env["SSH_SECONDS"] = "2"
    cloud.plan(deaf={"0.1": 2}, hang={"0.2": 1})
    cloud.tpu("create")
    status, output = cloud.tpu("setup")
    assert status == 0, output
    assert "no answer from" in output and "all workers are at" in output


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
    assert "--max-restarts=1 are used up" in output
    assert cloud.verbs().count("ssh start") == 2
    assert "[0.3] step 1" in (cloud.root.parent / "pod.log").read_text()
    assert cloud.left() == []


@pytest.mark.parametrize("what", ["python", "libtpu", "devices", "bucket", "tpu", "setup"])
def test_preflight_says_what_is_wrong(cloud, what):
    wanted, flags = "", ["--bucket=gs://b"]
    if what == "python":
        (cloud.fake / "python.2").write_text("3.11.2\n")
        wanted = "python is not the same on all workers: 3.11.2 on 0.2; 3.11.9 on 0.0 0.1 0.3"
    elif what == "libtpu":
        lock = "".join((ROOT / n).read_text() for n in SENT if "constraints" in n)
        other = re.sub(r"(?m)^#.*\n", "", lock).replace("libtpu==0.0.42.1", "libtpu==0.0.41")
        (cloud.fake / "freeze.1").write_text(other)
        wanted = "preflight failed on 0.1: not the pinned versions: libtpu==0.0.41"
    elif what == "devices":
        cloud.plan(devices="4 12 3")
        wanted = "12 devices in 3 processes, 16 in 4 are expected"
    elif what == "bucket":
        flags = ["--bucket=gs://denied"]
        wanted = "failed on 0.0 0.1 0.2 0.3: gs://denied cannot be written: 403"
    elif what == "tpu":
        (cloud.fake / "no_tpu").touch()
        flags.append("--preflight-seconds=1")
        wanted = "no answer from the TPU in 1 s"
    if what == "setup":
        cloud.tpu("create")
        wanted = "no answer from worker 0.0 0.1 0.2 0.3"  # there is no script yet
    else:
        cloud.ready()
    status, output = cloud.tpu("preflight", *flags)
    assert (status, wanted in output) == (4 if what == "setup" else 1, True), output


def test_failed_install_says_why(cloud):
    (cloud.fake / "uv_fails").touch()
    cloud.tpu("create")
    status, output = cloud.tpu("setup")
    assert status == 1
    assert "setup failed on 0.0 0.1 0.2 0.3: uv could not make the environment" in output


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
    assert state == "?? configs/new.py\n"  # index and branch are as they were
    status, output = cloud.tpu("setup", "--allow-dirty")  # finds the environment made
    assert (cloud.worker("0.1") / "calls").read_text().count("uv pip install") == 1
    new.unlink()
    status, output = cloud.tpu("run", "--bucket=gs://b", "--config=configs/none.py")
    assert status == 1 and "configs/none.py is not in commit" in output


def test_train_status_logs_profile_stop(cloud):
    (cloud.fake / "endless").touch()
    cloud.plan(devices="4 32 8")
    two = ("--slices=2",)
    cloud.ready(*two)
    train = ("train", *two, "--bucket=gs://b", "--config=configs/small.py")
    status, output = cloud.tpu(*train)
    assert status == 0, output
    # the ssh session is over, the run is not
    cloud.wait_for(lambda: "step 3" in (cloud.worker("1.2") / "inf_jax_pod/run.log").read_text())
    status, output = cloud.tpu("status", *two)
    assert status == 0 and output.count("state running") == 8, output
    assert "slice pod-1 READY 4 workers" in output
    status, output = cloud.tpu(*train)
    assert status == 1 and "a run is active" in output
    status, output = cloud.tpu("preflight", *two)
    assert status == 1 and "a run is active and holds the TPU" in output
    status, output = cloud.tpu("logs", *two, "--lines=2")
    labels = re.findall(r"(?m)^\[(\d\.\d)\] step", output)
    assert status == 0 and labels == sorted(2 * [f"{s}.{w}" for s in (0, 1) for w in range(4)])
    status, output = cloud.tpu("logs", *two, "--lines=1", "--worker=1.2")
    assert re.fullmatch(r"\[1\.2\] step \d+\n", output), output
    status, output = cloud.tpu("logs", *two, "--worker=2.0")
    assert status == 2 and "no such worker" in output
    status, output = cloud.tpu("profile", *two, "--worker=1.2")
    assert status == 0, output
    cloud.wait_for((cloud.fake / "traced").exists)
    status, output = cloud.tpu("stop", *two)
    assert status == 0, output
    assert "saved" in (cloud.worker("1.2") / "inf_jax_pod" / "run.log").read_text()
    status, output = cloud.tpu("status", *two)
    assert status == 0 and output.count("state ended status=0") == 8, output
    status, output = cloud.tpu("status")
    assert status == 3 and "2 slices, --slices=1 are expected" in output
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
    assert output.count("state running") == 4, output


def test_stubborn_run_is_killed(cloud):
    (cloud.fake / "endless").touch()
    (cloud.fake / "stubborn").touch()
    cloud.ready()
    cloud.tpu("train", "--bucket=gs://b", "--config=configs/small.py")
    status, output = cloud.tpu("stop", "--stop-seconds=0")
    assert status == 0, output
    status, output = cloud.tpu("status")
    assert status == 5 and output.count("state lost") == 4, output


def test_delete_tries_again_until_nothing_is_listed(cloud):
    cloud.plan(delete=1, leave=True)
    cloud.tpu("create", "--slices=2")
    status, output = cloud.tpu("delete", "--slices=2")
    assert status == 0, output
    assert "FAILED_PRECONDITION: busy" in output and "nothing of pod is left" in output
    assert cloud.verbs() == ["create", "delete", "delete", "delete", "delete"]  # then node by node
    assert cloud.left() == []
    status, output = cloud.tpu("delete")
    assert status == 0 and len(cloud.verbs()) == 5  # nothing to do


def test_delete_that_never_works_says_what_is_left(cloud):
    cloud.plan(delete=99)
    cloud.tpu("create")
    status, output = cloud.tpu("delete")
    assert status == 1
    assert "of pod there is still: queued-resource ACTIVE, pod READY; it costs money" in output


def test_another_pod_of_a_like_name_is_not_touched(cloud):
    cloud.tpu("create", "--name=pod-1")
    cloud.tpu("create")
    status, output = cloud.tpu("delete")
    assert status == 0, output
    assert cloud.left() == ["pod-1", "pod-1"]


def test_workers_check_with_jax_itself(cloud):
    """What preflight runs on a worker: here with 8 CPU devices, and directories for buckets."""
    cloud.plan(devices="8 8 1", workers=1)
    flags = ("--type=v5litepod-8",)
    cloud.ready(*flags)
    pod = cloud.worker("0.0") / "inf_jax_pod"
    python = pod / "venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    env = {
        **{"HOME": str(pod.parent), "PATH": f"{cloud.fake}/stubs:/usr/bin:/bin", "WORKER": "0"},
        **{"FAKE": str(cloud.fake), "JAX_PLATFORMS": "cpu"},
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    }
    bucket, file = pod.parent / "bucket", pod.parent / "file"
    file.touch()

    def preflight(bucket: Path, **more: str) -> str:
        script = ["bash", pod / "tpu_worker.sh", "preflight", "0", bucket, "0", "5", "8", "1", "60"]
        done = subprocess.run(script, env=env | more, capture_output=True, text=True)
        assert done.returncode == 0 and not done.stderr, done.stderr
        return done.stdout

    output = preflight(bucket)
    assert "libtpu=0.0.42.1" in output and "local_devices=8" in output, output
    assert output.endswith("[0.0] rc=0\n")
    assert list((bucket / ".preflight").iterdir()) == []
    output = preflight(file / "bucket")
    assert "cannot be written: " in output and "roles/storage.objectAdmin" in output
    assert output.endswith("[0.0] rc=1\n")
    output = preflight(bucket, CLOCK="-1 hour")
    assert "the clock is 36" in output and output.endswith("[0.0] rc=1\n"), output
