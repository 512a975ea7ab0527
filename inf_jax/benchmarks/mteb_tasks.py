"""Retrieval tasks of mteb (extra mteb), from local copies of their repositories.

mteb reads the files of a task; embedding, search and metrics are ours, equal to mteb's own run
(tests/inf_jax/benchmarks/test_mteb.py). mteb is imported when a task is asked for, since that takes
seconds.
"""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from inf_jax.benchmarks.hub_tasks import hub_rows, repository, unique
from inf_jax.benchmarks.placement import prompt_of_task
from inf_jax.benchmarks.task import BenchmarkTask, TaskSource, by_suffix
from inf_jax.core.errors import UserError, first_line
from inf_jax.text.templates import document_text

# Suite -> name of mteb's benchmark, or its tasks.
SUITES: dict[str, str | tuple[str, ...]] = {
    "followir": "FollowIR",
    "mfollowir": ("mFollowIR", "mFollowIRCrossLingual"),
    "instructir": ("InstructIR",),
    # mteb's list of them is not among its benchmarks
    "ifir": tuple(f"IFIR{n}" for n in "Aila Cds FiQA Fire NFCorpus Pm Scifact".split()),
    "bright": "BRIGHT(v1.1)",
    "nanobeir": "NanoBEIR",
    "beir": "BEIR",
    "nevir": ("NevIR",),
}
_FOLLOWIR = (
    "Core17InstructionRetrieval",
    "News21InstructionRetrieval",
    "Robust04InstructionRetrieval",
)
_P_MRR = (*_FOLLOWIR, *SUITES["mfollowir"])


def mteb_sources(name: str, data_dir: Path) -> list[TaskSource]:
    """The tasks of a suite, or the one task of mteb with this name.

    Raises:
      UserError: mteb is not installed, there is no such task, it is not a text retrieval task, or
        its files are missing, with the commands that fetch them.
    """
    try:
        import mteb
    except ImportError:
        raise UserError(
            f"{name}: public benchmarks need the extra mteb: pip install 'inf_jax[mteb]'"
        ) from None
    chosen = SUITES.get(name, (name,))
    if isinstance(chosen, str):
        found = list(mteb.get_benchmark(chosen).tasks)
    else:
        try:
            found = [mteb.get_task(each) for each in chosen]
        except KeyError as error:
            raise UserError(
                f"--suite: {name!r} is neither a directory, a suite ({', '.join(SUITES)}, mair, "
                f"infosearch) nor a task of mteb ({first_line(error)})"
            ) from None
    tasks = [(part, task) for task in found for part in getattr(task, "tasks", None) or [task]]
    wanted = {}
    for part, _ in tasks:
        _check(part)
        wanted[part.metadata.dataset["path"]] = part.metadata.dataset.get("revision") or ""
    places = repository(data_dir, wanted, name)
    return [
        TaskSource(
            f"{part.metadata.name}{label}",
            _suite(part.metadata.name, name),
            lambda part=part, whole=whole, subset=subset, split=split: read_task(
                part,
                subset,
                split,
                directory=places[part.metadata.dataset["path"]],
                suite=_suite(part.metadata.name, name),
                family=whole.metadata.name,
            ),
        )
        for part, whole in tasks
        for subset, split, label in _parts(part)
    ]


