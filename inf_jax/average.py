"""Averages checkpoints of a run with each other, with its base, or with those of other runs.

    python -m inf_jax.average --config=medquad_minilm --of=base,newest
    python -m inf_jax.average --config=medquad_minilm --of base:0.25,newest base:0.5,newest --score

A mixture (`--of`) is a list of parts with commas between: `newest`, `best` or a step of the run,
`base` (what the run began with), or the out_dir, or its checkpoints/STEP, of another run of the
same model. `:W` behind a part is its weight, 1 if it is left out; weights are divided by their sum.
Takes the config and flags of `inf_jax.train`, as `evaluate` does.

`--score` scores each mixture on eval.split, as `evaluate` does; the table is in
`<out_dir>/average.json` as well. The mixture, or of several that with the best score (`--best`),
is written to `--out`, an out_dir with one checkpoint: `evaluate` and `export` take it by
`--config.out_dir=DIR`, another run by `--config.model.start_from=DIR`. LoRA adapters are merged
before, so that of such a run the keys that the output names must be given as well.
Sources: model soups (arXiv 2203.05482), WiSE-FT (arXiv 2109.01903), slerp as in mergekit.
"""

import json
import math
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from inf_jax.checkpoints import manager as checkpoint
from inf_jax.checkpoints.resume import check_start
from inf_jax.config.command_line import command_line, run
from inf_jax.config.defaults import run_config
from inf_jax.config.resume import as_saved
from inf_jax.config.schema import set_value, value_of
from inf_jax.core.cli_flags import FlagParser, check_choice
from inf_jax.core.console import table
from inf_jax.core.errors import UsageError, UserError
from inf_jax.core.trees import select
from inf_jax.data.from_config import eval_config
from inf_jax.distributed.coordination import is_primary
from inf_jax.distributed.entry_point import run_distributed
from inf_jax.evaluation.scores import METRICS
from inf_jax.io import storage
from inf_jax.models.hf.backbone import load_model
from inf_jax.monitoring.compilation import use_compilation_cache
from inf_jax.optim.averages import add_scaled, slerp
from inf_jax.training.initial_params import (
    checkpoint_of_run,
    find_start,
    start_params,
    trained_params,
)
from inf_jax.training.parameters import make_partition
from inf_jax.training.retrieval import (
    check_limits,
    evaluation_mesh,
    retrieval_task,
    score_retrieval,
)

METHODS = ("mean", "slerp")
_MERGED = {  # of a run with adapters, in the config of the average
    "model.lora_rank": 0,
    "model.freeze": "",
    "model.freeze_layers": 0,
    "model.frozen_dtype": "float32",
}


class Part(NamedTuple):
    """A model in a mixture: newest, best, a step, base or another run's path; and its share."""

    name: str
    share: float

    @property
    def of_the_run(self) -> bool:
        """Whether it is a checkpoint of the run itself."""
        return self.name in ("newest", "best") or self.name.isdecimal()


def parse_mixture(text: str) -> tuple[Part, ...]:
    """The parts of `base:0.5,newest`, with shares that add up to 1; UsageError where it is none."""
    names, weights = [], []
    for entry in text.split(","):
        name, _, weight = entry.strip().rpartition(":")
        try:
            weights.append(float(weight) if name else 1.0)
        except ValueError:  # the colon of gs://
            name, weights = entry.strip(), [*weights, 1.0]
        names.append(name or weight)
    bad = [w for w in weights if not 0 < w < math.inf]
    if bad or not all(names):
        what = f"the weight {bad[0]:g} is not above 0" if bad else "a part has no name"
        raise UsageError(f"--of {text}: {what}; write it like base:0.5,newest")
    if len(set(names)) < len(names):
        raise UsageError(f"--of {text}: a part is named twice")
    total = sum(weights)
    return tuple(Part(n, w / total) for n, w in zip(names, weights, strict=True))


