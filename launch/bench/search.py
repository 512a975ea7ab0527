"""Measures exact top-k search beside FAISS's flat index, on the same vectors.

    python launch/bench.py search [--passages 1000000] [--width 384] [--queries 1000] [--write]

Random unit vectors in float32, in memory. Each contender runs in its own process and they take
turns; the result is the median of the ratios. FAISS (`pip install faiss-cpu`) is optional: without
it the time of inf_jax stands alone.
"""

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable

from inf_jax.core.cli_flags import FlagParser, at_least

from .process import Worker, serve
from .report import publish, table

HELP = "time of exact top-k search beside FAISS's flat index"
TAKES_CONFIG = False
_CHECKED = 50  # queries whose passages are compared


def add_arguments(parser: FlagParser) -> None:
    """Flags of `bench.py search`."""
    add, number = parser.add, at_least(1)
    add("--passages", "to search", of=number, default=1_000_000, metavar="N")
    add("--queries", "to search with", of=number, default=1000, metavar="N")
    add("--width", "entries of a vector", of=number, default=384, metavar="N")
    add("--k", "passages for each query", of=number, default=100, metavar="N")
    add("--rounds", "timings of each contender", of=number, default=3, metavar="N")
    add("--threads", "CPU cores to use", of=number, default=2, metavar="N")
    parser.add_boolean("--write", "append the result to launch/benchmarks.md")
    add("--worker", None, choices=tuple(CONTENDERS))


def main(args: argparse.Namespace) -> None:
    """Runs the benchmark, or with --worker one of its processes."""
    if args.worker:
        serve(lambda: CONTENDERS[args.worker](args), threads=args.threads)
        return
    names = [name for name in CONTENDERS if name != "faiss" or importlib.util.find_spec("faiss")]
    sizes = [f"--{x}={getattr(args, x)}" for x in ("passages", "queries", "width", "k", "threads")]
    workers = []
    try:
        for name in names:
            worker = Worker(["search", *sizes, f"--worker={name}"], threads=args.threads)
            workers.append(worker)
        rounds = [[worker.ask(n) for worker in workers] for n in range(args.rounds + 1)][1:]
    finally:
        for worker in workers:
            worker.kill()
    first, rows = rounds[0], []
    for n, name in enumerate(names):
        seconds = statistics.median(each[n]["seconds"] for each in rounds)
        ratio = statistics.median(each[n]["seconds"] / each[0]["seconds"] for each in rounds)
        pairs = [
            len(set(a) & set(b)) / args.k
            for a, b in zip(first[n]["found"], first[0]["found"], strict=True)
        ]
        rows.append((name, f"{seconds:.2f}", f"{ratio:.2f}", f"{statistics.mean(pairs):.4f}"))
    header = ("", "seconds", "times inf_jax's", "same passages")
    text = table(header, rows)
    if "faiss" not in names:
        text += "\n\nFAISS is not installed (`pip install faiss-cpu`): nothing to compare with."
    publish("search", text, threads=args.threads, write=args.write)


def _vectors(args: argparse.Namespace):
    """(queries, passages), the same in every process."""
    import numpy as np

    rng = np.random.default_rng(0)
    drawn = [
        rng.standard_normal((n, args.width), np.float32) for n in (args.queries, args.passages)
    ]
    for each in drawn:
        each /= np.linalg.norm(each, axis=1, keepdims=True)
    return drawn


def _timed(search: Callable) -> Callable[[int], dict]:
    def answer(_: int) -> dict:
        started = time.perf_counter()
        found = search()
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "found": found[:_CHECKED].tolist()}

    return answer


def inf_jax_worker(args: argparse.Namespace) -> Callable[[int], dict]:
    """`inf_jax.evaluation.search.topk`."""
    import jax.numpy as jnp
    import numpy as np

    from inf_jax.evaluation.search import topk

    queries, passages = map(jnp.asarray, _vectors(args))
    return _timed(lambda: np.asarray(topk(queries, passages, args.k)[1]))


def faiss_worker(args: argparse.Namespace) -> Callable[[int], dict]:
    """FAISS's IndexFlatIP."""
    import faiss

    queries, passages = _vectors(args)
    faiss.omp_set_num_threads(args.threads)
    index = faiss.IndexFlatIP(args.width)
    index.add(passages)
    del passages
    return _timed(lambda: index.search(queries, args.k)[1])


CONTENDERS = {"inf_jax": inf_jax_worker, "faiss": faiss_worker}
