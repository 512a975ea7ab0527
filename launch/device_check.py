"""Checks and measures this project on the accelerator of this host, beside its peers.

    bash launch/device_check.sh [--out=DIR] [--minutes=8] [--only=losses,train] [--tiny]

For one GPU or TPU host without network. First correctness (losses, golden models, attention), then
speed (training step, attention, loss, encoding and search) beside sentence-transformers and PyTorch
on the same shapes. Results are written as they come, so that a run that is cut short keeps them:
DIR/results.jsonl, one line a case, and DIR/report.md, tables of them. What fails is a line of its
own; the exit code is 1 where something is wrong. `--tiny` rehearses all of it on a CPU in a minute.
"""

import argparse
import contextlib
import fcntl
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from importlib import import_module, metadata
from pathlib import Path

from inf_jax.core.cli_flags import FlagParser, above_zero, names_among, number
from inf_jax.core.errors import UserError, main_guard

ROOT = Path(__file__).resolve().parent.parent

# Name -> function. Those of a stage run side by side, each in a process of its own: a crash of the
# compiler costs one of them. Training compiles beside the checks and waits for their end.
CHECKS = {
    "losses": ".device.correctness:check_losses",
    "models": ".device.correctness:check_models",
    "attention": ".device.correctness:check_attention",
}
STAGES = (
    CHECKS | {"train": ".device.training:measure_training"},
    {"loss speed": ".device.loss:measure_loss"},
    {"retrieval": ".device.retrieval:measure_retrieval"},
    {"attention speed": ".device.retrieval:measure_attention"},
)
TITLES = {
    "losses": "Losses against golden files: relative errors of value and gradients",
    "models": "Golden models: relative errors of token states, and of gradients against a CPU's",
    "attention": "Attention: relative errors against float32",
    "train": "Training step",
    "loss speed": "Loss and gradients",
    "retrieval": "Encoding and exact search",
    "attention speed": "Attention, forward and gradients",
}
NEEDED = ("jax", "flax", "optax", "jaxtyping", "numpy", "safetensors", "ml_collections")
PEERS = ("torch", "transformers", "sentence-transformers")


class Recorder:
    """Writes the results of one section, a JSON line each, at once.

    Attributes:
      tiny: whether this is the rehearsal.
      failed: whether a result was not ok.
    """

    def __init__(self, path: Path, section: str, *, deadline: float, tiny: bool):
        self._path, self._section, self._deadline = path, section, deadline
        self.tiny, self.failed = tiny, False

    def seconds_left(self) -> float:
        """Until the section has to end."""
        return self._deadline - time.time()

    def __call__(self, case: str, *, ok: bool | None = None, **figures) -> None:
        """Records a case; `ok` is None where nothing is checked."""
        self.failed |= ok is False
        verdict = {} if ok is None else {"ok": ok}
        line = {"section": self._section, "case": case, **figures, **verdict}
        print(json.dumps(line), flush=True)
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    @contextlib.contextmanager
    def lock(self, *, alone: bool) -> Iterator[None]:
        """Holds the device: `alone` waits until no other section does."""
        with self._path.with_name("device.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
            yield

    @contextlib.contextmanager
    def case(self, name: str) -> Iterator[None]:
        """Turns an exception inside a case into a result that is not ok."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            text = " ".join(str(error).split())[:300]
            self(name, ok=False, error=f"{type(error).__name__}: {text}")


def missing(names: tuple[str, ...]) -> list[str]:
    """The packages that are not installed."""
    absent = []
    for name in names:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            absent.append(name)
    return absent


def run_section(name: str, path: Path, *, deadline: float, tiny: bool) -> int:
    """One section, in this process; returns the exit code."""
    where = {n: f for stage in STAGES for n, f in stage.items()}[name]
    module, _, function = where.partition(":")
    out = Recorder(path, name, deadline=deadline, tiny=tiny)
    together = out.lock(alone=False) if name in CHECKS else contextlib.nullcontext()
    with together, out.case("the whole section"):
        getattr(import_module(module, "launch"), function)(out)
    return int(out.failed)


def report(path: Path, title: str) -> str:
    """The tables, Markdown, of what is in results.jsonl."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    parts = [f"# {title}"]
    for section, heading in TITLES.items():
        mine = [line for line in lines if line["section"] == section]
        if not mine:
            continue
        keys = list(dict.fromkeys(k for line in mine for k in line if k != "section"))
        rows = [[_cell(line.get(k)) for k in keys] for line in mine]
        parts.append(f"## {heading}\n\n" + _table(keys, rows))
    return "\n\n".join(parts) + "\n"


def _cell(value) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return ("yes" if value else "**NO**") if isinstance(value, bool) else str(value)


def _table(keys: list[str], rows: list[list[str]]) -> str:
    rule = ["---"] + ["---:"] * (len(keys) - 1)
    return "\n".join(f"| {' | '.join(row)} |" for row in [keys, rule, *rows])


def _environment(*, tiny: bool) -> dict[str, str]:
    fixed = {
        "HF_HUB_OFFLINE": "1",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # PyTorch is in the same process
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.55",
        "PYTHONUNBUFFERED": "1",
    }
    inherited = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}  # a CPU is needed too
    return {**inherited, **fixed, **({"JAX_PLATFORMS": "cpu"} if tiny else {})}


