"""Measures the input of training: records a second, and the time of a host beside a step's.

    python launch/bench.py input --write
    python launch/bench.py input --only scaling/e5_large.py:v5p-1048576
    python launch/bench.py input --plans DIR     steps as long as `bench.py plan --cache DIR` says

Every shipped scaling config is fed by its own loader, as one of its hosts (four chips): the global
part of a step, and the records and grids of its own chunks. The records are made up, pairs with the
lengths of MS MARCO (queries of 7.5 and passages of 76 tokens in the mean); a step that is larger
than the data holds a record several times, at the same cost. A consumer takes a batch, sleeps for
the time of a step and takes the next one; what it waits is the input's share. The time
is the newest plan's in launch/benchmarks.md or in --plans; without one it is that of the step's
model FLOPs at the peak rate, which no step reaches. On a machine with other work the wait is an
upper bound; the processor seconds beside it are not.

The rate is of batches of 8,192 records that one host reads, shuffles, packs and stacks. Beside it
grain reads the same files, if it is installed: records in the order of the files, parsed, and
padded to the longest text of the split. Every process is pinned to one core, its threads for
reading ahead included; seconds are of the processor, so that other load on the machine counts
little. Last, the records are read in windows (`input_bucket`), from the disk and from a bucket.
"""

import argparse
import importlib.util
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from inf_jax.core.cli_flags import FlagParser, at_least, check_choice

from . import input_bucket
from .input_records import LONGEST, write_records
from .plan import BACKBONES, PROGRAMS, plan_file
from .process import Worker, peak_memory, reset_peak_memory, serve
from .report import REPORT, ROOT, publish, table

HELP = "records a second, and the time of the input beside a step's, for each scaling config"
TAKES_CONFIG = False
CHIPS_PER_HOST = 4
BATCH = 8192  # records, of the rate
_SECONDS = "s per step, roofline"
CONFIGS = {
    config: topology
    for config, topology, slices, _ in (*PROGRAMS, *BACKBONES)
    if config.startswith("scaling/") and slices == 1
}


def add_arguments(parser: FlagParser) -> None:
    """Flags of `bench.py input`."""
    add = parser.add
    add("--only", "only these configs", many=True, default=[], metavar="CONFIG")
    add("--records", "made-up records", of=at_least(BATCH), default=2**18, metavar="N")
    add("--rounds", "turns of each contender", of=at_least(1), default=5, metavar="N")
    add("--seconds", "of consuming each config", of=at_least(1), default=10, metavar="N")
    add("--plans", "directory of `bench.py plan --cache`", default="", metavar="DIR")
    parser.add_boolean("--write", "append the result to launch/benchmarks.md")
    add("--data", None)  # for the workers
    add("--worker", None, choices=[*WORKERS])


def main(args: argparse.Namespace) -> None:
    """Runs the benchmark, or with --worker one of its processes."""
    if args.worker:
        serve(lambda: WORKERS[args.worker](Path(args.data)), threads=1)
        return
    for name in args.only:
        check_choice("--only", name, [*CONFIGS])
    with tempfile.TemporaryDirectory() as directory:
        write_records(Path(directory), args.records)
        common = ["input", f"--data={directory}"]
        ours = Worker([*common, "--worker=inf_jax"], threads=1)
        configs = {}
        for name in args.only or CONFIGS:
            question = {"config": name, "seconds": args.seconds, "step": _step(name, args.plans)}
            configs[name] = ours.ask(question)
            print(*_row(name, configs[name]), sep="; ", flush=True)
        workers = {"inf_jax": ours}
        if importlib.util.find_spec("grain"):
            workers["grain"] = Worker([*common, "--worker=grain"], threads=1)
        rounds = [
            {name: worker.ask({"records": 4 * BATCH}) for name, worker in workers.items()}
            for _ in range(args.rounds)
        ]
        for worker in workers.values():
            worker.close()
        windows = input_bucket.report(Path(directory), args.records)
    text = "\n".join([summary(configs, rounds, records=args.records), "", *windows])
    publish("input", text, threads=1, write=args.write)


