"""Times the training step of a config beside the same step in sentence-transformers.

    python launch/bench.py train [--write] [--config=FILE] [--config.KEY=VALUE ...]

Both train the same weights on the same pairs at every step: same batch size, length limits,
objective, optimiser (AdamW or Lion) with gradient clipping, float32, same CPU cores. inf_jax runs
its loader, the transfer to the device and the jitted step, as inf_jax.train does.
sentence-transformers runs its model, its tokenisation and MultipleNegativesRankingLoss in both
directions (its closest to multi(P,IQ)) in a plain PyTorch loop, with fused AdamW where that is
asked for, so without the cost of its Trainer: once with the dropout of the model's config.json, and
once without dropout, as inf_jax trains.

The contenders take turns, each in its own process. Not counted: the steps before the first round,
and the first step of each turn, which has to get its memory back from the system.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from inf_jax.core.cli_flags import FlagParser, at_least

from .process import Worker, peak_memory, serve
from .report import ROOT, publish, table
from .rows import checked_config, rows_worker
from .torch_optim import make_torch_optimizer

HELP = "the training step of a config, beside sentence-transformers"
TAKES_CONFIG = True
MEASURED = ("seconds", "pairs", "tokens", "slots")
LABELS = {
    "ours": "inf_jax",
    "st": "sentence-transformers",
    "st_no_dropout": "sentence-transformers, dropout 0",
}


def add_arguments(parser: FlagParser) -> None:
    """Flags of `bench.py train`."""
    add, config = parser.add, str(ROOT / "configs" / "medquad_minilm.py")
    add("--config", "what to train (default: medquad_minilm)", default=config, metavar="NAME")
    add("--rounds", "turns of each contender", of=at_least(1), default=7, metavar="N")
    add("--steps", "timed steps per turn", of=at_least(1), default=3, metavar="N")
    add("--warmup", "steps before round 1", of=at_least(0), default=2, metavar="N")
    add("--threads", "CPU cores to use", of=at_least(1), default=2, metavar="N")
    parser.add_boolean("--write", "append the result to launch/benchmarks.md")
    add("--rows", None)  # for the workers: file with the texts of every step
    add("--worker", None, choices=[*WORKERS])


def main(args: argparse.Namespace, overrides: list[str]) -> None:
    """Runs the benchmark, or with --worker one of its processes."""
    if args.worker:
        serve(lambda: WORKERS[args.worker](args, overrides), threads=args.threads)
        return
    with tempfile.TemporaryDirectory() as directory:
        common = ["train", f"--config={args.config}", *overrides, f"--rows={directory}/rows.json"]
        common += [f"--threads={args.threads}"]
        last = args.warmup + args.rounds * (args.steps + 1)
        rows = Worker([*common, "--worker=rows"], threads=args.threads)
        facts = rows.ask(last)
        rows.close()
        workers: dict[str, Worker] = {}
        try:
            for name in LABELS:
                workers[name] = Worker([*common, f"--worker={name}"], threads=args.threads)
                workers[name].ask((0, args.warmup))
            results = []
            for number, first in enumerate(range(args.warmup, last, args.steps + 1), 1):
                turn = {}
                for name, worker in workers.items():
                    worker.ask((first, first + 1))
                    turn[name] = worker.ask((first + 1, first + 1 + args.steps))
                results.append(turn)
                speeds = (f"{LABELS[n]} {r['pairs'] / r['seconds']:.1f}" for n, r in turn.items())
                print(f"round {number} of {args.rounds}, pairs/s: {'; '.join(speeds)}", flush=True)
            for worker in workers.values():
                worker.close()
        finally:
            for worker in workers.values():
                worker.kill()
    text = summary(results, facts | {"steps": args.steps})
    publish("train", text, threads=args.threads, write=args.write)


def summary(results: list[dict[str, dict[str, float]]], facts: dict[str, Any]) -> str:
    """The Markdown report: medians over the rounds, then the speed of each round.

    Args:
      results: for each round, by contender: the sums named in MEASURED, `peak` (bytes), `loss`.
      facts: what the worker `rows` says of the run, and `steps`, the timed steps per turn.
    """
    rows, rounds = [], []
    ours = [turn["ours"]["pairs"] / turn["ours"]["seconds"] for turn in results]
    for name, label in LABELS.items():
        mine = [turn[name] for turn in results]
        speeds = [r["pairs"] / r["seconds"] for r in mine]
        ratios = [a / b for a, b in zip(ours, speeds, strict=True)]
        pairs, tokens, slots = (sum(r[key] for r in mine) for key in MEASURED[1:])
        speed = statistics.median(speeds)
        median, low, high = statistics.median(ratios), min(ratios), max(ratios)
        rows.append(
            (
                label,
                f"{speed:.1f}",
                f"{speed * tokens / pairs:,.0f}",
                f"{tokens / slots:.1%}",
                f"{max(r['peak'] for r in mine) / 2**20:,.0f} MiB",
                "" if name == "ours" else f"{median:.2f} ({low:.2f} to {high:.2f})",
            )
        )
        rounds.append((label, *(f"{speed:.1f}" for speed in speeds)))
    header = ("", "pairs/s", "tokens/s", "fill", "peak memory", "inf_jax is faster by")
    return (
        f"{facts['model']}, {facts['objective']}, {facts['batch_size']} examples "
        f"({facts['pairs']:.0f} pairs) a step, passages up to {facts['max_passage_tokens']} "
        f"tokens, queries up to {facts['max_query_tokens']}; {facts['versions']}. Medians of "
        f"{len(results)} rounds of {facts['steps']} steps; the ratio is the median of the rounds' "
        "own ratios (least to most), peak memory is of the contender's whole process.\n\n"
        f"{table(header, rows)}\n\npairs/s round by round:\n\n"
        f"{table(('', *map(str, range(1, len(results) + 1))), rounds)}\n"
    )


def ours_worker(args: argparse.Namespace, overrides: list[str]) -> Callable[[list[int]], dict]:
    """Trains as `inf_jax.train` does: loader, jitted step, metrics fetched one step late."""
    import jax

    from inf_jax.core.errors import main_guard
    from inf_jax.data.loader import to_mesh
    from inf_jax.training.setup import make_training

    with main_guard():
        config = checked_config(args, overrides)
        training = make_training(config)
    loader, prefetch = training.loader, config.data.prefetch
    to_device = to_mesh(training.program.mesh)
    state = training.fresh()

    def answer(steps: list[int]) -> dict:
        nonlocal state
        started, pending = time.perf_counter(), None
        for batch in loader.batches(*steps, to_device=to_device, prefetch=prefetch):
            state, metrics = training.program.step(state, batch)
            if pending:
                jax.device_get(pending)
            pending = metrics
        loss = float(jax.device_get(pending)["loss"])
        jax.block_until_ready(state)
        seconds = time.perf_counter() - started
        done = [loader.assignment(step).lengths[:, :2] for step in range(*steps)]
        grid = loader.layout.chunks * sum(loader.plan.rows) * loader.layout.row_tokens
        return {
            "seconds": seconds,
            "pairs": sum(int((lengths > 0).sum()) // 2 for lengths in done),
            "tokens": sum(int(lengths.sum()) for lengths in done),
            "slots": grid * len(done),
            "peak": peak_memory(),
            "loss": loss,
        }

    return answer


def sentence_transformers_trainer(rows: dict, *, threads: int, dropout: bool) -> tuple:
    """sentence-transformers' model, and a function that does a step on the texts of a batch.

    Args:
      rows: what `rows_worker` wrote.
      dropout: that of the model's config.json, or none.

    Returns:
      The model, and step(batch, lr=None) -> (loss, tokens, slots), lr None: that of `rows`.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    torch.set_num_threads(threads)
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = SentenceTransformer(
        rows["directory"], device="cpu", config_kwargs={} if dropout else off
    ).train()
    loss_fn = MultipleNegativesRankingLoss(
        model,
        scale=rows["scale"],
        directions=("query_to_doc", "doc_to_query"),
        partition_mode="per_direction",
    )
    optimizer = make_torch_optimizer(model.parameters(), rows["optim"])
    limits = (rows["max_query_tokens"], rows["max_passage_tokens"])

    def step(batch: list, lr: float | None = None) -> tuple[float, int, int]:
        columns = zip(*batch, strict=True)
        features = [
            model.preprocess(list(texts), max_length=limit)
            for texts, limit in zip(columns, limits, strict=True)
        ]
        for group in optimizer.param_groups if lr is not None else ():
            group["lr"] = lr
        loss = loss_fn(features, None)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), rows["clip_norm"])
        optimizer.step()
        optimizer.zero_grad()
        tokens = sum(int(f["attention_mask"].sum()) for f in features)
        return loss.item(), tokens, sum(f["input_ids"].numel() for f in features)

    return model, step


def sentence_transformers_worker(
    args: argparse.Namespace, overrides: list[str], *, dropout: bool
) -> Callable[[list[int]], dict]:
    """Trains on the same texts with sentence-transformers' model and loss."""
    rows = json.loads(Path(args.rows).read_text())
    _, step = sentence_transformers_trainer(rows, threads=args.threads, dropout=dropout)

    def answer(steps: list[int]) -> dict:
        started = time.perf_counter()
        done = [step(rows["batches"][number]) for number in range(*steps)]
        losses, tokens, slots = zip(*done, strict=True)
        return {
            "seconds": time.perf_counter() - started,
            "pairs": sum(len(rows["batches"][number]) for number in range(*steps)),
            "tokens": sum(tokens),
            "slots": sum(slots),
            "peak": peak_memory(),
            "loss": losses[-1],
        }

    return answer


WORKERS = {
    "rows": rows_worker,
    "ours": ours_worker,
    "st": lambda args, overrides: sentence_transformers_worker(args, overrides, dropout=True),
    "st_no_dropout": lambda args, overrides: sentence_transformers_worker(
        args, overrides, dropout=False
    ),
}
