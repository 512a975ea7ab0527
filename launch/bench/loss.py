"""Times the contrastive loss with its gradients beside PyTorch and sentence-transformers.

    python launch/bench.py loss [--batches=1024,...,65536] [--dim=768] [--rounds=3] [--write]
    python launch/bench.py loss --aot [--write]     memory per TPU chip, by compilation alone

The loss of random float32 unit vectors at scale 20, where every other row is a negative. The
contenders are the engines of inf_jax (ring and gather on 8 virtual devices that share the same
cores), dense InfoNCE in PyTorch (cross-entropy of the whole matrix; both directions for
multi(P,IQ)), and the mini-batched loss of sentence-transformers'
CachedMultipleNegativesRankingLoss. Their losses and gradients must agree within 1e-4 before
anything is timed. Each runs in its own process and they take turns.

Up to batch --full there is a warm-up, and memory is measured in an evaluation of its own. Above it,
one evaluation of the first objective gives both. What would exceed the free memory or --limit
seconds is skipped, and the table says why.
"""

import argparse
import os
import statistics
from collections.abc import Sequence
from typing import Any

from inf_jax.core.cli_flags import FlagParser, above_zero, at_least

from . import loss_aot
from .loss_contenders import DEVICES, LABELS, MATRICES, OBJECTIVES, worker
from .loss_figure import save
from .process import Worker, serve
from .report import publish, table

HELP = "time and memory of the loss and its gradients at large batches"
TAKES_CONFIG = False
TOLERANCE = 1e-4  # relative, of losses and gradients between contenders
REFERENCE = "torch"


def add_arguments(parser: FlagParser) -> None:
    """Flags of `bench.py loss`."""
    add = parser.add
    add("--batches", "default: powers of 2 from 1024 to 65536", of=_numbers, metavar="N,N")
    text = "embedding width (default: 768; 1024 with --aot)"
    add("--dim", text, of=at_least(1), metavar="N")
    text = "of the loss"
    add("--objectives", text, many=True, default=[*OBJECTIVES], choices=OBJECTIVES, metavar="TEXT")
    add("--rounds", "turns of each contender", of=at_least(1), default=3, metavar="N")
    text = "largest batch that is timed in rounds"
    add("--full", text, of=at_least(0), default=8192, metavar="N")
    text = "seconds for one contender at one batch"
    add("--limit", text, of=above_zero, default=300, metavar="S")
    add("--threads", "CPU cores to use", of=at_least(1), default=2, metavar="N")
    add("--platform", "where to run", choices=("cpu", "gpu"), default="cpu")
    text = "append the result to launch/benchmarks.md and redraw its figure"
    parser.add_boolean("--write", text)
    add("--worker", None, choices=("aot", *_workers(LABELS)))
    loss_aot.add_arguments(parser)


def main(args: argparse.Namespace) -> None:
    """Runs the benchmark, or with --worker one of its processes."""
    if args.aot:
        loss_aot.main(args)
        return
    args.batches = args.batches or [2**i for i in range(10, 17)]
    args.dim = args.dim or 768
    if args.worker:
        serve(lambda: worker(args), threads=args.threads)
        return
    common = ["loss", f"--dim={args.dim}", f"--threads={args.threads}"]
    common += [f"--platform={args.platform}"]
    workers: dict[str, Worker] = {}
    load = os.getloadavg()[0]
    try:
        for name in _workers(LABELS):
            workers[name] = Worker(
                [*common, f"--worker={name}"],
                threads=args.threads,
                environment=_environment(name, args.platform),
            )
        facts = [w.ask({"do": "facts"}) for w in workers.values()]
        cells = measure(workers, args)
        for w in workers.values():
            w.close()
    finally:
        for w in workers.values():
            w.kill()
    versions = {k: v for f in facts for k, v in f["versions"].items()}
    text = summary(cells, args, ", ".join(f"{k} {v}" for k, v in versions.items()))
    text += (
        f"\n\nThe load average was {load:.1f} at the start. Other load slows PyTorch's OpenMP "
        "threads more than XLA's: run this on an idle machine."
    )
    if args.write:
        text += "\n\n" + save(args.platform, cells)
    title = "loss" + (" on a GPU" if args.platform == "gpu" else "")
    publish(title, text, threads=args.threads, write=args.write)