def summary(
    configs: dict[str, dict[str, Any]], rounds: list[dict[str, float]], *, records: int
) -> str:
    """The Markdown report.

    Args:
      configs: by name, what the worker answers for a config.
      rounds: for each, by contender, the seconds a record.
      records: of the data.
    """
    header = (
        *("config", "pairs a step", "of the host", "rows", "fill", "longest device"),
        *("global s", "whole s", "step s", "of a core", "wait", "peak MiB"),
    )
    rates = []
    for name in rounds[0]:
        ratios = [turn[name] / turn["inf_jax"] for turn in rounds]
        speeds = [1 / turn[name] for turn in rounds]
        rates.append(
            (
                name,
                f"{statistics.median(speeds):,.0f}",
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
            )
        )
    lines = [
        f"{records:,} made-up records on a local disk, in the page cache. `global`: processor "
        "seconds of a step that every host spends on the order, the deal and the shape; `whole`: "
        "with its own records and grids; `of a core`: that over a step's time, which other work on "
        "the machine does not raise. `longest device`: its tokens above the mean's. `step`: by its "
        "plan. `wait`: of a consumer that sleeps so long between two batches, after the first; "
        "other work on the machine raises it.",
        "",
        table(header, [_row(name, found) for name, found in configs.items()]),
        "",
        f"Records a second on one core, batches of {BATCH:,}:",
        "",
        table(("", "records/s", "inf_jax is faster by"), rates),
    ]
    if "grain" not in rounds[0]:
        lines += ["", "grain is not installed: `pip install grain` adds its line."]
    return "\n".join(lines)


def _row(name: str, found: dict[str, Any]) -> tuple[str, ...]:
    return (
        name,
        f"{found['pairs']:,.0f}",
        f"{found['own']:,}",
        f"{found['rows']}",
        f"{found['fill']:.1%}",
        f"{found['longest'] - 1:.2%}",
        f"{found['global']:.3f}",
        f"{found['whole']:.3f}",
        f"{found['step']:.3f}",
        f"{found['whole'] / found['step']:.1%}",
        f"{found['wait']:.2%}",
        f"{found['peak'] / 2**20:,.0f}",
    )


def _step(name: str, plans: str) -> float:
    """Seconds of a step by its plan; 0 where there is none."""
    file = Path(plans) / plan_file(name, CONFIGS[name], 1, [])
    if plans and file.exists():
        return json.loads(file.read_text())["seconds"]["step"]
    return published(REPORT.read_text()).get(name, 0.0)


def published(report: str) -> dict[str, float]:
    """The seconds of a step of each config in the newest table of `bench.py plan`."""
    found, column = {}, None
    for line in report.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] == "config":
            column = cells.index(_SECONDS) if _SECONDS in cells else None
        elif column and len(cells) > column and cells[column][:1].isdigit():
            config, topology = cells[0].split(" ")[0], cells[1]
            if CONFIGS.get(config) == topology:
                found[config] = float(cells[column])
    return found