def main() -> int:
    """The command line; returns the exit code."""
    with main_guard():
        return _main(_parser().parse(sys.argv[1:]))


def _parser() -> FlagParser:
    parser = FlagParser(__doc__, "bash launch/device_check.sh")
    add = parser.add
    add("--out", "for the results", of=Path, default=Path("out/device_check"), metavar="DIR")
    add("--minutes", "at the most", of=above_zero, default=8, metavar="N")
    text = f"of {', '.join(TITLES)} (default: all)"
    add("--only", text, of=names_among(TITLES), default=list(TITLES), metavar="NAME,NAME")
    parser.add_boolean("--tiny", "tiny shapes on a CPU: a rehearsal")
    add("--section", None, choices=list(TITLES))
    add("--deadline", None, of=number)
    return parser


def _main(args: argparse.Namespace) -> int:
    absent = missing(NEEDED)
    if absent:
        raise UserError(
            f"not installed: {', '.join(absent)}; without network, bring them as wheels: "
            "pip install --no-index --no-deps --target DIR *.whl, and PYTHONPATH=DIR"
        )
    path = args.out / "results.jsonl"
    if args.section:
        return run_section(args.section, path, deadline=args.deadline, tiny=False)
    without = missing(PEERS)
    if without:
        print(f"not installed, so not compared with: {', '.join(without)}", flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    deadline = time.time() + 60 * args.minutes
    failed: list[str] = []
    with (args.out / "log.txt").open("a") as log:
        for stage in STAGES:
            names = [name for name in stage if name in args.only]
            if args.tiny:  # in this process: starting takes longer than the checks
                os.environ |= _environment(tiny=True)
                for name in names:
                    failed += [name] * run_section(name, path, deadline=deadline, tiny=True)
            else:
                failed += _run_stage(names, args, deadline=deadline, log=log)
            (args.out / "report.md").write_text(report(path, "device check"))
    print((args.out / "report.md").read_text())
    print(f"failed: {', '.join(failed)}" if failed else "all checks hold")
    return int(bool(failed))


def _run_stage(names: list[str], args: argparse.Namespace, *, deadline: float, log) -> list[str]:
    """Runs sections side by side; returns those that failed, were cut short or left out."""
    started = time.time()
    command = [sys.executable, "-m", "launch.device_check", f"--out={args.out.absolute()}"]
    command += [f"--deadline={deadline}"]
    running = {
        name: subprocess.Popen(
            [*command, f"--section={name}"],
            cwd=ROOT,
            env=_environment(tiny=False),
            stdout=log,
            stderr=log,
        )
        for name in names
        if time.time() < deadline
    }
    failed = [name for name in names if name not in running]
    for name, process in running.items():
        try:
            code = process.wait(max(1, deadline - time.time() + 10))
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        failed += [f"{name} (exit code {code})"] if code else []
        print(f"{name}: {time.time() - started:.0f} s, exit code {code}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
