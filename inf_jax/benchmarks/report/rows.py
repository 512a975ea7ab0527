"""A model beside others: the lines of the tables and of the figure."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from inf_jax.benchmarks.bootstrap import Difference, differences, with_interval
from inf_jax.benchmarks.contenders import TaskScores
from inf_jax.benchmarks.noise import losses
from inf_jax.benchmarks.scoring import METRIC_NAMES
from inf_jax.metrics.runs import Score

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
      draws, seed: of the bootstrap.
    """

    label: str
    scores: Mapping[str, Mapping[str, Sequence[TaskScores]]]
    differences: Mapping[str, Mapping[str, Mapping[str, Difference]]]
    losses: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Difference]]]]
    draws: int
    seed: int


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
    return Compared(label, scores, found, lost, draws, seed)


def rows_of(compared: Compared) -> list[ScoreRow]:
    """Main metrics; for few tasks also others, by subset; the mean of a suite of several tasks."""
    rows = []
    few = len(compared.scores[compared.label]) <= FEW
    for task, by_other in compared.differences.items():
        one = compared.scores[compared.label][task][0]
        if not few and one.suite == "mair" and one.family != task:
            continue  # a split, in the mean of its task
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
    """The mean of the main metric over the families of a suite; for MAIR over queries, also of
    each of its tasks that has several splits."""
    ours, suites = compared.scores[compared.label], {}
    for task, (one, *_) in ours.items():
        if one.suite == "mair" and one.family != task:
            suites.setdefault((one.family, one.main), []).append(task)
        suites.setdefault((one.suite, one.main), []).append(task)
    rows = []
    for (suite, main), tasks in suites.items():
        if suite in ("local", "mteb") or (len(tasks) < 2 and "/" not in suite):
            continue
        over = _over_queries if ours[tasks[0]][0].suite == "mair" else _over_families
        name = f"{suite} {METRIC_NAMES.get(main, main)}"
        rows.append(ScoreRow("means of suites", name, *over(compared, tasks, main)))
    return rows


def _over_families(
    compared: Compared, tasks: Sequence[str], main: str
) -> tuple[dict[str, float], dict[str, Difference]]:
    """(means by label, differences by label of the other)."""
    families = [compared.scores[compared.label][task][0].family for task in tasks]
    weights = np.array([1 / families.count(family) for family in families])
    weights /= weights.sum()

    def total(values: Sequence) -> Any:
        return sum(w * v for w, v in zip(weights, values, strict=True))

    values = {
        label: total([pooled(s[task], main) for task in tasks])
        for label, s in compared.scores.items()
    }
    found = {}
    for other in list(compared.scores)[1:]:
        each = [compared.differences[task][other][main] for task in tasks]
        found[other] = with_interval(total([d.value for d in each]), total([d.drawn for d in each]))
    return values, found


def _over_queries(
    compared: Compared, tasks: Sequence[str], main: str
) -> tuple[dict[str, float], dict[str, Difference]]:
    """As `_over_families`; questions are drawn as those of one task, since some have only one."""
    by_label = compared.scores
    one = {
        label: [
            {
                main: Score(
                    {
                        f"{task} {qid}": value
                        for task in tasks
                        for qid, value in by_task[task][n].scores[main].per_query.items()
                    }
                )
            }
            for n in range(len(by_task[tasks[0]]))
        ]
        for label, by_task in by_label.items()
    }
    clusters = {
        f"{task} {qid}": f"{task} {first}"
        for task in tasks
        for qid, first in by_label[compared.label][task][0].clusters[""].items()
    }
    found = {
        other: differences(
            one[compared.label],
            one[other],
            task=tasks[0],
            clusters={"": clusters},
            draws=compared.draws,
            seed=compared.seed,
        )[main]
        for other in list(by_label)[1:]
    }
    return {label: sum(s[main] for s in seeds) / len(seeds) for label, seeds in one.items()}, found


def pooled(seeds: Sequence[TaskScores], name: str) -> float:
    """The mean over seeds of a metric, as a fraction."""
    return sum(float(each.scores[name]) for each in seeds) / len(seeds)
