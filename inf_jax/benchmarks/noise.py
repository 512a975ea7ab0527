"""Tasks with noise in their instructions, and what a model's scores lose by it."""

import dataclasses
from collections.abc import Mapping, Sequence

from inf_jax.benchmarks.bootstrap import Difference, differences
from inf_jax.benchmarks.task import BenchmarkTask
from inf_jax.metrics.runs import Score
from inf_jax.text.noise import perturbed

_Scores = Mapping[str, Score]


@dataclasses.dataclass(frozen=True)
class NoisyScores:
    """A model's scores of a task under one kind of noise, and how many instructions it changed."""

    scores: _Scores
    changed: int


def noisy_task(task: BenchmarkTask, kind: str, seed: int) -> tuple[BenchmarkTask, int]:
    """The task with noise in its instructions, and in how many of them it changed anything.

    The draws for an instruction depend on the seed, its query's id and itself alone.

    Args:
      kind: of `text.noise.RULES`.
    """
    queries = {
        qid: (query, perturbed(instruction, kind, f"{seed} {qid}"))
        for qid, (query, instruction) in task.queries.items()
    }
    prompt = perturbed(task.prompt, kind, f"{seed}")
    changed = sum(queries[qid] != query for qid, query in task.queries.items())
    if not task.instructed:
        changed = len(queries) * (prompt != task.prompt)
    return dataclasses.replace(task, queries=queries, prompt=prompt), changed


def losses(
    clean: Sequence[_Scores],
    noisy: Sequence[_Scores],
    *,
    task: str,
    clusters: Mapping[str, Mapping[str, str]] | None = None,
    draws: int,
    seed: int,
) -> dict[str, Difference]:
    """What each metric loses by noise, without minus with it, with its paired interval.

    Args:
      clean, noisy: metric -> Score, for each seed of the model; pairs are of one query and seed.
      task, clusters, draws, seed: as of `bootstrap.differences`.
    """
    lost = [
        {
            name: Score({q: v - b[name].per_query[q] for q, v in score.per_query.items()})
            for name, score in a.items()
        }
        for a, b in zip(clean, noisy, strict=True)
    ]
    nothing = {name: Score(dict.fromkeys(each.per_query, 0.0)) for name, each in lost[0].items()}
    return differences(lost, [nothing], task=task, clusters=clusters, draws=draws, seed=seed)