class _Models:
    """The models that a mixture may have as parts."""

    def __init__(self, resolved: ConfigDict, mesh: Mesh):
        self.config, self._resolved, self._mesh = run_config(resolved), resolved, mesh
        self.directory = storage.as_path(self.config.out_dir) / "checkpoints"
        self.model = load_model(self.config)
        self.partition = make_partition(self.config, self.model.encoder)

    def saved(self, part: Part) -> checkpoint.Saved:
        """The record of a checkpoint of the run."""
        return checkpoint_of_run(self.directory, self._resolved, which=part.name, purpose="average")

    def params(self, part: Part, newest: checkpoint.Saved) -> tuple[dict, str]:
        """({tower: tree}, float32, without adapters; the fingerprint of what it is)."""
        if part.of_the_run:
            saved = self.saved(part)
            found = trained_params(self.directory, saved, self.config, self.model, self._mesh)
            return found.params, saved.fingerprint
        if part.name == "base":
            start = find_start(self.config.model.start_from, newest.info)
            found = start_params(self.model, self.partition, self._mesh, start)
            check_start(newest.info, found[1], f"model.name={self.config.model.name}")
            return found
        start = find_start(part.name, key="--of")
        return start_params(self.model, self.partition, self._mesh, start)

    def average(
        self, mixture: tuple[Part, ...], method: str, newest: checkpoint.Saved
    ) -> tuple[dict, list[dict[str, Any]]]:
        """The average of a mixture, and what it was made of, as plain values."""
        record, total = [], None
        for part in mixture:
            params, fingerprint = self.params(part, newest)
            record.append({"part": part.name, "share": part.share, "fingerprint": fingerprint})
            if total is None:
                total = params if method == "slerp" else _scaled(params, part.share)
            elif method == "slerp":
                total = slerp(total, params, part.share)
            else:
                total = add_scaled(total, params, part.share)
        return total, record


@jax.jit
def _scaled(tree: dict, factor: float) -> dict:
    return jax.tree.map(lambda x: x * factor, tree)


def main(
    resolved: ConfigDict,
    *,
    of: list[str],
    method: str = "mean",
    out: str = "",
    score: bool = False,
    best: str = "",
) -> None:
    """Averages, scores and writes.

    Args:
      of: mixtures, as of `parse_mixture`.
      method: one of `METHODS`.
      out: directory; "": <out_dir>/average.
      score: score each mixture.
      best: metric by which one of several mixtures is written.

    Raises:
      UserError: a part is missing or is another model, settings differ from those of the training,
        or `out` holds a run.
    """
    mixtures = [parse_mixture(text) for text in of]
    _check(mixtures, method, out=out, score=score, best=best)
    config = run_config(resolved)
    use_compilation_cache(config.train.compilation_cache)
    out_dir = storage.as_path(config.out_dir)
    target = storage.as_path(out) if out else out_dir / "average"
    writes = len(mixtures) == 1 or best
    storage.check_access(target if writes else out_dir)
    if writes and (target / "checkpoints").exists():
        raise UserError(f"{target}: holds checkpoints already; delete it, or give another --out")
    mesh = evaluation_mesh(config)
    models, task = _Models(resolved, mesh), None
    if score:
        check_limits(config, models.model)
        task = retrieval_task(config)
    rows: list[dict[str, Any]] = []
    kept = None
    for text, mixture in zip(of, mixtures, strict=True):
        own = [models.saved(part) for part in mixture if part.of_the_run]
        own = own or [models.saved(Part("newest", 1.0))]
        newest = max(own, key=lambda saved: saved.step)
        params, record = models.average(mixture, method, newest)
        scores = {}
        if task is not None:
            scores = score_retrieval(config, models.model, task, params, mesh, label=text)[None]
        rows.append({"of": text, "method": method, "parts": record, "scores": scores})
        if best and best not in scores:
            raise UserError(f"--best={best}: this task has the scores {', '.join(scores)}")
        if writes and (kept is None or scores[best] > kept[0]):
            kept = scores.get(best, 0.0), rows[-1], params, newest
        del params
    if score and is_primary():
        source = eval_config(config).data.source
        _print_scores(f"{source} {config.eval.split}, {method}", rows)
    if kept is not None:
        _write(target, models, resolved, *kept[1:])
    if is_primary():
        result = {"mixtures": rows, "written": kept and {"of": kept[1]["of"], "to": str(target)}}
        with storage.new_file(out_dir / "average.json") as file:
            file.write(json.dumps(result, indent=2).encode() + b"\n")
        print(f"wrote {out_dir}/average.json")


