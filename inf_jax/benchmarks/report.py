"""What `inf_jax.benchmark` shows and writes: tables, scores.json, per_query.parquet, a figure."""

import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from inf_jax.benchmarks.bootstrap import Difference, differences, with_interval
from inf_jax.benchmarks.contenders import TaskScores
from inf_jax.benchmarks.scoring import METRIC_NAMES
from inf_jax.core.console import table
from inf_jax.io.storage import AnyPath, new_file

_FEW = 4  # tasks for which more than the main metric is shown
_OF_SUBSETS = "ndcg@10"
_COLOURS = ("#12708a", "#b8c0cc", "#c2703d", "#6b8e4e", "#7a5c99")
_INK = "#2b2f36"


@dataclasses.dataclass(frozen=True)
class Compared:
    """A model beside others, on some tasks.

    Attributes:
      label: of the model.
      scores: label -> task -> the scores of each seed; the model first.
      differences: task -> label of another model -> metric -> model minus that one.
    """

    label: str
    scores: Mapping[str, Mapping[str, Sequence[TaskScores]]]
    differences: Mapping[str, Mapping[str, Mapping[str, Difference]]]


@dataclasses.dataclass(frozen=True)
class _Row:
    """A line of a table and of the figure: values by label, differences by label of the other."""

    title: str  # of the table
    name: str
    values: Mapping[str, float]
    differences: Mapping[str, Difference]


def compare_models(
    scores: Mapping[str, Mapping[str, Sequence[TaskScores]]], *, draws: int, seed: int
) -> Compared:
    """The first model's differences from each of the others; see `bootstrap.differences`."""
    label, *others = scores
    found = {
        task: {
            other: differences(
                [each.scores for each in ours],
                [each.scores for each in scores[other][task]],
                task=task,
                draws=draws,
                seed=seed,
                keep=ours[0].main,
            )
            for other in others
        }
        for task, ours in scores[label].items()
    }
    return Compared(label, scores, found)


def print_tables(compared: Compared) -> None:
    """Prints what each model was given, and the scores times 100 with their intervals."""
    written: dict[tuple[str, ...], list[str]] = {}
    for label, by_task in compared.scores.items():
        for task, (one, *_) in by_task.items():
            written.setdefault((label, one.template.replace("\n", "\\n"), one.instruction), [])
            written[label, one.template.replace("\n", "\\n"), one.instruction].append(task)
    rows = [
        (label, _names(tasks), template, instruction)
        for (label, template, instruction), tasks in written.items()
    ]
    table("text of a query", rows, ("model", "tasks", "template", "instruction"))
    by_title: dict[str, list[_Row]] = {}
    for row in _rows(compared):
        by_title.setdefault(row.title, []).append(row)
    header = ["times 100", compared.label]
    for other in list(compared.scores)[1:]:
        header += [other, "difference [95 %]"]
    for title, rows in by_title.items():
        table(title, [(row.name, *_cells(row, compared.label)) for row in rows], tuple(header))


def _cells(row: "_Row", label: str) -> list[str]:
    cells = [f"{100 * row.values[label]:.1f}"]
    for other, difference in row.differences.items():
        low, high = 100 * difference.low, 100 * difference.high
        cells.append(f"{100 * row.values[other]:.1f}")
        cells.append(f"{100 * difference.value:+.1f} [{low:+.1f}, {high:+.1f}]")
    return cells


def write_results(out_dir: AnyPath, compared: Compared, settings: Mapping[str, Any]) -> None:
    """Writes scores.json, per_query.parquet and benchmark.png; all values times 100."""
    with new_file(out_dir / "scores.json") as file:
        file.write(json.dumps(_as_json(compared, settings), indent=2).encode() + b"\n")
    with new_file(out_dir / "per_query.parquet") as file:
        file.write(_parquet(compared))
    _draw(out_dir / "benchmark.png", compared)


def _rows(compared: Compared) -> list[_Row]:
    """Main metrics; for few tasks also others, by subset; the mean of a suite of several tasks."""
    rows = []
    few = len(compared.scores[compared.label]) <= _FEW
    for task, by_other in compared.differences.items():
        one = compared.scores[compared.label][task][0]
        names = [one.main]
        if few:
            names += [n for n in METRIC_NAMES if n in one.scores and n != one.main]
            names += [f"{label}/{_OF_SUBSETS}" for label in one.subsets]
        for name in names:
            if name not in one.scores:
                continue
            label, slash, _ = name.rpartition("/")
            shown = METRIC_NAMES.get(name, name.replace("ndcg", "nDCG"))
            if slash:  # with few queries an interval says little
                members = len(one.scores[name].per_query)
                shown = f"{label}, n={members}: {METRIC_NAMES[_OF_SUBSETS]}"
            counts = f"{task}: {one.queries:,} queries, {one.documents:,} documents"
            rows.append(
                _Row(
                    counts if few else "main metrics",
                    shown if few else f"{task} {shown}",
                    {label: _mean(s[task], name) for label, s in compared.scores.items()},
                    {other: each[name] for other, each in by_other.items()},
                )
            )
    return rows + _suite_rows(compared)


