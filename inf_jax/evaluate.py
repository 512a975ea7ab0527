"""Scores a run's model before and after training on the eval split.

    python -m inf_jax.evaluate --config=configs/medquad_minilm.py [--config.eval.top_k=100 ...]

Takes the config and flags of `inf_jax.train`; what may differ from the training are the sections
`eval` and `mesh`, data.source and data.version (to score other data), and what a resumed run may
change (`config.resume`). Embeds with `Retriever`, as users of the exported model do, prints base,
trained and gain side by side (`evaluation.scores` defines the scores, all times 100), and writes
`<out_dir>/eval.json` and `<out_dir>/eval.png`. Several processes, started as for
training, share the work on all their devices.
"""

import json

from ml_collections import ConfigDict

from inf_jax.benchmarks.task import BenchmarkTask
from inf_jax.checkpoints.resume import check_start
from inf_jax.config.command_line import run
from inf_jax.config.defaults import defaults, run_config
from inf_jax.config.resume import as_saved
from inf_jax.config.sections import RunConfig
from inf_jax.core.console import table
from inf_jax.core.errors import UserError, first_line
from inf_jax.data.from_config import dataset_dir, eval_config
from inf_jax.data.records import fingerprint_of
from inf_jax.data.tokenise import read_examples
from inf_jax.distributed.coordination import is_primary
from inf_jax.distributed.entry_point import run_distributed
from inf_jax.evaluation import figure
from inf_jax.evaluation.scores import METRICS
from inf_jax.evaluation.task import Task
from inf_jax.io import storage
from inf_jax.io.json_files import read_json
from inf_jax.models.hf.backbone import load_model
from inf_jax.monitoring.compilation import use_compilation_cache
from inf_jax.monitoring.metrics_log import read_losses
from inf_jax.training.initial_params import (
    Start,
    checkpoint_of_run,
    find_start,
    start_params,
    trained_params,
)
from inf_jax.training.parameters import make_partition
from inf_jax.training.retrieval import (
    Scores,
    check_limits,
    evaluation_mesh,
    retrieval_task,
    score_retrieval,
    scores_of,
)

# Keys of an eval.json on which its base scores do not depend, besides what "dataset" says.
_NOT_OF_THE_BASE = ("eval.base_from", "eval.source", "data.source", "data.version", "data.mixture")
_NOT_OF_THE_BASE += ("data.mixture_temperature", "data.mixture_batches")
_NOT_OF_THE_BASE += ("data.max_epochs", "data.at_max_epochs", "data.repeat_in_step")


def main(resolved: ConfigDict) -> None:
    """Evaluates one run.

    Raises:
      UserError: no checkpoint, settings that differ from those of the training, or values that the
        model or the dataset does not allow.
    """
    config = run_config(resolved)
    use_compilation_cache(config.train.compilation_cache)
    out_dir = storage.as_path(config.out_dir)
    storage.check_access(out_dir)
    checkpoints = out_dir / "checkpoints"
    saved = checkpoint_of_run(
        checkpoints,
        resolved,
        which=config.eval.checkpoint,
        purpose="evaluate",
        besides=("data.source", "data.version"),
    )
    model = load_model(config)
    check_limits(config, model)
    task = retrieval_task(config)
    dataset = _dataset(config, task)
    base = None
    if config.eval.base_from:
        path = storage.as_path(config.eval.base_from)
        start, names = saved.info.start, scores_of(task)
        base = _read_base(path, dataset, resolved, start=start, names=names)
    mesh = evaluation_mesh(config)
    start = Start() if base else find_start(config.model.start_from, saved.info)
    params = trained_params(checkpoints, saved, config, model, mesh).params
    trained = score_retrieval(config, model, task, params, mesh, label="trained")
    del params  # before the base's are loaded
    if base is None:
        params, found = start_params(model, make_partition(config, model.encoder), mesh, start)
        check_start(saved.info, found, f"model.name={config.model.name}")
        base = score_retrieval(config, model, task, params, mesh, label="base")
    compared = {
        dim: {
            "base": base[dim],
            "trained": trained[dim],
            "gain": {key: value - base[dim][key] for key, value in trained[dim].items()},
        }
        for dim in trained
    }
    title = f"{dataset['source']} {dataset['split']}, step {saved.step:,}"
    if not is_primary():
        return
    asked = "instructed queries" if isinstance(task, Task) else "queries"
    counts = f"{len(task.queries):,} {asked}, {len(task.corpus):,} passages"
    for dim, scores in compared.items():
        _print_table(title if dim is None else f"{title}, the first {dim} entries", scores)
    whole = compared.pop(None)
    result = {
        **whole,
        "dims": {str(dim): scores for dim, scores in compared.items()},
        "units": "times 100",
        "step": saved.step,
        "fingerprint": saved.fingerprint,  # of the checkpoint
        "start": saved.info.start,  # fingerprint of the base
        "dataset": dataset,
        "queries": len(task.alone if isinstance(task, Task) else task.queries),
        "instructed_queries": len(task.queries),
        "passages": len(task.corpus),
        "config": as_saved(resolved),
    }
    with storage.new_file(out_dir / "eval.json") as file:
        file.write(json.dumps(result, indent=2).encode() + b"\n")
    figure.draw(
        out_dir / "eval.png",
        title=f"{title}: {counts}",
        losses=read_losses(out_dir / "metrics.jsonl"),
        bars=[(METRICS[key], whole["base"][key], value) for key, value in whole["trained"].items()],
    )
    print(f"{counts}; wrote {out_dir}/eval.json and {out_dir}/eval.png")


