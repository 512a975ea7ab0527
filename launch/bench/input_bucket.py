"""Measures the input of a run whose records are read in windows, from a disk and from a bucket.

The bucket is the tests' stand-in for Google Cloud Storage, a process of its own, with a latency
before each answer; it counts the bytes that it sends.
"""

import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .input_records import as_windows
from .process import Worker
from .report import ROOT, table

LATENCY_S = 0.02
HOSTS, CHUNKS, STEP = 8, 8, 4096  # pairs of a step
SECONDS, EPOCHS = 1.0, 2  # of a step; of the run
LINES = ("a disk", "the bucket")


def measure(place: str, *, steps: int, seconds: float) -> dict[str, Any]:
    """Feeds one of HOSTS for these steps, `seconds` a step, from the shuffled split at a place.

    Returns the share of the time that is waited for batches, after the first step and after the
    first minute, the seconds up to the first batch, the fill, and the quality of the shuffle
    (`nearness`).
    """
    from inf_jax.data.layout import BatchLayout
    from inf_jax.data.loader import Loader
    from inf_jax.data.tokenised.opening import open_tokenised
    from inf_jax.io.storage import as_path

    data = open_tokenised(as_path(place), limit=1 << 32)
    shape = {"row_tokens": 256, "texts_per_row": 32, "pairs_per_example": 1}
    layout = BatchLayout(batch_size=STEP, chunks=CHUNKS, **shape)
    started = time.perf_counter()
    each = CHUNKS // HOSTS
    loader = Loader(data, layout, seed=0, steps=steps, mine=range(3 * each, 4 * each))
    batches, waits = loader.batches(0, steps, to_device=lambda batch: batch), []
    begun = time.perf_counter()
    for _ in range(steps):
        begin = time.perf_counter()
        next(batches)
        waits.append(time.perf_counter() - begin)
        time.sleep(seconds)
    past = [*itertools.accumulate(wait + seconds for wait in waits)]
    later = [wait for wait, at in zip(waits, past, strict=True) if at > min(60, past[-1] / 2)]
    return {
        "start": begun - started + waits[0],
        "wait": sum(waits[1:]) / (seconds * (steps - 1)),
        "later": sum(later) / (seconds * len(later)),
        "fill": loader.plan.fill,
        "near": nearness(loader, steps),
    }


def nearness(loader: Any, steps: int) -> list[float]:
    """Of pairs of examples of one step, the share whose places in the stored order are at most
    1/1000 and 1/100 of the data apart; of a uniform shuffle 0.2 % and 2 %."""
    rng, count, found = np.random.default_rng(0), loader.dataset.num_examples, []
    for step in rng.integers(0, steps, 16).tolist():
        examples = loader.example_indices(step)
        left, right = rng.integers(0, len(examples), (2, 100_000))
        apart = np.abs(examples[left] - examples[right])[left != right]
        found.append([float((apart <= count * part).mean()) for part in (0.001, 0.01)])
    return np.mean(found, axis=0).tolist()


def bucket(directory: Path) -> Callable[[str], Any]:
    """A worker: the stand-in with the files of a directory as gs://data/records/. It is asked for
    the "environment" of its clients and for the bytes that it has "sent" since."""
    sys.path.insert(0, str(ROOT))
    from tests.doubles.gcs_server import GcsServer, Object

    server = GcsServer().__enter__()  # lives as long as the process
    made = server.make("data", latency_s=LATENCY_S)
    for path in directory.iterdir():
        made.objects[f"records/{path.name}"] = Object(path.read_bytes(), 1)

    def answer(question: str) -> Any:
        if question == "environment":
            return server.environment
        records = sum(n for name, n in made.served.items() if name.endswith(".tfrecord"))
        sent = {"records": records, "index": sum(made.served.values()) - records}
        made.served.clear()
        return sent

    return answer


def windows(directory: Path) -> Callable[[dict], dict[str, Any]]:
    """A worker, which measures."""
    return lambda question: measure(question["place"] or str(directory), **question["run"])


def report(directory: Path, records: int) -> list[str]:
    """The Markdown report of the records of a directory, which are read in windows from then on."""
    as_windows(directory)
    size = sum(path.stat().st_size for path in directory.glob("*.tfrecord"))
    common, found = ["input", f"--data={directory}"], {}
    run = {"steps": EPOCHS * (records // STEP), "seconds": SECONDS}
    stand_in = Worker([*common, "--worker=bucket"], threads=1)
    environment = stand_in.ask("environment")
    for name, place in zip(LINES, ("", "gs://data/records"), strict=True):
        reader = Worker([*common, "--worker=windows"], threads=1, environment=environment)
        found[name] = reader.ask({"place": place, "run": run})
        reader.close()
    found[LINES[1]]["sent"] = stand_in.ask("sent")
    stand_in.close()
    return lines(found, records=records, size=size)


def lines(found: dict[str, dict[str, Any]], *, records: int, size: int) -> list[str]:
    """The Markdown report.

    Args:
      found: by place of the records, what `measure` says; of the bucket also "sent".
      size: bytes of all records.
    """
    rows = [
        (name, *(f"{one[key]:.2%}" for key in ("wait", "later", "fill")), f"{one['start']:.1f}")
        for name, one in found.items()
    ]
    sent, share = found[LINES[1]]["sent"], EPOCHS * size / HOSTS
    near = found[LINES[0]]["near"]
    return [
        f"Read in windows, by one of {HOSTS} hosts, {EPOCHS} epochs of {records:,} records in "
        f"steps of {STEP:,}; a request to the bucket takes {1000 * LATENCY_S:.0f} ms.",
        "",
        table(("from", "wait", "after the first minute", "fill", "start s"), rows),
        "",
        f"By the bucket's own count the host read {sent['records'] / share:.3f} times its "
        f"share of the records, and the index once, {sent['index'] / 2**20:.1f} MiB; together "
        f"{(sent['records'] + sent['index']) / share:.3f} times its share of "
        f"{size / 2**20:,.0f} MiB. Of pairs of examples of a step {near[0]:.2%} are within 1/1000 "
        f"of the data in the stored order, {near[1]:.2%} within 1/100; of a uniform shuffle 0.20% "
        "and 1.99%.",
    ]
