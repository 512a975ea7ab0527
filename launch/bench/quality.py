"""Trains a config, and the same rows and steps in sentence-transformers, and scores both.

    python launch/bench.py quality [--write] [--config=FILE] [--config.KEY=VALUE ...]

As in `bench.py train`: same weights, pairs at every step, batch size, length limits, optimiser with
gradient clipping and its schedule, float32, same CPU cores. sentence-transformers trains with
MultipleNegativesRankingLoss in both directions, once with the dropout of the model's config.json
and once without: it has no block I and no average, which the config may have. Both models are
scored by `inf_jax.evaluate`'s metrics on eval.split, theirs by the vectors of its own `encode`.
Trains with each of --seeds, one after the other, each contender in a process of its own.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from inf_jax.core.cli_flags import FlagParser, at_least
from inf_jax.evaluation.scores import METRICS

from .process import Worker, serve
from .recipes_report import interval, with_interval
from .report import ROOT, publish, table
from .rows import checked_config, rows_worker
from .train import LABELS, sentence_transformers_trainer

HELP = "the scores of a config after training, beside sentence-transformers"
TAKES_CONFIG = True


def add_arguments(parser: FlagParser) -> None:
    """Flags of `bench.py quality`."""
    add, config = parser.add, str(ROOT / "configs" / "medquad_minilm.py")
    add("--config", "what to train (default: medquad_minilm)", default=config, metavar="NAME")
    add("--seeds", "of the runs", many=True, of=at_least(0), default=[0, 1, 2], metavar="N")
    add("--threads", "CPU cores to use", of=at_least(1), default=2, metavar="N")
    parser.add_boolean("--write", "append the result to launch/benchmarks.md")
    add("--rows", None)  # for the workers: file with the texts of every step
    add("--worker", None, choices=[*WORKERS])


def main(args: argparse.Namespace, overrides: list[str]) -> None:
    """Runs the comparison, or with --worker one of its processes."""
    if args.worker:
        serve(lambda: WORKERS[args.worker](args, overrides), threads=args.threads)
        return
    results: dict[str, list[dict]] = {name: [] for name in LABELS}
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as directory:
            common = ["quality", f"--config={args.config}", *overrides, f"--config.seed={seed}"]
            common += [f"--rows={directory}/rows.json", f"--threads={args.threads}"]
            common += [f"--config.out_dir={directory}/run"]

            def ask(name: str, common: list[str] = common) -> dict:
                worker = Worker([*common, f"--worker={name}"], threads=args.threads)
                try:
                    return worker.ask(0)
                finally:
                    worker.close()

            facts = ask("rows")
            for name, label in LABELS.items():
                found = ask(name)
                facts |= {"base": found["base"]} if "base" in found else {}
                results[name].append(found["trained"])
                print(f"seed {seed}, {label}: {found['trained']}", flush=True)
    publish("quality", summary(results, facts), threads=args.threads, write=args.write)


def summary(results: dict[str, list[dict]], facts: dict) -> str:
    """The Markdown report: means over the seeds and differences by seed, both with intervals.

    Args:
      results: for each contender, by seed: the scores and `seconds` of its training.
      facts: what the worker `rows` says of the run, and `base`, the scores before it.
    """
    keys, ours = list(results["ours"][0]), results["ours"]
    rows = [
        ("base", *(f"{facts['base'][key]:.1f}" if key in facts["base"] else "" for key in keys))
    ]
    for name, each in results.items():
        cells = [interval(scores[key] for scores in each) for key in keys]
        rows.append((LABELS[name], *(with_interval(cell) for cell in cells)))
    for name, each in results.items():
        if name != "ours":
            both = list(zip(ours, each, strict=True))
            cells = [interval(mine[key] - theirs[key] for mine, theirs in both) for key in keys]
            rows.append(
                (f"inf_jax less {LABELS[name]}", *(with_interval(c, sign=True) for c in cells))
            )
    header = ("times 100", *(METRICS.get(key, f"training, {key}") for key in keys))
    seeds = "One seed" if len(ours) == 1 else f"Means of {len(ours)} seeds, 95 % intervals"
    return (
        f"{facts['model']}, {facts['steps']} steps of {facts['batch_size']} examples "
        f"({facts['pairs']:.0f} pairs), scored on {facts['scored']}; inf_jax with "
        f"{facts['objective']}, sentence-transformers with MultipleNegativesRankingLoss in both "
        f"directions; {facts['versions']}. {seeds}.\n\n{table(header, rows)}\n"
    )


def _rows(args: argparse.Namespace, overrides: list[str]) -> Callable[[int], dict]:
    config, answer = checked_config(args, overrides), rows_worker(args, overrides)

    def facts(_: int) -> dict:
        scored = f"{config.eval.source or config.data.source} {config.eval.split}"
        return answer(config.train.steps) | {"steps": config.train.steps, "scored": scored}

    return facts


def _ours(args: argparse.Namespace, overrides: list[str]) -> Callable[[int], dict]:
    """Trains and scores as the commands do."""
    from inf_jax import evaluate, train
    from inf_jax.config.command_line import parse

    def answer(_: int) -> dict:
        resolved = parse(["bench", f"--config={args.config}", *overrides])
        started = time.perf_counter()
        train.main(resolved)
        seconds = time.perf_counter() - started
        evaluate.main(resolved)
        scores = json.loads(Path(resolved.out_dir, "eval.json").read_text())
        return {"base": scores["base"], "trained": scores["trained"] | {"seconds": seconds}}

    return answer


def _theirs(
    args: argparse.Namespace, overrides: list[str], *, dropout: bool
) -> Callable[[int], dict]:
    import numpy as np

    from inf_jax.data.from_config import text_config
    from inf_jax.evaluation.scores import score_task
    from inf_jax.optim.schedules import make_schedule
    from inf_jax.text.templates import instructed_query, passage_text
    from inf_jax.training.retrieval import retrieval_task

    config = checked_config(args, overrides)
    rows = json.loads(Path(args.rows).read_text())
    model, step = sentence_transformers_trainer(rows, threads=args.threads, dropout=dropout)
    train = config.train
    schedule = make_schedule(config.optim, steps=train.steps, pairs=train.batch_size)

    def answer(_: int) -> dict:
        started = time.perf_counter()
        for number, batch in enumerate(rows["batches"]):
            step(batch, float(schedule(number)))
        seconds = time.perf_counter() - started
        model.eval()
        task, text = retrieval_task(config), text_config(config)
        searches = [instructed_query(*pair, text.query_template) for pair in task.searches.values()]
        corpus = [passage_text(each, text.passage_template) for each in task.corpus.values()]
        vectors = []
        for texts, limit in (
            (searches, text.max_query_tokens),
            (corpus, config.eval.max_passage_tokens),
        ):
            model.max_seq_length = limit
            vectors.append(np.asarray(model.encode(texts, normalize_embeddings=True)))
        scores = score_task(task, *vectors, top_k=config.eval.top_k)
        return {"trained": scores | {"seconds": seconds}}

    return answer


WORKERS = {
    "rows": _rows,
    "ours": _ours,
    "st": lambda args, overrides: _theirs(args, overrides, dropout=True),
    "st_no_dropout": lambda args, overrides: _theirs(args, overrides, dropout=False),
}
