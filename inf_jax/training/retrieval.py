"""Scores a model on its retrieval task: in `inf_jax.evaluate`, and at steps of a training run.

The task is that of eval.split, or of the directory eval.benchmark, whose scores are those that
`inf_jax.benchmark` gives the exported model.
"""

import dataclasses
import math
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from inf_jax.benchmarks.beir_files import read_beir
from inf_jax.benchmarks.scoring import score_run
from inf_jax.benchmarks.searching import run_of_vectors
from inf_jax.benchmarks.task import BenchmarkTask
from inf_jax.config.sections import RunConfig
from inf_jax.core.choices import RETRIEVAL_METRICS
from inf_jax.core.errors import UserError
from inf_jax.data.from_config import dataset_dir, eval_config
from inf_jax.data.tokenise import read_examples
from inf_jax.distributed.coordination import is_primary
from inf_jax.distributed.mesh import make_mesh
from inf_jax.evaluation.scores import METRICS, metrics_of, score_task
from inf_jax.evaluation.task import Task, capped, task_from_examples
from inf_jax.models.hf.backbone import Backbone
from inf_jax.models.hf.config import read_config
from inf_jax.retriever.encode import shortened
from inf_jax.retriever.from_config import chunk_tokens, retriever_config
from inf_jax.retriever.retriever import Retriever
from inf_jax.training.parameters import ParameterPartition
from inf_jax.training.step import TrainState

Scores = dict[int | None, dict[str, float]]  # by number of first entries; None: all


def retrieval_task(config: RunConfig) -> Task | BenchmarkTask:
    """The task of eval.benchmark or eval.split, capped by eval.max_passages. Raises UserError."""
    if config.eval.benchmark:
        directory = Path(config.eval.benchmark).expanduser()
        if not directory.is_dir():
            raise UserError(f"eval.benchmark={config.eval.benchmark!r}: no such directory")
        task = read_beir(
            directory,
            split=config.eval.benchmark_split,
            identical_ids=config.eval.identical_ids or None,
            most=config.eval.max_passages,
            flag="--config.eval.identical_ids",
        )
        return dataclasses.replace(task, top_k=config.eval.top_k)
    directory = dataset_dir(eval_config(config))
    task = task_from_examples(read_examples(directory, config.eval.split))
    return capped(task, config.eval.max_passages) if config.eval.max_passages else task


def scores_of(task: Task | BenchmarkTask) -> list[str]:
    """The keys of `evaluation.scores.METRICS` that `score_retrieval` gives for a task."""
    if isinstance(task, Task):
        return metrics_of(task)
    absent = {"within_focus_accuracy": True, "p_mrr": not task.changed}
    absent["robustness@10"] = not task.groups
    return [name for name in METRICS if not absent.get(name)]


def evaluation_mesh(config: RunConfig) -> Mesh:
    """A mesh of the devices of all processes; a copy of the model is split over as many of them as
    divide the number in training."""
    return make_mesh(fsdp=math.gcd(config.mesh.fsdp * config.mesh.tensor, jax.device_count()))


def check_limits(config: RunConfig, model: Backbone) -> None:
    """Names the key of a value that the model does not allow, before anything is read."""
    limit, positions = config.eval.max_passage_tokens, model.encoder.config.max_positions
    if limit > positions:
        raise UserError(
            f"eval.max_passage_tokens={limit}, but {model.directory} has {positions} positions; "
            "lower it"
        )
    dims = tuple(config.eval.dims)
    if max(dims, default=0) > model.encoder.width:
        raise UserError(f"eval.dims={dims}: the vectors have {model.encoder.width} entries")


def score_retrieval(
    config: RunConfig,
    model: Backbone,
    task: Task | BenchmarkTask,
    params: dict,
    mesh: Mesh,
    *,
    label: str = "",
) -> Scores:
    """Embeds a task once and scores it for each of eval.dims; the same in all processes.

    Args:
      params: {tower: tree} on the mesh, float32, without adapters.
      mesh: its devices share the texts, and the passages of the search.
      label: of the progress bars; "": none.
    """
    settings = retriever_config(config)
    retriever = Retriever(
        params,
        settings,
        shape=read_config(model.directory).with_mask(config.model.mask),
        tokenizer=model.tokenizer,
        dtype=config.model.dtype,
        attention=config.model.attention,
        mesh=mesh,
        chunk_tokens=chunk_tokens(config),
    )
    searches = task.searches if isinstance(task, Task) else task.queries
    texts, instructions = zip(*searches.values(), strict=True)
    shown = label and is_primary()
    bars = [f"{label}: {role}" if shown else False for role in ("queries", "passages")]
    vectors = (
        retriever.encode_queries(texts, instructions, progress=bars[0]),
        retriever.encode_passages(task.corpus.values(), progress=bars[1]),
    )
    found: Scores = {}
    for dim in (None, *config.eval.dims):
        cut = [shortened(each, dim, normalise=settings.normalise) for each in vectors]
        if isinstance(task, Task):
            found[dim] = score_task(task, *cut, top_k=config.eval.top_k, mesh=mesh)
        else:
            run = run_of_vectors(task, *cut, similarity=settings.similarity, mesh=mesh)
            scores = score_run(task, run)
            found[dim] = {name: 100 * float(scores[name]) for name in scores_of(task)}
    return found


class StepScores:
    """The retrieval scores of a run at some of its steps: train.eval_every.

    They are those of `inf_jax.evaluate` on a checkpoint of that step.

    Raises:
      UserError: the dataset or the limits do not suit the model, or train.best_metric names a score
        that the task does not have.
    """

    def __init__(
        self, config: RunConfig, model: Backbone, partition: ParameterPartition, mesh: Mesh
    ):
        check_limits(config, model)
        self._config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, dims=()))
        self._model, self._mesh, self._task = model, mesh, retrieval_task(config)
        self._plain = jax.jit(partition.plain)
        self._partition = partition
        best, names = config.train.best_metric, scores_of(self._task)
        self._for_best = config.train.keep_best and best in RETRIEVAL_METRICS
        if self._for_best and best.removeprefix("dev/") not in names:
            raise UserError(
                f"train.best_metric={best!r}: no query of "
                f"{config.eval.benchmark or config.eval.split} has what it measures, as passages "
                f"that fit it under other instructions only; choose among {', '.join(names)}"
            )

    def due(self, done: int, *, saving: bool) -> bool:
        """Whether to score after `done` steps; `saving`: a checkpoint of them is due, which is
        compared by a score of its own."""
        train = self._config.train
        at = done % train.eval_every == 0 or done == train.steps
        return bool(at or (saving and self._for_best))

    def measure(self, state: TrainState) -> dict[str, np.float64]:
        """{"dev/ndcg@10": float64[]}, times 100, of a state; collective."""
        if self._partition.frozen:
            params = self._plain(state.scored, state.frozen)
        else:  # as they are, without a copy
            params = {tower: state.scored[tower] for tower in self._partition.base}
        scores = score_retrieval(self._config, self._model, self._task, params, self._mesh)[None]
        return {f"dev/{name}": np.float64(value) for name, value in scores.items()}