def read_task(
    task: Any, subset: str, split: str, *, directory: Path | None, suite: str, family: str = ""
) -> BenchmarkTask:
    """A split of a task of mteb.

    Args:
      task: an `mteb.AbsTaskRetrieval`.
      directory: where its repository is; None: the task holds its data already.

    Raises:
      UserError: the files are not readable, or it has something that is not covered.
    """
    task = copy.copy(task)
    if directory is not None:
        here = {**task.metadata.dataset, "path": str(directory)}
        task.metadata = task.metadata.model_copy(update={"dataset": here})
        try:
            task.load_data()
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{directory}: {first_line(error)}; download it again") from None
    task.convert_v1_dataset_format_to_v2(num_proc=None)
    data = task.dataset[subset][split]
    label = {(s, p): text for s, p, text in _parts(task)}[subset, split]
    name = f"{task.metadata.name}{label}"
    judged = {str(q): dict(each) for q, each in data["relevant_docs"].items() if each}
    queries = {}
    for row in data["queries"]:
        if not isinstance(row["text"], str):
            raise UserError(f"{name}: query {row['id']!r} is a conversation, which is not covered")
        if row["id"] in judged:
            if row["id"] in queries:
                raise UserError(f"{name}: query id {row['id']!r} occurs twice")
            queries[row["id"]] = (row["text"], row.get("instruction") or "")
    qrels = {qid: judged[qid] for qid in queries}
    kind, changed = task.metadata.name, {}
    if kind in _P_MRR and directory is not None:
        language = "" if kind in _FOLLOWIR else f"-{subset.removeprefix('eng-')}"
        rows = hub_rows(directory, f"qrel_diff{language}", "qrel_diff")
        changed = {str(row["query-id"]): list(row["corpus-ids"]) for row in rows}
    subsets = by_suffix(list(queries), ("og", "changed")) if changed else {}
    if suite == "ifir":
        levels = {f"level_{n}": [q for q in queries if _level(q) == n] for n in (1, 2, 3)}
        subsets |= {level: members for level, members in levels.items() if members}
    return BenchmarkTask(
        name=name,
        suite=suite,
        corpus=unique(
            ((r["id"], document_text(r.get("title"), r["text"])) for r in data["corpus"]), name
        ),
        queries=queries,
        qrels=qrels,
        main=_main(task.metadata.main_score),
        candidates=data["top_ranked"],
        ignore_identical_ids=task.ignore_identical_ids,
        changed=changed,
        groups={q: q.split("_")[0] for q in queries} if kind == "InstructIR" else {},
        pairs=kind == "NevIR",
        subsets=subsets,
        prompt=prompt_of_task(task.metadata),
        family=family,
    )


def _check(task: Any) -> None:
    """UserError for a task that is not one of text retrieval, or whose main metric is not ours."""
    metadata = task.metadata
    if not hasattr(task, "ignore_identical_ids") or list(metadata.modalities) != ["text"]:
        raise UserError(f"{metadata.name} is not a text retrieval task of mteb; leave it out")
    if task.skip_first_result or tuple(task.k_values) != (1, 3, 5, 10, 20, 100, 1000):
        raise UserError(f"{metadata.name} skips results or has cut-offs of its own: not covered")
    if metadata.main_score == "p-MRR" and metadata.name not in _P_MRR:
        raise UserError(f"{metadata.name}: p-MRR is covered for {', '.join(_P_MRR)} only")


def _suite(task: str, asked: str) -> str:
    """The suite that a task belongs to, also where it is asked for alone."""
    if asked in SUITES:
        return asked
    if task in _FOLLOWIR:
        return "followir"
    if task in SUITES["mfollowir"]:
        return "mfollowir"
    prefixes = {"InstructIR": "instructir", "IFIR": "ifir", "Bright": "bright", "NevIR": "nevir"}
    return next((s for prefix, s in prefixes.items() if task.startswith(prefix)), "mteb")


def _main(name: str) -> str:
    return {"p-MRR": "p_mrr"}.get(name, name).replace("_at_", "@")


def _level(qid: str) -> int:
    """The level of an IFIR query, as mteb reads it from the id."""
    return next((n for n in (1, 2, 3) if f"v{n}" in qid), 0)


def _parts(task: Any) -> Iterator[tuple[str, str, str]]:
    """(subset, split, what tells it from the others in its name) of a task."""
    subsets = list(task.hf_subsets) if task.metadata.is_multilingual else ["default"]
    for subset in subsets:
        for split in task.eval_splits:
            label = f"/{subset}" * (len(subsets) > 1) + f"/{split}" * (len(task.eval_splits) > 1)
            yield subset, split, label
