"""Scores one model on tasks: an export, any model that `inf_jax.load` opens, or BM25."""

import dataclasses
import importlib.util
from collections.abc import Mapping, Sequence

from inf_jax.benchmarks.bm25 import SETTINGS, run_of_bm25
from inf_jax.benchmarks.placement import instructions, only_prompts, task_template
from inf_jax.benchmarks.scoring import score_run
from inf_jax.benchmarks.searching import run_of_vectors
from inf_jax.benchmarks.task import BenchmarkTask, TaskSource
from inf_jax.core.errors import UserError
from inf_jax.metrics.runs import Score
from inf_jax.models.hf.resolve import resolve_model
from inf_jax.retriever.loading import load
from inf_jax.retriever.retriever import Retriever
from inf_jax.retriever.settings import SETTINGS_FILE

BM25 = "bm25"


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """How models are opened and their instructions placed.

    Attributes:
      placement: see `benchmarks.placement.query_template`.
      dtype, mask: see `inf_jax.load`.
    """

    placement: str = "benchmark"
    dtype: str = "float32"
    mask: str = "model"


@dataclasses.dataclass(frozen=True)
class TaskScores:
    """What is kept of a task that a model was scored on: its texts are not.

    Attributes:
      name, suite, family, main, subsets: as of `BenchmarkTask`; no family is the task's own name.
      queries, documents: their numbers.
      scores: as of `scoring.score_run`.
      template: of an instructed query, as the model got it.
      instruction: whose it is.
    """

    name: str
    suite: str
    family: str
    main: str
    subsets: Mapping[str, Sequence[str]]
    queries: int
    documents: int
    scores: Mapping[str, Score]
    template: str
    instruction: str


def check_models(models: Sequence[str]) -> None:
    """UserError where there is no such model, or a library is missing that the models or the files
    of results need: before anything takes long."""
    needed = ["pyarrow", *(["bm25s"] if BM25 in models else [])]
    for name in needed:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"inf_jax.benchmark needs {name}: pip install 'inf_jax[benchmark]' (the extra)"
            )
    for name in models:
        if name != BM25:
            directory = resolve_model(name)
            if not any(
                (directory / f).exists() for f in ("config.json", "modules.json", SETTINGS_FILE)
            ):
                raise UserError(
                    f"model {name!r}: {directory} has no config.json; name a model there"
                )


def score_model(
    name: str, sources: Sequence[TaskSource], options: ModelOptions, *, template: str = ""
) -> dict[str, TaskScores]:
    """The scores of a model by the names of the tasks.

    Args:
      name: "bm25", or a model as of `inf_jax.load`.
      sources: the tasks; one at a time is in memory.
      template: in place of the benchmark's and the model's.

    Raises:
      UserError: no such model, or a task that cannot be read or scored.
    """
    retriever = None if name == BM25 else load(name, dtype=options.dtype, mask=options.mask)
    found = {}
    for source in sources:
        task = source.load()
        if retriever is None:
            run, used, whose = run_of_bm25(task), SETTINGS, "each query's"
            whose = whose if task.instructed else "none"
        else:
            run, used, whose = _run(task, retriever, options.placement, template, name)
        found[source.name] = TaskScores(
            name=source.name,
            suite=task.suite,
            family=task.family or source.name,
            main=task.main,
            subsets=task.subsets,
            queries=len(task.queries),
            documents=len(task.corpus),
            scores=score_run(task, run),
            template=used,
            instruction=whose,
        )
    return found


def _run(
    task: BenchmarkTask, retriever: Retriever, placement: str, template: str, name: str
) -> tuple[dict[str, dict[str, float]], str, str]:
    """(run, template, whose instructions) of a dense model."""
    used = template or task_template(retriever.config, task, placement)
    if used:
        retriever = retriever.with_query_template(used)
    given, whose = instructions(task, used)
    queries = [query for query, _ in task.queries.values()]
    if placement == "mteb" and used and only_prompts(used):  # as one text, whose end may be cut
        both = zip(queries, given, strict=True)
        queries = [f"{query} {each}" if each else query for query, each in both]
        given = [""] * len(given)
    label = f"{name}, {task.name}"
    run = run_of_vectors(
        task,
        retriever.encode_queries(queries, given, progress=f"{label}: queries"),
        retriever.encode_passages(task.corpus.values(), progress=f"{label}: documents"),
        similarity=retriever.config.similarity,
        mesh=retriever.mesh,
    )
    return run, used or "query and instruction are encoded separately", whose