def _check(
    mixtures: list[tuple[Part, ...]], method: str, *, out: str, score: bool, best: str
) -> None:
    for mixture in mixtures:
        if method == "slerp" and len(mixture) > 2:
            named = ",".join(part.name for part in mixture)
            raise UsageError(f"--method=slerp: is of two parts, {named} has {len(mixture)}")
    if method == "slerp" and all(len(mixture) == 1 for mixture in mixtures):
        raise UsageError("--method=slerp: is of two parts, and no mixture has two")
    if best:
        check_choice("--best", best, tuple(METRICS))
    if best and not score:
        raise UsageError("--best: needs --score")
    if best and len(mixtures) == 1:
        raise UsageError("--best: there is one mixture, which is written; leave it out")
    if len(mixtures) > 1 and out and not best:
        raise UsageError("--out: of several mixtures one is written with --score and --best")
    if len(mixtures) > 1 and not score:
        raise UsageError(
            "--of: several mixtures are for --score, and there is none; give it, or join the parts "
            "of one mixture by commas"
        )


def _write(
    target: storage.AnyPath,
    models: _Models,
    resolved: ConfigDict,
    row: dict[str, Any],
    params: dict,
    newest: checkpoint.Saved,
) -> None:
    """Writes an average as the one checkpoint of an out_dir."""
    changed, info = resolved.copy_and_resolve_references(), newest.info
    if models.partition.lora:
        for key, value in _MERGED.items():
            set_value(changed, key, value)
        info = info._replace(frozen="")
    else:
        params = select(params, lambda path: path not in models.partition.frozen)
    made = {"mixture": row["of"], "method": row["method"], "parts": row["parts"]}
    record = as_saved(changed, newest.config) | {checkpoint.AVERAGED: made}
    with checkpoint.make_manager(str(target / "checkpoints"), keep=1) as manager:
        checkpoint.save(manager, {"params": params}, info, config=record)
        with checkpoint.writing(manager):
            manager.wait_until_finished()
    if not is_primary():
        return
    with storage.new_file(target / "command.txt") as file:
        file.write(f"{command_line()}\n".encode())
    other = [k for k in _MERGED if value_of(changed, k) != value_of(resolved, k)]
    flags = [f"--config.{key}={value_of(changed, key)!r}" for key in other]
    more = f" {' '.join(flags)}" if flags else ""
    print(f"{row['of']}: wrote {target}; evaluate and export take --config.out_dir={target}{more}")


def _print_scores(title: str, rows: list[dict[str, Any]]) -> None:
    names = list(rows[0]["scores"])
    lines = [(row["of"], *(f"{row['scores'][name]:.1f}" for name in names)) for row in rows]
    table(title, lines, header=("times 100", *(METRICS[name] for name in names)))


def _flags(parser: FlagParser) -> None:
    parser.add(
        "--of",
        "mixtures, e.g. base:0.5,newest or 100,200,newest; several with spaces between",
        default=["base,newest"],
        metavar="MIXTURE",
        many=True,
    )
    parser.add("--method", "weighted mean, or the arc of two", default="mean", choices=METHODS)
    text = "out_dir of the average; empty: OUT_DIR/average"
    parser.add("--out", text, default="", metavar="DIR")
    parser.add_boolean("--score", "score each mixture on eval.split")
    parser.add("--best", "score by which one of several mixtures is written", default="")


if __name__ == "__main__":
    run(run_distributed(main), __doc__, define=_flags)
