"""The factory under faults and kill -9 at any point, checked against the server's own counts.

    INF_JAX_CHAOS=1000,20 python -m pytest tests/data_pipeline/commands/test_chaos.py

is the long form, some minutes: that many pairs and kills.
"""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from data_pipeline.run import main

ROOT = Path(__file__).parents[3]
MEDQUAD = ROOT / "data_pipeline" / "samples" / "medquad" / "train.jsonl.gz"
CONCURRENCY = 32
PRICES = {"generate": (0.15, 0.6), "judge": (1.1, 4.4)}  # USD per million tokens, in and out
MODELS = {"generate": "gpt-4o-mini", "judge": "o3-mini"}
PAIRS, KILLS = map(int, os.environ.get("INF_JAX_CHAOS", "48,3").split(","))
CAP = 40.0  # enough for everything; the first runs get less


class Runs:
    """Runs of one factory in processes of their own, one after another."""

    def __init__(self, out_dir: Path, base_url: str, *, pairs: int, **llm):
        options = {
            "out_dir": out_dir,
            "source.kind": "fields",
            "source.path": MEDQUAD,
            "source.fields.query": "question",
            "source.fields.passage": "answer",
            "source.fields.id": "id",
            "source.count": pairs,
            "llm.base_url": base_url,
            "llm.concurrency": CONCURRENCY,
            "llm.max_attempts": 4,
            **{f"llm.{name}": value for name, value in llm.items()},
            **{f"{stage}.model": model for stage, model in MODELS.items()},
            **{f"{stage}.price": price for stage, price in PRICES.items()},
        }
        self.out_dir, self.factor = out_dir, 1.0
        self.arguments = [f"--config={ROOT}/configs/data_sample.py"]
        self.arguments += [f"--config.{name}={value}" for name, value in options.items()]

    def start(self, *, max_usd: float) -> subprocess.Popen:
        """Starts a run."""
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "data_pipeline.run"),
                *self.arguments,
                "--stages=pairs,generate,filter,judge,corpus,report",
                f"--max-usd={max_usd}",
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"OPENAI_API_KEY": "sk-test-chaos"},
        )

    def finish(self, *, max_usd: float = CAP) -> str:
        """Runs to the end; returns what was printed."""
        process = self.start(max_usd=max_usd)
        output, _ = process.communicate(timeout=900)
        assert process.returncode == 0, output
        return output

    def chaos(self, kills: int, rng: random.Random, *, server, most: int, caps) -> None:
        """Starts runs and kills each after up to `most` HTTP requests; checks the cap each time."""
        for n in range(kills):
            cap = caps[n] if n < len(caps) else CAP
            before = _http(server)
            process = self.start(max_usd=cap)
            wanted = before + rng.randrange(most)
            while process.poll() is None and _http(server) < wanted:
                time.sleep(0.05)
            time.sleep(rng.uniform(0.0, 0.1))
            process.send_signal(signal.SIGKILL)
            process.communicate()
            assert billed_usd(server.stats(requests=False), factor=self.factor) <= cap

    def outcomes(self) -> list[dict]:
        """The rows of outcomes.jsonl."""
        lines = (self.out_dir / "outcomes.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def rows(self, query: str) -> list[tuple]:
        """Rows of a query on the journal."""
        with sqlite3.connect(f"file:{self.out_dir}/journal.sqlite?mode=ro", uri=True) as db:
            return db.execute(query).fetchall()


def _http(server) -> int:
    calls = server.stats(requests=False)["http"]
    return sum(count for call, count in calls.items() if "/v1/" in call)


def billed_usd(stats: dict, *, factor: float) -> float:
    """USD that the server has billed, by its own count."""
    usd = 0.0
    for stage, model in MODELS.items():
        counts, (price_in, price_out) = stats["models"].get(model, {}), PRICES[stage]
        usd += counts.get("prompt", 0) * price_in + counts.get("completion", 0) * price_out
    return factor * usd / 1e6


@pytest.fixture
def undisturbed(tmp_path, calm_server, monkeypatch):
    """Number of pairs -> outcomes of a run without faults and kills."""

    def run(pairs: int) -> bytes:
        runs = Runs(tmp_path / "undisturbed", calm_server.base_url, pairs=pairs)
        monkeypatch.chdir(ROOT)
        main(["run", *runs.arguments, "--stages=pairs,generate,filter,judge,corpus"])
        return (runs.out_dir / "outcomes.jsonl").read_bytes()

    return run


def test_async(tmp_path, llm_server, undisturbed):
    """Faults and kills at any point: no reply is lost or paid for twice, and the cap holds."""
    pairs, rng = PAIRS, random.Random(1)
    server = llm_server("transient,lost,paid", latency_ms=20)
    runs = Runs(tmp_path / "out", server.base_url, pairs=pairs)
    # kills spread over the whole work; a pair has ten requests
    most = 16 * pairs // KILLS
    runs.chaos(KILLS, rng, server=server, most=most, caps=[0.2, 0.4] if KILLS > 9 else [0.2])
    runs.finish()

    ids = Counter(row["id"] for row in runs.outcomes())
    assert len(ids) == pairs and set(ids.values()) == {1}
    stats, report = server.stats(), json.loads((runs.out_dir / "report.json").read_text())
    assert sum(stats["faults"].values()) > 0.3 * pairs  # they did occur
    assert report["pairs"] == pairs == report["kept"] + report["dropped"]

    # no request is sent again once its answer is in the journal
    answered = "SELECT key, min(id) FROM sent JOIN received ON sent = id WHERE outcome = 'answer'"
    first = dict(runs.rows(f"{answered} GROUP BY key"))
    last = dict(runs.rows("SELECT key, max(id) FROM sent GROUP BY key"))
    assert len(first) > 8 * pairs
    assert all(last[key] == sent for key, sent in first.items())
    # the server has seen no request that is not in the journal
    counts = stats["requests"].values()
    [(sent,)] = runs.rows("SELECT count(*) FROM sent")
    assert sum(each["received"] for each in counts) <= sent
    # only requests in flight at a kill were answered more than once
    lost = "SELECT count(*) FROM sent LEFT JOIN received ON sent = id WHERE outcome IS NULL"
    in_flight = runs.rows(f"{lost} GROUP BY run")
    assert in_flight and all(0 < count <= CONCURRENCY for (count,) in in_flight)
    assert report["usage"]["in_flight_at_kills"] == sum(count for (count,) in in_flight)
    repeated = sum(max(0, each["answered"] - 1) for each in counts)
    assert repeated <= report["usage"]["in_flight_at_kills"]
    assert stats["most_active"] <= CONCURRENCY

    assert billed_usd(stats, factor=1.0) <= report["usage"]["usd"] + report["usage"]["usd_unknown"]
    assert (runs.out_dir / "outcomes.jsonl").read_bytes() == undisturbed(pairs)


def test_batches(tmp_path, llm_server, undisturbed):
    """The same with the Batch API: rows fail or are missing, batches fail or expire."""
    pairs, rng = max(60, PAIRS // 5), random.Random(2)
    server = llm_server("transient,paid,batch", batch_step_s=0.1, batch_rows_per_s=2000)
    runs = Runs(
        tmp_path / "out",
        server.base_url,
        pairs=pairs,
        mode="batch",
        batch_requests=60,
        batch_poll_s=0.25,
    )
    runs.factor = 0.5
    runs.chaos(max(4, KILLS // 3), rng, server=server, most=40, caps=[0.5])
    runs.finish()

    stats, report = server.stats(), json.loads((runs.out_dir / "report.json").read_text())
    ids = Counter(row["id"] for row in runs.outcomes())
    assert len(ids) == pairs and set(ids.values()) == {1}
    kinds = {kind for kind, count in stats["faults"].items() if count}
    assert kinds >= {"row_500", "row_error", "row_missing"}
    assert kinds & {"batch_failed", "batch_expired"}  # which depends on the timing
    # every batch of the server was submitted once and has ended in the journal
    names = Counter(batch["metadata"]["inf_jax_batch"] for batch in stats["batches"])
    assert names and set(names.values()) == {1}
    # (batches that a kill kept from being submitted end as unsubmitted)
    query = "SELECT batch FROM batch_events WHERE event = 'ended' AND value != '\"unsubmitted\"'"
    ended = {name for (name,) in runs.rows(query)}
    assert set(names) == ended
    assert not list((runs.out_dir / "batches").iterdir())
    # every request of a batch has a reply
    lost = "SELECT count(*) FROM sent LEFT JOIN received ON sent = id WHERE outcome IS NULL"
    assert runs.rows(lost) == [(0,)]
    answers = runs.rows(
        "SELECT key, count(*) FROM sent JOIN received ON sent = id WHERE outcome = 'answer' "
        "GROUP BY key"
    )
    assert len(answers) > 8 * pairs and {count for _, count in answers} == {1}
    assert billed_usd(stats, factor=0.5) <= report["usage"]["usd"] + report["usage"]["usd_unknown"]
    assert (runs.out_dir / "outcomes.jsonl").read_bytes() == undisturbed(pairs)
