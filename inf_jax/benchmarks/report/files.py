"""Writes what `inf_jax.benchmark` found: scores.json and per_query.parquet."""

import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from inf_jax.benchmarks.bootstrap import Difference
from inf_jax.benchmarks.contenders import TaskScores
from inf_jax.benchmarks.report.figure import draw_models
from inf_jax.benchmarks.report.rows import Compared, pooled, suite_rows
from inf_jax.io.storage import AnyPath, new_file
from inf_jax.metrics.runs import Score


def write_results(out_dir: AnyPath, compared: Compared, settings: Mapping[str, Any]) -> None:
    """Writes scores.json, per_query.parquet and benchmark.png; all values times 100."""
    with new_file(out_dir / "scores.json") as file:
        file.write(json.dumps(_as_json(compared, settings), indent=2).encode() + b"\n")
    with new_file(out_dir / "per_query.parquet") as file:
        file.write(_parquet(compared))
    draw_models(out_dir / "benchmark.png", compared)


def _as_json(compared: Compared, settings: Mapping[str, Any]) -> dict[str, Any]:
    tasks = {}
    for task, by_other in compared.differences.items():
        one = compared.scores[compared.label][task][0]
        tasks[task] = {
            "suite": one.suite,
            "main": one.main,
            "queries": one.queries,
            "questions": one.questions,
            "documents": one.documents,
            "models": {
                label: {
                    "template": seeds[task][0].template,
                    "instruction": seeds[task][0].instruction,
                    "scores": {n: 100 * pooled(seeds[task], n) for n in seeds[task][0].scores},
                    "seeds": [
                        {n: 100 * float(s) for n, s in each.scores.items()} for each in seeds[task]
                    ],
                    "noise": _noise(seeds[task], compared.losses[task].get(label, {})),
                }
                for label, seeds in compared.scores.items()
            },
            "differences": {
                other: {name: _times_100(d) for name, d in each.items()}
                for other, each in by_other.items()
            },
        }
    means = {
        row.name: {
            "scores": {label: 100 * value for label, value in row.values.items()},
            "differences": {other: _times_100(d) for other, d in row.differences.items()},
        }
        for row in suite_rows(compared)
    }
    return {"units": "times 100", "settings": dict(settings), "tasks": tasks, "means": means}


def _noise(
    seeds: Sequence[TaskScores], by_kind: Mapping[str, Mapping[str, Difference]]
) -> dict[str, Any]:
    return {
        kind: {
            "changed": seeds[0].noise[kind].changed,
            "scores": {n: 100 * (pooled(seeds, n) - d.value) for n, d in by_metric.items()},
            "loss": {n: _times_100(d) for n, d in by_metric.items()},
        }
        for kind, by_metric in by_kind.items()
    }


def _times_100(d: Difference) -> list[float | None]:
    """[difference, ends of the interval], which JSON has no NaN for."""
    return [None if math.isnan(x) else 100 * x for x in (d.value, d.low, d.high)]


def _parquet(compared: Compared) -> bytes:
    """A row for each model, seed, kind of noise ("" for none), task, metric and query, group or
    pair."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    parts = []
    for label, by_task in compared.scores.items():
        for task, seeds in by_task.items():
            labels: dict[str, list[str]] = {}
            for subset, ids in seeds[0].subsets.items():
                for qid in ids:
                    labels.setdefault(qid, []).append(subset)
            for seed, noise, metric, score in _each_score(seeds):
                ids, n = list(score.per_query), len(score.per_query)
                same = {"model": label, "noise": noise, "task": task, "metric": metric}
                columns = {
                    name: pa.DictionaryArray.from_arrays(np.zeros(n, np.int32), [value])
                    for name, value in same.items()
                }
                kind = pa.list_(pa.string())
                columns |= {
                    "seed": pa.array(np.full(n, seed, np.int32)),
                    "id": pa.array(ids, pa.string()),
                    "subsets": pa.array([labels.get(qid, []) for qid in ids], kind),
                    "value": pa.array([100 * x for x in score.per_query.values()]),
                }
                parts.append(pa.table(columns))
    buffer = io.BytesIO()
    pq.write_table(pa.concat_tables(parts).unify_dictionaries(), buffer, compression="zstd")
    return buffer.getvalue()


def _each_score(seeds: Sequence[TaskScores]) -> Iterator[tuple[int, str, str, Score]]:
    """(seed, kind of noise, metric, score), without subsets, whose values are the same."""
    for seed, each in enumerate(seeds):
        for noise, scores in {
            "": each.scores,
            **{k: n.scores for k, n in each.noise.items()},
        }.items():
            for metric, score in scores.items():
                if "/" not in metric:
                    yield seed, noise, metric, score
