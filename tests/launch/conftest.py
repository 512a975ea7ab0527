"""A fake cloud for launch/tpu.sh: worker commands really run, each worker in its own directory,
with stubs of uv, python and curl."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# the tiny run, for the commands that train
from tests.inf_jax.conftest import tiny_config, tiny_dataset_dir, tiny_model_dir  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]
FAKE_GCLOUD = ROOT / "tests" / "doubles" / "fake_gcloud.py"
SENT = ["setup.py", "launch/constraints.txt", "launch/constraints_tpu.txt", ".gitignore"]
LIMIT_S = 900  # only ends what hangs
SECRET = "s3cr3t-'with $igns\" in it"

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
  "pip install")
    { grep -hv '^#' launch/constraints{,_tpu}.txt; echo "-e file:///x"; } >"$HOME/freeze" ;;
  "pip freeze") cat "$FAKE/freeze.$WORKER" 2>/dev/null || cat "$HOME/freeze" ;;
esac
"""
# The run: counts steps, which it keeps in the bucket, and ends at the tenth.
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
    trap 'echo "saved"; exit 143' TERM
    trap 'touch "$FAKE/traced"' USR1
    [[ ! -e $FAKE/no_trace ]] || trap - USR1
    [[ ! -e $FAKE/stubborn ]] || trap '' TERM
    step=$(cat "$FAKE/bucket/step")
    echo "from step ${step:-0}"
    while ((step < 10)) || [[ -e $FAKE/endless ]]; do
      step=$((step + 1))
      echo "step $step"
      if [[ $WORKER == 0 ]]; then
        echo "$step" >"$FAKE/step.$$" # a file of its own: each slice has a worker 0
        mv "$FAKE/step.$$" "$FAKE/bucket/step"
      fi
      if [[ $WORKER == 1 ]] && ((step == 5)) && mv "$FAKE/crash" "$FAKE/crashed" 2>/dev/null; then
        echo "ValueError: a crash"
        exit 1
      fi
      if [[ -e $FAKE/always_crash ]]; then exit 1; fi
      sleep 0.05
    done
    ;;
esac
"""


@pytest.fixture(scope="session")
def template(tmp_path_factory) -> Path:
    """A repository with one commit of the files that the launcher needs."""
    root = tmp_path_factory.mktemp("template") / "project"
    launcher = [ROOT / "launch" / "tpu.sh", *(ROOT / "launch" / "tpu").iterdir()]
    for name in [*SENT, *(str(path.relative_to(ROOT)) for path in launcher)]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    (root / "configs").mkdir()
    (root / "configs" / "small.py").write_text("# a run\n")
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost", "-C", root]
    subprocess.run(["git", "init", "-q", root], check=True)
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-qm", "all"], check=True)
    return root


def wait_for(condition) -> None:
    """Waits until `condition()` is true."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


class Cloud:
    """A project, the fake gcloud and its workers.

    Time limits here are far above what a busy machine needs: they only end what hangs.
    """

    FLAGS = ("--name=pod", "--zone=us-west4-a", "--project=mine", "--type=v4-16")
    RUN = ("--spot", "--bucket=gs://b", "--config=configs/small.py", "--config.optim.lr=1e-4")

    SECRET = SECRET

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
        gcloud.write_text(f"#!{sys.executable} -SE\n{FAKE_GCLOUD.read_text()}")
        gcloud.chmod(0o755)
        self.env = {
            "PATH": f"{home}/bin:/usr/bin:/bin",
            "HOME": str(home),
            "FAKE": str(self.fake),
            "TOKEN_OF_MINE": SECRET,
            "POLL_SECONDS": "0.1",
            "RETRY_SECONDS": "0.02",
            "TRIES": "3",
            "SSH_SECONDS": "300",
            "CLOCK_SECONDS": "60",
        }
        self.processes: list[subprocess.Popen] = []
        self.plan(devices="4 8 2")

    def plan(self, *, devices: str = "", **plan) -> None:
        if devices:
            (self.fake / "devices").write_text(devices + "\n")
        (self.fake / "plan.json").write_text(json.dumps(plan))

    def start(self, command: str, *flags: str) -> subprocess.Popen:
        process = subprocess.Popen(
            ["bash", self.root / "launch" / "tpu.sh", command, *self.FLAGS, *flags],
            cwd=self.root.parent,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.processes.append(process)
        return process

    def tpu(self, command: str, *flags: str) -> tuple[int, str]:
        """Exit status and output; checks that neither output nor calls contain the secret."""
        process = self.start(command, *flags)
        output, _ = process.communicate(timeout=LIMIT_S)
        assert SECRET[:6] not in output + json.dumps(self.calls())
        return process.returncode, output

    def ready(self, *flags: str) -> None:
        """Makes a pod and sets it up."""
        for command in ("create", "wait", "setup"):
            status, output = self.tpu(command, *flags)
            assert status == 0, output

    def calls(self) -> list[list[str]]:
        path = self.fake / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def verbs(self) -> list[str]:
        """The calls other than state queries: create, ssh setup, scp, delete, ..."""
        verbs = []
        for call in self.calls():
            words = [w for w in call if not w.startswith("--")]
            verb = words[words.index("tpus") + 2]
            command = next((w for w in call if w.startswith("--command=")), "")
            known = re.search(r"worker.sh (\w+)", command)
            verb += f" {known[1]}" if known else ""
            if verb not in ("describe", "list", "ssh status"):
                verbs.append(verb)
        return verbs

    def left(self) -> list[str]:
        """Pods and nodes that still exist."""
        state = json.loads((self.fake / "state.json").read_text())
        return [*state["pods"], *state["nodes"]]

    def worker(self, label: str, *, born: int = 1) -> Path:
        """Home directory of worker SLICE.WORKER of the `born`-th pod created."""
        return self.fake / "workers" / str(born) / label

    def wait_for(self, condition) -> None:
        wait_for(condition)

    def log(self, label: str, *, born: int = 1) -> str:
        """The run's log on a worker; empty before the run."""
        path = self.worker(label, born=born) / "inf_jax_pod" / "run.log"
        return path.read_text() if path.exists() else ""

    def end(self) -> None:
        """Kills every process that the test has started."""
        for process in self.processes:
            process.kill()
            process.wait()
            process.stdout.close()
        for group in self.fake.glob("workers/*/*/inf_jax_pod/run.group"):
            with contextlib.suppress(ProcessLookupError, ValueError):
                os.killpg(int(group.read_text()), signal.SIGKILL)


@pytest.fixture
def cloud(tmp_path, template):
    """A cloud whose pod is a v4-16: two workers with four devices each."""
    cloud = Cloud(tmp_path, template)
    yield cloud
    cloud.end()
