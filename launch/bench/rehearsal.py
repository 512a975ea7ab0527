"""Builds, tokenises and trains on synthetic pairs, and measures the memory and rate of each.

    python launch/bench.py rehearsal --write
    python launch/bench.py rehearsal --counts 100000 --counts 200000 --directory DIR

Of each number of pairs: the build (`data_pipeline.build --source=synthetic`), tokenising, the input
of one of 64 hosts that reads its share of steps of 524,288 pairs (a quarter of the data, if that is
less), and a few steps of training all-MiniLM-L6-v2 on all CPUs. Every part is a process of its own;
its memory is the most that was resident at any time, by the kernel's count, its index of the data
and files that it maps included. 5 million pairs take 12 GB of disk and about an hour on two cores.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from inf_jax.core.cli_flags import FlagParser, at_least

from .process import ENVIRONMENT, checkout_environment
from .report import ROOT, publish, table

HELP = "memory and rate of building, tokenising and training on synthetic pairs"
TAKES_CONFIG = False
HOSTS, CHUNKS = 64, 4  # of a host
_STEP_PAIRS = 2**19
_HOST_STEPS = 8
_BENCH = str(ROOT / "launch" / "bench.py")


class Usage(NamedTuple):
    """What a process used.

    Attributes:
      seconds: from start to end.
      cpu_seconds: of all its cores.
      peak: most resident memory, bytes.
    """

    seconds: float
    cpu_seconds: float
    peak: int


def add_arguments(parser: FlagParser) -> None:
    """Flags of `bench.py rehearsal`."""
    add, number = parser.add, at_least(1)
    add(
        "--counts",
        "pairs (default: 1 and 5 million)",
        of=number,
        many=True,
        default=[],
        metavar="N",
    )
    add("--steps", "of training", of=number, default=4, metavar="N")
    add("--pairs", "of a step of training", of=number, default=256, metavar="N")
    add(
        "--directory",
        "for the data, which are left there; default: a temporary one",
        default="",
        metavar="DIR",
    )
    parser.add_boolean("--write", "append the result to launch/benchmarks.md")
    add("--worker", None, choices=[*WORKERS])


def main(args: argparse.Namespace) -> None:
    """Runs the benchmark, or with --worker one of its processes."""
    if args.worker:
        WORKERS[args.worker](Path(args.directory))
        return
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for count in args.counts or (1_000_000, 5_000_000):
            directory = Path(args.directory or temporary) / str(count)
            for part, pairs, command in _parts(directory, count, args):
                print(f"{count:,} pairs: {part}", flush=True)
                log = directory.with_suffix(f".{part}.log")
                used = measure(command(), log=log)
                seconds = _own_seconds(log) if part == "input" else used.seconds
                rows.append(row(count, part, pairs(), used, seconds))
                print(*rows[-1], sep="; ", flush=True)
            if not args.directory:
                shutil.rmtree(directory)
    header = ("pairs", "part", "pairs it reads", "s", "processor s", "pairs/s", "peak MiB")
    text = (
        f"Input: the share of one of {HOSTS} hosts of {_HOST_STEPS} steps of up to {_STEP_PAIRS:,} "
        "pairs, with the index, the plan and the deal of whole steps; its rate is that of the "
        "steps, without the start. Training: all-MiniLM-L6-v2, "
        f"{args.steps} steps of {args.pairs:,} pairs, compilation included. Rates by the clock.\n"
        f"\n{table(header, rows)}"
    )
    publish("rehearsal", text, threads=os.cpu_count() or 1, write=args.write)


def row(count: int, part: str, pairs: int, used: Usage, seconds: float) -> tuple[str, ...]:
    """A line of the report; `seconds` are those of the rate."""
    return (
        f"{count:,}",
        part,
        f"{pairs:,}",
        f"{used.seconds:,.0f}",
        f"{used.cpu_seconds:,.0f}",
        f"{pairs / seconds:,.0f}",
        f"{used.peak / 2**20:,.0f}",
    )


def measure(command: Sequence[str], *, log: Path) -> Usage:
    """Runs a command, its output written to `log`; SystemExit where it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with open(log, "w") as file:
        process = subprocess.Popen(
            command,
            env={**checkout_environment(), **ENVIRONMENT},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - started
    if process.returncode:
        tail = "\n".join(log.read_text().splitlines()[-20:])
        raise SystemExit(f"{tail}\nerror: {command} ended with exit code {process.returncode}")
    return Usage(seconds, usage.ru_utime + usage.ru_stime, 1024 * usage.ru_maxrss)


def _parts(directory: Path, count: int, args: argparse.Namespace):
    """(name, pairs that are read, command) of each part, in order; the latter two are known once
    those before have run."""
    python, data = sys.executable, f"--data-dir={directory}"
    build = [python, "-m", "data_pipeline.build", "--source=synthetic", f"--count={count}", data]
    yield "build", lambda: count, lambda: build

    def worker(name: str) -> list[str]:
        return [python, _BENCH, "rehearsal", f"--worker={name}", f"--directory={directory}"]

    yield "tokenise", lambda: _examples(directory), lambda: worker("tokenise")

    def own() -> int:
        return _HOST_STEPS * _host_step(_examples(directory)) // HOSTS

    yield "input", own, lambda: worker("input")

    def train() -> list[str]:
        out_dir = directory / "run"
        shutil.rmtree(out_dir, ignore_errors=True)
        return [python, "-m", "inf_jax.train", *_flags(directory), *_training(args, out_dir)]

    yield "train", lambda: args.steps * args.pairs, train


def _flags(directory: Path) -> list[str]:
    return [
        f"--config={ROOT / 'configs' / 'medquad_minilm.py'}",
        f"--config.data.dir={directory}",
        "--config.data.source=synthetic",
        "--config.data.shuffle=windows",
        # plain pairs have no instructions
        "--config.loss.objective=multi(P,IQ)",
        "--config.loss.instruction_negatives=0",
    ]


def _training(args: argparse.Namespace, out_dir: Path) -> list[str]:
    options = {
        "out_dir": out_dir,
        "train.steps": args.steps,
        "train.batch_size": args.pairs,
        "train.checkpoint_every": args.steps,
        "optim.warmup_steps": 0,
    }
    return [f"--config.{name}={value}" for name, value in options.items()]


def _examples(directory: Path) -> int:
    """Examples of the training split that was built."""
    [path] = directory.glob("inf_ir/*/*/dataset_info.json")
    splits = {split["name"]: split for split in json.loads(path.read_text())["splits"]}
    return sum(map(int, splits["train"]["shardLengths"]))


def _host_step(examples: int) -> int:
    """Pairs of a step of all hosts."""
    return min(_STEP_PAIRS, examples // 4)


def _dataset(directory: Path):
    from inf_jax.config.command_line import parse
    from inf_jax.config.defaults import run_config
    from inf_jax.data.from_config import tokenised_split
    from inf_jax.models.hf.backbone import run_tokenizer

    config = run_config(parse(["rehearsal", *_flags(directory)]))
    return tokenised_split(config, run_tokenizer(config), config.data.train_split)


def _input(directory: Path) -> None:
    from inf_jax.data.layout import BatchLayout
    from inf_jax.data.loader import Loader

    data = _dataset(directory)
    size = _host_step(data.num_examples)
    shape = {"row_tokens": 256, "texts_per_row": 32, "pairs_per_example": 1}
    layout = BatchLayout(batch_size=size, chunks=HOSTS * CHUNKS, **shape)
    loader = Loader(data, layout, seed=0, steps=1000, mine=range(CHUNKS))
    started = time.perf_counter()
    for step in range(_HOST_STEPS):
        loader.host_batch(step)
    print(json.dumps(time.perf_counter() - started))


def _own_seconds(log: Path) -> float:
    return json.loads(log.read_text().splitlines()[-1])


WORKERS = {"tokenise": _dataset, "input": _input}
