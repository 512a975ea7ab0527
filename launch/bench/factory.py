"""Measures the data pipeline's LLM requests: requests/s, CPU time and memory over many records.

    python launch/bench.py factory [--records=100000] [--concurrency=64] [--write]

Runs the stage `generate` with client, journal and budget against the tests' fake LLM server,
which runs in its own process on the same cores. A record is one request. Each tenth of the records
gives one row of the table, so that memory which grows with the number of records shows.
"""

import argparse
import asyncio
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from inf_jax.core.cli_flags import FlagParser, at_least

from .report import ROOT, publish, table

HELP = "requests/s and memory of the data pipeline's LLM stages, against a local server"
TAKES_CONFIG = False
_TABLE_ROWS = 10


def add_arguments(parser: FlagParser) -> None:
    """Flags of `bench.py factory`."""
    parser.add("--records", "requests to send", of=at_least(1), default=100_000, metavar="N")
    parser.add("--concurrency", "requests in flight", of=at_least(1), default=64, metavar="N")
    parser.add_boolean("--write", "append the result to launch/benchmarks.md")


def main(args: argparse.Namespace) -> None:
    """Runs the benchmark."""
    server = subprocess.Popen(
        [sys.executable, ROOT / "tests" / "doubles" / "llm_server.py", "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        base_url = re.search(r"http\S+", server.stdout.readline())[0]
        with tempfile.TemporaryDirectory() as directory:
            rows = asyncio.run(_run(args, base_url, Path(directory)))
    finally:
        server.kill()
    first, last = rows[0], rows[-1]
    text = table(
        ("records", "requests/s", "CPU ms per request", "memory, MiB", "journal, MiB"),
        [
            (
                f"{row['records']:,}",
                f"{row['rate']:.0f}",
                f"{row['cpu_ms']:.2f}",
                f"{row['memory']:.0f}",
                f"{row['journal']:.0f}",
            )
            for row in rows
        ],
    )
    text += (
        f"\n\n{args.records / sum(row['seconds'] for row in rows):.0f} requests/s overall; "
        f"memory {last['memory'] - first['memory']:+.0f} MiB from {first['records']:,} to "
        f"{last['records']:,} records. CPU time is of the client process alone."
    )
    publish("factory: LLM requests", text, threads=os.cpu_count(), write=args.write)


async def _run(args: argparse.Namespace, base_url: str, directory: Path) -> list[dict[str, Any]]:
    """Generates a triplet per record; the measurements of each tenth of them."""
    from data_pipeline.items import Item
    from data_pipeline.llm.async_asker import AsyncAsker
    from data_pipeline.llm.budget import Budget, price_of
    from data_pipeline.llm.client import Endpoint
    from data_pipeline.llm.journal import Journal
    from data_pipeline.llm.request import Prompt, RequestTemplate
    from data_pipeline.stages.generate import generate
    from data_pipeline.stages.stage_files import StageFile
    from data_pipeline.stages.streams import as_stream, ordered

    os.environ.setdefault("OPENAI_API_KEY", "none")
    endpoint = Endpoint(base_url=base_url, key_env="OPENAI_API_KEY", timeout_s=60.0)
    journal = Journal(directory / "journal.sqlite")
    model, budget = "gpt-4o-mini", Budget(journal, 1e6)
    ask = AsyncAsker(
        endpoint,
        journal,
        budget,
        {model: price_of(model)},
        concurrency=args.concurrency,
        max_attempts=3,
        give_up_s=60.0,
    )
    query = RequestTemplate("query", model, Prompt.read("query_v1"), 100)
    triplet = RequestTemplate("generate", model, Prompt.read("generate_v1"), 3000)
    passage = "Passage {} of a large set, which says what is known of its own subject. " * 4
    items = (
        Item(str(n), f"what is subject {n}", passage.format(n, n, n, n), "format")
        for n in range(args.records)
    )
    stream = ordered(
        as_stream(items),
        lambda item: generate(item, ask, query=query, triplet=triplet),
        window=ask.window,
    )
    rows, done, began, cpu = [], 0, time.monotonic(), _cpu()
    with StageFile(directory, "generated", settings={}, source="").writing() as write:
        async for item in stream:
            write(item)
            done += 1
            if done % max(1, args.records // _TABLE_ROWS) == 0:
                seconds, used = time.monotonic() - began, _cpu() - cpu
                count = done - (rows[-1]["records"] if rows else 0)
                rows.append(
                    {
                        "records": done,
                        "seconds": seconds,
                        "rate": count / seconds,
                        "cpu_ms": 1000 * used / count,
                        "memory": _memory(),
                        "journal": sum(f.stat().st_size for f in directory.glob("journal*"))
                        / 2**20,
                    }
                )
                began, cpu = time.monotonic(), _cpu()
    await ask.settle()
    await endpoint.close()
    journal.close()
    return rows


def _cpu() -> float:
    """CPU seconds of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _memory() -> float:
    """Resident memory of this process, MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
