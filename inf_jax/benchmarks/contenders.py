"""Scores one model on tasks: an export, any model that `inf_jax.load` opens, or BM25."""

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping, Sequence

from inf_jax.benchmarks.bm25 import run_of_bm25
from inf_jax.benchmarks.noise import NoisyScores, noisy_task
from inf_jax.benchmarks.placement import instructions, only_prompts, task_template
from inf_jax.benchmarks.scoring import clusters_of, score_run
from inf_jax.benchmarks.searching import run_of_vectors
from inf_jax.benchmarks.task import BenchmarkTask, TaskSource
from inf_jax.core.errors import UserError
from inf_jax.evaluation.bm25 import SETTINGS
from inf_jax.inspection.rankings import KeptRun, keep_run
from inf_jax.metrics.runs import Run, Score, without_identical_ids
from inf_jax.models.hf.resolve import resolve_model
from inf_jax.retriever.loading import load
from inf_jax.retriever.retriever import Retriever
from inf_jax.retriever.settings import SETTINGS_FILE

BM25 = "bm25"
_Rank = Callable[[BenchmarkTask], dict[str, dict[str, float]]]


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """How models are opened, and their instructions placed and perturbed.

    Attributes:
      placement: see `benchmarks.placement.query_template`.
      dtype, mask: see `inf_jax.load`.
      noise: kinds of noise in instructions, of `text.noise.RULES`; each is scored as well.
      noise_seed: of the draws of noise.
      inspect: keep of the runs what `inspect.html` shows.
    """

    placement: str = "benchmark"
    dtype: str = "float32"
    mask: str = "model"
    noise: Sequence[str] = ()
    noise_seed: int = 0
    inspect: bool = False


@dataclasses.dataclass(frozen=True)
class TaskScores:
    """What is kept of a task that a model was scored on: its texts are not.

    Attributes:
      name, suite, family, main, subsets: as of `BenchmarkTask`; no family is the task's own name.
      queries, documents: their numbers.
      scores: as of `scoring.score_run`.
      clusters: as of `scoring.clusters_of`.
      template: of an instructed query, as the model got it.
      instruction: whose it is.
      noise: kind -> the scores with noise in the instructions; empty where a model got none.
      kept: of the run, where it is inspected.
    """

    name: str
    suite: str
    family: str
    main: str
    subsets: Mapping[str, Sequence[str]]
    queries: int
    documents: int
    scores: Mapping[str, Score]
    clusters: Mapping[str, Mapping[str, str]]
    template: str
    instruction: str
    noise: Mapping[str, NoisyScores] = dataclasses.field(default_factory=dict)
    kept: KeptRun | None = None

    @property
    def questions(self) -> int:
        """Number of clusters of queries, which the intervals draw."""
        return len(set(self.clusters[""].values()))


def check_models(models: Sequence[str], is_run: Callable[[str], bool]) -> None:
    """UserError where there is no such model, or a library is missing that the models or the files
    of results need: before anything takes long. `is_run`: of a name that is no model's, but a
    run's."""
    needed = ["pyarrow", *(["bm25s"] if BM25 in models else [])]
    for name in needed:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"inf_jax.benchmark needs {name}: pip install 'inf_jax[benchmark]' (the extra)"
            )
    for name in models:
        if name != BM25 and not is_run(name):
            directory = resolve_model(name)
            if not any(
                (directory / f).exists() for f in ("config.json", "modules.json", SETTINGS_FILE)
            ):
                raise UserError(
                    f"model {name!r}: {directory} has no config.json; name a model there"
                )


def score_model(
    name: str,
    sources: Sequence[TaskSource],
    options: ModelOptions,
    *,
    open_model: Callable[..., Retriever] = load,
    template: str = "",
) -> dict[str, TaskScores]:
    """The scores of a model by the names of the tasks.

    Args:
      name: "bm25", or a model as of `open_model`.
      open_model: as `inf_jax.load`.
      sources: the tasks; one at a time is in memory.
      template: in place of the benchmark's and the model's.

    Raises:
      UserError: no such model, or a task that cannot be read or scored.
    """
    retriever = None
    if name != BM25:
        retriever = open_model(name, dtype=options.dtype, mask=options.mask)
    found = {}
    for source in sources:
        task = source.load()
        if retriever is None:
            rank, used, whose = run_of_bm25, SETTINGS, "each query's"
            whose = whose if task.instructed else "none"
        else:
            rank, used, whose = _ranker(task, retriever, options.placement, template, name)
        run = rank(task)
        found[source.name] = TaskScores(
            name=source.name,
            suite=task.suite,
            family=task.family or source.name,
            main=task.main,
            subsets=task.subsets,
            queries=len(task.queries),
            documents=len(task.corpus),
            scores=score_run(task, run),
            clusters=clusters_of(task),
            template=used,
            instruction=whose,
            noise={} if whose == "none" else _with_noise(task, rank, options),
            kept=_kept(task, run) if options.inspect else None,
        )
    return found


def _kept(task: BenchmarkTask, run: Run) -> KeptRun:
    if task.ignore_identical_ids:
        run = without_identical_ids(run)
    return keep_run(run, task.relevant, task.instruction_groups)


def _with_noise(task: BenchmarkTask, rank: _Rank, options: ModelOptions) -> dict[str, NoisyScores]:
    found = {}
    for kind in options.noise:
        noisy, changed = noisy_task(task, kind, options.noise_seed)
        found[kind] = NoisyScores(score_run(noisy, rank(noisy)), changed)
    return found


def _ranker(
    task: BenchmarkTask, retriever: Retriever, placement: str, template: str, name: str
) -> tuple[_Rank, str, str]:
    """(what ranks the task's documents for its queries, also for those of the same task with other
    instructions, template, whose instructions) of a dense model."""
    used = template or task_template(retriever.config, task, placement)
    if used:
        retriever = retriever.with_query_template(used)
    whose = instructions(task, used)[1]
    label = f"{name}, {task.name}"
    documents = retriever.encode_passages(task.corpus.values(), progress=f"{label}: documents")

    def rank(asked: BenchmarkTask) -> dict[str, dict[str, float]]:
        given, _ = instructions(asked, used)
        queries = [query for query, _ in asked.queries.values()]
        if placement == "mteb" and used and only_prompts(used):  # as one text: its end may be cut
            both = zip(queries, given, strict=True)
            queries = [f"{query} {each}" if each else query for query, each in both]
            given = [""] * len(given)
        return run_of_vectors(
            asked,
            retriever.encode_queries(queries, given, progress=f"{label}: queries"),
            documents,
            similarity=retriever.config.similarity,
            mesh=retriever.mesh,
        )

    return rank, used or "query and instruction are encoded separately", whose