def _inf_jax(directory: Path) -> Callable[[dict], Any]:
    from inf_jax.data.layout import BatchLayout
    from inf_jax.data.loader import Loader
    from inf_jax.data.tokenised.dataset import TokenisedDataset

    data = TokenisedDataset(directory)
    shape = {"row_tokens": 256, "texts_per_row": 32, "pairs_per_example": 1}
    layout = BatchLayout(batch_size=BATCH, chunks=BATCH // 256, **shape)
    whole = Loader(data, layout, seed=0, steps=1000)
    steps = itertools.count()

    def answer(question: dict) -> Any:
        if "config" in question:
            return _of_config(data, **question)
        started = time.process_time()
        for _ in range(question["records"] // BATCH):
            whole.host_batch(next(steps))
        return (time.process_time() - started) / question["records"]

    return answer


def _of_config(data: Any, *, config: str, seconds: float, step: float) -> dict[str, Any]:
    """The input of a host of a shipped config, on this data."""
    from inf_jax.config.command_line import parse
    from inf_jax.config.defaults import run_config
    from inf_jax.data.from_config import batch_layout
    from inf_jax.data.loader import Loader
    from inf_jax.data.step_shapes import loader_inputs
    from inf_jax.planning.chips import CHIPS
    from inf_jax.planning.topology import parse_topology

    run = run_config(parse(["input", f"--config={ROOT / 'configs' / config}"]))
    kind, shape = parse_topology(CONFIGS[config])
    chips = int(np.prod(shape))
    reset_peak_memory()
    layout = batch_layout(run, devices=chips, pairs_per_example=1)
    mine = range(CHIPS_PER_HOST * run.train.chunks_per_device)
    loader = Loader(data, layout, seed=run.seed, steps=run.train.steps, mine=mine)
    step = step or _least_seconds(run, loader_inputs(loader), chips * CHIPS[kind].flops)
    part, every = [], []
    for number in range(3):
        started = time.thread_time()
        assignment = loader.assignment(number)
        loader.plan.rows_for(assignment, layout)
        part.append(time.thread_time() - started)
        started = time.thread_time()
        loader.host_batch(number)
        every.append(time.thread_time() - started)
    tokens = np.append(assignment.lengths.sum(1), 0)[assignment.chunks].reshape(chips, -1).sum(1)
    waits = [*_waits(loader, step, steps=max(3, min(run.train.steps, int(seconds / step))))]
    return {
        "pairs": loader.plan.pairs,
        "own": len(mine) * layout.pairs_per_chunk,
        "rows": loader.plan.rows[0],
        "fill": loader.plan.fill,
        "longest": float(tokens.max() / tokens.mean()),
        "global": min(part),
        "whole": min(every),
        "step": step,
        "wait": sum(waits[1:]) / (step * len(waits[1:])),
        "peak": peak_memory(),
    }


def _waits(loader: Any, step: float, *, steps: int) -> Iterator[float]:
    """Seconds that each batch of a run with steps of this length is waited for."""
    batches = loader.batches(0, steps, to_device=lambda batch: batch)
    for _ in range(steps):
        started = time.perf_counter()
        next(batches)
        yield time.perf_counter() - started
        time.sleep(step)


def _least_seconds(run: Any, inputs: Any, rate: float) -> float:
    """A step's model FLOPs over the peak rate of all chips."""
    from inf_jax.losses.objective import parse_objective
    from inf_jax.planning.flops import model_flops
    from inf_jax.planning.model_shapes import model_shape

    shape, _ = model_shape(run.model.name)
    sizes = {"tokens": inputs.tokens, "squares": inputs.squares, "pairs": inputs.pairs}
    adapter = float(run.model.lora_rank > 0)  # its own FLOPs are few
    return model_flops(shape, parse_objective(run.loss.objective), **sizes, adapter=adapter) / rate


def _grain(directory: Path) -> Callable[[dict], float]:
    import grain

    from inf_jax.io.tf_example import parse_tf_example

    def texts(data: bytes) -> tuple[np.ndarray, np.ndarray]:
        """Query and passage, padded to the longest of the split."""
        feature = parse_tf_example(data).features.feature
        tokens = np.frombuffer(feature["tokens"].bytes_list.value[0], np.int32)
        lengths = np.frombuffer(feature["where"].bytes_list.value[0], np.int32)
        query, passage = (np.zeros(longest, np.int32) for longest in LONGEST)
        query[: lengths[0]] = tokens[: lengths[0]]
        passage[: lengths[1]] = tokens[lengths[0] :]
        return query, passage

    def batches() -> Iterator[Any]:
        while True:
            for file in sorted(directory.glob("*.tfrecord")):
                yield from grain.experimental.TFRecordIterDataset(str(file)).map(texts).batch(BATCH)

    stream = batches()

    def answer(question: dict) -> float:
        started = time.process_time()
        for _ in range(question["records"] // BATCH):
            next(stream)
        return (time.process_time() - started) / question["records"]

    return answer


WORKERS = {
    "inf_jax": _inf_jax,
    "grain": _grain,
    "windows": input_bucket.windows,
    "bucket": input_bucket.bucket,
}
