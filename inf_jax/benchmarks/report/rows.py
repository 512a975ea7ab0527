"""A model beside others: the lines of the tables and of the figure."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from inf_jax.benchmarks.bootstrap import Difference, differences, with_interval
from inf_jax.benchmarks.contenders import TaskScores
from inf_jax.benchmarks.noise import losses
from inf_jax.benchmarks.scoring import METRIC_NAMES

FEW = 4  # tasks for which more than the main metric is shown
_OF_SUBSETS = "ndcg@10"


@dataclasses.dataclass(frozen=True)
class Compared:
    """A model beside others, on some tasks.

    Attributes:
      label: of the model.
      scores: label -> task -> the scores of each seed; the model first.
      differences: task -> label of another model -> metric -> model minus that one.
      losses: task -> label -> kind of noise -> metric -> without minus with noise in instructions;
        a model that got none of a task is not there.
    """

    label: str
    scores: Mapping[str, Mapping[str, Sequence[TaskScores]]]
    differences: Mapping[str, Mapping[str, Mapping[str, Difference]]]
    losses: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Difference]]]]


@dataclasses.dataclass(frozen=True)
class ScoreRow:
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
                clusters=ours[0].clusters,
                draws=draws,
                seed=seed,
                keep=ours[0].main,
            )
            for other in others
        }
        for task, ours in scores[label].items()
    }
    lost = {
        task: {
            name: {
                kind: losses(
                    [each.scores for each in by_task[task]],
                    [each.noise[kind].scores for each in by_task[task]],
                    task=task,
                    clusters=by_task[task][0].clusters,
                    draws=draws,
                    seed=seed,
                )
                for kind in by_task[task][0].noise
            }
            for name, by_task in scores.items()
            if by_task[task][0].noise
        }
        for task in found
    }
    return Compared(label, scores, found, lost)


def rows_of(compared: Compared) -> list[ScoreRow]:
    """Main metrics; for few tasks also others, by subset; the mean of a suite of several tasks."""
    rows = []
    few = len(compared.scores[compared.label]) <= FEW
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
            asked = f" of {one.questions:,} questions" if one.questions < one.queries else ""
            counts = f"{task}: {one.queries:,} queries{asked}, {one.documents:,} documents"
            rows.append(
                ScoreRow(
                    counts if few else "main metrics",
                    shown if few else f"{task} {shown}",
                    {label: pooled(s[task], name) for label, s in compared.scores.items()},
                    {other: each[name] for other, each in by_other.items()},
                )
            )
    return rows + suite_rows(compared)


def noise_rows(compared: Compared) -> list[ScoreRow]:
    """A line for each task, kind of noise and metric, of many tasks the main metric alone: values
    with the noise, and in place of differences the losses by label of the model."""
    rows, few = [], len(compared.losses) <= FEW
    for task, by_label in compared.losses.items():
        if not by_label:
            continue
        one = compared.scores[next(iter(by_label))][task][0]
        names = [one.main]
        if few:
            names += [n for n in METRIC_NAMES if n in one.scores and n != one.main]
        for kind, noisy in one.noise.items():
            for name in names:
                lost = {label: each[kind][name] for label, each in by_label.items()}
                values = {
                    label: pooled(compared.scores[label][task], name) - each.value
                    for label, each in lost.items()
                }
                share = f"{kind} changes {noisy.changed:,} of {one.queries:,} instructions"
                shown = METRIC_NAMES.get(name, name.replace("ndcg", "nDCG"))
                rows.append(
                    ScoreRow(
                        f"{task}: {share}" if few else "main metrics, with noise in instructions",
                        f"{kind}: {shown}" if few else f"{task}, {kind}: {shown}",
                        values,
                        lost,
                    )
                )
    return rows


def suite_rows(compared: Compared) -> list[ScoreRow]:
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
            label: total([pooled(s[task], main) for task in tasks])
            for label, s in compared.scores.items()
        }
        found = {}
        for other in list(compared.scores)[1:]:
            each = [compared.differences[task][other][main] for task in tasks]
            found[other] = with_interval(
                total([d.value for d in each]), total([d.drawn for d in each])
            )
        rows.append(
            ScoreRow("means of suites", f"{suite} {METRIC_NAMES.get(main, main)}", values, found)
        )
    return rows


def pooled(seeds: Sequence[TaskScores], name: str) -> float:
    """The mean over seeds of a metric, as a fraction."""
    return sum(float(each.scores[name]) for each in seeds) / len(seeds)
