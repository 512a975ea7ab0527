"""A gcloud for the tests of launch/tpu.sh; the cloud's state is one file.

$FAKE/plan.json scripts its faults:

  create   errors of the first creates; "half:ERROR" fails after the resource was created
  delete   number of deletes that fail
  states   states of the queued resource, one per describe
  outage   number of describes that fail        reason   of the state FAILED
  dead     {incarnation: [worker, ...]}         deaf, hang   {worker: ssh calls that fail, stall}
  preempt  {incarnation: number of the status call from which it is preempted, once the run has
           saved a step}, how: "queue" or "node"
  leave    nodes stay when the queued resource is deleted
  workers  per slice

A create returns once $FAKE/hold is gone. ssh runs its command in
$FAKE/workers/INCARNATION/SLICE.WORKER, with the stubs on PATH.
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from glob import glob

HOME = os.environ["FAKE"]
ARGS = sys.argv[1:]
FLAGS = dict(a.partition("=")[::2] for a in ARGS if a.startswith("--"))
NEW = {"born": 0, "creates": 0, "deletes": 0, "pods": {}, "nodes": {}, "asked": {}, "failed": {}}


def load(name: str, default: dict | None = None) -> dict:
    if default is not None and not os.path.exists(f"{HOME}/{name}"):
        return default
    with open(f"{HOME}/{name}") as file:
        return json.load(file)


def save() -> None:
    with open(f"{HOME}/state.json", "w") as file:
        json.dump(state, file)


def done(status: int = 0, out: str = "", error: str = "") -> None:
    save()
    if out:
        print(out)
    if error:
        print(error, file=sys.stderr)
    sys.exit(status)


def times(key: str, wanted: int) -> bool:
    """Whether this is one of the first `wanted` calls with this key."""
    before = state["failed"].get(key, 0)
    state["failed"][key] = before + 1
    return before < wanted


def kill_all(born: int) -> None:
    for path in glob(f"{HOME}/workers/{born}/*/inf_jax_pod/run.group"):
        with open(path) as file, suppress(ProcessLookupError, ValueError):
            os.killpg(int(file.read()), signal.SIGKILL)


def create(name: str) -> None:
    errors, number = plan.get("create", []), state["creates"]
    error = errors[number] if number < len(errors) else None
    state["creates"] += 1
    if name in state["pods"]:
        done(1, error="ERROR: (gcloud) ALREADY_EXISTS: " + name)
    if not error or error.startswith("half:"):
        born = state["born"] = state["born"] + 1
        nodes = [FLAGS.get("--node-id")]
        if "--node-count" in FLAGS:
            nodes = [f"{FLAGS['--node-prefix']}-{i}" for i in range(int(FLAGS["--node-count"]))]
        states = plan.get("states", ["ACTIVE"])
        state["pods"][name] = {"states": states, "born": born, "nodes": nodes}
        label = FLAGS["--labels"].split(",")[0].split("=")[1]
        for i, node in enumerate(nodes):
            keys = {"state": "READY", "label": label, "slice": i, "born": born}
            state["nodes"][node] = keys
    if error:
        done(1, error=error)
    save()
    while os.path.exists(f"{HOME}/hold"):
        time.sleep(0.05)
    done()


def describe(name: str) -> None:
    if times("outage", plan.get("outage", 0)):
        done(1, error="ERROR: (gcloud) UNAVAILABLE: try again")
    if name not in state["pods"]:
        done(1, error="ERROR: (gcloud) NOT_FOUND: Resource was not found")
    if "failedData" in FLAGS["--format"]:
        done(out=plan.get("reason", ""))
    states = state["pods"][name]["states"]
    done(out=states.pop(0) if len(states) > 1 else states[0])


def delete(name: str) -> None:
    state["deletes"] += 1
    if state["deletes"] <= plan.get("delete", 0):
        done(1, error="ERROR: (gcloud) FAILED_PRECONDITION: busy")
    pod = state["pods"].pop(name)
    kill_all(pod["born"])
    if not plan.get("leave"):
        for node in pod["nodes"]:
            state["nodes"].pop(node, None)
    done()


def list_pods() -> None:
    done(out="\n".join(f"{n}\t{pod['states'][0]}" for n, pod in state["pods"].items()))


def list_nodes() -> None:
    count, nodes = plan.get("workers", 2), state["nodes"].items()
    done(out="\n".join(f"{n}\t{v['state']}\t{count}\t{v['label']}" for n, v in nodes))


def delete_node(name: str) -> None:
    del state["nodes"][name]
    done()


def preempt(node: dict) -> None:
    kill_all(node["born"])
    if os.path.exists(f"{HOME}/endless"):
        os.remove(f"{HOME}/endless")
    if plan["how"] == "node":
        node["state"] = "PREEMPTED"
    else:
        pod = next(p for p in state["pods"].values() if p["born"] == node["born"])
        pod["states"] = ["SUSPENDED"]
        for name in pod["nodes"]:
            del state["nodes"][name]
    done(255, error="ssh: Connection closed by remote host")


def reach(name: str):
    """Yields (worker, directory) of the reachable workers."""
    node = state["nodes"][name]
    born, which = str(node["born"]), FLAGS["--worker"]
    if node["state"] == "PREEMPTED":
        done(1, error="ERROR: (gcloud) TPU is in state PREEMPTED")
    if "worker.sh status" in FLAGS.get("--command", ""):
        state["asked"][born] = state["asked"].get(born, 0) + 1
        at, step = plan.get("preempt", {}).get(born), f"{HOME}/bucket/step"
        if at and state["asked"][born] >= at and os.path.exists(step) and os.path.getsize(step):
            preempt(node)
    for worker in range(plan.get("workers", 2)) if which == "all" else which.split(","):
        label = f"{node['slice']}.{worker}"
        if "--command" in FLAGS and times(f"hang {label}", plan.get("hang", {}).get(label, 0)):
            save()
            fcntl.flock(lock, fcntl.LOCK_UN)
            time.sleep(60)
        deaf = "--command" in FLAGS and times(f"deaf {label}", plan.get("deaf", {}).get(label, 0))
        if deaf or label in plan.get("dead", {}).get(born, []):
            print(f"ssh: connect to worker {worker} port 22: Connection timed out", file=sys.stderr)
            failures.append(worker)
        else:
            sandbox = f"{HOME}/workers/{born}/{label}"
            os.makedirs(sandbox, exist_ok=True)
            yield worker, sandbox


def ssh(name: str) -> None:
    running = []
    for worker, sandbox in reach(name):
        env = {"HOME": sandbox, "PATH": f"{HOME}/stubs:/usr/bin:/bin", "FAKE": HOME}
        env["WORKER"] = str(worker)
        command = ["bash", "-c", FLAGS["--command"]]
        running.append(subprocess.Popen(command, cwd=sandbox, env=env))
    save()
    fcntl.flock(lock, fcntl.LOCK_UN)
    statuses = [process.wait() for process in running]
    sys.exit(255 if failures else max(statuses))


def scp(*files: str) -> None:
    *files, target = files
    name, _, directory = target.partition(":")
    for _, sandbox in reach(name):
        subprocess.run(["cp", *files, f"{sandbox}/{directory}"], check=True)  # keeps x, as scp
    done(255 if failures else 0)


VERBS = {
    ("queued-resources", "create"): create,
    ("queued-resources", "describe"): describe,
    ("queued-resources", "list"): list_pods,
    ("queued-resources", "delete"): delete,
    ("tpu-vm", "list"): list_nodes,
    ("tpu-vm", "delete"): delete_node,
    ("tpu-vm", "ssh"): ssh,
    ("tpu-vm", "scp"): scp,
}

if __name__ == "__main__":
    lock = os.open(f"{HOME}/lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with open(f"{HOME}/calls.jsonl", "a") as file:
        file.write(json.dumps(ARGS) + "\n")
    plan, state, failures = load("plan.json"), load("state.json", NEW), []
    words = [a for a in ARGS if not a.startswith("--")]
    words = words[words.index("tpus") + 1 :]
    VERBS[tuple(words[:2])](*words[2:])