def _suite_rows(compared: Compared) -> list[_Row]:
    """The mean of the main metric over the families of a suite, over queries for MAIR."""
    ours, suites = compared.scores[compared.label], {}
    for task, (one, *_) in ours.items():
        suites.setdefault((one.suite, one.main), []).append(task)
    rows = []
    for (suite, main), tasks in suites.items():
        if len(tasks) < 2 or suite in ("local", "mteb"):
            continue
        families = [ours[task][0].family for task in tasks]
        weights = np.array([1 / families.count(family) for family in families])
        if suite == "mair":
            weights = np.array([float(ours[task][0].queries) for task in tasks])
        weights /= weights.sum()

        def total(values: Sequence, weights: np.ndarray = weights) -> Any:
            return sum(w * v for w, v in zip(weights, values, strict=True))

        values = {
            label: total([_mean(s[task], main) for task in tasks])
            for label, s in compared.scores.items()
        }
        found = {}
        for other in list(compared.scores)[1:]:
            each = [compared.differences[task][other][main] for task in tasks]
            found[other] = with_interval(
                total([d.value for d in each]), total([d.drawn for d in each])
            )
        rows.append(
            _Row("means of suites", f"{suite} {METRIC_NAMES.get(main, main)}", values, found)
        )
    return rows


def _mean(seeds: Sequence[TaskScores], name: str) -> float:
    return sum(float(each.scores[name]) for each in seeds) / len(seeds)


def _as_json(compared: Compared, settings: Mapping[str, Any]) -> dict[str, Any]:
    tasks = {}
    for task, by_other in compared.differences.items():
        one = compared.scores[compared.label][task][0]
        tasks[task] = {
            "suite": one.suite,
            "main": one.main,
            "queries": one.queries,
            "documents": one.documents,
            "models": {
                label: {
                    "template": seeds[task][0].template,
                    "instruction": seeds[task][0].instruction,
                    "scores": {n: 100 * _mean(seeds[task], n) for n in seeds[task][0].scores},
                    "seeds": [
                        {n: 100 * float(s) for n, s in each.scores.items()} for each in seeds[task]
                    ],
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
        for row in _suite_rows(compared)
    }
    return {"units": "times 100", "settings": dict(settings), "tasks": tasks, "means": means}


def _times_100(d: Difference) -> list[float]:
    return [100 * d.value, 100 * d.low, 100 * d.high]


def _parquet(compared: Compared) -> bytes:
    """A row for each model, seed, task, metric and query, group or pair."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    parts = []
    for label, by_task in compared.scores.items():
        for task, seeds in by_task.items():
            labels: dict[str, list[str]] = {}
            for subset, ids in seeds[0].subsets.items():
                for qid in ids:
                    labels.setdefault(qid, []).append(subset)
            for seed, each in enumerate(seeds):
                for metric, score in each.scores.items():
                    if "/" in metric:  # the same values as without
                        continue
                    ids, n = list(score.per_query), len(score.per_query)
                    same = {"model": label, "task": task, "metric": metric}
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


def _draw(path: AnyPath, compared: Compared) -> None:
    """Bars of the values, and the differences with their intervals."""
    rows, labels = _rows(compared), list(compared.scores)
    others = labels[1:]
    height = 1.3 + len(rows) * (0.12 + 0.13 * len(labels))
    figure = Figure(
        figsize=(12 if others else 8, height), dpi=130, layout="constrained", facecolor="white"
    )
    panels = figure.subplots(1, 2 if others else 1, squeeze=False)[0]
    places, step = np.arange(len(rows))[::-1], 0.8 / len(labels)
    for n, label in enumerate(labels):
        shift = places + 0.4 - step * (n + 0.5)
        values = [100 * row.values[label] for row in rows]
        bars = panels[0].barh(shift, values, height=step * 0.9, color=_COLOURS[n % 5], label=label)
        panels[0].bar_label(bars, fmt="%.1f", padding=2, fontsize=7, color=_INK)
    tasks = [row.title.partition(":")[0] for row in rows]
    several = len(set(tasks)) > 1 and ":" in rows[0].title
    names = [
        f"{task} {row.name}" if several else row.name for task, row in zip(tasks, rows, strict=True)
    ]
    panels[0].set_yticks(places, names)
    panels[0].set_title("times 100", fontsize=10, loc="left", color=_INK)
    panels[0].margins(x=0.12)
    for n, other in enumerate(others):
        each = [row.differences[other] for row in rows]
        values = 100 * np.array([(d.value, d.low, d.high) for d in each]).T
        panels[1].errorbar(
            values[0],
            places + 0.4 - 0.8 / len(others) * (n + 0.5),
            xerr=np.maximum((values[0] - values[1], values[2] - values[0]), 0),
            fmt="o",
            markersize=4,
            capsize=2,
            color=_COLOURS[(n + 1) % 5],
        )
    if others:
        title = f"{compared.label} minus the other, 95 % interval"
        panels[1].set_title(title, fontsize=10, loc="left", color=_INK)
        panels[1].set_yticks(places, [""] * len(rows))
    for panel in panels:
        panel.set_ylim(-0.6, len(rows) - 0.4)
        panel.axvline(0, color="#9aa3af", linewidth=0.8)
        panel.spines[["top", "right", "left"]].set_visible(False)
        panel.tick_params(axis="y", length=0, labelsize=8, colors=_INK)
        panel.tick_params(axis="x", labelsize=8, colors=_INK)
        panel.grid(axis="x", color="#e5e7eb", linewidth=0.6)
        panel.set_axisbelow(True)
    figure.legend(loc="outside lower left", frameon=False, fontsize=8, ncols=3)
    with new_file(path) as file:
        figure.savefig(file, format="png")


def _names(tasks: Sequence[str]) -> str:
    return ", ".join(tasks) if len(tasks) <= _FEW else f"{tasks[0]} and {len(tasks) - 1} more"