def measure(workers: dict[str, Worker], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Runs everything.

    Returns:
      Cells: `objective`, `batch` and `contender`; then `seconds` (a list, by round) and `peak`
      (bytes), or `skipped`, the reason.
    """
    cells: list[dict[str, Any]] = []
    last: dict[
        tuple[str, str], tuple[int, float]
    ] = {}  # (batch, seconds) of a contender's last run
    for batch in sorted(args.batches):
        full = batch <= args.full
        for objective in args.objectives if full else args.objectives[:1]:
            known = {n: last[objective, n] for n in LABELS if (objective, n) in last}
            runs = {}
            free = workers["one"].ask({"do": "facts"})["free"]
            for name in LABELS:
                reason = _skip_reason(name, batch, objective, known=known, free=free, args=args)
                if reason is None:
                    runs[name] = workers[_worker(name)]
                elif reason:
                    cell = {"objective": objective, "batch": batch, "contender": name}
                    cells.append(cell | {"skipped": reason})
            measured = _measure_batch(runs, objective, batch, rounds=args.rounds if full else 0)
            for name, cell in measured.items():
                seconds = statistics.median(cell["seconds"])
                last[objective, name] = batch, seconds
                cells.append({"objective": objective, "batch": batch, "contender": name} | cell)
                peak = cell["peak"] / 2**20
                print(f"{objective} {batch} {LABELS[name]}: {seconds:.3f} s, {peak:,.0f} MiB")
    return cells


def _measure_batch(
    runs: dict[str, Worker], objective: str, batch: int, *, rounds: int
) -> dict[str, dict]:
    """`seconds` and `peak` of the contenders at one batch.

    With `rounds` 0 a single evaluation gives both.
    """

    def turn(*, memory: bool) -> dict[str, dict]:
        question = {"do": "step", "memory": memory}
        return {n: w.ask(question | {"contender": n}) for n, w in runs.items()}

    for name, w in runs.items():
        w.ask({"do": "prepare", "contender": name, "objective": objective, "batch": batch})
    first = turn(memory=not rounds)
    agree({n: r["figures"] for n, r in first.items()}, f"{objective} at batch {batch}")
    peaks = turn(memory=True) if rounds else first
    turns = [turn(memory=False) for _ in range(rounds)] or [first]
    for w in runs.values():
        w.ask({"do": "forget"})
    return {
        n: {"seconds": [t[n]["seconds"] for t in turns], "peak": max(1, peaks[n]["peak"])}
        for n in runs
    }


def agree(figures: dict[str, dict[str, float]], where: str) -> None:
    """Raises SystemExit unless all contenders computed the same losses and gradients."""
    for name in figures:
        base = next(iter(figures))
        for what, value in figures[name].items():
            expected = figures[base][what]
            if not abs(value - expected) <= TOLERANCE * abs(expected):
                raise SystemExit(
                    f"error: {where}: {what} is {value} in {LABELS[name]}, {expected} in "
                    f"{LABELS[base]}: they do not compute the same"
                )


def _skip_reason(name: str, batch: int, objective: str, *, known, free: int, args) -> str | None:
    """Why a contender is not run at this batch; None to run it, "" to leave it out silently."""
    cached = {n: s for n, (_, s) in known.items() if n.startswith("cached")}
    if (
        batch > args.full
        and cached
        and name.startswith("cached")
        and name != min(cached, key=cached.__getitem__)
    ):
        return ""  # above --full only the fastest mini-batch size goes on
    if _worker(name) == "mesh" and args.platform == "cpu" and batch % DEVICES:
        return f"not a multiple of {DEVICES}"
    if name in MATRICES:
        need = (4 * MATRICES[name][objective] * batch + 16 * args.dim) * batch
        if need > free:
            return f"needs about {need / 2**30:.0f} GiB"
    if name in known:
        old, seconds = known[name]
        expected = seconds * (batch / old) ** 2
        times = args.rounds + 2 if batch <= args.full else 1
        if expected * times > args.limit:
            return f"about {expected:.0f} s"
    return None


def summary(cells: Sequence[dict[str, Any]], args: argparse.Namespace, versions: str) -> str:
    """The Markdown report: per objective the seconds, their ratios to dense PyTorch, peak memory.

    Args:
      cells: what `measure` returns.
      args: the options of the run.
      versions: of the packages, for the text.
    """
    where = "one CPU" if args.platform == "cpu" else "the GPU"
    parts = [
        f"Loss and gradients with respect to queries and passages, float32[batch, {args.dim}], on "
        f"{where}; {versions}. Columns are batch sizes: medians of {args.rounds} rounds up to "
        f"{args.full}, above it one evaluation without warm-up. The contenders' losses and "
        f"gradients agree within {TOLERANCE:g}. Virtual devices share the cores. Ratios are to "
        "dense PyTorch in the same round (least to most). Peak memory is what an evaluation holds "
        "above its inputs, gradients included."
    ]
    for objective in dict.fromkeys(c["objective"] for c in cells):
        by_key = {(c["contender"], c["batch"]): c for c in cells if c["objective"] == objective}
        batches = sorted({batch for _, batch in by_key})
        names = [n for n in LABELS if any((n, b) in by_key for b in batches)]
        for title, show in (
            ("seconds", _seconds),
            ("seconds as a multiple of dense PyTorch's", _ratio),
            ("peak memory in MiB (as a multiple of dense PyTorch's)", _peak),
        ):
            rows = [
                (
                    LABELS[n],
                    *(show(by_key.get((n, b)), by_key.get((REFERENCE, b))) for b in batches),
                )
                for n in names
            ]
            parts.append(f"{objective}, {title}:\n\n{table(('', *map(str, batches)), rows)}")
    return "\n\n".join(parts)


def _ran(cell: dict[str, Any] | None) -> bool:
    return bool(cell) and "seconds" in cell


def _seconds(cell, reference) -> str:
    if not _ran(cell):
        return cell["skipped"] if cell else ""
    return f"{statistics.median(cell['seconds']):.3g}"


def _ratio(cell, reference) -> str:
    if not _ran(cell) or not _ran(reference):
        return ""
    ratios = [a / b for a, b in zip(cell["seconds"], reference["seconds"], strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def _peak(cell, reference) -> str:
    if not _ran(cell):
        return ""
    share = f" ({cell['peak'] / reference['peak']:.3f})" if _ran(reference) else ""
    return f"{cell['peak'] / 2**20:,.0f}{share}"


def _worker(name: str) -> str:
    return name.partition("-")[0]


def _workers(names) -> list[str]:
    return list(dict.fromkeys(map(_worker, names)))


def _environment(name: str, platform: str) -> dict[str, str]:
    shared = {"GLIBC_TUNABLES": ""}  # the default allocator
    if platform == "gpu":
        return shared | {
            "JAX_PLATFORMS": "cuda",
            "JAX_DEFAULT_MATMUL_PRECISION": "float32",  # as PyTorch's default
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # the processes share the GPU
            "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6,7"),
        }
    devices = DEVICES if name == "mesh" else 1
    flags = f"--xla_force_host_platform_device_count={devices}"  # of two, the last one counts
    return shared | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}"}


def _numbers(text: str) -> list[int]:
    return [at_least(1)(part) for part in text.split(",")]