def _dataset(config: RunConfig, task: Task | BenchmarkTask) -> dict[str, str]:
    """What is scored, for eval.json."""
    if not isinstance(task, Task):
        split = config.eval.benchmark_split
        return {"source": task.name, "version": "", "split": split, "fingerprint": task.fingerprint}
    scored = eval_config(config)
    examples = read_examples(dataset_dir(scored), config.eval.split)  # again, without holding them
    return {
        "source": scored.data.source,
        "version": scored.data.version,
        "split": config.eval.split,
        "fingerprint": fingerprint_of(examples),
    }


def _print_table(title: str, scores: dict[str, dict[str, float]]) -> None:
    base, trained, gain = (scores[name] for name in ("base", "trained", "gain"))
    rows = [
        (name, f"{base[key]:.1f}", f"{trained[key]:.1f}", f"{gain[key]:+.1f}")
        for key, name in METRICS.items()
        if key in trained
    ]
    table(title, rows, header=("times 100", "base", "trained", "gain"))


def _read_base(
    path: storage.AnyPath, dataset: dict, config: ConfigDict, *, start: str, names: list[str]
) -> Scores:
    """The base scores, by `names`, of another run's eval.json: same start, data and settings."""

    def scores(values: dict) -> dict[str, float]:
        return {key: float(values[key]) for key in names}

    try:
        saved = read_json(path, kind=dict)
        was = {"dataset": dict(saved["dataset"])}
        was |= {name: dict(saved["config"][name]) for name in ("model", "data", "eval")}
        base: Scores = {None: scores(saved["base"])}
        base |= {int(dim): scores(each["base"]) for dim, each in saved.get("dims", {}).items()}
        other = start and saved.get("start") and saved["start"] != start
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"eval.base_from={path}: not a readable eval.json of inf_jax.evaluate "
            f'({first_line(error)}); set it to "" to measure the base here'
        ) from None
    now = {"dataset": dataset, **json.loads(json.dumps(config.to_dict()))}
    initial = json.loads(json.dumps(defaults().to_dict()))  # of keys that are newer than the file
    differ = [
        f"{section}.{key}"
        for section, values in was.items()
        for key in values | now[section]
        if f"{section}.{key}" not in _NOT_OF_THE_BASE
        and values.get(key, initial.get(section, {}).get(key)) != now[section].get(key)
    ]
    if other:
        differ.append("the weights that the run began with")
    if differ:
        raise UserError(
            f"eval.base_from={path}: its base was measured with other settings "
            f'({", ".join(differ)} differ); set it to "" to measure the base here'
        )
    return base


if __name__ == "__main__":
    run(run_distributed(main), __doc__)
